//! What holds of any bytes that are read as a GGUF file.

use std::ops::Range;

use gguf_shorten::gguf::{EntryOut, Error, File, Layout, TensorOut, Value, write_head};
use gguf_shorten::model::companion::Companion;

/// Reads `bytes`. It is an error on one line, or a file of which everything can be asked, and whose head is written back bit
/// for bit.
pub fn check(bytes: &[u8]) {
    if let Some(companion) = Companion::of(&File::first_entries(bytes, 20)) {
        let text = companion.to_string();
        assert!(!text.is_empty() && !text.chars().any(char::is_control), "{text:?}");
        let _ = (companion.is_stale("llama"), companion.remedy());
    }
    match File::parse(bytes) {
        Ok(file) => {
            walk(&file);
            check_head(&file);
        }
        Err(error) => check_error(&error),
    }
}

fn check_error(error: &Error) {
    let text = error.to_string();
    assert!(!error.is_bug(), "{text}");
    assert!(text.len() < 1000 && !text.chars().any(char::is_control), "{text:?}");
    let _ = error.hint();
}

/// Asks for everything that a file holds.
fn walk(file: &File<'_>) {
    for entry in file.metadata().iter() {
        assert!(!entry.key().is_empty());
        assert_eq!(file.metadata().get(entry.key()).unwrap().raw(), entry.raw());
        walk_value(entry.value());
    }
    for tensor in file.tensors() {
        assert_eq!(tensor.bytes().len() as u64, tensor.n_bytes());
        let position = tensor.position().0 as usize;
        assert_eq!(tensor.bytes(), &file.bytes()[position..][..tensor.bytes().len()]);
        assert!(tensor.offset().0.is_multiple_of(file.alignment()));
        assert!(tensor.n_elements() == 0 || tensor.n_bytes() > 0);
        assert_eq!(file.tensors().get(tensor.name()).unwrap().position(), tensor.position());
    }
    assert_eq!(file.header().n_tensors, file.tensors().len() as u64);
    assert!(file.trailing_bytes().len() <= file.bytes().len());
}

fn walk_value(value: Value<'_>) {
    let wrong: [Option<Error>; 6] = [
        value.as_i64().err(),
        value.as_u32().err(),
        value.as_f64().err(),
        value.as_bool().err(),
        value.as_str().err(),
        value.as_array().err(),
    ];
    wrong.iter().flatten().for_each(check_error);
    let Ok(array) = value.as_array() else { return };
    assert_eq!(array.elements().count(), array.len());
    assert_eq!(array.select(0..array.len()).unwrap().raw(), value.raw());
    array.i64s().chain(array.i64s()).filter_map(Result::err).take(3).for_each(|e| check_error(&e));
    // Deep and wide arrays of arrays would take long, and add nothing.
    array.elements().take(64).for_each(walk_value);
}

/// The head as the writer has it. Offsets are in the input's order, and padding that is not zero is the input's.
fn check_head(file: &File<'_>) {
    let entries = file.metadata().iter().map(EntryOut::keep).collect();
    let tensors: Vec<_> = file.tensors().iter().map(TensorOut::keep).collect();
    let layout = Layout::new(file.header().version, file.alignment(), entries, tensors, file.ends_padded())
        .expect("what was read can be laid out");
    // A huge alignment would write gigabytes of zeros before no tensor.
    if layout.data_start().0 > file.bytes().len() as u64 + (1 << 16) {
        return;
    }
    let mut head = Vec::new();
    let end = write_head(&layout, &mut head).expect("memory takes all");
    assert_eq!((end.0, end), (head.len() as u64, layout.data_start()));
    assert!(file.tensors().is_empty() || end == file.data_start());

    let n = layout.head_end().0 as usize;
    let mut read = file.bytes()[..n].to_vec();
    head.truncate(n);
    for (planned, tensor) in layout.tensors().iter().zip(file.tensors()) {
        if planned.offset() != tensor.offset() {
            let at = offset_field(&layout, planned.info_position().0, &head);
            read[at.clone()].fill(0);
            head[at].fill(0);
        }
    }
    assert!(read == head, "the head was written differently");
}

/// Where the offset of the tensor info at `start` is stored: after its name, dimensions and type.
fn offset_field(layout: &Layout<'_>, start: u64, head: &[u8]) -> Range<usize> {
    let next = layout.tensors().iter().map(|t| t.info_position().0).find(|&at| at > start);
    let end = next.unwrap_or(layout.head_end().0) as usize;
    assert!(end <= head.len());
    end - 8..end
}
