//! Ollama's store. `manifests/HOST/NAMESPACE/NAME/TAG` say by digest which files of `blobs` make up a model (`ollama:
//! manifest/paths.go, manifest/manifest.go, types/model/name.go`).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;

use super::{closest, home, parse_json, read_small};
use crate::error::Hint;

/// Where the store is if the environment does not say.
const OF_USER: &str = ".ollama/models";
const OF_SERVICE: &str = "/usr/share/ollama/.ollama/models";

/// Folders of manifests, in the order in which Ollama looks.
const MANIFESTS: &[&str] = &["manifests-v2", "manifests"];

/// The registry that is meant where none is named. Later releases keep its models under the second name.
const HOST: &str = "registry.ollama.ai";
const HOST_V2: &str = "ollama.com";
const NAMESPACE: &str = "library";
const TAG: &str = "latest";

/// Maximum bytes of a manifest, and of a model's text.
const MAX_MANIFEST: u64 = 4 << 20;
const MAX_TEXT: u64 = 4 << 20;

/// Names that are listed at most.
const MAX_NAMES: usize = 4096;

/// A list of manifests of one model for several programs.
const LIST: &str = "application/vnd.ollama.manifest.list.v2+json";

/// A model's name. Each part of it is a valid folder name.
///
/// ```
/// use gguf_shorten::model::stores::ollama::Name;
///
/// assert_eq!(Name::parse("llama3.2").unwrap().to_string(), "llama3.2:latest");
/// assert_eq!(Name::parse("hf.co/org/repo:Q4_K_M").unwrap().to_string(), "hf.co/org/repo:Q4_K_M");
/// assert!(Name::parse("../llama3.2").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    host: String,
    namespace: String,
    model: String,
    tag: String,
}

impl Name {
    /// Takes `[HOST/][NAMESPACE/]NAME[:TAG]` apart.
    ///
    /// # Errors
    /// What Ollama would not take for a name.
    pub fn parse(text: &str) -> Result<Self> {
        let expected = || {
            anyhow!(
                "ollama:{text}: is not a name of the form ollama:NAME, ollama:NAME:TAG or ollama:NAMESPACE/NAME:TAG"
            )
        };
        let (path, tag) = match text.rsplit_once(':') {
            // The colon of a host's port.
            Some((_, rest)) if rest.contains('/') => (text, TAG),
            Some((path, tag)) => (path, tag),
            None => (text, TAG),
        };
        let words: Vec<&str> = path.split('/').collect();
        let (host, namespace, model) = match words[..] {
            [model] => (HOST, NAMESPACE, model),
            [namespace, model] => (HOST, namespace, model),
            [host, namespace, model] => (host, namespace, model),
            _ => return Err(expected()),
        };
        let is_part = |part: &str, more: &[u8], longest: usize| {
            let first = part.bytes().next();
            first.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                && part.len() <= longest
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte) || more.contains(&byte))
        };
        ensure!(
            is_part(host, b".:", 350)
                && is_part(namespace, b"", 80)
                && is_part(model, b".", 80)
                && is_part(tag, b".", 80),
            expected()
        );
        Ok(Self {
            host: host.to_owned(),
            namespace: namespace.to_owned(),
            model: model.to_owned(),
            tag: tag.to_owned(),
        })
    }

    /// Where its manifest may be, in the order in which Ollama looks.
    fn manifests(&self, store: &Path) -> Vec<PathBuf> {
        let is_default = self.host == HOST || self.host == HOST_V2;
        let mut paths = Vec::new();
        for folder in MANIFESTS {
            let hosts: &[&str] = match (is_default, *folder) {
                (false, _) => &[&self.host],
                (true, "manifests") => &[HOST, HOST_V2],
                (true, _) => &[HOST_V2],
            };
            for host in hosts {
                let model = store.join(folder).join(host);
                paths.push(model.join(&self.namespace).join(&self.model).join(&self.tag));
            }
        }
        paths
    }
}

/// As Ollama's own list shows it: without what is usual.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_default = self.host == HOST || self.host == HOST_V2;
        if !is_default {
            write!(f, "{}/", self.host)?;
        }
        if !is_default || self.namespace != NAMESPACE {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}:{}", self.model, self.tag)
    }
}

