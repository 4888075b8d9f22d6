//! Models named in the stores of Ollama, Hugging Face and LM Studio. They are found, never written to, and refused by name
//! where a store is not what it says.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::make::Make;
use crate::util::{Dir, TestCommand};

const MODEL: &str = "application/vnd.ollama.image.model";
const TEMPLATE: &str = "application/vnd.ollama.image.template";
const LIST: &str = "application/vnd.ollama.manifest.list.v2+json";

/// A folder with a model `m.gguf`, and Ollama's store in `store`.
pub struct Store {
    pub dir: Dir,
}

impl Store {
    pub fn new() -> Self {
        let store = Self { dir: Dir::new() };
        Make::new("llama", 6).write(&store.dir, "m.gguf");
        fs::create_dir_all(store.dir.path("store/blobs")).unwrap();
        store
    }

    /// Puts a file into the store, and returns its layer. (The digest's length is right; Ollama's hash is another.)
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let hex = blake3::hash(bytes).to_hex();
        self.dir.write(&format!("store/blobs/sha256-{hex}"), bytes);
        json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    }

    /// The layer of `m.gguf`.
    pub fn model(&self) -> Value {
        self.blob(MODEL, &self.dir.read("m.gguf"))
    }

    /// Writes what the manifest at a path below `store` says.
    pub fn manifest(&self, path: &str, text: &str) {
        let path = self.dir.path("store").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The usual manifest of `m:latest` with these layers.
    pub fn layers(&self, layers: &[Value]) {
        let manifest = json!({"schemaVersion": 2, "config": {}, "layers": layers});
        self.manifest("manifests/registry.ollama.ai/library/m/latest", &manifest.to_string());
    }

    pub fn run(&self, arguments: &str) -> TestCommand<'_> {
        let command = self.dir.run(arguments);
        command.env("OLLAMA_MODELS", &self.dir.path("store"))
    }
}

/// The path of the model that JSON in `file` tells of.
fn path_in(dir: &Dir, file: &str) -> String {
    let json: Value = serde_json::from_slice(&dir.read(file)).unwrap();
    json["model"]["path"].as_str().unwrap().to_owned()
}

#[test]
fn ollamas_names_stand_for_their_files() {
    let store = Store::new();
    let layer = store.model();
    let manifest = json!({"schemaVersion": 2, "layers": [layer]}).to_string();
    let digest = layer["digest"].as_str().unwrap().replace(':', "-");
    for (path, name) in [
        ("manifests/registry.ollama.ai/library/m/latest", "m"),
        ("manifests/registry.ollama.ai/library/m/latest", "m:latest"),
        ("manifests/registry.ollama.ai/library/m/1b-q4_0", "m:1b-q4_0"),
        ("manifests/registry.ollama.ai/me/n/latest", "me/n"),
        ("manifests/hf.co/org/Repo-GGUF/Q4_K_M", "hf.co/org/Repo-GGUF:Q4_K_M"),
        ("manifests/localhost:5000/a/b/c", "localhost:5000/a/b:c"),
        ("manifests-v2/ollama.com/library/new/latest", "new"),
    ] {
        store.manifest(path, &manifest);
        let run = format!("ollama:{name} --blocks 1,3 -o out.gguf --force --json out.json");
        store.run(&run).succeeds();
        store.dir.run("m.gguf --blocks 1,3 -o same.gguf --force").succeeds();
        assert_eq!(store.dir.read("out.gguf"), store.dir.read("same.gguf"), "{name}");
        assert!(path_in(&store.dir, "out.json").ends_with(&digest), "{name}");
    }
    // Every command that takes a model.
    store.run("show ollama:m").succeeds();
    store.run("show ollama:m --json show.json").succeeds();
    assert!(path_in(&store.dir, "show.json").ends_with(&digest));
    store.run("verify out.gguf --parent ollama:m").succeeds();
}

