//! `report`: pages of saved results, what is refused, and that nothing of a file gets out of its place.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::util::{Dir, Output, Said, golden};

/// A result of `score`, of a parent with `n_blocks`.
fn score(path: &str, n_blocks: usize) -> Value {
    let blocks: Vec<Value> = (0..n_blocks)
        .map(|block| {
            let bi = if block == 0 { 0.9 } else { 0.02 + 0.01 * (block * 7 % 5) as f64 };
            json!({"block": block, "bi": bi, "bi_stderr": 0.001, "relative_magnitude": 1.0, "removed": false})
        })
        .collect();
    json!({
        "gguf_shorten": "0.1.0", "llama_cpp": "0.6.0", "arguments": ["score", path],
        "model": {"path": path, "architecture": "llama", "block_count": n_blocks, "bytes": 100_000_000,
                  "parameters": 130_000_000, "blake3": hash(path)},
        "calibration": {"source": "built-in", "blake3": hash("text"), "windows": 16, "window": 512, "tokens": 8192},
        "method": "bi", "blocks": blocks, "removed": []
    })
}

/// 64 digits that a name has to itself.
fn hash(name: &str) -> String {
    blake3::hash(name.as_bytes()).to_hex().to_string()
}

/// A result of the main job.
fn shortened(path: &str, n_blocks: usize, removed: &[usize]) -> Value {
    let mut result = score(path, n_blocks);
    let out = format!("{path}-{}", removed.len());
    result["arguments"] = json!([path, "--drop", removed.len().to_string(), "-o", out]);
    result["removed"] = json!(removed);
    result["output"] = json!({
        "path": out, "block_count": n_blocks - removed.len(), "architecture": "llama",
        "bytes": 100_000_000 - 3_000_000 * removed.len(), "parameters": 130_000_000 - 4_000_000 * removed.len(),
        "blake3": hash(&out), "seconds": 0.1
    });
    result
}

/// A result of `eval` of the output of `shortened`.
fn evaluation(shortened: &Value, perplexity: f64, kl: f64) -> Value {
    let mut model = shortened["output"].clone();
    model["architecture"] = json!("llama");
    json!({
        "gguf_shorten": "0.1.0", "llama_cpp": "0.6.0", "arguments": ["eval", model["path"]],
        "model": model, "parent": shortened["model"],
        "calibration": {"source": "w.txt", "blake3": hash("w"), "windows": 4, "window": 512, "tokens": 2048},
        "threads": 2, "perplexity": perplexity, "perplexity_stderr": 1.5, "tokens_scored": 1020,
        "parent_perplexity": 20.5, "parent_perplexity_stderr": 1.0,
        "kl_divergence": {"mean": kl, "mean_stderr": 0.01, "median": kl, "p90": kl, "p99": kl, "max": kl},
        "same_top": 0.5, "hellaswag": null, "tokens_per_second": {"prompt": 500.0, "decode": 60.25}
    })
}

/// A result of `compare`.
fn comparison(path: &str) -> Value {
    let row = |name: &str, kind: &str, bytes: u64, n_blocks: u64, kl: f64| {
        json!({
            "name": name, "kind": kind, "path": null, "type": null, "removed": null, "bytes": bytes,
            "block_count": n_blocks, "parameters": 1000, "perplexity": 20.0 + 10.0 * kl, "perplexity_stderr": 1.0,
            "kl_divergence": {"mean": kl}, "same_top": 0.7, "tokens_per_second": {"prompt": 400.0, "decode": 50.0},
            "pareto": true, "error": null
        })
    };
    let mut failed = row("Q1", "requantize", 0, 8, 0.0);
    for key in ["bytes", "perplexity", "kl_divergence", "same_top", "tokens_per_second"] {
        failed[key] = Value::Null;
    }
    failed["error"] = json!("no importance matrix");
    json!({
        "gguf_shorten": "0.1.0", "llama_cpp": "0.6.0", "command": "compare",
        "text": {"source": "w.txt", "blake3": hash("w"), "windows": 4, "window": 512, "tokens": 2048},
        "parent": score(path, 8)["model"],
        "rows": [row("parent", "parent", 100_000_000, 8, 0.0), row("drop 1", "drop", 97_000_000, 7, 0.4),
                 row("Q2_K", "requantize", 90_000_000, 8, 0.3), row("Q3_K", "requantize", 95_000_000, 8, 0.1), failed],
        "verdict": "a smaller quantization is better"
    })
}

