//! Local stores, in which models have names in place of paths. They are those of Ollama, of the Hugging Face hub and of LM
//! Studio. They are read and never written to, and nothing is downloaded.
//!
//! | MODEL | store |
//! | --- | --- |
//! | `ollama:NAME[:TAG]` | Ollama's manifests and blobs ([`ollama`]) |
//! | `hf:ORG/REPO[/FILE]`, `hf:ORG/REPO:QUANT` | the cache of the Hugging Face hub, and llama.cpp's ([`hugging_face`]) |
//! | `lmstudio:ORG/REPO[/FILE]` | LM Studio's folder of models ([`lm_studio`]) |
//!
//! Names, digests, lengths and JSON in a store are somebody else's: each is checked before it becomes part of a path.

pub mod ollama;

pub mod hugging_face;

pub mod lm_studio;

mod listing;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

/// What a MODEL argument names.
#[derive(Clone, Debug)]
pub struct Found {
    /// The file; of a split model, one of its parts.
    pub path: PathBuf,
    /// Ollama's model, if it is one.
    pub ollama: Option<ollama::StoredModel>,
}

/// What a model's name in a store begins with.
const PREFIXES: [&str; 3] = ["ollama:", "hf:", "lmstudio:"];

/// Looks up what `model` names. What begins with none of the stores' prefixes is a path; a file whose name does is named by
/// `./` in front.
///
/// # Errors
/// A name that is none; a store or a model that is not there, with the closest names; a store that contradicts itself.
pub fn locate(model: &Path) -> Result<Found> {
    let of_path = |path: PathBuf| Found { path, ollama: None };
    let Some(text) = model.to_str() else {
        return Ok(of_path(model.to_owned()));
    };
    let [ollama, hf, lm_studio] = PREFIXES;
    if let Some(name) = text.strip_prefix(ollama) {
        let stored = ollama::find(name)?;
        return Ok(Found { path: stored.model()?, ollama: Some(stored) });
    }
    if let Some(name) = text.strip_prefix(hf) {
        return Ok(of_path(hugging_face::find(name)?));
    }
    if let Some(name) = text.strip_prefix(lm_studio) {
        return Ok(of_path(lm_studio::find(name)?));
    }
    Ok(of_path(model.to_owned()))
}

/// A store, and the models that are found in it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// `ollama`, `hf`, `llama.cpp` or `lmstudio`.
    pub store: &'static str,
    /// What names each: what [`locate`] takes.
    pub models: Result<Vec<PathBuf>, String>,
}

/// The models of all stores, by their names there.
#[must_use]
pub fn list() -> Vec<Listed> {
    let named =
        |names: Result<Vec<String>>| names.map(|names| names.into_iter().map(PathBuf::from).collect());
    let listed = |store, models: Result<Vec<PathBuf>>| Listed {
        store,
        models: models.map_err(|error| format!("{error:#}")),
    };
    vec![
        listed("ollama", named(ollama::all())),
        listed("hf", named(hugging_face::all())),
        listed("llama.cpp", hugging_face::all_of_older_llama_cpp()),
        listed("lmstudio", named(lm_studio::all())),
    ]
}

/// Whether `model` names one of a store.
#[must_use]
pub fn is_named(model: &Path) -> bool {
    let is_named = |text: &str| PREFIXES.iter().any(|prefix| text.starts_with(prefix));
    model.to_str().is_some_and(is_named)
}

/// The same path, in a form that [`locate`] takes for one.
#[must_use]
pub fn as_path(path: &Path) -> PathBuf {
    match is_named(path) {
        true => Path::new(".").join(path),
        false => path.to_owned(),
    }
}

/// The words of `ORG/REPO[/FILE]`, each a valid file or folder name.
///
/// # Errors
/// Too few, an empty one, or one that leads elsewhere.
fn words<'n>(store: &str, name: &'n str, at_least: usize) -> Result<Vec<&'n str>> {
    let words: Vec<&str> = name.split('/').collect();
    ensure!(
        words.len() >= at_least && words.iter().all(|word| is_name(word)),
        "{store}:{name}: is not a name of the form {store}:ORG/REPO or {store}:ORG/REPO/FILE"
    );
    Ok(words)
}

