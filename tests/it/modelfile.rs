//! `--ollama NAME`: the Modelfile, and what is run with it.

use std::fs;

use gguf_shorten::gguf::ValueOut;
use serde_json::{Value, json};

use crate::make::Make;
use crate::stores::Store;

const IMAGE: &str = "application/vnd.ollama.image.";

/// A folder with an `ollama` that notes how it is run. It fails if it is asked for the name `bad`.
fn with_ollama(store: &Store) -> String {
    fs::create_dir(store.dir.path("bin")).unwrap();
    let script = "#!/bin/sh\necho \"$@\" >ran\ncp \"$4\" copy\necho making >&1\n[ \"$2\" != bad ]\n";
    let path = store.dir.path("bin/ollama");
    fs::write(&path, script).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = std::env::var("PATH").unwrap();
    format!("{}:{path}", store.dir.path("bin").display())
}

fn of(store: &Store, kind: &str, text: &str) -> Value {
    store.blob(&format!("{IMAGE}{kind}"), text.as_bytes())
}

#[test]
fn a_modelfile_keeps_what_the_parents_manifest_says() {
    let store = Store::new();
    let path = with_ollama(&store);
    let template = "{{ if .System }}<s>{{ .System }}\n{{ end }}{{ .Prompt }} \"\"\"x\"\"\" ";
    let layers = [
        store.model(),
        of(&store, "template", template),
        of(&store, "system", "Be \"brief\"."),
        of(&store, "params", "{\"stop\": [\"<a>\", \"b c\"], \"temperature\": 0.7}"),
        of(&store, "messages", "[{\"role\": \"user\", \"content\": \"hi\\nthere\"}]"),
        of(&store, "license", "MIT\n\nfree"),
        of(&store, "license", "more"),
        of(&store, "projector", "clip"),
    ];
    let config = of(
        &store,
        "config",
        "{\"renderer\": \"qwen3\", \"parser\": \"qwen3\", \"requires\": \"0.14.0\", \"x\": 1}",
    );
    let manifest = json!({"config": config, "layers": layers});
    store.manifest("manifests/registry.ollama.ai/library/m/latest", &manifest.to_string());
    let output = store
        .run("ollama:m --blocks 1 -o out.gguf --ollama me/short:1b --json out.json")
        .env("PATH", path.as_ref())
        .output();
    output.check(output.status.success(), "success");
    // What ollama says is no result.
    assert!(output.stderr.contains("making\n") && !output.stdout.contains("making"));
    assert!(output.stdout.contains("ollama   me/short:1b from Modelfile\n"), "{}", output.stdout);
    assert_eq!(store.dir.read("ran"), b"create me/short:1b -f Modelfile\n");
    assert_eq!(store.dir.read("copy"), store.dir.read("Modelfile"));
    let digest = layers[7]["digest"].as_str().unwrap().replace(':', "-");
    let projector = store.dir.path("store/blobs").join(digest);
    let expected = format!(
        "FROM ./out.gguf\nFROM {}\nTEMPLATE \"\"\"{template}\"\"\"\nRENDERER qwen3\nPARSER qwen3\nREQUIRES 0.14.0\nSYSTEM Be \
         \"brief\".\nPARAMETER stop <a>\nPARAMETER stop b c\nPARAMETER temperature 0.7\nMESSAGE user \
         \"\"\"hi\nthere\"\"\"\nLICENSE \"\"\"MIT\n\nfree\"\"\"\nLICENSE more\n",
        projector.display()
    );
    assert_eq!(String::from_utf8(store.dir.read("Modelfile")).unwrap(), expected);
    let json: Value = serde_json::from_slice(&store.dir.read("out.json")).unwrap();
    assert_eq!(
        json["output"]["ollama"],
        json!({"name": "me/short:1b", "modelfile": "Modelfile", "created": true})
    );
    // Once more only with leave.
    let run = "ollama:m --blocks 1 -o out2.gguf --ollama n";
    store.run(run).env("PATH", path.as_ref()).fails(1, "Modelfile: exists already");
    let output = store.run(&format!("{run} --force -q")).env("PATH", path.as_ref()).succeeds();
    assert_eq!(output.stderr, "");
}