fn write(dir: &Dir, name: &str, results: &[Value]) {
    let lines: Vec<_> = results.iter().map(Value::to_string).collect();
    dir.write(name, (lines.join("\n") + "\n").as_bytes());
}

/// A page, which is well-formed, fetches nothing and gives every identifier once.
fn page(dir: &Dir, arguments: &str) -> String {
    dir.run(&format!("report {arguments} -o page.html")).succeeds();
    let html = String::from_utf8(dir.read("page.html")).unwrap();
    check_page(&html);
    html
}

fn check_page(html: &str) {
    let xml = html.strip_prefix("<!DOCTYPE html>\n").unwrap();
    let document = roxmltree::Document::parse(xml).unwrap();
    let mut ids = BTreeSet::new();
    let allowed = [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "main",
        "footer",
        "nav",
        "section",
        "div",
        "h1",
        "h2",
        "h3",
        "p",
        "ul",
        "li",
        "a",
        "table",
        "tr",
        "th",
        "td",
        "figure",
        "figcaption",
        "details",
        "summary",
        "pre",
        "code",
        "span",
        "svg",
        "desc",
        "g",
        "rect",
        "line",
        "polyline",
        "polygon",
        "circle",
        "text",
    ];
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        assert!(allowed.contains(&node.tag_name().name()), "{node:?}");
        for attribute in node.attributes() {
            let (name, value) = (attribute.name(), attribute.value());
            assert!(!name.starts_with("on") && name != "src", "{name}={value}");
            assert!(name != "href" || value.starts_with('#'), "{name}={value}");
            if name == "id" {
                assert!(ids.insert(value.to_owned()), "{value} is there twice");
            }
        }
    }
    for node in document.descendants().filter(|node| node.has_tag_name("a")) {
        let to = node.attribute("href").unwrap().trim_start_matches('#');
        assert!(ids.contains(to), "{to}");
    }
    assert!(!html.contains("url(") && !html.contains("@import"));
}

/// Results of every command.
fn all(dir: &Dir) -> String {
    let small = shortened("m.gguf", 8, &[3, 4]);
    let smaller = shortened("m.gguf", 8, &[3, 4, 6]);
    write(dir, "a.json", &[score("m.gguf", 8), small.clone(), evaluation(&small, 40.0, 0.75)]);
    write(dir, "b.json", &[smaller.clone(), evaluation(&smaller, 60.0, 1.25), comparison("m.gguf")]);
    let verified = json!({
        "gguf_shorten": "0.1.0", "llama_cpp": "0.6.0", "verified": true, "run": null,
        "output": {"path": "m.gguf-2", "block_count": 6, "bytes": 94_000_000, "parameters": 122_000_000},
        "parent": small["model"], "removed": [3, 4]
    });
    write(dir, "c.json", &[verified, json!({"model": {"path": "broken.gguf"}, "error": "not a GGUF file"})]);
    "a.json b.json c.json".to_owned()
}

#[test]
fn pages_are_as_they_were() {
    let dir = Dir::new();
    let files = all(&dir);
    for (name, output) in [("report.md", "page.md"), ("report.csv", "page.csv")] {
        dir.run(&format!("report {files} -o {output}")).succeeds();
        golden(name, &String::from_utf8(dir.read(output)).unwrap());
    }
    let html = page(&dir, &files);
    let body = &html[html.find("<body>").unwrap()..];
    // Without charts: what they are drawn like is looked at in a browser.
    let mut text = String::new();
    let mut rest = body;
    while let Some((before, chart)) = rest.split_once("<svg ") {
        text.push_str(before);
        rest = chart.split_once("</svg>\n").unwrap().1;
    }
    text.push_str(rest);
    golden("report.html", &text);
    assert_eq!(page(&dir, &files), html, "the same results give the same page");
}

