//! Finding the models that paths stand for: files, folders with all folders in them, patterns, and lists.
//!
//! Files are read here, not mapped: a file that another program shortens meanwhile must not end the run of all.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use walkdir::WalkDir;

use crate::error::Usage;
use crate::files::part_name::Prefix;
use crate::files::place::read_at_most;
use crate::files::system::os_str;
use crate::gguf;
use crate::model::companion::Companion;
use crate::model::stores::{self, ollama};
use crate::model::warning::Warning;

/// The files of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its file; of a split model, those parts that are there, in order.
    pub files: Vec<PathBuf>,
    /// Its name in a store where files are not called by names.
    pub name: Option<String>,
}

impl Source {
    /// What the model is called by: its file, or its first part.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.files[0]
    }

    /// The model that the file at `path` belongs to.
    fn of(path: PathBuf) -> Self {
        let parts = Prefix::of_part(&path).map(|(prefix, numbers)| {
            let parts = (1..=numbers.n_parts).map(|number| prefix.part(number, numbers.n_parts));
            parts.filter(|part| part.exists()).collect::<Vec<_>>()
        });
        let files = parts.filter(|files| !files.is_empty());
        Self { files: files.unwrap_or_else(|| vec![path]), name: None }
    }
}

/// The models that were found.
#[derive(Debug, Default)]
pub struct Found {
    /// The models, in the order of the paths, each once.
    pub models: Vec<Source>,
    /// What folders and patterns have beside models, each with the reason. That is other files, and folders that cannot be
    /// read.
    pub skipped: Vec<(PathBuf, String)>,
    /// Files in the folder of outputs that this program wrote.
    pub outputs: Vec<PathBuf>,
    /// Doubts about models of a store.
    pub warnings: Vec<Warning>,
}

/// The first entries of a file, and the bytes read for them. Among these entries are those that tell what it is.
const N_FIRST: u64 = 64;
const FIRST_BYTES: u64 = 1 << 20;
const MAX_BYTES: u64 = 64 << 20;

/// The longest list of models.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// Finds all models of `paths`. Each is a file, a model of a store ([`stores::locate`]), a folder, a pattern such as
/// `models/**/*Q4*.gguf` where there is no such file, or `@FILE`, a list of those. Of a folder all files with the name of a
/// GGUF are taken. Of folders and patterns, files that are no models are left out, and those in `out_dir` that this program
/// wrote.
///
/// # Errors
/// A path that is not there; a folder, pattern or list without a model.
pub fn find(paths: &[PathBuf], out_dir: &Path) -> Result<Found> {
    let mut finder = Finder {
        out_dir: out_dir.canonicalize().ok(),
        seen: BTreeSet::new(),
        n_models: 0,
        found: Found::default(),
    };
    for path in paths {
        match list_name(path) {
            Some(list) => finder.list(list)?,
            None => finder.path(path)?,
        }
    }
    Ok(finder.found)
}

/// The file of a list, of an argument that is one.
pub(crate) fn list_name(path: &Path) -> Option<&Path> {
    let name = path.as_os_str().as_encoded_bytes().strip_prefix(b"@")?;
    os_str(name).map(Path::new)
}

struct Finder {
    out_dir: Option<PathBuf>,
    seen: BTreeSet<PathBuf>,
    /// Models, those that were found before too.
    n_models: usize,
    found: Found,
}

