//! The GGUF files of a folder, and which of them is meant.

use std::fs::DirEntry;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::closest;
use crate::error::Hint;
use crate::files::part_name::Prefix;

/// Entries of a folder at most, and folders inside of one another.
const MAX_ENTRIES: usize = 1 << 16;
const MAX_DEPTH: usize = 4;

/// The model of `folder` whose name has that quantization in it, as llama.cpp's `-hf ORG/REPO:QUANT` finds it (`download.cpp:
/// find_best_model`): `QUANT` before a dot or a hyphen, in letters of either case, and of several the first.
///
/// # Errors
/// None, with those that are there; a link that leads nowhere.
pub(super) fn of_quant(folder: &Path, quant: &str, named: &str) -> Result<PathBuf> {
    let models = models(&files(folder)?);
    let found = models.iter().find(|file| has_quant(file, quant));
    let Some(file) = found else {
        let missing = anyhow!("{named}:{quant}: no model of that quantization is in {}", folder.display());
        bail!(match models.is_empty() {
            true => missing,
            false => missing.context(Hint(format!("there are {}", closest(quant, &models)))),
        });
    };
    existing(folder.join(file))
}

/// Whether a path has a quantization in it, before a dot or a hyphen.
pub(super) fn has_quant(file: &str, quant: &str) -> bool {
    let (file, quant) = (file.to_ascii_lowercase(), quant.to_ascii_lowercase());
    file.contains(&format!("{quant}.")) || file.contains(&format!("{quant}-"))
}

/// The models of a folder, by their paths in it.
///
/// # Errors
/// More files than a folder of models has.
pub(super) fn models_of(folder: &Path) -> Result<Vec<String>> {
    Ok(models(&files(folder)?))
}

/// What names each of these models of a repository: the repository alone where it has one.
pub(super) fn names(repository: &str, models: &[String]) -> Vec<String> {
    match models {
        [_] => vec![repository.to_owned()],
        models => models.iter().map(|file| format!("{repository}/{file}")).collect(),
    }
}

/// The path, if what it links to is there: the blob of a store may be gone.
fn existing(path: PathBuf) -> Result<PathBuf> {
    std::fs::metadata(&path).with_context(|| format!("{}: what it links to", path.display()))?;
    Ok(path)
}

/// The file of `folder` that `wanted` means: its path there, or its name. Without it the only model of the folder. `named` is
/// what the user wrote for the folder.
///
/// # Errors
/// None or several that it may be, with those that are there; a link that leads nowhere.
pub(super) fn choose(folder: &Path, wanted: Option<&str>, named: &str) -> Result<PathBuf> {
    let files = files(folder)?;
    let found = match wanted {
        Some(wanted) => files
            .iter()
            .find(|file| *file == wanted)
            .or_else(|| only(files.iter().filter(|file| last(file) == wanted))),
        None => {
            let models = models(&files);
            ensure!(
                models.len() <= 1,
                anyhow!("{named}: holds {} models", models.len())
                    .context(Hint(format!("{named}/FILE names one: {}", closest("", &models))))
            );
            models.first().and_then(|model| files.iter().find(|file| *file == model))
        }
    };
    let Some(file) = found else {
        let shown = wanted.map_or_else(|| named.to_owned(), |wanted| format!("{named}/{wanted}"));
        if files.is_empty() {
            bail!("{shown}: no GGUF file is in {}", folder.display());
        }
        let there = closest(wanted.unwrap_or_default(), &files);
        let error = match wanted {
            Some(_) => anyhow!("{shown}: no such file in {}", folder.display()),
            None => anyhow!("{shown}: no model is in {}", folder.display()),
        };
        bail!(error.context(Hint(format!("there are {there}"))));
    };
    existing(folder.join(file))
}

fn only<'f>(mut files: impl Iterator<Item = &'f String>) -> Option<&'f String> {
    let first = files.next()?;
    files.next().is_none().then_some(first)
}