#[test]
fn a_batch_takes_models_of_stores() {
    let store = Store::new();
    let layer = store.model();
    let manifest = json!({"schemaVersion": 2, "layers": [layer]}).to_string();
    let library = "manifests/registry.ollama.ai/library";
    for path in ["m/latest", "n/1b-q4_0"] {
        store.manifest(&format!("{library}/{path}"), &manifest);
    }
    let batch = |models: &str| store.run(&format!("batch {models} -q --blocks 1,3 --out-dir out"));
    fs::write(store.dir.path("list.txt"), "ollama:n:1b-q4_0\nollama:m\n").unwrap();
    // One file under two names is one model, called by the first.
    batch("@list.txt m.gguf").succeeds();
    assert_eq!(store.dir.read("out/n-1b-q4_0-short.gguf"), store.dir.read("out/m-short.gguf"));
    assert!(!store.dir.path("out/m-1b-q4_0-short.gguf").exists());
    let output = batch("ollama:none m.gguf").refused();
    assert!(output.error().starts_with("ollama:none:latest: no such model in "));
}

#[test]
fn a_list_of_manifests_stands_for_the_one_with_a_gguf_file() {
    let store = Store::new();
    let child = json!({"schemaVersion": 2, "layers": [store.model()]});
    let blob = store.blob("", child.to_string().as_bytes());
    let path = "manifests-v2/ollama.com/library/m/latest";
    for listed in [
        json!({"runner": "llamacpp", "digest": blob["digest"]}),
        json!({"runner": "Ollama", "layers": child["layers"]}),
    ] {
        let mlx = json!({"runner": "mlx", "digest": "sha256:00"});
        let list = json!({"mediaType": LIST, "manifests": [mlx, listed]});
        store.manifest(path, &list.to_string());
        store.run("show ollama:m").succeeds();
    }
    let list = json!({"mediaType": LIST, "manifests": [{"runner": "mlx"}]});
    store.manifest(path, &list.to_string());
    store
        .run("show ollama:m")
        .fails(1, "ollama:m:latest: its manifest lists no form of the model that is a GGUF file");
}

#[test]
fn the_users_store_is_looked_at_where_the_environment_names_none() {
    let store = Store::new();
    store.layers(&[store.model()]);
    fs::create_dir_all(store.dir.path("home/.ollama")).unwrap();
    fs::rename(store.dir.path("store"), store.dir.path("home/.ollama/models")).unwrap();
    let home = store.dir.path("home");
    let show = || store.dir.run("show ollama:m").env("HOME", &home);
    show().succeeds();
    show().env("OLLAMA_MODELS", Path::new("  ")).succeeds();
    let folder = store.dir.path("nowhere");
    let output = show().env("OLLAMA_MODELS", &folder).refused();
    let expected = format!("ollama:m:latest: no model of Ollama's is in {}", folder.display());
    assert_eq!(output.error(), expected);
    assert!(output.hint().unwrap().starts_with("OLLAMA_MODELS names"));
}

#[test]
fn a_name_that_is_not_there_is_answered_with_those_that_are() {
    let store = Store::new();
    let text = json!({"layers": [store.model()]}).to_string();
    for model in ["llama3.2/1b", "llama3.2/3b", "qwen3/8b"] {
        store.manifest(&format!("manifests/registry.ollama.ai/library/{model}"), &text);
    }
    store.manifest("manifests/hf.co/a/b/c", &text);
    let output = store.run("show ollama:lama3.2:3b").refused();
    let folder = store.dir.path("store");
    let expected = format!("ollama:lama3.2:3b: no such model in {}", folder.display());
    assert_eq!(output.error(), expected);
    let hint = "there are llama3.2:3b, llama3.2:1b, ";
    assert!(output.hint().unwrap().starts_with(hint), "{:?}", output.hint());
}

#[test]
fn names_lead_nowhere_else() {
    let store = Store::new();
    store.layers(&[store.model()]);
    for name in ["", "..", "../m", "m:..", "a/../m", "/etc/passwd", "m:a/b:", "m\\x", "-m", "a/b/c/d"] {
        let message = format!(
            "ollama:{name}: is not a name of the form ollama:NAME, ollama:NAME:TAG or ollama:NAMESPACE/NAME:TAG"
        );
        store.run(&format!("show ollama:{name}")).fails(1, &message);
    }
}

