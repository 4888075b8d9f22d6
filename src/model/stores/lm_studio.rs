//! LM Studio's folder of models, `ORG/REPO/FILE.gguf` each. Its settings name it as `downloadsFolder`; else it is `models` in
//! the program's folder, or in the one of older releases.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use super::{closest, home, listing, read_json, read_small, words};
use crate::error::Hint;

/// The file that names the program's folder, if not the usual one.
const POINTER: &str = ".lmstudio-home-pointer";
const FOLDER: &str = ".lmstudio";
const OLD_FOLDER: &str = ".cache/lm-studio";

const MAX_POINTER: u64 = 16 << 10;
const MAX_SETTINGS: u64 = 4 << 20;

/// What matters of the settings.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    #[serde(default)]
    downloads_folder: Option<PathBuf>,
}

/// Finds the file of that name, without its `lmstudio:`.
///
/// # Errors
/// No name; no such folder or file, with those that are there; settings that are malformed.
pub fn find(name: &str) -> Result<PathBuf> {
    let words = words("lmstudio", name, 2)?;
    let (repository, file) = words.split_at(2);
    let repository = repository.join("/");
    let named = format!("lmstudio:{repository}");
    let file = (!file.is_empty()).then(|| file.join("/"));
    let folders = folders()?;
    if let Some(folder) = folders.iter().map(|f| f.join(&repository)).find(|f| f.is_dir()) {
        return listing::choose(&folder, file.as_deref(), &named);
    }
    let names: Vec<String> = folders.iter().flat_map(|f| repositories(f)).collect();
    let folders: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    let missing = anyhow!("{named}: no such folder in {}", folders.join(", "));
    bail!(match names.is_empty() {
        true => missing,
        false => missing.context(Hint(format!("there are {}", closest(&repository, &names)))),
    })
}

/// The names of all models in the folders.
pub(super) fn all() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for folder in folders()? {
        for repository in repositories(&folder) {
            let models = listing::models_of(&folder.join(&repository))?;
            names.extend(listing::names(&format!("lmstudio:{repository}"), &models));
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// The folders in which models may be.
fn folders() -> Result<Vec<PathBuf>> {
    let home = home()?;
    let pointer = read_small(&home.join(POINTER), MAX_POINTER).unwrap_or_default();
    let pointer = String::from_utf8_lossy(&pointer).trim().to_owned();
    let program = match pointer.is_empty() {
        true => home.join(FOLDER),
        false => PathBuf::from(pointer),
    };
    let mut folders = Vec::new();
    for settings in [program.join("settings.json"), home.join(OLD_FOLDER).join("settings.json")] {
        if !settings.exists() {
            continue;
        }
        let settings: Settings =
            read_json(&settings, MAX_SETTINGS).with_context(|| settings.display().to_string())?;
        folders.extend(settings.downloads_folder.filter(|f| !f.as_os_str().is_empty()));
    }
    folders.extend([program.join("models"), home.join(OLD_FOLDER).join("models")]);
    folders.dedup();
    Ok(folders)
}

/// `ORG/REPO` of every folder.
fn repositories(folder: &Path) -> Vec<String> {
    let entries = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let entries = entries.filter(|entry| entry.path().is_dir());
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    };
    let repositories = |org: String| {
        let names = entries(&folder.join(&org));
        names.into_iter().map(move |name| format!("{org}/{name}"))
    };
    entries(folder).into_iter().flat_map(repositories).collect()
}
