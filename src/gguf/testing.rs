//! Small GGUF files for unit tests, put together byte by byte. They are independent of `Layout` and the writer.

/// Collects entries and tensors; `build` gives the bytes of the file.
#[derive(Clone)]
pub(super) struct Builder {
    alignment: usize,
    pad_end: bool,
    metadata: Vec<Vec<u8>>,
    tensors: Vec<Tensor>,
}

#[derive(Clone)]
struct Tensor {
    name: Vec<u8>,
    dims: Vec<u64>,
    type_id: u32,
    /// Where the data is said to be; `None`: after the tensor before.
    offset: Option<u64>,
    data: Vec<u8>,
}

impl Builder {
    pub(super) fn new() -> Builder {
        Builder { alignment: 32, pad_end: true, metadata: Vec::new(), tensors: Vec::new() }
    }

    /// What is really aligned to, whatever the metadata says.
    pub(super) fn align(mut self, alignment: usize) -> Builder {
        self.alignment = alignment;
        self
    }

    pub(super) fn without_end_padding(mut self) -> Builder {
        self.pad_end = false;
        self
    }

    pub(super) fn entry(mut self, key: &str, type_id: u32, value: &[u8]) -> Builder {
        let mut bytes = string(key.as_bytes());
        bytes.extend(type_id.to_le_bytes());
        bytes.extend(value);
        self.metadata.push(bytes);
        self
    }

    pub(super) fn u32(self, key: &str, value: u32) -> Builder {
        self.entry(key, 4, &value.to_le_bytes())
    }

    pub(super) fn u64(self, key: &str, value: u64) -> Builder {
        self.entry(key, 10, &value.to_le_bytes())
    }

    pub(super) fn string(self, key: &str, value: &str) -> Builder {
        self.entry(key, 8, &string(value.as_bytes()))
    }

    pub(super) fn array(self, key: &str, type_id: u32, len: u64, elements: &[u8]) -> Builder {
        self.entry(key, 9, &array(type_id, len, elements))
    }

    pub(super) fn strings(self, key: &str, values: &[&[u8]]) -> Builder {
        let elements: Vec<u8> = values.iter().flat_map(|value| string(value)).collect();
        self.array(key, 8, values.len() as u64, &elements)
    }

    pub(super) fn tensor(self, name: &str, dims: &[u64], type_id: u32, data: &[u8]) -> Builder {
        self.raw_tensor(name.as_bytes(), dims, type_id, None, data)
    }

    pub(super) fn tensor_at(self, name: &str, offset: u64, data: &[u8]) -> Builder {
        self.raw_tensor(name.as_bytes(), &[data.len() as u64], 24, Some(offset), data)
    }

    pub(super) fn raw_tensor(
        mut self,
        name: &[u8],
        dims: &[u64],
        type_id: u32,
        offset: Option<u64>,
        data: &[u8],
    ) -> Builder {
        let (name, dims, data) = (name.to_vec(), dims.to_vec(), data.to_vec());
        self.tensors.push(Tensor { name, dims, type_id, offset, data });
        self
    }

    /// The head: everything before the tensor data, with its padding.
    pub(super) fn head(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        self.metadata.iter().for_each(|entry| bytes.extend(entry));
        let mut next = 0;
        for tensor in &self.tensors {
            bytes.extend(string(&tensor.name));
            bytes.extend(u32::try_from(tensor.dims.len()).unwrap().to_le_bytes());
            tensor.dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
            bytes.extend(tensor.type_id.to_le_bytes());
            bytes.extend(tensor.offset.unwrap_or(next).to_le_bytes());
            next += tensor.data.len().next_multiple_of(self.alignment) as u64;
        }
        self.pad(&mut bytes);
        bytes
    }

    /// The whole file. The data of the tensors follows the head in order, wherever it is said to
    /// be.
    pub(super) fn build(&self) -> Vec<u8> {
        let mut bytes = self.head();
        for (index, tensor) in self.tensors.iter().enumerate() {
            bytes.extend(&tensor.data);
            if self.pad_end || index + 1 < self.tensors.len() {
                self.pad(&mut bytes);
            }
        }
        bytes
    }

    fn pad(&self, bytes: &mut Vec<u8>) {
        // An alignment in the gigabytes is never really written.
        if self.alignment <= 4096 {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        }
    }
}

/// A string as files store it.
pub(super) fn string(bytes: &[u8]) -> Vec<u8> {
    let mut raw = (bytes.len() as u64).to_le_bytes().to_vec();
    raw.extend(bytes);
    raw
}

/// An array as files store it.
pub(super) fn array(type_id: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    let mut raw = type_id.to_le_bytes().to_vec();
    raw.extend(len.to_le_bytes());
    raw.extend(elements);
    raw
}