#[test]
fn a_manifest_that_is_not_true_is_refused_by_name() {
    let store = Store::new();
    let layer = store.model();
    let blob = |change: &dyn Fn(&mut Value)| {
        let mut layer = layer.clone();
        change(&mut layer);
        layer
    };
    let hex = "0".repeat(64);
    let missing = format!("sha256:{hex}");
    let shown = layer["digest"].as_str().unwrap().replace(':', "-");
    let n_bytes = layer["size"].as_u64().unwrap();
    let blobs = store.dir.path("store/blobs");
    for (layers, message) in [
        (vec![], "its manifest names no GGUF file, but nothing at all".to_owned()),
        (
            vec![store.blob(TEMPLATE, b"x"), store.blob("text/plain", b"y")],
            format!("its manifest names no GGUF file, but {TEMPLATE}, text/plain"),
        ),
        (
            vec![layer.clone(), layer.clone()],
            "its manifest names 2 files of weights, expected one".to_owned(),
        ),
        (
            vec![blob(&|layer| layer["digest"] = json!(missing))],
            format!("the manifest names blob sha256-{hex} (model), which is missing in {}", blobs.display()),
        ),
        (
            vec![blob(&|layer| layer["size"] = json!(n_bytes + 1))],
            format!("blob {shown} (model) has {n_bytes} bytes, but the manifest says {}", n_bytes + 1),
        ),
        (
            vec![blob(&|layer| layer["digest"] = json!("sha256:../../m.gguf"))],
            "the manifest names a model by 'sha256:../../m.gguf', expected sha256 and 64 digits".to_owned(),
        ),
        (
            vec![blob(&|layer| layer["digest"] = json!(""))],
            "the manifest names a model by '', expected sha256 and 64 digits".to_owned(),
        ),
    ] {
        store.layers(&layers);
        store.run("show ollama:m").fails(1, &format!("ollama:m:latest: {message}"));
    }
    let path = "manifests/registry.ollama.ai/library/m/latest";
    let at = store.dir.path("store").join(path);
    let mut deep = String::new();
    let _ = write!(deep, "{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (text, message) in [
        ("", "is not well-formed JSON: line 1, column 0"),
        ("{\"layers\": [}", "is not well-formed JSON: line 1, column 13"),
        ("{\"layers\": 1}", "does not hold what is expected: line 1, column 12"),
        ("{\"layers\": [{\"size\": -1}]}", "does not hold what is expected: line 1, column 23"),
        (&deep, "does not hold what is expected: line 1, column 0"),
    ] {
        store.manifest(path, text);
        let output = store.run("show ollama:m").refused();
        let start = format!("{}: {}", at.display(), &message[..20]);
        assert!(output.error().starts_with(&start), "{}", output.error());
    }
    store.manifest(path, &" ".repeat((4 << 20) + 1));
    let message = format!("{}: is larger than 4194304 bytes", at.display());
    store.run("show ollama:m").fails(1, &message);
    fs::remove_file(&at).unwrap();
    fs::create_dir(&at).unwrap();
    let message = format!("{}: is not a regular file", at.display());
    store.run("show ollama:m").fails(1, &message);
}

#[test]
fn a_store_is_never_written_to() {
    let store = Store::new();
    let layer = store.model();
    store.layers(std::slice::from_ref(&layer));
    let blob = layer["digest"].as_str().unwrap().replace(':', "-");
    let run = format!("ollama:m --blocks 1 --force -o store/blobs/{blob}");
    store.run(&run).fails(1, &format!("store/blobs/{blob}: is the input itself"));
}

/// A Hugging Face cache in `hub` with one repository of these files.
fn hub(files: &[&str]) -> Dir {
    let dir = Make::new("llama", 6).dir();
    let repository = dir.path("hub/models--org--Repo-GGUF");
    let snapshot = repository.join("snapshots/abc123");
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::create_dir_all(repository.join("blobs")).unwrap();
    fs::write(repository.join("refs/main"), "abc123").unwrap();
    for (i, file) in files.iter().enumerate() {
        let blob = repository.join("blobs").join(i.to_string());
        fs::copy(dir.path("m.gguf"), &blob).unwrap();
        let link = snapshot.join(file);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        #[cfg(unix)]
        {
            let up = "../".repeat(1 + file.split('/').count());
            std::os::unix::fs::symlink(format!("{up}blobs/{i}"), link).unwrap();
        }
        #[cfg(not(unix))]
        fs::copy(&blob, link).unwrap();
    }
    dir
}

fn with_hub<'d>(dir: &'d Dir, arguments: &str) -> TestCommand<'d> {
    dir.run(arguments).env("HF_HUB_CACHE", &dir.path("hub"))
}