fn last(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

/// The paths of all GGUF files below `top`, `/`-separated, sorted. What is no Unicode is replaced.
///
/// # Errors
/// More files and folders than one of models has.
fn files(top: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    let mut folders = vec![(top.to_owned(), String::new(), 0)];
    let mut n_seen = 0;
    while let Some((folder, prefix, depth)) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(folder) else {
            continue;
        };
        for entry in entries.flatten() {
            n_seen += 1;
            ensure!(
                n_seen <= MAX_ENTRIES,
                "{}: has more than {MAX_ENTRIES} files and folders below it",
                top.display()
            );
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if is_folder(&entry) {
                if depth < MAX_DEPTH {
                    folders.push((entry.path(), format!("{name}/"), depth + 1));
                }
            } else if name.to_ascii_lowercase().ends_with(".gguf") {
                files.push(name);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// A link to a folder is not followed: it may lead back.
fn is_folder(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

/// Of a folder's files those that are models. One part of each split model stands for it; projectors and importance matrices
/// are none.
fn models(files: &[String]) -> Vec<String> {
    let mut seen = Vec::new();
    let is_model = |file: &&String| {
        let name = last(file).to_ascii_lowercase();
        if name.starts_with("mmproj") || name.contains("-mmproj") || name.contains("imatrix") {
            return false;
        }
        match Prefix::of_part(Path::new(file)) {
            Some((prefix, numbers)) => {
                let of = (prefix, numbers.n_parts);
                let is_new = !seen.contains(&of);
                seen.push(of);
                is_new
            }
            None => true,
        }
    };
    files.iter().filter(is_model).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(files: &[&str]) -> Vec<String> {
        files.iter().map(|file| (*file).to_owned()).collect()
    }

    #[test]
    fn a_split_model_is_one() {
        let files = strings(&[
            "Q4/m-00001-of-00002.gguf",
            "Q4/m-00002-of-00002.gguf",
            "Q8/m-00001-of-00002.gguf",
            "m.gguf",
            "m.imatrix.gguf",
            "mmproj-m.gguf",
        ]);
        let models = models(&files);
        assert_eq!(models, strings(&["Q4/m-00001-of-00002.gguf", "Q8/m-00001-of-00002.gguf", "m.gguf"]));
    }

    #[test]
    fn a_quantization_stands_before_a_dot_or_a_hyphen() {
        for (file, quant, has) in [
            ("m-Q4_K_M.gguf", "q4_k_m", true),
            ("Q4_K_M/m-Q4_K_M-00001-of-00002.gguf", "Q4_K_M", true),
            ("m-Q4_K_M.gguf", "Q4_K", false),
            ("m-Q4_K_M.gguf", "K_M", true),
            ("m-IQ4_XS.gguf", "Q4_XS", true),
            ("m.gguf", "Q8_0", false),
        ] {
            assert_eq!(has_quant(file, quant), has, "{file} {quant}");
        }
    }

    #[test]
    fn what_is_meant_must_be_one_file() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["a", "b"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
            for name in ["x.gguf", &format!("{folder}-only.gguf")] {
                std::fs::write(dir.path().join(folder).join(name), "").unwrap();
            }
        }
        let choose = |wanted| choose(dir.path(), wanted, "hf:o/r");
        let at = |path| Some(dir.path().join(path));
        assert_eq!(choose(Some("a/x.gguf")).ok(), at("a/x.gguf"));
        assert_eq!(choose(Some("b-only.gguf")).ok(), at("b/b-only.gguf"));
        // Two have this name.
        let error = choose(Some("x.gguf")).unwrap_err();
        assert!(crate::error::message(&error).starts_with("hf:o/r/x.gguf: no such file in "));
        let error = choose(None).unwrap_err();
        assert_eq!(crate::error::message(&error), "hf:o/r: holds 4 models");
        assert_eq!(
            crate::error::hint(&error).unwrap(),
            "hf:o/r/FILE names one: a/a-only.gguf, a/x.gguf, b/b-only.gguf, b/x.gguf"
        );
    }
}