impl Finder {
    fn list(&mut self, list: &Path) -> Result<()> {
        let at_path = || list.display().to_string();
        let text = read_at_most(list, MAX_LIST_BYTES, "a list of models").with_context(at_path)?;
        let lines = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
        let mut lines = lines.enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with(b"#"));
        let mut n = 0;
        lines.try_for_each(|(i, line)| {
            n += 1;
            let path = os_str(line).context("is not UTF-8 text");
            let path = Path::new(path.with_context(|| format!("{}:{}", list.display(), i + 1))?);
            let found = match list_name(path) {
                Some(_) => Err(anyhow::anyhow!("a list in a list is not read")),
                None => self.path(path),
            };
            found.with_context(|| format!("{}:{}", list.display(), i + 1))
        })?;
        ensure!(n > 0, "{}: the list names no model", list.display());
        Ok(())
    }

    fn path(&mut self, path: &Path) -> Result<()> {
        if stores::is_named(path) {
            let found = stores::locate(path)?;
            let with_adapter = found.ollama.as_ref();
            let with_adapter = with_adapter.filter(|of| of.n_files(ollama::Kind::Adapter) > 0);
            let warning = with_adapter.map(|stored| Warning::Adapter { name: stored.name().to_string() });
            self.found.warnings.extend(warning);
            let source =
                Source { name: found.ollama.map(|stored| stored.file_name()), ..Source::of(found.path) };
            self.add(source);
            return Ok(());
        }
        let pattern = path.to_str().filter(|text| text.contains(['*', '?', '[']));
        match (std::fs::metadata(path), pattern) {
            (Ok(metadata), _) if metadata.is_dir() => self.folder(path),
            (Ok(_), _) => {
                self.model(path.to_owned());
                Ok(())
            }
            (Err(_), Some(pattern)) => self.pattern(pattern),
            (Err(error), None) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    fn folder(&mut self, folder: &Path) -> Result<()> {
        let before = self.counts();
        self.walk(folder);
        self.check_any(before, &folder.display().to_string())
    }

    fn pattern(&mut self, pattern: &str) -> Result<()> {
        let before = self.counts();
        let paths = glob::glob(pattern)
            .map_err(|error| Usage(format!("'{pattern}' is not a pattern of names: {}", error.msg)))?;
        let mut any = false;
        for path in paths {
            any = true;
            match path {
                Ok(path) if path.is_dir() => self.walk(&path),
                Ok(path) => self.candidate(path),
                Err(error) => self.unreadable(error.path().to_owned(), error.error()),
            }
        }
        ensure!(any, "{pattern}: no file has a name like this");
        self.check_any(before, pattern)
    }

    fn counts(&self) -> [usize; 3] {
        let found = &self.found;
        [self.n_models, found.skipped.len(), found.outputs.len()]
    }

    fn check_any(&self, before: [usize; 3], what: &str) -> Result<()> {
        let [models, skipped, outputs] = before;
        let found = &self.found;
        if self.n_models > models {
            return Ok(());
        }
        let reasons = match (found.skipped.get(skipped), found.outputs.len() - outputs) {
            (Some((path, why)), _) => format!(" ({} {why})", path.display()),
            (None, n @ 1..) => format!(" ({n} outputs of this program are left out)"),
            (None, 0) => String::new(),
        };
        bail!("{what}: no model is there{reasons}");
    }

    fn walk(&mut self, folder: &Path) {
        let walk = WalkDir::new(folder).follow_links(true).sort_by_file_name();
        for entry in walk {
            match entry {
                Ok(entry) if entry.file_type().is_file() => self.candidate(entry.into_path()),
                // A folder, a pipe, a device.
                Ok(_) => {}
                // A link to a folder above, in which all is found anyway.
                Err(error) if error.loop_ancestor().is_some() => {}
                Err(error) => {
                    let path = error.path().unwrap_or(folder).to_owned();
                    match error.io_error() {
                        // A link to a missing model is a model that fails.
                        Some(_) if is_named_gguf(&path) => self.model(path),
                        Some(why) => self.unreadable(path, why),
                        None => {}
                    }
                }
            }
        }
    }

    fn unreadable(&mut self, path: PathBuf, why: &std::io::Error) {
        self.found.skipped.push((path, format!("cannot be read: {why}")));
    }

    /// A file that nobody named.
    fn candidate(&mut self, path: PathBuf) {
        if !is_named_gguf(&path) {
            return;
        }
        let is_below = |out_dir: &PathBuf| {
            let canonical = path.canonicalize();
            canonical.is_ok_and(|canonical| canonical.starts_with(out_dir))
        };
        let in_out_dir = self.out_dir.as_ref().is_some_and(is_below);
        match look(&path, in_out_dir) {
            Kind::Model => self.model(path),
            Kind::Output => self.found.outputs.push(path),
            Kind::Other(why) => self.found.skipped.push((path, why)),
        }
    }

    fn model(&mut self, path: PathBuf) {
        self.add(Source::of(path));
    }

    fn add(&mut self, source: Source) {
        self.n_models += 1;
        let path = source.path();
        let key = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if self.seen.insert(key) {
            self.found.models.push(source);
        }
    }
}

fn is_named_gguf(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

enum Kind {
    Model,
    Output,
    Other(String),
}

/// What the file at `path` is, by its first entries. With `all` its entries are looked through for those that this program
/// writes. What cannot be read is taken for a model, whose failure is then reported.
fn look(path: &Path, all: bool) -> Kind {
    let mut n_bytes = FIRST_BYTES;
    let Ok(file) = File::open(path) else {
        return Kind::Model;
    };
    let mut bytes = Vec::new();
    let mut file = file.take(n_bytes);
    loop {
        if file.read_to_end(&mut bytes).is_err() {
            return Kind::Model;
        }
        let Some(header) = gguf::File::first_header(&bytes) else {
            return Kind::Model;
        };
        let wanted = match all {
            true => header.n_metadata,
            false => header.n_metadata.min(N_FIRST),
        };
        let entries = gguf::File::first_entries(&bytes, wanted);
        let is_whole = entries.len() as u64 == wanted;
        let ends = (bytes.len() as u64) < n_bytes || n_bytes >= MAX_BYTES;
        if !is_whole && !ends {
            let more = n_bytes * 3;
            n_bytes += more;
            file.set_limit(more);
            continue;
        }
        if all && entries.iter().any(|entry| entry.key() == "gguf_shorten.version") {
            return Kind::Output;
        }
        // All else stands at the start.
        let first = &entries[..entries.len().min(64)];
        if let Some(companion) = Companion::of(first) {
            return Kind::Other(companion.sentence());
        }
        // The first part of a split model may hold metadata alone.
        if is_whole && header.n_tensors == 0 && Prefix::of_part(path).is_none() {
            return Kind::Other("has no tensors, as a vocabulary alone".to_owned());
        }
        return Kind::Model;
    }
}