/// What a file of a model is to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The weights.
    Model,
    /// An encoder of images or sound.
    Projector,
    /// A low-rank change of the weights.
    Adapter,
    /// How a conversation becomes a prompt, in Go's template language.
    Template,
    /// What the model is told first.
    System,
    /// Sampling and the like, as JSON.
    Params,
    /// A conversation that comes first, as JSON.
    Messages,
    /// A licence.
    License,
}

impl Kind {
    /// Its media type.
    fn media_type(self) -> &'static str {
        match self {
            Self::Model => "application/vnd.ollama.image.model",
            Self::Projector => "application/vnd.ollama.image.projector",
            Self::Adapter => "application/vnd.ollama.image.adapter",
            Self::Template => "application/vnd.ollama.image.template",
            Self::System => "application/vnd.ollama.image.system",
            Self::Params => "application/vnd.ollama.image.params",
            Self::Messages => "application/vnd.ollama.image.messages",
            Self::License => "application/vnd.ollama.image.license",
        }
    }
}

/// A manifest, as far as it matters. All else in it is passed over.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    config: Option<Layer>,
    #[serde(default)]
    layers: Vec<Layer>,
    #[serde(default)]
    manifests: Vec<Listed>,
}

/// An entry of a list of manifests: the manifest itself, or the digest of one.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    #[serde(default)]
    runner: String,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    config: Option<Layer>,
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    size: Option<u64>,
}

/// A model of the store.
#[derive(Clone, Debug)]
pub struct StoredModel {
    name: Name,
    store: PathBuf,
    config: Option<Layer>,
    layers: Vec<Layer>,
}

/// What a model's configuration says beside the weights. Absent and empty are the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Config {
    /// The built-in that makes prompts in place of a template.
    #[serde(default)]
    pub renderer: String,
    /// The built-in that reads answers.
    #[serde(default)]
    pub parser: String,
    /// The release of Ollama that it needs.
    #[serde(default)]
    pub requires: String,
}

/// Finds the model of that name, without its `ollama:`.
///
/// # Errors
/// No name; no store; no such model, with the closest that are there; a manifest that is malformed.
pub fn find(name: &str) -> Result<StoredModel> {
    let name = Name::parse(name)?;
    let stores = stores()?;
    for store in &stores {
        for path in name.manifests(store) {
            let bytes = match read_small(&path, MAX_MANIFEST) {
                Err(error) if is_absent(&error) => continue,
                bytes => bytes.with_context(|| path.display().to_string())?,
            };
            let manifest = parse_json(&bytes).with_context(|| path.display().to_string())?;
            return StoredModel::of(name.clone(), store, manifest).with_context(|| format!("ollama:{name}"));
        }
    }
    let folders: Vec<String> = stores.iter().map(|s| s.display().to_string()).collect();
    let folders = folders.join(", ");
    let names = names(&stores);
    if names.is_empty() {
        let hint = "OLLAMA_MODELS names the folder of Ollama's models where it is another".to_owned();
        bail!(anyhow!("ollama:{name}: no model of Ollama's is in {folders}").context(Hint(hint)));
    }
    let there = closest(&name.to_string(), &names);
    bail!(anyhow!("ollama:{name}: no such model in {folders}").context(Hint(format!("there are {there}"))))
}

/// The names of all models in the stores.
pub(super) fn all() -> Result<Vec<String>> {
    Ok(names(&stores()?).into_iter().map(|name| format!("ollama:{name}")).collect())
}

/// Whether an error says that nothing is there. A part of the path that is a file is as good as nothing.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The folders in which models may be. What the environment names, else the user's and the system service's.
fn stores() -> Result<Vec<PathBuf>> {
    // As `envconfig.Var` reads it.
    if let Some(value) = std::env::var_os("OLLAMA_MODELS") {
        let text = value.to_string_lossy();
        let text = text.trim().trim_matches(|c| c == '"' || c == '\'');
        if !text.is_empty() {
            return Ok(vec![PathBuf::from(text)]);
        }
    }
    Ok(vec![home()?.join(OF_USER), PathBuf::from(OF_SERVICE)])
}

