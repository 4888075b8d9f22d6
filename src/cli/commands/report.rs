//! `report`: saved results as a page.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::to_stdout;
use crate::cli::args::ReportArgs;
use crate::files::place;
use crate::report::pages::chart::{Chart, STYLE};
use crate::report::pages::format::PageFormat;
use crate::report::pages::{Collection, charts, csv, html, markdown};
use crate::report::saved::{self, MAX_FILE_BYTES, Saved};

/// Runs the command.
///
/// # Errors
/// A file that is not of results, with the line; a page that cannot be written.
pub fn run(args: &ReportArgs) -> Result<()> {
    let format = args.format.or_else(|| PageFormat::of(&args.output)).unwrap_or(PageFormat::Html);
    let files = listed(&args.results)?;
    let is_stdout = args.output == Path::new("-");
    let folder = format == PageFormat::Svg && args.output.is_dir();
    if !is_stdout && !folder {
        check_place(&args.output, &files)?;
        place::check_unread(&args.output, lists(&args.results))?;
    }
    let collection = Collection::new(read(&files, args.quiet)?);
    if folder {
        return write_charts(&collection, &args.output, &files);
    }
    let text = match format {
        PageFormat::Html => html::page(&collection)?,
        PageFormat::Md => markdown::page(&collection),
        PageFormat::Csv => csv::csv(&collection)?,
        PageFormat::Svg => one_above_another(&collection)?,
    };
    if is_stdout {
        return to_stdout(&text);
    }
    place::text(&args.output, &text).with_context(|| args.output.display().to_string())
}

/// The lists among the arguments.
fn lists(arguments: &[PathBuf]) -> impl Iterator<Item = &Path> {
    arguments.iter().filter_map(|argument| argument.to_str()?.strip_prefix('@')).map(Path::new)
}

/// The files that are named, also in lists.
fn listed(arguments: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for argument in arguments {
        let Some(list) = argument.to_str().and_then(|name| name.strip_prefix('@')) else {
            files.push(argument.clone());
            continue;
        };
        let text = String::from_utf8(bytes(Path::new(list))?);
        let text = text.with_context(|| format!("{list}: is not UTF-8 text"))?;
        let names = text.lines().map(str::trim).filter(|name| !name.is_empty());
        let before = files.len();
        files.extend(names.map(PathBuf::from));
        ensure!(files.len() > before, "{list}: lists no file");
    }
    Ok(files)
}

/// All of a file that is not too large.
fn bytes(path: &Path) -> Result<Vec<u8>> {
    let bytes = place::read_at_most(path, MAX_FILE_BYTES, "a file of results");
    bytes.with_context(|| path.display().to_string())
}

fn read(files: &[PathBuf], quiet: bool) -> Result<Vec<Saved>> {
    let mut seen = HashSet::new();
    let mut results = Vec::new();
    let mut n_repeated = 0;
    for path in files {
        let at_path = || path.display().to_string();
        let read = saved::read(&bytes(path)?, &mut seen).with_context(at_path)?;
        if let Some(line) = read.torn
            && !quiet
        {
            eprintln!("gguf-shorten: note: {}: line {line}, the last, is cut off and left out", at_path());
        }
        n_repeated += read.n_repeated;
        results.extend(read.results);
    }
    ensure!(!results.is_empty(), "the files have no whole result");
    if n_repeated > 0 && !quiet {
        let results = if n_repeated == 1 { "result is" } else { "results are" };
        eprintln!("gguf-shorten: note: {n_repeated} {results} there more than once, and shown once");
    }
    Ok(results)
}

/// Checks that a page can be written at `path`. It must not take the place of a result or a model.
fn check_place(path: &Path, results: &[PathBuf]) -> Result<()> {
    let fail = || path.display().to_string();
    ensure!(path.file_name().is_some(), "{}: is not the name of a file", fail());
    let is_result = path.is_file() && results.iter().any(|result| place::is_same(path, result));
    ensure!(!is_result, "{}: is one of the results", fail());
    place::check_no_model(path)?;
    place::check_page(path)
}

/// A file for each chart.
fn write_charts(collection: &Collection, folder: &Path, results: &[PathBuf]) -> Result<()> {
    let mut files = Vec::new();
    for (i, section) in collection.sections.iter().enumerate() {
        for (j, chart) in charts::of_section(section).iter().enumerate() {
            let name = format!("{}-{}-{}-{}.svg", i + 1, slug(&section.name()), j + 1, chart.name);
            files.push((folder.join(name), alone(chart)?));
        }
    }
    ensure!(!files.is_empty(), "the results have nothing that a chart could show");
    for (path, _) in &files {
        check_place(path, results)?;
    }
    for (path, text) in &files {
        place::text(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Letters and digits of a name, for the name of a file.
fn slug(name: &str) -> String {
    let name = name.strip_suffix(".gguf").unwrap_or(name);
    let kept = name.chars().map(|c| match c {
        c if c.is_ascii_alphanumeric() || c == '.' || c == '_' => c,
        _ => '-',
    });
    let slug: String = kept.take(60).collect();
    slug.trim_matches(['-', '.']).to_owned()
}

/// A chart that is a file of its own, with its style.
fn alone(chart: &Chart) -> Result<String> {
    let svg = chart.svg("c")?;
    Ok(styled(&svg))
}

fn styled(svg: &str) -> String {
    let start = svg.find('>').map_or(0, |at| at + 1);
    let (head, body) = svg.split_at(start);
    let ground = "svg.chart{background:var(--ground)}:root{--ground:#FFFFFF}\
        @media (prefers-color-scheme:dark){:root{--ground:#0F1419}}@media print{:root{--ground:#FFFFFF}}";
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{head}\n<style>{STYLE}{ground}</style>{body}")
}

/// All charts in one file.
fn one_above_another(collection: &Collection) -> Result<String> {
    const GAP: u32 = 16;
    let charts: Vec<Chart> = collection.sections.iter().flat_map(charts::of_section).collect();
    if charts.is_empty() {
        bail!("the results have nothing that a chart could show");
    }
    let width = charts.iter().map(|chart| chart.size.0).max().unwrap_or(0);
    let mut body = String::new();
    let mut top = 0u32;
    for (i, chart) in charts.iter().enumerate() {
        let svg = chart.svg(&format!("c{i}"))?;
        body.push_str(&svg.replacen("<svg ", &format!("<svg y=\"{top}\" "), 1));
        top = top.saturating_add(chart.size.1 + GAP);
    }
    Ok(styled(&format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" viewBox=\"0 0 {width} {top}\" width=\"{width}\" \
         height=\"{top}\">\n{body}</svg>\n"
    )))
}