/// The charts of a page, by their titles.
fn titles(html: &str) -> Vec<String> {
    let document = roxmltree::Document::parse(html.strip_prefix("<!DOCTYPE html>\n").unwrap()).unwrap();
    let charts = document.descendants().filter(|node| node.has_tag_name("svg"));
    let title = |chart: roxmltree::Node<'_, '_>| {
        let title = chart.first_element_child().unwrap();
        assert_eq!(title.tag_name().name(), "title");
        title.text().unwrap().to_owned()
    };
    charts.map(title).collect()
}

#[test]
fn every_chart_is_there_and_bars_are_as_high_as_the_scores() {
    let dir = Dir::new();
    let html = page(&dir, &all(&dir));
    let titles = titles(&html);
    for start in [
        "Influence of the blocks of m.gguf",
        "Influence of the blocks of m.gguf, 3-4 removed",
        "Perplexity of m.gguf",
        "KL divergence of m.gguf",
        "Size against KL divergence",
        "Speed of m.gguf",
    ] {
        assert!(titles.iter().any(|title| title.starts_with(start)), "{start}: {titles:?}");
    }
    // The titles of bars lie over the bars: their heights go by the logarithms of the scores.
    let document = roxmltree::Document::parse(html.strip_prefix("<!DOCTYPE html>\n").unwrap()).unwrap();
    let chart = document.descendants().find(|node| node.has_tag_name("svg")).unwrap();
    let bars: Vec<(f64, f64, f64)> = chart
        .descendants()
        .filter(|node| node.has_tag_name("rect"))
        .filter_map(|rect| {
            let title = rect.first_element_child()?.text()?;
            let value = title.split_once(": ")?.1.split(' ').next()?.parse().ok()?;
            let number = |name: &str| rect.attribute(name).unwrap().parse::<f64>().unwrap();
            Some((value, number("y"), number("height")))
        })
        .collect();
    assert_eq!(bars.len(), 8);
    let (top, bottom) = (bars[0], bars[1]);
    let pixels_per_unit = (bottom.1 - top.1) / (top.0 / bottom.0).ln();
    for (value, y, height) in &bars {
        let expected = top.1 + pixels_per_unit * (top.0 / value).ln();
        assert!((y - expected).abs() <= 1.5, "{value}: {y} {expected}");
        assert!((y + height - (top.1 + top.2)).abs() <= 1.0, "all stand on one line");
    }
}

#[test]
fn names_are_text_whatever_they_are() {
    let dir = Dir::new();
    let name = "x\"><script>alert('1')</script>&lt;\u{1}\u{202e}|`*[a](http://b)\n# c.gguf";
    let small = shortened(name, 4, &[2]);
    let mut hostile = evaluation(&small, 1e300, 1e-300);
    hostile["calibration"]["source"] = json!(name);
    let mut comparison = comparison(name);
    comparison["verdict"] = json!(name);
    comparison["rows"][1]["name"] = json!(name);
    comparison["rows"][4]["error"] = json!(name);
    let failed = json!({"model": {"path": name}, "error": name});
    let mut noted = score(name, 4);
    noted["heal"] = json!({"how": name, name: {"more": [1]}});
    noted["method"] = json!(name);
    noted["gguf_shorten"] = json!(name);
    write(&dir, "a.json", &[small, hostile, comparison, failed, noted]);
    let html = page(&dir, "a.json");
    assert!(!html.contains("<script") && !html.contains('\u{202e}'));
    dir.run("report a.json -o page.md").succeeds();
    let text = String::from_utf8(dir.read("page.md")).unwrap();
    // In lines that begin with four blanks nothing has a meaning.
    for line in text.lines().filter(|line| !line.starts_with("    ")) {
        assert!(!line.contains("<script") && !line.contains("]("), "{line}");
    }
    assert!(!text.contains("\n# c"), "{text}");
    for file in ["page.svg", "charts/"] {
        std::fs::create_dir_all(dir.path("charts")).unwrap();
        dir.run(&format!("report a.json --format svg -o {file}")).succeeds();
    }
    let charts = std::fs::read_dir(dir.path("charts")).unwrap().map(|entry| entry.unwrap().path());
    for path in charts.chain([dir.path("page.svg")]) {
        let text = std::fs::read_to_string(&path).unwrap();
        let document = roxmltree::Document::parse(&text).unwrap();
        assert_eq!(document.root_element().tag_name().name(), "svg", "{path:?}");
    }
    dir.run("report a.json --format csv -o page.csv").succeeds();
    let rows = csv_rows(&dir.read("page.csv"));
    assert_eq!(rows[0].len(), 20);
    assert!(rows.iter().any(|row| row[19] == name), "the reason as it is");
}

