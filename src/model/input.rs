//! The mapped files of one model: the one file, or all parts of a split model.

use crate::error::Hint;
use crate::files::part_name::{self, Prefix};
use crate::files::stamp::Stamp;
use crate::gguf;
use crate::model::convert::{self, Converted, Reading};
use crate::model::part::Part;
use crate::model::stores::{self, ollama};
use crate::model::temporary::Temporary;
use anyhow::{Context, Result, anyhow, bail, ensure};
use ggml::Mapping;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

/// The mapped files of one model, in order.
pub struct Input {
    parts: Vec<Part>,
    reading: Reading,
    /// The file that llama.cpp reads in place of a converted one. It is made when it is first asked for.
    stock: OnceLock<Temporary>,
    ollama: Option<ollama::StoredModel>,
    /// The hash of all bytes, once they were read for it.
    hash: OnceLock<blake3::Hash>,
}

impl Input {
    /// Maps the model that `model` names. It is of a store ([`stores::locate`]), or the one that the file at that path belongs
    /// to. A part of a split model, whichever, stands for the model: the others lie beside it, named
    /// `<name>-<number>-of-<count>.gguf` (`llama.cpp: llama_split_path`).
    ///
    /// # Errors
    /// A name that stands for nothing; a file that cannot be read or is not GGUF; a part that is missing or of another model.
    pub fn open(model: &Path) -> Result<Self> {
        let found = stores::locate(model)?;
        let mut input = Self::open_file(&found.path)?;
        input.ollama = found.ollama;
        Ok(input)
    }

    /// As [`Input::open`], of a path, whatever it begins with.
    ///
    /// # Errors
    /// As [`Input::open`].
    pub fn open_file(path: &Path) -> Result<Self> {
        let given = open_part(path)?;
        let n_parts = n_parts(&parse(&given)?).with_context(|| path.display().to_string())?;
        if n_parts <= 1 {
            let reading = convert::read(&parse(&given)?);
            let reading = reading.with_context(|| path.display().to_string())?;
            return Ok(Self::of(vec![given], reading));
        }
        let prefix = prefix(path, n_parts).with_context(|| path.display().to_string())?;
        let mut parts = Vec::new();
        for number in 1..=n_parts {
            let path = prefix.part(number, n_parts);
            let part = open_part(&path).map_err(|error| {
                error.context(Hint(format!("all {n_parts} parts must lie in one folder")))
            })?;
            let file = parse(&part)?;
            let check = |key, expected: usize| -> Result<()> {
                let found = split_number(&file, key)?;
                ensure!(
                    found == Some(expected),
                    "metadata '{key}' is {}, expected {expected}",
                    found.map_or("missing".to_owned(), |found| found.to_string())
                );
                Ok(())
            };
            check("split.count", n_parts)
                .and_then(|()| check("split.no", number - 1))
                .with_context(|| path.display().to_string())?;
            parts.push(part);
        }
        // Ollama does not write such.
        let input = Self::of(parts, Reading::Stock);
        input.check_tensor_count()?;
        Ok(input)
    }

    fn of(parts: Vec<Part>, reading: Reading) -> Self {
        Self { parts, reading, stock: OnceLock::new(), ollama: None, hash: OnceLock::new() }
    }

