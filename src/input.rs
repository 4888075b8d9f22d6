//! The mapped files of one model: the one file, or all parts of a split model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use ggml::Mapping;

use crate::error::Hint;
use crate::gguf;

/// One mapped file.
pub struct Part {
    /// Where it is.
    pub path: PathBuf,
    /// Its bytes.
    pub mapping: Mapping,
}

/// The mapped files of one model, in order.
pub struct Input {
    parts: Vec<Part>,
}

impl Input {
    /// Maps the model that the file at `path` belongs to. A part of a split model, whichever, stands for the model: the
    /// others lie beside it, named `<name>-<number>-of-<count>.gguf` (`llama.cpp: llama_split_path`).
    ///
    /// # Errors
    /// A file that cannot be read or is not GGUF; a part that is missing or of another model.
    pub fn open(path: &Path) -> Result<Self> {
        let given = open_part(path)?;
        let n_parts = split_number(&parse(&given)?, "split.count")
            .with_context(|| path.display().to_string())?
            .unwrap_or(1);
        if n_parts <= 1 {
            return Ok(Self { parts: vec![given] });
        }
        let name = PartName::of(path, n_parts).with_context(|| path.display().to_string())?;
        let mut parts = Vec::new();
        for number in 1..=n_parts {
            let path = name.part(number);
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
        let input = Self { parts };
        input.check_tensor_count()?;
        Ok(input)
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

    /// The checked view of every file.
    ///
    /// # Errors
    /// The first file that is not well-formed.
    pub fn parse(&self) -> Result<Vec<gguf::File<'_>>> {
        self.parts.iter().map(parse).collect()
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

    fn check_tensor_count(&self) -> Result<()> {
        let files = self.parse()?;
        let found: usize = files.iter().map(|file| file.tensors().len()).sum();
        let says = files
            .iter()
            .find_map(|file| split_number(file, "split.tensors.count").transpose());
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
    let mapping = Mapping::open(path).with_context(|| path.display().to_string())?;
    Ok(Part {
        path: path.to_owned(),
        mapping,
    })
}

fn parse(part: &Part) -> Result<gguf::File<'_>> {
    gguf::File::parse(&part.mapping).with_context(|| part.path.display().to_string())
}

fn split_number(file: &gguf::File<'_>, key: &str) -> Result<Option<usize>> {
    let Some(entry) = file.metadata().get(key) else {
        return Ok(None);
    };
    Ok(Some(usize::try_from(entry.value().as_u64()?)?))
}

/// The name of a part, taken apart.
struct PartName {
    folder: PathBuf,
    stem: String,
    n_parts: usize,
}

impl PartName {
    fn of(path: &Path, n_parts: usize) -> Result<Self> {
        let file_name = path.file_name().and_then(|name| name.to_str());
        let stem = file_name.and_then(|name| {
            // `<stem>-00001-of-00003.gguf`
            let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
            let (stem, number) = rest.rsplit_once('-')?;
            let five_digits =
                |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            (five_digits(number) && five_digits(count) && count.parse() == Ok(n_parts))
                .then(|| stem.to_owned())
        });
        let Some(stem) = stem else {
            bail!(
                "is one of {n_parts} parts of a model, but its name does not end in '-<number>-of-{n_parts:05}.gguf', so \
                 the others cannot be found"
            );
        };
        Ok(Self {
            folder: path.parent().unwrap_or(Path::new("")).to_owned(),
            stem,
            n_parts,
        })
    }

    fn part(&self, number: usize) -> PathBuf {
        self.folder.join(format!(
            "{}-{number:05}-of-{:05}.gguf",
            self.stem, self.n_parts
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts_are_those_of_llama_cpp() {
        let name = PartName::of(Path::new("dir/a-b-00002-of-00003.gguf"), 3).unwrap();
        assert_eq!(name.part(1), Path::new("dir/a-b-00001-of-00003.gguf"));
        for other in [
            "a.gguf",
            "a-2-of-3.gguf",
            "a-00002-of-00004.gguf",
            "a-00002-of-00003",
        ] {
            assert!(PartName::of(Path::new(other), 3).is_err(), "{other}");
        }
    }
}