#[test]
fn without_ollama_the_command_is_said() {
    let store = Store::new();
    fs::create_dir(store.dir.path("a b")).unwrap();
    let arguments = ["m.gguf", "--blocks", "1", "-o", "a b/out.gguf", "--ollama", "n", "--json", "out.json"];
    let output = store.dir.run_with(arguments).env("PATH", &store.dir.path("none")).succeeds();
    assert_eq!(
        output.stderr,
        "gguf-shorten: note: the model has no chat template, so Ollama passes prompts on as they are\n\
         gguf-shorten: note: there is no 'ollama' in PATH; where there is: ollama create n -f 'a b/Modelfile'\n"
    );
    assert_eq!(store.dir.read("a b/Modelfile"), b"FROM ./out.gguf\n");
    let json: Value = serde_json::from_slice(&store.dir.read("out.json")).unwrap();
    assert_eq!(json["output"]["ollama"]["created"], false);
    store.dir.run("m.gguf --blocks 1 -o none.gguf --json out.json --force").succeeds();
    let json: Value = serde_json::from_slice(&store.dir.read("out.json")).unwrap();
    assert!(json["output"]["ollama"].is_null());
    // The GGUF's own template is Ollama's to read.
    Make::new("llama", 6)
        .set("tokenizer.chat_template", ValueOut::string("{{ x }}"))
        .write(&store.dir, "t.gguf");
    let output = store
        .dir
        .run("t.gguf --blocks 1 -o t-out.gguf --ollama n")
        .env("PATH", &store.dir.path("none"))
        .succeeds();
    assert_eq!(output.stderr.lines().count(), 1);
    assert_eq!(store.dir.read("Modelfile"), b"FROM ./t-out.gguf\n");
}

#[test]
fn what_ollama_refuses_is_a_failure_with_a_complete_output() {
    let store = Store::new();
    let path = with_ollama(&store);
    let output =
        store.dir.run("m.gguf --blocks 1 -o out.gguf --ollama bad -q").env("PATH", path.as_ref()).output();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        output.error(),
        "'ollama create bad -f Modelfile' failed (exit status: 1); the output is complete"
    );
    store.dir.run("verify out.gguf --parent m.gguf").succeeds();
}

#[test]
fn what_no_modelfile_can_hold_is_refused_before_anything_is_written() {
    let store = Store::new();
    let run = || store.run("ollama:m --blocks 1 -o out.gguf --ollama n");
    let at = "ollama:m:latest";
    for (layer, message) in [
        (
            of(&store, "template", "a\"\"\"\nb\"\nc"),
            "Modelfile: cannot be written: TEMPLATE: a line ends with quotation marks, which would end the text in a \
             Modelfile"
                .to_owned(),
        ),
        (
            of(&store, "system", "no\u{a0}break"),
            "Modelfile: cannot be written: SYSTEM: the character U+00A0 cannot stand in a Modelfile".to_owned(),
        ),
        (
            of(&store, "params", "{\"a\": {}}"),
            format!("{at}: parameters: parameter 'a' has no value that a Modelfile can hold"),
        ),
        (
            of(&store, "params", "{"),
            format!("{at}: the parameters are not well-formed JSON: line 1, column 1"),
        ),
        (
            of(&store, "params", "{\"FROM x\\n\": 1}"),
            "Modelfile: cannot be written: 'FROM x\\n' is not the name of a parameter".to_owned(),
        ),
        (
            of(&store, "messages", "[{\"role\": \"x\"}]"),
            "Modelfile: cannot be written: 'x' is not the role of a message".to_owned(),
        ),
    ] {
        store.layers(&[store.model(), layer]);
        run().fails(1, &message);
    }
    let mut layer = of(&store, "template", "x");
    layer["digest"] = json!(format!("sha256:{}", "1".repeat(64)));
    store.layers(&[store.model(), layer]);
    let output = run().refused();
    assert!(output.error().contains("(template), which is missing in "), "{}", output.error());
    // Without a Modelfile nobody needs it.
    store.run("ollama:m --blocks 1 -o out.gguf").succeeds();
}

#[test]
fn names_and_places_are_checked() {
    let store = Store::new();
    for name in ["", "a b", "../x", "a:b:c", "-x"] {
        let output = store
            .dir
            .run_with(["m.gguf", "--blocks", "1", "-o", "out.gguf", &format!("--ollama={name}")])
            .refused();
        assert_eq!(output.status.code(), Some(2), "{name}");
    }
    let run = |arguments: &str| store.dir.run(&format!("m.gguf --blocks 1 --ollama n {arguments}"));
    run("-o Modelfile").fails(1, "Modelfile: is the output itself");
    run("-o out.gguf --json Modelfile").fails(1, "Modelfile: is named for two results");
    let output = run("-o out.gguf --keep-split").refused();
    assert_eq!(output.status.code(), Some(2));
    store.dir.write("Modelfile", b"mine");
    run("-o out.gguf").fails(1, "Modelfile: exists already");
    run("-o out.gguf --dry-run").succeeds();
    assert_eq!(store.dir.read("Modelfile"), b"mine");
}
