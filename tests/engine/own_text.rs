//! Text that a model writes itself. Against a loop that evaluates every text from its beginning for each token.

use std::path::Path;

use ggml::{Backend, Context, ContextOptions, Token};
use gguf_shorten::engine::openings::OPENINGS;
use gguf_shorten::engine::own_text::{self, Order};
use serde_json::Value;

use crate::eval::byte_model;
use crate::program::{json, on_one_thread};
use crate::random_model::Spec;
use crate::support::load;

const ORDER: Order = Order { window: 30, n_windows: 19, seed: 7 };

/// The token that begins a text, and the one that ends it.
const FIRST: Token = 1;
const LAST: Token = 2;

fn chance(seed: u64, window: usize, at: usize) -> f64 {
    let bytes: Vec<u8> =
        [seed, window as u64, at as u64].iter().flat_map(|number| number.to_le_bytes()).collect();
    let hash = blake3::hash(&bytes);
    let start: [u8; 8] = hash.as_bytes()[..8].try_into().unwrap();
    (u64::from_le_bytes(start) >> 11) as f64 / 2f64.powi(53)
}

/// The openings in the order of a seed, at most a quarter of a window of each.
fn openings(model: &ggml::Model, order: Order) -> Vec<Vec<Token>> {
    let mut numbers: Vec<usize> = (0..OPENINGS.len()).collect();
    numbers.sort_by(|&a, &b| {
        let place = |number| chance(order.seed, usize::MAX, number);
        place(a).partial_cmp(&place(b)).unwrap()
    });
    let tokens = |number: usize| {
        let mut tokens = model.tokenize(OPENINGS[number]).unwrap();
        tokens.retain(|&token| token != FIRST && token != LAST);
        tokens.truncate(order.window / 4);
        tokens
    };
    numbers.into_iter().map(tokens).collect()
}

/// One token after another, by the textbook.
fn naive(path: &Path, order: Order) -> Vec<Token> {
    let model = load(path).unwrap();
    let openings = openings(&model, order);
    let opening = |number: usize| match number % 2 {
        0 => openings[number / 2 % openings.len()].clone(),
        _ => Vec::new(),
    };
    let options = ContextOptions { window: order.window, threads: 1 };
    let mut context = Context::new(&model, options).unwrap();
    let mut all = Vec::new();
    for number in 0..order.n_windows {
        let mut text = vec![FIRST];
        all.push(FIRST);
        let (mut begun, mut given) = (0, opening(number));
        for at in 1..order.window {
            if let Some(&token) = given.get(at - begun - 1) {
                text.push(token);
                all.push(token);
                continue;
            }
            let logits = context.logits(&text).unwrap();
            let row = &logits[(text.len() - 1) * model.n_vocab()..];
            let exps: Vec<f64> = row.iter().map(|&logit| f64::from(logit).exp()).collect();
            let sum: f64 = exps.iter().sum();
            let mut left = chance(order.seed, number, at);
            let drawn = exps.iter().position(|exp| {
                left -= exp / sum;
                left < 0.0
            });
            let token = drawn.unwrap() as Token;
            if token == LAST {
                text = vec![FIRST];
                all.push(FIRST);
                (begun, given) = (at, opening(number + at));
            } else {
                text.push(token);
                all.push(token);
            }
        }
    }
    all
}

#[test]
fn texts_are_those_of_a_loop_over_tokens() {
    let dir = tempfile::tempdir().unwrap();
    for architecture in ["llama", "gemma3", "mamba2"] {
        let path = dir.path().join(architecture);
        byte_model(architecture, 3).save(Backend::init(), &path).unwrap();
        let model = load(&path).unwrap();
        let mut n_told = 0;
        let tokens = own_text::write(&model, ORDER, 1, &mut |n| n_told += n).unwrap();
        assert_eq!(tokens.len(), ORDER.window * ORDER.n_windows);
        assert_eq!(n_told, tokens.len());
        assert!(
            tokens.chunks(ORDER.window).any(|window| window[1..].contains(&FIRST)),
            "no text ends: {tokens:?}"
        );
        assert_eq!(tokens, naive(&path, ORDER), "{architecture}");
        let other = Order { seed: 8, ..ORDER };
        let other = own_text::write(&model, other, 1, &mut |_| {}).unwrap();
        assert_ne!(tokens, other);
    }
}

#[test]
fn openings_are_many_and_each_seed_orders_them_in_another_way() {
    let distinct: std::collections::BTreeSet<&str> = OPENINGS.into_iter().collect();
    assert_eq!(distinct.len(), OPENINGS.len());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    byte_model("llama", 3).save(Backend::init(), &path).unwrap();
    let model = load(&path).unwrap();
    let order = Order { window: 40, n_windows: 2 * OPENINGS.len(), seed: 7 };
    let tokens = own_text::write(&model, order, 1, &mut |_| {}).unwrap();
    let begins = |tokens: &[Token]| -> Vec<Vec<Token>> {
        tokens.chunks(order.window).step_by(2).map(|window| window[1..8].to_vec()).collect()
    };
    let mut found = begins(&tokens);
    let expected: Vec<_> = openings(&model, order).into_iter().map(|tokens| tokens[..7].to_vec()).collect();
    assert_eq!(found, expected);
    let other = Order { seed: 8, ..order };
    let mut others = begins(&own_text::write(&model, other, 1, &mut |_| {}).unwrap());
    assert_ne!(found, others);
    found.sort();
    others.sort();
    assert_eq!(found, others);
}