/// Records of quoted fields, by the grammar of RFC 4180.
fn csv_rows(bytes: &[u8]) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut field, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut chars = std::str::from_utf8(bytes).unwrap().chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => field.extend(chars.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut field)),
            '\n' if !quoted => {
                row.push(std::mem::take(&mut field));
                rows.push(std::mem::take(&mut row));
            }
            c => field.push(c),
        }
    }
    let n = rows.first().map_or(0, Vec::len);
    assert!(rows.iter().all(|row| row.len() == n));
    rows
}

#[test]
fn extreme_numbers_and_sizes_are_drawn() {
    let dir = Dir::new();
    for n_blocks in [1, 2, 512] {
        let mut result = shortened("m.gguf", n_blocks, if n_blocks > 1 { &[1] } else { &[] });
        let n = n_blocks + 1;
        let row = |i: usize| (0..n).map(|j| 1.0 - i.abs_diff(j) as f64 / 600.0).collect::<Vec<_>>();
        result["pairs"] = json!({"cosine": (0..n).map(row).collect::<Vec<_>>()});
        write(&dir, "a.json", &[result]);
        let html = page(&dir, "a.json");
        assert_eq!(titles(&html).len(), 2);
        assert!(html.len() < 40_000_000, "{}", html.len());
    }
    for value in [0.0, -1.0, 1.0, 1e-310, 1e308, 1e-9, f64::MAX] {
        for other in [0.0, 1e308, -1e308, 1.0] {
            let mut result = shortened("m.gguf", 8, &[3]);
            result["blocks"][3]["bi"] = json!(value);
            result["blocks"][3]["bi_stderr"] = json!(other);
            result["blocks"][5]["bi"] = json!(other);
            result["pairs"] = json!({"cosine": [[value, other], [null, 1.0]]});
            let experts = json!([{"reap": value, "tokens": 3}, {"reap": other, "tokens": 0}]);
            result["expert_scores"] = json!([{"block": 1, "experts": experts}, {"block": 2, "experts": []}]);
            let mut measured = evaluation(&result, value, other);
            measured["tokens_per_second"] = json!({"prompt": value, "decode": other});
            let mut compared = comparison("m.gguf");
            compared["rows"][1]["kl_divergence"] = json!({"mean": value, "mean_stderr": other});
            compared["rows"][2]["kl_divergence"] = json!({"mean": other});
            compared["rows"][2]["bytes"] = json!(u64::MAX);
            write(&dir, "a.json", &[result, measured, compared]);
            page(&dir, "a.json");
        }
    }
}

#[test]
fn scores_of_experts_are_a_map_of_blocks_and_experts() {
    let dir = Dir::new();
    let mut result = shortened("m.gguf", 4, &[1]);
    let expert = |reap: f64, tokens: u64| json!({"reap": reap, "tokens": tokens});
    let block = |block: usize, experts: Vec<Value>| json!({"block": block, "experts": experts});
    result["expert_scores"] = json!([
        block(1, vec![expert(0.5, 3), expert(0.0, 0)]),
        block(3, vec![expert(0.25, 1), expert(2.0, 7)])
    ]);
    write(&dir, "a.json", &[result]);
    let html = page(&dir, "a.json");
    for title in ["block 1, expert 0: 0.5000", "block 1, expert 1: never chosen", "block 3, expert 1: 2.0000"]
    {
        assert!(html.contains(title), "{title}");
    }
    let many: Vec<Value> = (0..1025).map(|_| expert(1.0, 1)).collect();
    let mut wrong = shortened("m.gguf", 4, &[1]);
    wrong["expert_scores"] = json!([block(0, many)]);
    write(&dir, "b.json", &[wrong]);
    let refused = dir.run("report b.json -o b").refused();
    assert!(refused.error().ends_with("a block of 'expert_scores' has 1025 experts"), "{}", refused.error());
}