/// Whether a word is a valid file or folder name everywhere.
fn is_name(word: &str) -> bool {
    let forbidden = |c: char| c.is_control() || matches!(c, '/' | '\\' | ':');
    !word.is_empty() && word != "." && word != ".." && !word.contains(forbidden)
}

/// The user's folder.
fn home() -> Result<PathBuf> {
    match std::env::home_dir() {
        Some(home) if !home.as_os_str().is_empty() => Ok(home),
        _ => bail!("the user's home folder is not known: HOME (on Windows USERPROFILE) is not set"),
    }
}

/// The folder that the environment names, if it does. `~/` is the user's folder.
fn folder_from(variable: &str) -> Result<Option<PathBuf>> {
    let Some(value) = std::env::var_os(variable).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let path = PathBuf::from(value);
    match path.strip_prefix("~") {
        Ok(rest) => Ok(Some(home()?.join(rest))),
        Err(_) => Ok(Some(path)),
    }
}

/// Reads a file that should be small: a regular one of at most `limit` bytes.
fn read_small(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    // Asked before it is opened: opening a pipe would wait for its other end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(invalid("is not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    // Counted while it is read, whatever its length is said to be.
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(invalid(format!("is larger than {limit} bytes")));
    }
    Ok(bytes)
}

/// Reads JSON of at most `limit` bytes.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path, limit: u64) -> Result<T> {
    let bytes = read_small(path, limit)?;
    parse_json(&bytes)
}

/// Parses JSON; of what is wrong only the place is said, since the text is somebody else's.
fn parse_json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let kind = match error.classify() {
            serde_json::error::Category::Data => "does not hold what is expected",
            _ => "is not well-formed JSON",
        };
        anyhow::anyhow!("{kind}: line {}, column {}", error.line(), error.column())
    })
}

/// The `names` most similar to `wanted`, closest first, for a message.
fn closest(wanted: &str, names: &[String]) -> String {
    const SHOWN: usize = 8;
    let wanted = wanted.to_lowercase();
    let likeness = |name: &String| strsim::jaro_winkler(&wanted, &name.to_lowercase());
    let mut sorted: Vec<(f64, &String)> = names.iter().map(|name| (likeness(name), name)).collect();
    sorted.sort_by(|(a, name), (b, other)| b.total_cmp(a).then(name.cmp(other)));
    let shown: Vec<&str> = sorted.iter().take(SHOWN).map(|(_, name)| name.as_str()).collect();
    let more = match names.len() - shown.len() {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    shown.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_do_not_lead_elsewhere() {
        assert_eq!(words("hf", "a/b-c_D.1", 2).unwrap(), ["a", "b-c_D.1"]);
        for name in ["a", "", "a/", "/a", "a/..", "../b", "a/b/../../c", "a/b\\c", "a/.", "a/b\0"] {
            assert!(words("hf", name, 2).is_err(), "{name}");
        }
    }

    #[test]
    fn the_closest_names_come_first() {
        let names =
            ["qwen3:8b", "llama3.2:latest", "gemma3:4b", "a", "b", "c", "d", "e", "f"].map(str::to_owned);
        let shown = closest("lama3.2", &names);
        assert!(shown.starts_with("llama3.2:latest, "), "{shown}");
        assert!(shown.ends_with(" and 1 more"), "{shown}");
    }

    #[test]
    fn json_errors_say_where() {
        let error = parse_json::<Vec<u8>>(b"[1,\n x]").unwrap_err();
        assert_eq!(error.to_string(), "is not well-formed JSON: line 2, column 2");
        let error = parse_json::<Vec<u8>>(b"{}").unwrap_err();
        assert!(error.to_string().starts_with("does not hold what is expected: line 1"));
    }
}
