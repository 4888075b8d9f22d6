//! The names of the parts of a split model: `<prefix>-<number>-of-<count>.gguf` (`llama.cpp: llama_split_path`). Pure.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::files::shell::shell;
use crate::files::system::os_str;

/// What the names of all parts begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    folder: PathBuf,
    name: OsString,
}

/// Number and count in the name of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Which part, counted from 1.
    pub number: usize,
    /// How many there are.
    pub n_parts: usize,
}

impl Prefix {
    /// Takes the name of a part apart. `None` if `path` is not named like one.
    #[must_use]
    pub fn of_part(path: &Path) -> Option<(Self, Numbers)> {
        let name = path.file_name()?.as_encoded_bytes();
        let at = name.len().checked_sub("-00001-of-00002.gguf".len())?;
        let (prefix, ending) = name.split_at(at);
        // After a prefix of any bytes.
        let ending = str::from_utf8(ending).ok()?;
        let (number, count) = ending.strip_prefix('-')?.strip_suffix(".gguf")?.split_once("-of-")?;
        let five_digits = |text: &str| {
            let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        let numbers = Numbers { number: five_digits(number)?, n_parts: five_digits(count)? };
        Some((Self::new(path, os_str(prefix)?.to_owned()), numbers))
    }

    /// The prefix of a split output that a user means. It may be the prefix itself, as for `llama-gguf-split`, a file with
    /// `.gguf` after it, as for `llama-quantize`, or the name of a part, whatever its numbers.
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
        Self { folder: path.parent().unwrap_or(Path::new("")).to_owned(), name }
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
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// The folder of all parts; empty for the current one.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether `name` is a part with this prefix, whatever number and count.
    #[must_use]
    pub fn is_part(&self, name: &OsStr) -> bool {
        Self::of_part(Path::new(name)).is_some_and(|(prefix, _)| prefix.name == self.name)
    }
}

/// The command that joins the pieces of a file. `path` is named like one: `m.gguf.part1of2`, `m.gguf.part-a`, `m.gguf-split-a`.
/// They are no parts of a split model, which are files of their own.
#[must_use]
pub fn joining(path: &Path) -> Option<String> {
    /// Pieces that are listed one by one.
    const LISTED: usize = 9;
    let name = as_text(path.file_name()?);
    let number = |text: &str| text.parse::<usize>().ok().filter(|n| (1..1000).contains(n));
    if let Some((whole, piece)) = name.rsplit_once(".part")
        && let Some((piece, n_pieces)) = piece.split_once("of")
        && let (Some(piece), Some(n_pieces)) = (number(piece), number(n_pieces))
        && piece <= n_pieces
    {
        let pieces = match n_pieces {
            ..=LISTED => (1..=n_pieces)
                .map(|i| shell(&format!("{whole}.part{i}of{n_pieces}")))
                .collect::<Vec<_>>()
                .join(" "),
            _ => format!("$(ls -v {}.part*of{n_pieces})", shell(whole)),
        };
        return Some(format!("cat {pieces} > {}", shell(&whole_name(whole))));
    }
    let (whole, mark) = ["-split-", ".part-", ".part_", ".part"].iter().find_map(|mark| {
        let (whole, piece) = name.rsplit_once(mark)?;
        let is_piece =
            (1..=5).contains(&piece.len()) && piece.bytes().all(|byte| byte.is_ascii_alphanumeric());
        (is_piece && whole.to_ascii_lowercase().ends_with(".gguf")).then_some((whole, mark))
    })?;
    let whole = shell(whole);
    Some(format!("cat {whole}{mark}* > {whole}"))
}

/// The name of a joined file.
fn whole_name(stem: &str) -> String {
    match stem.to_ascii_lowercase().ends_with(".gguf") {
        true => stem.to_owned(),
        false => format!("{stem}.gguf"),
    }
}

/// The name as text. Each byte that is not UTF-8 becomes `%` and two digits.
#[must_use]
pub(crate) fn as_text(name: &OsStr) -> String {
    let mut text = String::new();
    for chunk in name.as_encoded_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("%{byte:02X}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn names_need_not_be_text() {
        let path = |bytes| Path::new(os_str(bytes).unwrap());
        let (prefix, numbers) = Prefix::of_part(path(b"d/m\xe8-00002-of-00003.gguf")).unwrap();
        assert_eq!((numbers.number, numbers.n_parts), (2, 3));
        assert_eq!(prefix.part(1, 3), path(b"d/m\xe8-00001-of-00003.gguf"));
        assert!(Prefix::of_part(path(b"m-0000\xe8-of-00003.gguf")).is_none());
        assert_eq!(as_text(prefix.name()), "m%E8");
        assert_eq!(as_text("m\u{e8}".as_ref()), "m\u{e8}");
    }

    #[test]
    fn pieces_of_files_are_joined_in_their_order() {
        for (name, command) in [
            ("d/m.Q6_K.gguf.part1of2", Some("cat m.Q6_K.gguf.part1of2 m.Q6_K.gguf.part2of2 > m.Q6_K.gguf")),
            ("m.part2of2", Some("cat m.part1of2 m.part2of2 > m.gguf")),
            ("m.gguf.part3of12", Some("cat $(ls -v m.gguf.part*of12) > m.gguf")),
            ("m.gguf-split-a", Some("cat m.gguf-split-* > m.gguf")),
            ("m.gguf.part-aa", Some("cat m.gguf.part-* > m.gguf")),
            ("m.gguf.part1", Some("cat m.gguf.part* > m.gguf")),
            ("my m.gguf-split-b", Some("cat 'my m.gguf'-split-* > 'my m.gguf'")),
            ("m.gguf", None),
            ("m-00001-of-00002.gguf", None),
            ("m.part3of2", None),
            ("m.partial.gguf", None),
            ("m.gguf.partial-download", None),
        ] {
            assert_eq!(joining(Path::new(name)).as_deref(), command, "{name}");
        }
    }

    #[test]
    fn names_of_parts_are_those_of_llama_cpp() {
        let (prefix, numbers) = Prefix::of_part(Path::new("dir/a-b-00002-of-00003.gguf")).unwrap();
        assert_eq!((numbers.number, numbers.n_parts), (2, 3));
        assert_eq!(prefix.part(1, 3), Path::new("dir/a-b-00001-of-00003.gguf"));
        assert!(prefix.is_part("a-b-00007-of-00009.gguf".as_ref()));
        assert!(!prefix.is_part("a-00007-of-00009.gguf".as_ref()));
        for other in ["a.gguf", "a-2-of-3.gguf", "a-00002-of-00003", "-of-00001.gguf"] {
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