/// The names of all models, as far as they can be listed.
fn names(stores: &[PathBuf]) -> Vec<String> {
    let mut names = Vec::new();
    for store in stores {
        for folder in MANIFESTS {
            let mut level = vec![(store.join(folder), Vec::new())];
            for _ in 0..4 {
                let mut next: Vec<(PathBuf, Vec<String>)> = Vec::new();
                for (folder, words) in &level {
                    let Ok(entries) = std::fs::read_dir(folder) else {
                        continue;
                    };
                    for entry in entries.flatten().take(MAX_NAMES) {
                        if let Ok(word) = entry.file_name().into_string()
                            && next.len() < MAX_NAMES
                        {
                            let mut words = words.clone();
                            words.push(word);
                            next.push((entry.path(), words));
                        }
                    }
                }
                level = next;
            }
            for (_, words) in level {
                if let [host, namespace, model, tag] = &words[..]
                    && let Ok(name) = Name::parse(&format!("{host}/{namespace}/{model}:{tag}"))
                {
                    names.push(name.to_string());
                }
            }
        }
    }
    names.sort();
    names.dedup();
    names
}

impl StoredModel {
    /// A name for a file of it, without an end. It is that of the model, and the tag, unless it is the usual one.
    #[must_use]
    pub fn file_name(&self) -> String {
        let Name { model, tag, .. } = &self.name;
        match &**tag {
            TAG => model.clone(),
            tag => format!("{model}-{tag}"),
        }
    }