#[test]
fn a_quantization_names_a_file_as_in_llama_cpp() {
    let dir = hub(&["a-Q4_K_M.gguf", "a-Q8_0.gguf", "a-BF16-00001-of-00002.gguf", "mmproj-a-Q8_0.gguf"]);
    let path = |name: &str| {
        with_hub(&dir, &format!("{name} --blocks 1 --dry-run --json out.json")).succeeds();
        path_in(&dir, "out.json")
    };
    assert!(path("hf:org/Repo-GGUF:q4_k_m").ends_with("/a-Q4_K_M.gguf"));
    assert!(path("hf:org/Repo-GGUF:Q8_0").ends_with("/a-Q8_0.gguf"));
    let output = with_hub(&dir, "show hf:org/Repo-GGUF:Q4_K").refused();
    assert!(output.error().starts_with("hf:org/Repo-GGUF:Q4_K: no model of that quantization is in "));
    assert_eq!(output.hint(), Some("there are a-Q4_K_M.gguf, a-Q8_0.gguf, a-BF16-00001-of-00002.gguf"));
    with_hub(&dir, "show hf:org/Repo-GGUF/a-Q8_0.gguf:Q8_0").fails(1, "both a file and a quantization");
    // llama.cpp's own folder, in the form of the hub's, comes first.
    fs::rename(dir.path("hub"), dir.path("own")).unwrap();
    let own = |line: &str| dir.run(line).env("LLAMA_CACHE", &dir.path("own"));
    own("show hf:org/Repo-GGUF:Q8_0").succeeds();
    // What older releases have fetched lies flat in a folder of their own.
    fs::create_dir_all(dir.path("cache/llama.cpp")).unwrap();
    fs::copy(dir.path("m.gguf"), dir.path("cache/llama.cpp/org_Old-GGUF_b-Q4_0.gguf")).unwrap();
    for name in ["hf:org/Old-GGUF", "hf:org/Old-GGUF:Q4_0", "hf:org/Old-GGUF/b-Q4_0.gguf"] {
        dir.run(&format!("show {name}")).env("XDG_CACHE_HOME", &dir.path("cache")).succeeds();
    }
    dir.run("show hf:org/Old-GGUF:Q8_0").env("XDG_CACHE_HOME", &dir.path("cache")).refused();
}

#[test]
fn the_models_of_all_stores_are_listed() {
    let dir = hub(&["a-Q4_0.gguf", "a-Q8_0.gguf"]);
    let none = dir.run("list").env("HF_HUB_CACHE", &dir.path("none")).succeeds();
    none.check(none.stdout.starts_with("no models in the stores of "), "that there are none");
    let store = Store::new();
    store.layers(&[store.model()]);
    fs::create_dir_all(dir.path("home/.lmstudio/models/me/Some")).unwrap();
    Make::new("unheard-of", 3).write(&dir, "home/.lmstudio/models/me/Some/x.gguf");
    fs::create_dir_all(dir.path("cache/llama.cpp")).unwrap();
    dir.write("cache/llama.cpp/org_Old_b.gguf", b"GGUFnothing");
    let run = |line: &str| {
        with_hub(&dir, line)
            .env("OLLAMA_MODELS", &store.dir.path("store"))
            .env("HOME", &dir.path("home"))
            .env("XDG_CACHE_HOME", &dir.path("cache"))
    };
    let output = run("list --json -").succeeds();
    let found: Value = serde_json::from_str(&output.stdout).unwrap();
    let models = found["models"].as_array().unwrap();
    let names: Vec<&str> = models.iter().map(|model| model["name"].as_str().unwrap()).collect();
    let old = dir.path("cache/llama.cpp/org_Old_b.gguf");
    let expected = [
        "ollama:m:latest",
        "hf:org/Repo-GGUF/a-Q4_0.gguf",
        "hf:org/Repo-GGUF/a-Q8_0.gguf",
        old.to_str().unwrap(),
        "lmstudio:me/Some",
    ];
    assert_eq!(names, expected);
    assert_eq!(
        (&models[0]["block_count"], &models[0]["may_go"], &models[0]["store"]),
        (&6.into(), &6.into(), &"ollama".into())
    );
    assert_eq!((&models[1]["architecture"], &models[1]["error"]), (&"llama".into(), &Value::Null));
    assert!(models[3]["error"].is_string() && models[3]["bytes"].is_null());
    assert!(models[4]["refused"].is_string() && models[4]["may_go"].is_null());
    // What is listed can be named, and fits a table.
    let output = run("list").succeeds();
    output.check(output.stdout.contains("ollama:m:latest"), "a name");
    output.check(output.stdout.lines().all(|line| line.trim_end() == line), "no blanks at the ends of lines");
    for name in &expected[..3] {
        run(&format!("show {name}")).succeeds();
    }
}

