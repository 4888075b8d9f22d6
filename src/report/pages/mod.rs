//! Saved results on one page: as HTML with charts, as Markdown, as CSV, or the charts alone. Pure: from results to text.
//!
//! Results of one parent make a [`Section`]: its scores, what was measured of it and of the files made from it. Everything is
//! in the order in which the results were given, and the same results give the same bytes.

pub mod format;

mod words;

pub mod axis;

pub mod chart;

pub mod charts;

mod fitted;

mod frontier;

mod heat_map;

pub mod csv;

pub mod escape;

pub mod html;

pub mod markdown;

mod table;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use crate::report::saved::{
    Compared, Evaluated, Failed, Kind, Made, Quality, Saved, SavedModel, Scored, Text, Verified,
};

/// All results, by parent.
#[derive(Clone, Debug, Default)]
pub struct Collection {
    /// One for each parent.
    pub sections: Vec<Section>,
    /// Models of a batch that failed.
    pub failures: Vec<Failed>,
    /// Results, each counted once.
    pub n_results: usize,
    /// The releases that made them.
    pub versions: BTreeSet<String>,
}

/// What is known of one parent.
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// The parent.
    pub parent: SavedModel,
    /// Scores, and what was chosen by them.
    pub scored: Vec<Scored>,
    /// What was measured, of the parent and of files made from it.
    pub points: Vec<Point>,
    /// Proofs.
    pub verified: Vec<Verified>,
    /// What comparisons come to.
    pub verdicts: Vec<String>,
    /// How the results were made.
    pub made: Vec<Made>,
}

/// What was measured of one model on one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// What it is called.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The model.
    pub model: SavedModel,
    /// The blocks that it lacks, where they are known by number.
    pub removed: Vec<usize>,
    /// The text.
    pub text: Text,
    /// Measured by a search on the text that it chose by. That is no text of its own.
    pub by_search: bool,
    /// What was found.
    pub quality: Quality,
    /// Why nothing was found.
    pub error: Option<String>,
    /// Tasks by name, with accuracy and its standard error.
    pub tasks: Vec<(&'static str, f64, Option<f64>)>,
}

impl Section {
    /// A name for people: that of the file.
    #[must_use]
    pub fn name(&self) -> String {
        name(&self.parent)
    }

    /// How many blocks `point` has less than the parent.
    #[must_use]
    pub fn n_removed(&self, point: &Point) -> Option<usize> {
        match (self.parent.n_blocks, point.model.n_blocks) {
            (Some(parent), Some(left)) => parent.checked_sub(left),
            _ => Some(point.removed.len()).filter(|&n| n > 0),
        }
    }

    /// The texts that something was measured on, each with its points.
    #[must_use]
    pub fn by_text(&self) -> Vec<(&Text, bool, Vec<&Point>)> {
        let mut texts: Vec<(&Text, bool, Vec<&Point>)> = Vec::new();
        for point in &self.points {
            let is_same = |(text, by_search, _): &&mut (&Text, bool, Vec<&Point>)| {
                is_same_text(text, &point.text) && *by_search == point.by_search
            };
            match texts.iter_mut().find(is_same) {
                Some((_, _, points)) => points.push(point),
                None => texts.push((&point.text, point.by_search, vec![point])),
            }
        }
        texts
    }

    fn add(&mut self, point: Point) {
        // A parent is measured again with each of its children.
        let is_known = |known: &Point| {
            known.kind == Kind::Parent
                && point.kind == Kind::Parent
                && is_same_text(&known.text, &point.text)
                && known.by_search == point.by_search
                && known.quality.perplexity == point.quality.perplexity
                && (point.quality.decode.is_none() || known.quality.decode == point.quality.decode)
        };
        if !self.points.iter().any(is_known) {
            self.points.push(point);
        }
    }
}

fn is_same_text(a: &Text, b: &Text) -> bool {
    match (&a.blake3, &b.blake3) {
        (Some(x), Some(y)) => x == y && (a.window, a.tokens) == (b.window, b.tokens),
        _ => a == b,
    }
}

/// Whether two results speak of one file.
fn is_same_model(a: &SavedModel, b: &SavedModel) -> bool {
    match (&a.blake3, &b.blake3) {
        (Some(a), Some(b)) => a == b,
        _ => a.path.is_some() && a.path == b.path,
    }
}

/// The name of a model's file.
#[must_use]
pub fn name(model: &SavedModel) -> String {
    let path = model.path.as_deref().unwrap_or("unnamed model");
    let file = Path::new(path).file_name();
    file.map_or_else(|| path.to_owned(), |file| file.to_string_lossy().into_owned())
}

