//! The cache of the Hugging Face hub. `models--ORG--REPO/refs/main` names the snapshot whose files, links mostly, are the
//! repository's (`huggingface_hub: constants.py, file_download.py`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{closest, folder_from, home, is_name, listing, read_small, words};
use crate::error::Hint;

/// Finds the file of that name, without its `hf:`: `ORG/REPO`, `ORG/REPO/FILE`, or `ORG/REPO:QUANT` as llama.cpp's `-hf` has it.
///
/// # Errors
/// No name; no cache; no such repository or file in it, with those that are there; a cache that contradicts itself.
pub fn find(name: &str) -> Result<PathBuf> {
    let (name, quant) = match name.rsplit_once(':') {
        Some((name, quant)) if is_name(quant) => (name, Some(quant)),
        _ => (name, None),
    };
    let words = words("hf", name, 2)?;
    let (repository, file) = words.split_at(2);
    let named = format!("hf:{}", repository.join("/"));
    ensure!(
        quant.is_none() || file.is_empty(),
        "{named}: is followed by both a file and a quantization, expected one"
    );
    let file = (!file.is_empty()).then(|| file.join("/"));
    let caches = caches()?;
    let folders = caches.iter().map(|cache| cache.join(format!("models--{}", repository.join("--"))));
    if let Some(folder) = folders.into_iter().find(|folder| folder.is_dir()) {
        let snapshot = snapshot(&folder).with_context(|| named.clone())?;
        return match quant {
            Some(quant) => listing::of_quant(&snapshot, quant, &named),
            None => listing::choose(&snapshot, file.as_deref(), &named),
        };
    }
    if let Some(path) = of_older_llama_cpp(repository, file.as_deref(), quant)? {
        return Ok(path);
    }
    let names: Vec<String> = caches.iter().flat_map(|cache| repositories(cache)).collect();
    let shown: Vec<String> = caches.iter().map(|cache| cache.display().to_string()).collect();
    let missing = anyhow!("{named}: no such repository in {}", shown.join(", "));
    bail!(match names.is_empty() {
        true =>
            missing.context(Hint("HF_HUB_CACHE or HF_HOME name the cache where it is another".to_owned())),
        false => missing.context(Hint(format!("there are {}", closest(&repository.join("/"), &names)))),
    })
}

/// The names of all models in the caches.
pub(super) fn all() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for cache in caches()? {
        for repository in repositories(&cache) {
            let folder = cache.join(format!("models--{}", repository.replacen('/', "--", 1)));
            let models =
                snapshot(&folder).map_or(Ok(Vec::new()), |snapshot| listing::models_of(&snapshot))?;
            names.extend(listing::names(&format!("hf:{repository}"), &models));
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// The paths of all models that older releases of llama.cpp have fetched. Which repository they are of cannot be read from them.
pub(super) fn all_of_older_llama_cpp() -> Result<Vec<PathBuf>> {
    let folder = llama_cpp_cache()?;
    Ok(listing::models_of(&folder)?
        .into_iter()
        .filter(|file| !file.contains('/'))
        .map(|file| folder.join(file))
        .collect())
}

/// A file of llama.cpp's older cache, `ORG_REPO_FILE` in its own folder.
fn of_older_llama_cpp(
    repository: &[&str],
    file: Option<&str>,
    quant: Option<&str>,
) -> Result<Option<PathBuf>> {
    let folder = llama_cpp_cache()?;
    let start = format!("{}_", repository.join("_"));
    let files = listing::models_of(&folder)?;
    let mut of_repository = files.iter().filter_map(|name| Some((name, name.strip_prefix(&start)?)));
    let found = match (file, quant) {
        (Some(file), _) => {
            let file = file.replace('/', "_");
            of_repository.find(|(_, rest)| *rest == file)
        }
        (None, Some(quant)) => of_repository.find(|(_, rest)| listing::has_quant(rest, quant)),
        (None, None) => {
            let first = of_repository.next();
            first.filter(|_| of_repository.next().is_none())
        }
    };
    Ok(found.map(|(name, _)| folder.join(name)))
}

/// llama.cpp's own folder for what it fetches (`common.cpp: fs_get_cache_directory`).
fn llama_cpp_cache() -> Result<PathBuf> {
    if let Some(folder) = folder_from("LLAMA_CACHE")? {
        return Ok(folder);
    }
    let (variable, of_user) = match () {
        () if cfg!(windows) => (Some("LOCALAPPDATA"), "AppData/Local"),
        () if cfg!(target_os = "macos") => (None, "Library/Caches"),
        () => (Some("XDG_CACHE_HOME"), ".cache"),
    };
    let cache = match variable.map(folder_from).transpose()?.flatten() {
        Some(cache) => cache,
        None => home()?.join(of_user),
    };
    Ok(cache.join("llama.cpp"))
}

/// The folders of repositories. llama.cpp keeps its own in the same form, and looks at `LLAMA_CACHE` first (`hf-cache.cpp:
/// get_cache_directory`).
fn caches() -> Result<Vec<PathBuf>> {
    let own = folder_from("LLAMA_CACHE")?;
    let mut caches: Vec<PathBuf> = own.into_iter().chain([cache()?]).collect();
    caches.dedup();
    Ok(caches)
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