#[test]
fn the_hubs_names_stand_for_their_files() {
    let dir = hub(&["a-Q4_0.gguf", "mmproj-a.gguf", "README.md"]);
    for name in ["hf:org/Repo-GGUF", "hf:org/Repo-GGUF/a-Q4_0.gguf"] {
        with_hub(&dir, &format!("{name} --blocks 1,3 -o out.gguf --force --json out.json")).succeeds();
        dir.run("m.gguf --blocks 1,3 -o same.gguf --force").succeeds();
        assert_eq!(dir.read("out.gguf"), dir.read("same.gguf"));
        assert!(path_in(&dir, "out.json").ends_with("snapshots/abc123/a-Q4_0.gguf"));
    }
    with_hub(&dir, "verify out.gguf --parent hf:org/Repo-GGUF").succeeds();
    // Places of the cache, from the most to the least explicit.
    let show = || dir.run("show hf:org/Repo-GGUF");
    let none = dir.path("none");
    show().env("HUGGINGFACE_HUB_CACHE", &dir.path("hub")).env("HF_HOME", &none).succeeds();
    show().env("HF_HOME", dir.root()).env("XDG_CACHE_HOME", &none).succeeds();
    fs::create_dir_all(dir.path("xdg/huggingface")).unwrap();
    fs::rename(dir.path("hub"), dir.path("xdg/huggingface/hub")).unwrap();
    show().env("XDG_CACHE_HOME", &dir.path("xdg")).env("HOME", &none).succeeds();
    fs::create_dir_all(dir.path("home")).unwrap();
    fs::rename(dir.path("xdg"), dir.path("home/.cache")).unwrap();
    show().env("HOME", &dir.path("home")).succeeds();
}

#[test]
fn a_repository_of_several_models_wants_a_file() {
    let dir =
        hub(&["a-Q4_0.gguf", "a-Q8_0.gguf", "BF16/a-00001-of-00002.gguf", "BF16/a-00002-of-00002.gguf"]);
    let output = with_hub(&dir, "show hf:org/Repo-GGUF").refused();
    assert_eq!(output.error(), "hf:org/Repo-GGUF: holds 3 models");
    assert_eq!(
        output.hint().unwrap(),
        "hf:org/Repo-GGUF/FILE names one: BF16/a-00001-of-00002.gguf, a-Q4_0.gguf, a-Q8_0.gguf"
    );
    let output = with_hub(&dir, "show hf:org/Repo-GGUF/a-Q4_K.gguf").refused();
    assert!(output.error().starts_with("hf:org/Repo-GGUF/a-Q4_K.gguf: no such file in "));
    assert!(output.hint().unwrap().starts_with("there are a-Q4_0.gguf, "));
    with_hub(&dir, "show hf:org/Repo-GGUF/a-Q8_0.gguf").succeeds();
}

#[test]
fn a_split_model_is_found_through_the_links_of_all_its_parts() {
    let dir = hub(&[]);
    let folder = dir.path("hub/models--org--Repo-GGUF/snapshots/abc123/Q4");
    fs::create_dir_all(&folder).unwrap();
    dir.run("m.gguf --blocks 0 --split-max-size 500 -o s").succeeds();
    let parts: Vec<String> = dir.names().into_iter().filter(|n| n.starts_with("s-0")).collect();
    assert!(parts.len() > 1);
    for part in &parts {
        fs::rename(dir.path(part), folder.join(part)).unwrap();
    }
    with_hub(&dir, "hf:org/Repo-GGUF --blocks 1 -o out.gguf").succeeds();
    with_hub(&dir, &format!("verify out.gguf --parent hf:org/Repo-GGUF/{}", parts[1])).succeeds();
    with_hub(&dir, &format!("verify out.gguf --parent hf:org/Repo-GGUF/Q4/{}", parts[1])).succeeds();
}