    fn of(name: Name, store: &Path, manifest: Manifest) -> Result<Self> {
        let mut stored =
            Self { name, store: store.to_owned(), config: manifest.config, layers: manifest.layers };
        if manifest.media_type == LIST {
            let listed = select(&manifest.manifests)?;
            (stored.config, stored.layers) = match &listed.digest[..] {
                "" => (listed.config.clone(), listed.layers.clone()),
                digest => {
                    let path = stored.blob_path(digest, "manifest")?;
                    let bytes =
                        read_small(&path, MAX_MANIFEST).with_context(|| path.display().to_string())?;
                    let child: Manifest = parse_json(&bytes).with_context(|| path.display().to_string())?;
                    (child.config, child.layers)
                }
            };
        }
        Ok(stored)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The file of its weights.
    ///
    /// # Errors
    /// None or several; a blob that is missing or has another size than the manifest says.
    pub fn model(&self) -> Result<PathBuf> {
        let at_name = || format!("ollama:{}", self.name);
        let files = self.files(Kind::Model).with_context(at_name)?;
        match &files[..] {
            [file] => Ok(file.clone()),
            [] => {
                let mut kinds: Vec<&str> = self.layers.iter().map(|l| &l.media_type[..]).collect();
                kinds.sort_unstable();
                kinds.dedup();
                let kinds: Vec<String> =
                    kinds.iter().take(4).map(|kind| kind.chars().take(60).collect()).collect();
                bail!(
                    "{}: its manifest names no GGUF file, but {}",
                    at_name(),
                    match kinds.is_empty() {
                        true => "nothing at all".to_owned(),
                        false => kinds.join(", "),
                    }
                )
            }
            files => {
                bail!("{}: its manifest names {} files of weights, expected one", at_name(), files.len())
            }
        }
    }

    /// Its files of one kind.
    ///
    /// # Errors
    /// A blob that is missing or has another size than the manifest says.
    pub fn files(&self, kind: Kind) -> Result<Vec<PathBuf>> {
        self.of_kind(kind).map(|layer| self.blob(layer, kind)).collect()
    }

    /// How many of its files are of one kind, there or not.
    #[must_use]
    pub fn n_files(&self, kind: Kind) -> usize {
        self.of_kind(kind).count()
    }

    /// Its texts of one kind.
    ///
    /// # Errors
    /// As [`StoredModel::files`]; what is not UTF-8, or too long.
    pub fn texts(&self, kind: Kind) -> Result<Vec<String>> {
        let read = |path: PathBuf| {
            let text = read_small(&path, MAX_TEXT).map_err(anyhow::Error::from);
            text.and_then(|bytes| String::from_utf8(bytes).map_err(|_| anyhow!("is not UTF-8 text")))
                .with_context(|| path.display().to_string())
        };
        self.files(kind)?.into_iter().map(read).collect()
    }

    /// Its configuration.
    ///
    /// # Errors
    /// As [`StoredModel::files`]; JSON that is malformed.
    pub fn config(&self) -> Result<Config> {
        let Some(layer) = self.config.as_ref().filter(|layer| !layer.digest.is_empty()) else {
            return Ok(Config::default());
        };
        let path = self.checked(layer, "configuration")?;
        let bytes = read_small(&path, MAX_TEXT).with_context(|| path.display().to_string())?;
        parse_json(&bytes).with_context(|| path.display().to_string())
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Layer> {
        let is_kind = move |layer: &&Layer| layer.media_type == kind.media_type();
        self.layers.iter().filter(is_kind)
    }

    fn blob(&self, layer: &Layer, kind: Kind) -> Result<PathBuf> {
        let what = kind.media_type().rsplit('.').next().unwrap_or_default();
        self.checked(layer, what)
    }

    /// The file of a layer; it must have the manifest's length.
    fn checked(&self, layer: &Layer, what: &str) -> Result<PathBuf> {
        let path = self.blob_path(&layer.digest, what)?;
        let pull = || Hint(format!("ollama pull {} fetches what is missing", self.name));
        let shown = || path.file_name().unwrap_or_default().to_string_lossy();
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if is_absent(&error) => bail!(
                anyhow!(
                    "the manifest names blob {} ({what}), which is missing in {}",
                    shown(),
                    self.store.join("blobs").display()
                )
                .context(pull())
            ),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        ensure!(metadata.is_file(), "blob {} ({what}) is not a regular file", shown());
        if let Some(size) = layer.size.filter(|size| *size != metadata.len()) {
            bail!(
                anyhow!(
                    "blob {} ({what}) has {} bytes, but the manifest says {size}",
                    shown(),
                    metadata.len()
                )
                .context(pull())
            );
        }
        Ok(path)
    }

    /// Where the blob of that digest is.
    fn blob_path(&self, digest: &str, what: &str) -> Result<PathBuf> {
        let hex = digest
            .strip_prefix("sha256:")
            .or_else(|| digest.strip_prefix("sha256-"))
            .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let hex = hex.with_context(|| {
            let shown: String = digest.chars().take(80).collect();
            format!("the manifest names a {what} by '{shown}', expected sha256 and 64 digits")
        })?;
        let name = format!("sha256-{}", hex.to_ascii_lowercase());
        Ok(self.store.join("blobs").join(name))
    }
}

/// The manifest of a list that is for GGUF files (`manifest.go: runnerPreferences`).
fn select(listed: &[Listed]) -> Result<&Listed> {
    let of = |runner: &str| {
        let mut listed = listed.iter();
        listed.find(|listed| listed.runner.eq_ignore_ascii_case(runner))
    };
    of("ollama")
        .or_else(|| of("llamacpp"))
        .context("its manifest lists no form of the model that is a GGUF file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_up_and_shown_short() {
        for (text, manifest, shown) in [
            ("llama3.2", "registry.ollama.ai/library/llama3.2/latest", "llama3.2:latest"),
            ("qwen3:8b", "registry.ollama.ai/library/qwen3/8b", "qwen3:8b"),
            ("me/m:x", "registry.ollama.ai/me/m/x", "me/m:x"),
            (
                "hf.co/bartowski/Q-GGUF:Q4_K_M",
                "hf.co/bartowski/Q-GGUF/Q4_K_M",
                "hf.co/bartowski/Q-GGUF:Q4_K_M",
            ),
            ("localhost:5000/a/b", "localhost:5000/a/b/latest", "localhost:5000/a/b:latest"),
        ] {
            let name = Name::parse(text).unwrap();
            let paths = name.manifests(Path::new("s"));
            assert!(paths.contains(&Path::new("s/manifests").join(manifest)), "{text}");
            assert_eq!(name.to_string(), shown);
            assert_eq!(Name::parse(shown).unwrap(), name);
        }
    }

    #[test]
    fn names_do_not_lead_elsewhere() {
        let long = "a".repeat(81);
        for text in [
            "", ":", "a:", ":b", "..", "a/..", "../a", "a/../b", "a:..", "/a", "a/", "a//b", "a b", "a\\b",
            "a/b/c/d", "a:b:c", "-a", ".a", "a:-b", "a\0", "b.c/d", &long,
        ] {
            assert!(Name::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn digests_are_digits() {
        let stored = StoredModel {
            name: Name::parse("m").unwrap(),
            store: "s".into(),
            config: None,
            layers: Vec::new(),
        };
        let digits = "Ab".repeat(32);
        let path = Path::new("s/blobs").join(format!("sha256-{}", "ab".repeat(32)));
        for digest in [format!("sha256:{digits}"), format!("sha256-{digits}")] {
            assert_eq!(stored.blob_path(&digest, "model").unwrap(), path);
        }
        for digest in ["", "sha256:", "sha256:../../x", "md5:00", &digits, "sha256:é"] {
            assert!(stored.blob_path(digest, "model").is_err(), "{digest}");
        }
    }
}