    /// The mapped files.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The path that llama.cpp loads: of a split model the first part's.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.parts[0].path
    }

    /// What Ollama's store knows of it, if it was named there.
    #[must_use]
    pub fn ollama(&self) -> Option<&ollama::StoredModel> {
        self.ollama.as_ref()
    }

    /// The conversion of a file in a layout of Ollama's.
    #[must_use]
    pub fn converted(&self) -> Option<&Converted> {
        match &self.reading {
            Reading::Converted(converted) => Some(converted),
            Reading::Stock | Reading::Refused(_) => None,
        }
    }

    /// The path that llama.cpp loads. Of a converted model that is a temporary copy under stock names, made now. Of one that it
    /// cannot map it is a copy whose data is aligned.
    ///
    /// # Errors
    /// No room for the copy in the system's folder for temporary files.
    pub fn for_llama(&self) -> Result<&Path> {
        let shown = match self.parts.len() {
            1 => self.to_copy(0)?,
            // The others would not be found beside a copy of the first.
            _ => None,
        };
        let Some(shown) = shown else {
            return Ok(self.path());
        };
        if let Some(stock) = self.stock.get() {
            return Ok(stock.path());
        }
        let copy = Temporary::of_shown(&self.parts[0], &shown);
        let (copy, _) = copy.with_context(|| {
            let path = self.path().display();
            format!("{path}: a copy that llama.cpp can read")
        })?;
        Ok(self.stock.get_or_init(|| copy).path())
    }

    /// What llama.cpp must read in place of part `number`. It is a converted model's file under stock names, or a part that it
    /// cannot map.
    ///
    /// # Errors
    /// A bug.
    pub fn to_copy(&self, number: usize) -> Result<Option<gguf::File<'_>>> {
        if let Some(shown) = self.shown()? {
            return Ok(Some(shown));
        }
        let file = parse(&self.parts[number])?;
        Ok((!file.is_mappable()).then_some(file))
    }

    /// A converted model's file under stock names.
    ///
    /// # Errors
    /// A bug.
    pub fn shown(&self) -> Result<Option<gguf::File<'_>>> {
        let Some(converted) = self.converted() else {
            return Ok(None);
        };
        Ok(Some(converted.apply(&parse(&self.parts[0])?)?))
    }

    /// The checked view of every file, under the names that llama.cpp reads.
    ///
    /// # Errors
    /// The first file that is not well-formed; a layout of Ollama's that cannot be read so.
    pub fn parse(&self) -> Result<Vec<gguf::File<'_>>> {
        if let Reading::Refused(why) = &self.reading {
            bail!(anyhow!("{}: {why}", self.path().display()).context(Hint(convert::REMEDY.to_owned())));
        }
        match self.shown()? {
            Some(shown) => Ok(vec![shown]),
            None => self.parse_as_stored(),
        }
    }

    /// The checked view of every file, under the names that it has.
    ///
    /// # Errors
    /// The first file that is not well-formed.
    pub fn parse_as_stored(&self) -> Result<Vec<gguf::File<'_>>> {
        self.parts.iter().map(parse).collect()
    }

    /// The part whose mapping holds these bytes, and their range in it.
    #[must_use]
    pub fn position(&self, bytes: &[u8]) -> Option<(usize, Range<usize>)> {
        let inner = bytes.as_ptr_range();
        self.parts.iter().enumerate().find_map(|(number, part)| {
            let outer = part.mapping.as_ptr_range();
            let is_inside = outer.start <= inner.start && inner.end <= outer.end;
            let start = inner.start.addr().checked_sub(outer.start.addr())?;
            is_inside.then(|| (number, start..start + bytes.len()))
        })
    }

    /// Gives the memory back that holds these bytes of a mapping. They are read again when they are next touched.
    pub fn release(&self, bytes: &[u8]) {
        if let Some((part, range)) = self.position(bytes) {
            self.parts[part].mapping.release(range);
        }
    }

    /// As [`Input::blake3`], but computed once at most: what was read with another purpose is not read again.
    #[must_use]
    pub fn blake3_once(&self) -> blake3::Hash {
        *self.hash.get_or_init(|| self.blake3())
    }

    /// Keeps the hash of all bytes, which were read in passing.
    pub fn keep_blake3(&self, hash: blake3::Hash) {
        let _ = self.hash.set(hash);
    }

    /// Hash of all bytes, part after part.
    #[must_use]
    pub fn blake3(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for part in &self.parts {
            hasher.update_rayon(&part.mapping);
        }
        hasher.finalize()
    }

    /// Checks that no open file was removed, replaced or written to.
    ///
    /// Else bytes that were read at different times, by llama.cpp too, may not belong together.
    ///
    /// # Errors
    /// The first file that is gone or not the same.
    pub fn check_unchanged(&self) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.stamp.check(&part.path))
    }

    fn check_tensor_count(&self) -> Result<()> {
        let files = self.parse()?;
        let found: usize = files.iter().map(|file| file.tensors().len()).sum();
        let says = files.iter().find_map(|file| split_number(file, "split.tensors.count").transpose());
        if let Some(says) = says.transpose()? {
            ensure!(
                says == found,
                "{}: metadata 'split.tensors.count' is {says}, but the parts have {found} tensors",
                self.path().display()
            );
        }
        Ok(())
    }
}

fn open_part(path: &Path) -> Result<Part> {
    let at_path = || path.display().to_string();
    let mapping = Mapping::open(path).with_context(at_path)?;
    let stamp = Stamp::of(&mapping.file().metadata().with_context(at_path)?);
    Ok(Part { path: path.to_owned(), mapping, stamp })
}

fn parse(part: &Part) -> Result<gguf::File<'_>> {
    let file = gguf::File::parse(&part.mapping).map_err(|error| {
        let error = anyhow::Error::from(error);
        match part_name::joining(&part.path) {
            Some(command) => error.context(Hint(format!(
                "this is a piece of a file that was cut into some; join them first: {command}"
            ))),
            None => error,
        }
    });
    file.with_context(|| part.path.display().to_string())
}

/// How many parts the model of a file has.
///
/// # Errors
/// A file that says of itself that it is one part, and is none; one that has not the tensors that it says.
fn n_parts(file: &gguf::File<'_>) -> Result<usize> {
    let n_parts = split_number(file, "split.count")?.unwrap_or(1);
    let n_tensors = file.tensors().len();
    if n_parts <= 1 {
        let says = split_number(file, "split.tensors.count")?;
        ensure!(
            says.is_none_or(|says| says == n_tensors),
            "metadata 'split.tensors.count' is {}, but the file has {n_tensors} tensors",
            says.unwrap_or_default()
        );
        return Ok(1);
    }
    ensure!(
        !file.trailing_bytes().starts_with(&gguf::MAGIC),
        anyhow!("several parts of a model were joined byte by byte, which makes no GGUF file").context(Hint(
            "a split model is read as it is, from any of its parts; llama-gguf-split --merge joins them"
                .to_owned()
        ))
    );
    ensure!(
        split_number(file, "split.tensors.count")? != Some(n_tensors),
        anyhow!(
            "metadata 'split.count' says that it is one of {n_parts} parts of a model, but it holds all {n_tensors} tensors"
        )
        .context(Hint(
            "merged without taking that back; 'gguf-set-metadata FILE split.count 0' of the Python package gguf does"
                .to_owned()
        ))
    );
    Ok(n_parts)
}

fn split_number(file: &gguf::File<'_>, key: &str) -> Result<Option<usize>> {
    let Some(entry) = file.metadata().get(key) else {
        return Ok(None);
    };
    Ok(Some(usize::try_from(entry.value().as_u64()?)?))
}

/// The prefix of the other parts' names.
fn prefix(path: &Path, n_parts: usize) -> Result<Prefix> {
    match Prefix::of_part(path) {
        Some((prefix, numbers)) if numbers.n_parts == n_parts => Ok(prefix),
        _ => bail!(
            "is one of {n_parts} parts of a model, but its name does not end in '-<number>-of-{n_parts:05}.gguf', so \
             the others cannot be found"
        ),
    }
}