#[test]
fn a_cache_that_is_not_true_is_refused_by_name() {
    let dir = hub(&["a.gguf"]);
    let repository = dir.path("hub/models--org--Repo-GGUF");
    let main = repository.join("refs/main");
    for (commit, message) in [
        (
            "gone",
            format!(
                "hf:org/Repo-GGUF: its refs/main names snapshot 'gone', which is missing in {}",
                repository.join("snapshots").display()
            ),
        ),
        ("../../..", format!("hf:org/Repo-GGUF: {}: does not hold the name of a commit", main.display())),
        ("", format!("hf:org/Repo-GGUF: {}: does not hold the name of a commit", main.display())),
    ] {
        fs::write(&main, commit).unwrap();
        with_hub(&dir, "show hf:org/Repo-GGUF").fails(1, &message);
    }
    // Without a word of a branch the only snapshot is meant.
    fs::remove_file(&main).unwrap();
    with_hub(&dir, "show hf:org/Repo-GGUF").succeeds();
    fs::create_dir(repository.join("snapshots/def")).unwrap();
    let output = with_hub(&dir, "show hf:org/Repo-GGUF").refused();
    assert!(output.error().contains("it has no refs/main, and 2 snapshots in "));
    fs::write(&main, "abc123\n").unwrap();
    fs::remove_file(repository.join("blobs/0")).unwrap();
    let output = with_hub(&dir, "show hf:org/Repo-GGUF").refused();
    assert!(output.error().contains("a.gguf: what it links to: "), "{}", output.error());
    let output = with_hub(&dir, "show hf:org/Repo").refused();
    assert_eq!(output.hint().unwrap(), "there are org/Repo-GGUF");
    for name in ["org", "org/", "../x", "org/../x", "org/Repo-GGUF/../../x", "org/Repo-GGUF/"] {
        let message = format!("hf:{name}: is not a name of the form hf:ORG/REPO or hf:ORG/REPO/FILE");
        with_hub(&dir, &format!("show hf:{name}")).fails(1, &message);
    }
}

#[test]
fn lm_studios_names_stand_for_their_files() {
    let dir = Make::new("llama", 6).dir();
    let home = dir.path("home");
    let run = |name: &str| dir.run(&format!("show {name}")).env("HOME", &home);
    let put = |folder: &str| {
        let folder = dir.path(folder).join("org/repo");
        fs::create_dir_all(&folder).unwrap();
        fs::copy(dir.path("m.gguf"), folder.join("m-Q4.gguf")).unwrap();
        fs::copy(dir.path("m.gguf"), folder.join("mmproj-m.gguf")).unwrap();
        folder
    };
    for folder in ["home/.lmstudio/models", "home/.cache/lm-studio/models"] {
        let folder = put(folder);
        run("lmstudio:org/repo").succeeds();
        run("lmstudio:org/repo/m-Q4.gguf").succeeds();
        let output = run("lmstudio:org/rep").refused();
        assert_eq!(output.hint().unwrap(), "there are org/repo");
        fs::remove_dir_all(folder).unwrap();
    }
    let folder = put("elsewhere").parent().unwrap().parent().unwrap().to_owned();
    fs::create_dir_all(home.join(".lmstudio")).unwrap();
    let settings = home.join(".lmstudio/settings.json");
    fs::write(&settings, json!({"downloadsFolder": folder}).to_string()).unwrap();
    run("lmstudio:org/repo").succeeds();
    fs::write(&settings, "{\"downloadsFolder\": ").unwrap();
    let output = run("lmstudio:org/repo").refused();
    let start = format!("{}: is not well-formed JSON", settings.display());
    assert!(output.error().starts_with(&start), "{}", output.error());
    // The program's folder may be elsewhere.
    fs::write(&settings, "{}").unwrap();
    fs::create_dir(dir.path("studio")).unwrap();
    fs::rename(folder, dir.path("studio/models")).unwrap();
    run("lmstudio:org/repo").refused();
    let pointer = dir.path("studio").display().to_string() + "\n";
    fs::write(home.join(".lmstudio-home-pointer"), pointer).unwrap();
    run("lmstudio:org/repo").succeeds();
    run("lmstudio:..").refused();
}
