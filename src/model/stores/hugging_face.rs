//! The cache of the Hugging Face hub. `models--ORG--REPO/refs/main` names the snapshot whose files, links mostly, are the
//! repository's (`huggingface_hub: constants.py, file_download.py`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{closest, folder_from, home, is_name, listing, read_small, words};
use crate::error::Hint;

/// Finds the file of that name, without its `hf:`.
///
/// # Errors
/// No name; no cache; no such repository or file in it, with those that are there; a cache that contradicts itself.
pub fn find(name: &str) -> Result<PathBuf> {
    let words = words("hf", name, 2)?;
    let (repository, file) = words.split_at(2);
    let named = format!("hf:{}", repository.join("/"));
    let file = (!file.is_empty()).then(|| file.join("/"));
    let cache = cache()?;
    let folder = cache.join(format!("models--{}", repository.join("--")));
    if !folder.is_dir() {
        let names = repositories(&cache);
        let missing = anyhow!("{named}: no such repository in {}", cache.display());
        bail!(match names.is_empty() {
            true =>
                missing.context(Hint("HF_HUB_CACHE or HF_HOME name the cache where it is another".to_owned())),
            false => missing.context(Hint(format!("there are {}", closest(&repository.join("/"), &names)))),
        });
    }
    let snapshot = snapshot(&folder).with_context(|| named.clone())?;
    listing::choose(&snapshot, file.as_deref(), &named)
}

/// The folder of all repositories.
fn cache() -> Result<PathBuf> {
    for variable in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
        if let Some(folder) = folder_from(variable)? {
            return Ok(folder);
        }
    }
    if let Some(folder) = folder_from("HF_HOME")? {
        return Ok(folder.join("hub"));
    }
    let cache = match folder_from("XDG_CACHE_HOME")? {
        Some(cache) => cache,
        None => home()?.join(".cache"),
    };
    Ok(cache.join("huggingface/hub"))
}

/// The files of the repository as the cache knows its main branch. Without a word of that the only state that it holds.
fn snapshot(folder: &Path) -> Result<PathBuf> {
    /// Longer than any name of a commit.
    const MAX_COMMIT: u64 = 1024;
    let snapshots = folder.join("snapshots");
    let main = folder.join("refs/main");
    match read_small(&main, MAX_COMMIT) {
        Ok(commit) => {
            let commit = String::from_utf8_lossy(&commit);
            let commit = commit.trim();
            ensure!(is_name(commit), "{}: does not hold the name of a commit", main.display());
            let snapshot = snapshots.join(commit);
            ensure!(
                snapshot.is_dir(),
                "its refs/main names snapshot '{commit}', which is missing in {}",
                snapshots.display()
            );
            Ok(snapshot)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let entries = std::fs::read_dir(&snapshots).into_iter().flatten().flatten();
            let mut folders: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.is_dir()).collect();
            let n = folders.len();
            match (folders.pop(), n) {
                (Some(folder), 1) => Ok(folder),
                _ => bail!("it has no refs/main, and {n} snapshots in {}, expected one", snapshots.display()),
            }
        }
        Err(error) => Err(error).with_context(|| main.display().to_string()),
    }
}

/// The names of the repositories of models.
fn repositories(cache: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(cache).into_iter().flatten().flatten();
    let name = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        Some(name.strip_prefix("models--")?.replacen("--", "/", 1))
    };
    let mut names: Vec<String> = entries.filter_map(name).collect();
    names.sort();
    names
}
