//! The names of the parts of a split model: `<prefix>-<number>-of-<count>.gguf` (`llama.cpp: llama_split_path`). Pure.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What the names of all parts begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    folder: PathBuf,
    name: OsString,
}

/// A number and a count, as the name of a part has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Which part, counted from 1.
    pub number: usize,
    /// How many there are.
    pub n_parts: usize,
}

impl Prefix {
    /// Takes the name of a part apart; `None` if `path` is not named like one.
    #[must_use]
    pub fn of_part(path: &Path) -> Option<(Self, Numbers)> {
        let name = path.file_name()?.to_str()?;
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let five_digits = |text: &str| {
            let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        let numbers = Numbers {
            number: five_digits(number)?,
            n_parts: five_digits(count)?,
        };
        Some((Self::new(path, prefix.into()), numbers))
    }

    /// The prefix that a user means who says where a split output goes: the prefix itself, as for `llama-gguf-split`, a file
    /// with `.gguf` behind it, as for `llama-quantize`, or the name of a part, whatever its numbers.
    #[must_use]
    pub fn of_output(path: &Path) -> Option<Self> {
        if let Some((prefix, _)) = Self::of_part(path) {
            return Some(prefix);
        }
        let name = match path.extension() {
            Some(extension) if extension == "gguf" => path.file_stem()?,
            _ => path.file_name()?,
        };
        Some(Self::new(path, name.to_owned()))
    }

    fn new(path: &Path, name: OsString) -> Self {
        Self {
            folder: path.parent().unwrap_or(Path::new("")).to_owned(),
            name,
        }
    }

    /// Where part `number` of `n_parts` is; the number counts from 1.
    #[must_use]
    pub fn part(&self, number: usize, n_parts: usize) -> PathBuf {
        let mut name = self.name.clone();
        name.push(format!("-{number:05}-of-{n_parts:05}.gguf"));
        self.folder.join(name)
    }

    /// What the names of all parts begin with.
    #[must_use]
    pub fn name(&self) -> &std::ffi::OsStr {
        &self.name
    }

    /// The folder of all parts; empty for the current one.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether a file of this name would be a part with this prefix, of any number and count.
    #[must_use]
    pub fn is_part(&self, name: &std::ffi::OsStr) -> bool {
        Self::of_part(Path::new(name)).is_some_and(|(prefix, _)| prefix.name == self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts_are_those_of_llama_cpp() {
        let (prefix, numbers) = Prefix::of_part(Path::new("dir/a-b-00002-of-00003.gguf")).unwrap();
        assert_eq!((numbers.number, numbers.n_parts), (2, 3));
        assert_eq!(prefix.part(1, 3), Path::new("dir/a-b-00001-of-00003.gguf"));
        assert!(prefix.is_part("a-b-00007-of-00009.gguf".as_ref()));
        assert!(!prefix.is_part("a-00007-of-00009.gguf".as_ref()));
        for other in [
            "a.gguf",
            "a-2-of-3.gguf",
            "a-00002-of-00003",
            "-of-00001.gguf",
        ] {
            assert!(Prefix::of_part(Path::new(other)).is_none(), "{other}");
        }
    }

    #[test]
    fn an_output_is_named_by_its_prefix_its_file_or_a_part() {
        for (path, first) in [
            ("out", "out-00001-of-00002.gguf"),
            ("d/out.gguf", "d/out-00001-of-00002.gguf"),
            ("out-00001-of-00009.gguf", "out-00001-of-00002.gguf"),
            ("m.Q4_1", "m.Q4_1-00001-of-00002.gguf"),
        ] {
            let prefix = Prefix::of_output(Path::new(path)).unwrap();
            assert_eq!(prefix.part(1, 2), Path::new(first));
        }
        assert_eq!(Prefix::of_output(Path::new("..")), None);
    }
}
