//! Everything on one HTML page that fetches nothing: charts as inline SVG, numbers also as tables.

use super::chart::STYLE;
use super::charts::{fate, influence, of_section};
use super::escape::markup;
use super::heat_map::{experts, heat_map};
use super::table::{BLOCKS, FIGURES, Row, TEXT, VERIFIED, rows};
use super::words::{about, commands, details, done, hashes, measured, plural, versions};
use super::{Collection, Section};
use crate::report::column::Column;
use crate::report::lines::is_list;
use crate::report::saved::Scored;
use anyhow::Result;
use std::fmt::Write as _;

/// What the page may do: nothing but its own style.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

const PAGE_STYLE: &str = r"
:root{color-scheme:light dark;--back:#FFFFFF;--raised:#F6F8FA}
@media (prefers-color-scheme:dark){:root{--back:#0F1419;--raised:#171D24}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1320px;padding:1.5rem 1rem 4rem;background:var(--back);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.7rem;margin:.2rem 0}h2{font-size:1.35rem;margin:2.5rem 0 .5rem;border-top:1px solid var(--grid);padding-top:1.2rem;overflow-wrap:anywhere}
h3{font-size:1.05rem;margin:1.5rem 0 .3rem;overflow-wrap:anywhere}p{margin:.4rem 0;overflow-wrap:anywhere}.muted{color:var(--muted)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.82rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .4rem;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
th{font-weight:600;color:var(--muted);white-space:normal;vertical-align:bottom}td.t,th.t{text-align:left}td.n{white-space:normal;overflow-wrap:anywhere;min-width:8rem;max-width:18rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,520px),1fr));gap:0 2rem}.charts>div{min-width:0}
tr.p td{font-weight:600}tr.r td{color:var(--removed)}
figure{margin:1rem 0;overflow-x:auto}figcaption{font-weight:600;overflow-wrap:anywhere}svg.chart{display:block;max-width:100%;height:auto}
pre{background:var(--raised);padding:.6rem .8rem;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.84rem;margin:.4rem 0}
code{font-family:ui-monospace,monospace}details{margin:.4rem 0}summary{cursor:pointer;color:var(--muted)}
a{color:inherit}nav ul{columns:22rem;padding-left:1.2rem}.bad{color:var(--removed);font-weight:600}
@media print{:root{--back:#FFFFFF;--raised:#F6F8FA}body{max-width:none;padding:0;font-size:10pt}figure,tr,pre,.charts>div{break-inside:avoid}h2,h3,figcaption{break-after:avoid}
nav,details{display:none}.wide,figure{overflow:visible}table{font-size:7pt}th,td{padding:.1rem .25rem}th,td,td.n{white-space:normal;min-width:0}}
";

/// The page.
///
/// # Errors
/// Those of charts.
pub fn page(collection: &Collection) -> Result<String> {
    let mut html = String::new();
    let n = collection.sections.len();
    let title = match &collection.sections[..] {
        [section] => format!("{}: gguf-shorten", section.name()),
        _ => format!("gguf-shorten: {n} models"),
    };
    let _ = write!(
        html,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"/>\n<meta http-equiv=\"Content-Security-Policy\" \
         content=\"{}\"/>\n<title>{}</title>\n<style>{STYLE}{PAGE_STYLE}</style>\n</head>\n<body>\n<header>\n\
         <h1>Shortened models</h1>\n<p class=\"muted\">{} of {}{}. {}.</p>\n</header>\n<main>\n",
        markup(POLICY),
        markup(&title),
        plural(collection.n_results, "result"),
        plural(n, "parent model"),
        match collection.failures.len() {
            0 => String::new(),
            failed => format!(", {failed} failed"),
        },
        markup(&versions(collection))
    );
    let (rows, texts) = rows(collection);
    if n > 1 {
        html.push_str("<nav aria-label=\"Models\"><ul>\n");
        for (i, section) in collection.sections.iter().enumerate() {
            let _ = writeln!(html, "<li><a href=\"#m{i}\">{}</a></li>", markup(&section.name()));
        }
        html.push_str("</ul></nav>\n");
    }
    if !rows.is_empty() {
        html.push_str("<section>\n<h2>All models</h2>\n");
        all(&mut html, &rows, &texts);
        html.push_str("</section>\n");
    }
    if !collection.failures.is_empty() {
        html.push_str("<section>\n<h2>Failed</h2>\n<div class=\"wide\"><table>\n<tr><th class=\"t\">model</th><th class=\"t\">reason</th></tr>\n");
        for failed in &collection.failures {
            let _ = writeln!(
                html,
                "<tr><td class=\"t n\">{}</td><td class=\"t n bad\">{}</td></tr>",
                markup(failed.path.as_deref().unwrap_or("?")),
                markup(&failed.error)
            );
        }
        html.push_str("</table></div>\n</section>\n");
    }
    for (i, section) in collection.sections.iter().enumerate() {
        of_model(&mut html, i, section)?;
    }
    html.push_str(NOTES);
    html.push_str("</main>\n</body>\n</html>\n");
    Ok(html)
}

const NOTES: &str = "<footer>\n<h2>What the figures mean</h2>\n<p>Block Influence is one minus the mean cosine between the hidden \
states before and after a block (equation 2 of arXiv:2403.03853); bars have standard errors over windows. Perplexity, KL \
divergence from the parent (in nats) and same top are over the second half of each window, as llama-perplexity has them, with \
standard errors as if tokens were independent. Figures of different texts, or of a text that also chose the blocks, do not \
compare. Reasoning and code suffer before plain text does.</p>\n</footer>\n";

/// The columns of the models' table, with the class of their cells.
fn columns() -> impl Iterator<Item = (&'static str, &'static Column<Row>)> {
    const FIRST: [(&str, Column<Row>); 4] = [
        ("t n", Column::new("model", linked)),
        ("t", Column::new("", kind)),
        ("", BLOCKS),
        ("t n", Column::new("removed", removed)),
    ];
    const LAST: [(&str, Column<Row>); 2] = [("t", VERIFIED), ("t", TEXT)];
    let figures = FIGURES.iter().map(|column| ("", column));
    let of = |named: &'static (&'static str, Column<Row>)| (named.0, &named.1);
    FIRST.iter().map(of).chain(figures).chain(LAST.iter().map(of))
}

/// The name of a model. That of a parent leads to its section.
fn linked(row: &Row) -> String {
    let mut name = markup(&row.name);
    if row.kind == "parent" {
        name = format!("<a href=\"#m{}\">{name}</a>", row.section);
    }
    if let Some(error) = &row.error {
        let _ = write!(name, " <span class=\"bad\">{}</span>", markup(error));
    }
    name
}

fn kind(row: &Row) -> String {
    match &row.model.architecture {
        Some(architecture) if row.kind == "parent" => format!("parent, {}", markup(architecture)),
        _ => row.kind.to_owned(),
    }
}

/// The blocks that it lacks, and how they were chosen.
fn removed(row: &Row) -> String {
    let (removed, method) = (&row.removed, row.method.as_str());
    markup(&match removed.is_empty() || method.is_empty() || is_list(method) {
        true => removed.clone(),
        false => format!("{removed} by {method}"),
    })
}

/// The table of all models.
fn all(html: &mut String, rows: &[Row], texts: &[String]) {
    html.push_str("<div class=\"wide\"><table>\n<tr>");
    for (class, column) in columns() {
        let class = if class.starts_with('t') { " class=\"t\"" } else { "" };
        let _ = write!(html, "<th{class} scope=\"col\">{}</th>", column.head);
    }
    html.push_str("</tr>\n");
    for row in rows {
        let class = if row.kind == "parent" { " class=\"p\"" } else { "" };
        let _ = write!(html, "<tr{class}>");
        for (class, column) in columns() {
            let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
            let _ = write!(html, "<td{class}>{}</td>", (column.get)(row));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table></div>\n");
    if !texts.is_empty() {
        let texts = texts.iter().enumerate();
        let texts: Vec<_> = texts.map(|(i, text)| format!("{}: {text}", i + 1)).collect();
        let _ = writeln!(html, "<p class=\"muted\">Texts: {}.</p>", markup(&texts.join("; ")));
    }
}

fn of_model(html: &mut String, number: usize, section: &Section) -> Result<()> {
    let _ = writeln!(html, "<section id=\"m{number}\">\n<h2>{}</h2>", markup(&section.name()));
    let _ = writeln!(html, "<p>{}</p>", markup(&about(&section.parent)));
    for verdict in &section.verdicts {
        let _ = writeln!(html, "<p>{}</p>", markup(verdict));
    }
    let mut n_charts = 0;
    let mut id = || {
        n_charts += 1;
        format!("m{number}c{n_charts}")
    };
    for scored in &section.scored {
        let _ = writeln!(html, "<h3>{}</h3>", markup(&done(scored)));
        for line in details(scored) {
            let _ = writeln!(html, "<p>{}</p>", markup(&line));
        }
        for chart in influence(scored).into_iter().chain(heat_map(scored)).chain(experts(scored)) {
            figure(html, &chart.title, &chart.svg(&id())?);
        }
        blocks(html, scored);
        cosines(html, scored);
    }
    let of_scores = ["influence", "cosine", "experts"];
    let measured = of_section(section).into_iter();
    html.push_str("<div class=\"charts\">\n");
    for chart in measured.filter(|chart| !of_scores.contains(&chart.name)) {
        html.push_str("<div>\n");
        let svg = chart.svg(&id())?;
        figure(html, &chart.title, &svg);
        let _ = writeln!(html, "<p class=\"muted\">{}</p>", markup(&chart.description));
        html.push_str("</div>\n");
    }
    html.push_str("</div>\n");
    tasks(html, section);
    reproduce(html, section);
    html.push_str("</section>\n");
    Ok(())
}

fn figure(html: &mut String, title: &str, svg: &str) {
    let _ = writeln!(html, "<figure><figcaption>{}</figcaption>\n{svg}</figure>", markup(title));
}

/// The numbers of the bars.
fn blocks(html: &mut String, scored: &Scored) {
    if scored.scores.iter().all(Option::is_none) {
        return;
    }
    html.push_str("<details><summary>Numbers</summary>\n<div class=\"wide\"><table>\n<tr><th>block</th><th>influence</th><th>\u{b1}</th><th class=\"t\"></th></tr>\n");
    for (block, score) in scored.scores.iter().enumerate() {
        let fate = fate(scored, block).words().trim_start_matches(", ");
        let class = if fate.is_empty() { "" } else { " class=\"r\"" };
        let _ = writeln!(
            html,
            "<tr{class}><td>{block}</td><td>{}</td><td>{}</td><td class=\"t\">{fate}</td></tr>",
            measured(score.map(|score| score.bi), None, 4),
            measured(score.and_then(|score| score.stderr), None, 4)
        );
    }
    html.push_str("</table></div></details>\n");
}

/// The numbers of the heat map, where they fit.
fn cosines(html: &mut String, scored: &Scored) {
    const MOST: usize = 50;
    let n = scored.cosine.len();
    if n == 0 || n > MOST {
        return;
    }
    html.push_str("<details><summary>Cosines</summary>\n<div class=\"wide\"><table>\n<tr><th></th>");
    for i in 0..n {
        let _ = write!(html, "<th>{i}</th>");
    }
    html.push_str("</tr>\n");
    for (i, row) in scored.cosine.iter().enumerate() {
        let _ = write!(html, "<tr><th>{i}</th>");
        for value in row {
            let _ = write!(html, "<td>{}</td>", measured(*value, None, 3));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table></div></details>\n");
}

fn tasks(html: &mut String, section: &Section) {
    let rows: Vec<_> =
        section.points.iter().flat_map(|point| point.tasks.iter().map(move |task| (point, task))).collect();
    if rows.is_empty() {
        return;
    }
    html.push_str("<h3>Tasks</h3>\n<div class=\"wide\"><table>\n<tr><th class=\"t\">model</th><th class=\"t\">tasks</th><th>right</th></tr>\n");
    for (point, (task, accuracy, stderr)) in rows {
        let _ = writeln!(
            html,
            "<tr><td class=\"t n\">{}</td><td class=\"t\">{task}</td><td>{} %</td></tr>",
            markup(&point.name),
            measured(Some(100.0 * accuracy), stderr.map(|stderr| 100.0 * stderr), 1)
        );
    }
    html.push_str("</table></div>\n");
}

/// How to come to the same results.
fn reproduce(html: &mut String, section: &Section) {
    html.push_str("<h3>How to reproduce</h3>\n");
    let commands = commands(section);
    if !commands.is_empty() {
        let _ = writeln!(
            html,
            "<pre><code>{}</code></pre>",
            markup(&commands.join("\n")).replace("\u{fffd}", "\n")
        );
    }
    html.push_str(
        "<div class=\"wide\"><table>\n<tr><th class=\"t\">file</th><th class=\"t\">BLAKE3</th></tr>\n",
    );
    for (what, hash) in hashes(section) {
        let _ = writeln!(
            html,
            "<tr><td class=\"t n\">{}</td><td class=\"t n\"><code>{}</code></td></tr>",
            markup(&what),
            markup(&hash)
        );
    }
    html.push_str("</table></div>\n");
}