impl Collection {
    /// Puts results together.
    #[must_use]
    pub fn new(results: Vec<Saved>) -> Self {
        let mut collection = Self { n_results: results.len(), ..Self::default() };
        for made in results.iter().filter_map(Saved::made) {
            let of = |version: &Option<String>| version.clone().unwrap_or_else(|| "?".to_owned());
            let (version, llama_cpp) = (of(&made.version), of(&made.llama_cpp));
            collection.versions.insert(format!("gguf-shorten {version} with llama.cpp {llama_cpp}"));
        }
        // A file's parent is known from the result that made it.
        let mut parents: HashMap<String, SavedModel> = HashMap::new();
        for result in &results {
            if let Saved::Scored(scored) = result
                && let Some(hash) = scored.output.as_ref().and_then(|output| output.blake3.clone())
            {
                parents.entry(hash).or_insert_with(|| scored.model.clone());
            }
        }
        let mut index = Index::default();
        for result in results {
            match result {
                Saved::Failed(failed) => collection.failures.push(failed),
                Saved::Scored(scored) => collection.add_scored(&mut index, *scored),
                Saved::Evaluated(evaluated) => {
                    let child_of = evaluated.model.blake3.as_ref();
                    let parent = match &evaluated.parent {
                        Some(parent) => Some(parent.clone()),
                        None => child_of.and_then(|hash| parents.get(hash)).cloned(),
                    };
                    collection.add_evaluated(&mut index, parent, *evaluated);
                }
                Saved::Compared(compared) => collection.add_compared(&mut index, *compared),
                Saved::Verified(verified) => {
                    let section = index.section(&mut collection.sections, &verified.parent);
                    section.made.push(verified.made.clone());
                    section.verified.push(*verified);
                }
            }
        }
        for section in &mut collection.sections {
            section.points.sort_by_key(|point| (point.by_search, point.kind));
        }
        collection
    }

    fn add_scored(&mut self, index: &mut Index, mut scored: Scored) {
        let evaluation = scored.evaluation.take();
        let section = index.section(&mut self.sections, &scored.model);
        section.made.push(scored.made.clone());
        if let Some(quality) = scored.search {
            let text = scored.text.clone().unwrap_or_default();
            let n_blocks = scored.model.n_blocks;
            let mut model = scored.output.clone().unwrap_or_default();
            model.n_blocks = n_blocks.and_then(|n| n.checked_sub(scored.removed.len()));
            section.add(Point {
                name: name(&model),
                kind: Kind::Shortened,
                model,
                removed: scored.removed.clone(),
                by_search: true,
                ..Point::new(text.clone(), quality)
            });
            section.add_parent(&text, &quality, true);
        }
        section.scored.push(scored);
        if let Some(evaluated) = evaluation {
            let parent = section.parent.clone();
            self.add_evaluated(index, Some(parent), Evaluated { made: Made::default(), ..*evaluated });
        }
    }

    fn add_evaluated(&mut self, index: &mut Index, parent: Option<SavedModel>, evaluated: Evaluated) {
        let kind = match &parent {
            Some(parent) if !is_same_model(parent, &evaluated.model) => {
                let n_blocks = |model: &SavedModel| model.n_blocks;
                match n_blocks(&evaluated.model) < n_blocks(parent) {
                    true => Kind::Shortened,
                    false => Kind::File,
                }
            }
            _ => Kind::Parent,
        };
        let section = index.section(&mut self.sections, parent.as_ref().unwrap_or(&evaluated.model));
        if evaluated.made != Made::default() {
            section.made.push(evaluated.made);
        }
        section.add(Point {
            name: name(&evaluated.model),
            kind,
            model: evaluated.model,
            tasks: evaluated.tasks,
            ..Point::new(evaluated.text.clone(), evaluated.quality)
        });
        section.add_parent(&evaluated.text, &evaluated.quality, false);
    }

    fn add_compared(&mut self, index: &mut Index, compared: Compared) {
        let section = index.section(&mut self.sections, &compared.parent);
        section.made.push(compared.made);
        section.verdicts.extend(compared.verdict);
        for row in compared.rows {
            let is_parent = is_same_model(&row.model, &compared.parent);
            section.add(Point {
                name: row.name,
                kind: if is_parent { Kind::Parent } else { row.kind },
                model: row.model,
                removed: row.removed,
                error: row.error,
                ..Point::new(compared.text.clone(), row.quality)
            });
        }
    }
}

impl Point {
    fn new(text: Text, quality: Quality) -> Self {
        Self {
            name: String::new(),
            kind: Kind::Parent,
            model: SavedModel::default(),
            removed: Vec::new(),
            text,
            by_search: false,
            quality,
            error: None,
            tasks: Vec::new(),
        }
    }
}

impl Section {
    /// Adds what was measured of the parent in passing.
    fn add_parent(&mut self, text: &Text, of_child: &Quality, by_search: bool) {
        if of_child.parent_perplexity.is_none() {
            return;
        }
        let quality = Quality {
            perplexity: of_child.parent_perplexity,
            perplexity_stderr: of_child.parent_perplexity_stderr,
            prompt: of_child.parent_speed.0,
            decode: of_child.parent_speed.1,
            ..Quality::default()
        };
        let point = Point {
            name: self.name(),
            model: self.parent.clone(),
            by_search,
            ..Point::new(text.clone(), quality)
        };
        self.add(point);
    }
}

/// Where the section of a parent is.
#[derive(Default)]
struct Index {
    by_blake3: HashMap<String, usize>,
    by_path: HashMap<String, usize>,
}

impl Index {
    /// The section of `model`, a new one if there is none. A model without a hash goes by its path.
    fn section<'s>(&mut self, sections: &'s mut Vec<Section>, model: &SavedModel) -> &'s mut Section {
        let path = model.path.clone().unwrap_or_default();
        let known = match &model.blake3 {
            Some(blake3) => self.by_blake3.get(blake3),
            None => self.by_path.get(&path),
        };
        let at = known.copied().unwrap_or(sections.len());
        if at == sections.len() {
            sections.push(Section { parent: model.clone(), ..Section::default() });
        }
        if let Some(blake3) = &model.blake3 {
            self.by_blake3.entry(blake3.clone()).or_insert(at);
        }
        self.by_path.entry(path).or_insert(at);
        &mut sections[at]
    }
}
