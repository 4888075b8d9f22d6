//! `--card`: a model card of an output, here of models that llama.cpp does not evaluate.

use gguf_shorten::gguf::ValueOut;

use crate::make::Make;
use crate::util::Dir;

fn card(make: &Make, arguments: &str) -> (Dir, String) {
    let dir = make.dir();
    dir.run(&format!("m.gguf {arguments} -o out.gguf --card card.md -q")).succeeds();
    let text = String::from_utf8(dir.read("card.md")).unwrap();
    (dir, text)
}

/// The lines between the two of `---`, and the rest.
fn front(text: &str) -> (Vec<&str>, &str) {
    let rest = text.strip_prefix("---\n").unwrap();
    let (front, body) = rest.split_once("\n---\n").unwrap();
    (front.lines().collect(), body)
}

#[test]
fn a_card_says_what_goes_where_it_comes_from_and_what_was_not_measured() {
    let make = Make::new("llama", 4)
        .set("general.repo_url", ValueOut::string("https://huggingface.co/Org/Tiny-1"))
        .set("general.organization", ValueOut::string("Org"))
        .set("general.languages", ValueOut::strings(&[&b"en"[..], b"de"]))
        .set("general.tags", ValueOut::strings(&[&b"tiny"[..]]));
    let (dir, text) = card(&make, "--blocks 1,3");
    let (front, body) = front(&text);
    assert_eq!(
        front,
        [
            "license: \"cc0-1.0\"",
            "base_model:",
            "- \"Org/Tiny-1\"",
            "language:",
            "- \"en\"",
            "- \"de\"",
            "tags:",
            "- \"gguf\"",
            "- \"gguf-shorten\"",
            "- \"layer-removal\"",
            "- \"tiny\"",
        ]
    );
    for part in [
        "# Tiny (2 of 4 blocks)\n",
        "**reasoning, arithmetic and code suffer first**",
        "Blocks 1,3 of the parent's 4 blocks, numbered from 0, chosen by hand.",
        "Not measured: ",
        "    gguf-shorten eval out.gguf --parent m.gguf\n",
        "    gguf-shorten verify out.gguf --parent m.gguf\n",
        "    llama-cli -m out.gguf ",
        "`FROM ./out.gguf`",
        "The licence is that of the parent: cc0-1.0, of Tiny by Org.",
        blake3::hash(&dir.read("m.gguf")).to_hex().as_str(),
        blake3::hash(&dir.read("out.gguf")).to_hex().as_str(),
    ] {
        assert!(body.contains(part), "{part}:\n{body}");
    }
}

#[test]
fn a_card_of_nameless_models_says_that_the_licence_is_unknown() {
    let make = Make::new("llama", 3).unset("general.license").unset("general.name");
    let (_dir, text) = card(&make, "--drop 1 --method sequential");
    let (front, body) = front(&text);
    assert!(!front.iter().any(|line| line.starts_with("license")));
    assert!(body.contains("# m.gguf (2 of 3 blocks)"), "{body}");
    assert!(body.contains("The parent's metadata name no licence."));
    assert!(body.contains("chosen by sequential."), "{body}");
}

#[test]
fn metadata_of_a_card_stay_in_their_places() {
    let hostile = "x\"\n---\nevil: true\n# <script>|[a](http://b)`";
    let make = Make::new("llama", 3)
        .set("general.name", ValueOut::string(hostile))
        .set("general.license", ValueOut::string(hostile))
        .set("general.repo_url", ValueOut::string("https://huggingface.co/a b/\"\n"))
        .set("general.tags", ValueOut::strings(&[hostile]));
    let (_dir, text) = card(&make, "--blocks 1");
    let (front, body) = front(&text);
    for line in &front {
        assert!(line.starts_with("license: \"") || line.starts_with("- \"") || *line == "tags:", "{line}");
    }
    assert!(!body.contains("<script>") && !body.contains("](") && !body.contains("\nevil"), "{body}");
}

#[test]
fn a_card_is_written_with_the_output_or_not_at_all() {
    let dir = Make::new("llama", 3).dir();
    dir.write("card.md", b"mine");
    dir.run("m.gguf --blocks 1 -o out.gguf --card card.md").fails(1, "card.md: exists already");
    for card in ["m.gguf", "./m.gguf", "m.gguf --force"] {
        dir.run(&format!("m.gguf --blocks 1 -o out.gguf --card {card}"))
            .fails(1, "m.gguf: is the input itself");
    }
    for card in ["out.gguf", "./out.gguf --force"] {
        dir.run(&format!("m.gguf --blocks 1 -o out.gguf --card {card}"))
            .fails(1, "out.gguf: is the output itself");
    }
    dir.run("m.gguf --blocks 1 -o out.gguf --card a.md --json a.md").fails(1, "a.md: is named for two files");
    dir.run("m.gguf --blocks 1 -o out.gguf --card missing/a.md").refused();
    dir.run("m.gguf --blocks 1 --dry-run --card a.md").refused();
    dir.run("m.gguf --blocks 1 -o out.gguf --card card.md --force -q").succeeds();
    assert!(dir.read("card.md").starts_with(b"---\n"));
    assert_eq!(dir.names(), ["card.md", "m.gguf", "out.gguf"]);
}

#[test]
fn a_card_of_a_split_output_names_its_first_part() {
    let dir = Make::new("llama", 4).dir();
    dir.run("m.gguf --blocks 1 -o out.gguf --split-max-size 700 --card card.md -q").succeeds();
    let text = String::from_utf8(dir.read("card.md")).unwrap();
    assert!(text.contains("llama-cli -m out-00001-of-0000"), "{text}");
    assert!(text.contains("files must lie in one folder; name the first."), "{text}");
}