#[test]
fn the_same_model_twice_is_one_section_and_the_same_result_is_shown_once() {
    let dir = Dir::new();
    let (a, b) = (shortened("m.gguf", 8, &[3]), shortened("m.gguf", 8, &[3, 4]));
    write(&dir, "a.json", &[a.clone(), b]);
    // Another layout of the same result.
    dir.write("b.json", serde_json::to_string_pretty(&a).unwrap().as_bytes());
    let output = dir.run("report a.json b.json -o page.html").output();
    output.check(output.status.success(), "success");
    assert_eq!(output.stderr, "gguf-shorten: note: 1 result is there more than once, and shown once\n");
    let html = page(&dir, "a.json b.json -q");
    assert_eq!(html.matches("<section id=").count(), 1);
    assert_eq!(titles(&html).len(), 2);
}

#[test]
fn results_may_lie_anywhere_and_come_in_any_mix() {
    let dir = Dir::new();
    let files = all(&dir);
    let whole = page(&dir, &files);
    dir.write("list.txt", files.replace(' ', "\n\n").as_bytes());
    assert_eq!(page(&dir, "@list.txt"), whole);
    let texts: Vec<u8> = files.split(' ').flat_map(|file| dir.read(file)).collect();
    dir.write("batch.jsonl", &texts);
    assert_eq!(page(&dir, "batch.jsonl"), whole);
    let output = dir.run("report batch.jsonl -o - --format md").succeeds();
    output.check(output.stdout.starts_with("# Shortened models\n"), "Markdown");
    // What an interrupted run leaves.
    dir.write("batch.jsonl", &[&texts[..], b"{\"gguf_shorten\": \"0."].concat());
    let output: Output<'_> = dir.run("report batch.jsonl -o page.html").output();
    output.check(output.status.success(), "success");
    assert_eq!(output.stderr, "gguf-shorten: note: batch.jsonl: line 9, the last, is cut off and left out\n");
}

#[test]
fn what_is_no_result_is_refused_by_file_and_line() {
    let dir = Dir::new();
    let good = score("m.gguf", 4).to_string();
    let mut said = Said::default();
    for (title, text) in [
        ("nothing", String::new()),
        ("a list", "[1]".to_owned()),
        ("another object", format!("{good}\n{{\"a\": 1}}\n")),
        ("a word", format!("{good}\n\nno\n")),
        ("half an object", format!("{good}\n{{\n\"model\": ")),
        ("too many blocks", good.replace("\"block_count\":4", "\"block_count\":513")),
        ("a block too many", good.replace("\"removed\":[]", "\"removed\":[4]")),
        ("half a matrix", good.replace("\"method\":\"bi\"", "\"pairs\":{\"cosine\":[[1],[2]]}")),
        ("a word for a number", good.replace("\"bi\":0.9,", "\"bi\":\"high\",")),
    ] {
        dir.write("a.json", text.as_bytes());
        said.refused(title, dir.run("report a.json -o page.html"), 1);
    }
    std::fs::create_dir(dir.path("folder")).unwrap();
    dir.write("list.txt", b"\n \n");
    dir.write("a.json", json!({"model": "m.gguf", "error": "no"}).to_string().as_bytes());
    for arguments in
        ["none.json -o page.html", "folder -o page.html", "@list.txt -o page.html", "a.json -o page.svg"]
    {
        said.refused(arguments, dir.run(&format!("report {arguments}")), 1);
    }
    said.compare("results.txt");
    let output = dir.run("report -o page.html").output();
    output.check(output.status.code() == Some(2), "status 2");
    dir.run("report a.json").refused();
    dir.run("report a.json -o page.html --format pdf").refused();
}

#[test]
fn a_page_takes_the_place_of_a_page_but_of_no_result_and_no_model() {
    let dir = Dir::new();
    write(&dir, "a.json", &[score("m.gguf", 4)]);
    crate::make::Make::new("llama", 2).write(&dir, "m.gguf");
    dir.run("report a.json -o a.json").fails(1, "a.json: is one of the results");
    dir.run("report a.json -o m.gguf").fails(1, "m.gguf: is a model");
    dir.run("report a.json -o missing/page.html").refused();
    let first = page(&dir, "a.json");
    assert_eq!(page(&dir, "a.json"), first);
    assert_eq!(dir.names(), ["a.json", "m.gguf", "page.html"]);
}