fn calibration(dir: &Path, arguments: &str) -> Value {
    json(dir, arguments)["calibration"].clone()
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(folder)
        .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
        .unwrap_or_default()
}

#[test]
fn own_text_is_kept_and_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let parent = dir.path().join("parent.gguf");
    byte_model("llama", 4).save(Backend::init(), &parent).unwrap();
    let kept = dir.path().join("cache/own-text");
    let score = "score parent.gguf --calibration self:70 --window 32";
    let first = calibration(dir.path(), score);
    assert_eq!(first["source"], "self");
    assert_eq!(first["seed"], 0);
    assert_eq!(first["tokens"], 64);
    assert_eq!(first["window"], 32);
    assert_eq!(first["bos"], true);
    assert_eq!(files(&kept).len(), 1);
    // The same again, with its scores from the cache.
    let again = calibration(dir.path(), score);
    assert_eq!((&again["cached"], &again["seed"]), (&true.into(), &0.into()));
    assert_eq!(again["blake3"], first["blake3"]);
    // The text alone, also where that is damaged.
    let anew = || {
        std::fs::remove_dir_all(dir.path().join("cache/scores")).unwrap();
        let output = on_one_thread(dir.path(), &format!("{score} --json -"));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["calibration"]["blake3"], first["blake3"]);
        assert_eq!(json["calibration"]["cached"], false);
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(anew(), "");
    std::fs::write(&files(&kept)[0], [1; 288]).unwrap();
    let said = anew();
    assert!(
        said.starts_with("gguf-shorten: note: a text in the cache is damaged and is written again: ")
            && said.lines().count() == 1,
        "{said}"
    );
    assert_eq!(anew(), "");
    assert_eq!(files(&kept).len(), 1);
    let other = calibration(dir.path(), &format!("{score} --seed 1"));
    assert_eq!(other["seed"], 1);
    assert_ne!(other["blake3"], first["blake3"]);
    assert_eq!(files(&kept).len(), 2);

    // Every command that calibrates; what is compared with a parent uses the parent's text.
    let own = "--calibration self --tokens 64 --window 32";
    let shorten = format!("parent.gguf --drop 1 --force -o short.gguf {own}");
    assert_eq!(calibration(dir.path(), &shorten)["blake3"], first["blake3"]);
    let search = format!("parent.gguf --drop 1 --method search --dry-run {own}");
    assert_eq!(calibration(dir.path(), &search)["blake3"], first["blake3"]);
    let eval = format!("eval short.gguf --parent parent.gguf {own}");
    assert_eq!(calibration(dir.path(), &eval)["blake3"], first["blake3"]);
    let alone = format!("eval short.gguf {own}");
    assert_ne!(calibration(dir.path(), &alone)["blake3"], first["blake3"]);

    // Beside files it is one of several texts, as long as asked.
    std::fs::write(dir.path().join("text.txt"), "text ".repeat(100)).unwrap();
    let mixed = "score parent.gguf --tokens 320 --window 32 --calibration text.txt --calibration";
    let both = calibration(dir.path(), &format!("{mixed} self"));
    assert_eq!(both["source"], "text.txt, self");
    assert_eq!((&both["seed"], &both["windows"]), (&0.into(), &10.into()));
    let fewer = calibration(dir.path(), &format!("{mixed} self:70"));
    assert_ne!(fewer["blake3"], both["blake3"]);
    assert_eq!(fewer["windows"], 10);
    let other = calibration(dir.path(), &format!("{mixed} self:70 --seed 1"));
    assert_ne!(other["blake3"], fewer["blake3"]);

    // Without a place for it, it is written each time.
    std::fs::remove_dir_all(dir.path().join("cache")).unwrap();
    std::fs::write(dir.path().join("cache"), "a file").unwrap();
    let output = on_one_thread(dir.path(), &format!("{score} --json -"));
    let note = String::from_utf8_lossy(&output.stderr);
    assert!(
        note.contains("gguf-shorten: note: the model's own text is not kept for the next time: "),
        "{note}"
    );
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["calibration"]["blake3"], first["blake3"]);

    // Other text has no seed.
    std::fs::write(dir.path().join("self"), "a".repeat(100)).unwrap();
    let text = calibration(dir.path(), "score parent.gguf --calibration ./self --window 32");
    assert_eq!(text["source"], "./self");
    assert_eq!(text["seed"], Value::Null);
}

#[test]
fn a_model_without_a_first_token_cannot_write() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |spec: Spec<'_>, why: &str| {
        spec.save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
        let output = on_one_thread(dir.path(), "score m.gguf --calibration self:64 --window 32");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let first = stderr.lines().next().unwrap_or_default();
        assert_eq!(first, format!("gguf-shorten: m.gguf: {why}"));
    };
    refused(
        Spec::new("llama", 2),
        "the vocabulary has no token that begins a text (metadata 'tokenizer.ggml.bos_token_id'), so the model cannot write \
         one of its own",
    );
}
