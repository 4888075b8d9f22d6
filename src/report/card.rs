//! A model card. What a shortened model is, in the Markdown with YAML in front that model hubs show. Pure: from facts to text.

use std::fmt::Write as _;

use indicatif::{DecimalBytes, HumanCount};

use crate::files::shell::is_unprintable;
use crate::gguf::Metadata;
use crate::measure::outcome::EvalReport;
use crate::model::block::{block_list, counted};
use crate::model::outcome::ModelReport;
use crate::named::Named as _;
use crate::output::outcome::ExpertsReport;
use crate::plan::healing::HealMethod;
use crate::plan::{ChosenBy, Method};
use crate::report::pages::escape::{command, markdown};

/// What a card is made from.
pub struct Card<'f> {
    /// The parent's metadata, for names and licence.
    pub metadata: &'f Metadata<'f>,
    /// The parent.
    pub parent: ModelReport,
    /// The file that llama.cpp loads, without its folder.
    pub file: String,
    /// Number of files.
    pub n_files: usize,
    /// The shortened model's architecture.
    pub architecture: String,
    /// Its blocks.
    pub n_blocks: usize,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Its weights.
    pub parameters: u64,
    /// Hash of all its bytes.
    pub blake3: String,
    /// The blocks that are gone, in the parent's numbering.
    pub removed: Vec<usize>,
    /// The blocks without attention, in the parent's numbering.
    pub attention_removed: Vec<usize>,
    /// The experts that stay, where some go.
    pub experts: Option<ExpertsReport>,
    /// How they were chosen.
    pub method: String,
    /// Whether this is the best of the sets of several methods.
    pub by_auto: bool,
    /// How the model was healed.
    pub heal: String,
    /// Tensors that are not the parent's with all their bytes.
    pub n_changed: usize,
    /// What was measured, or why nothing was.
    pub evaluation: Result<EvalReport, String>,
    /// Whether the text that was scored also chose the blocks.
    pub same_text: bool,
}

impl Card<'_> {
    /// The card.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.front();
        let parent_file = file_name(&self.parent.path);
        let parent_name = self.string("general.name").unwrap_or_else(|| parent_file.clone());
        let _ = writeln!(
            text,
            "\n# {} ({} of {} blocks)\n",
            markdown(&parent_name),
            self.n_blocks,
            self.parent.block_count
        );
        let _ = writeln!(
            text,
            "This is {} with some of its blocks (transformer layers) removed. It needs less memory and less time for each token \
             than its parent, and it is a worse model: **reasoning, arithmetic and code suffer first**, before plain text does, \
             and small models suffer most. Test it on what it is to do, and compare it with a smaller quantization of the \
             parent.\n",
            markdown(&parent_name)
        );
        self.removal(&mut text, &parent_file);
        self.quality(&mut text, &parent_file);
        self.usage(&mut text);
        self.origin(&mut text, &parent_file);
        text
    }

    /// What hubs read.
    fn front(&self) -> String {
        let mut text = "---\n".to_owned();
        let mut entry = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                let _ = writeln!(text, "{key}: {}", yaml(&value));
            }
        };
        entry("license", self.string("general.license"));
        entry("license_name", self.string("general.license.name"));
        entry("license_link", self.string("general.license.link"));
        let mut list = |key: &str, values: Vec<String>| {
            if !values.is_empty() {
                let _ = writeln!(text, "{key}:");
            }
            for value in values {
                let _ = writeln!(text, "- {}", yaml(&value));
            }
        };
        list("base_model", self.base_model().into_iter().collect());
        list("language", self.strings("general.languages"));
        let mut tags = vec!["gguf".to_owned(), "gguf-shorten".to_owned(), "layer-removal".to_owned()];
        for tag in self.strings("general.tags") {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        list("tags", tags);
        text.push_str("---\n");
        text
    }

    /// The parent on a hub: `ORG/NAME` of the address that its metadata give.
    fn base_model(&self) -> Option<String> {
        let keys = ["general.repo_url", "general.source.repo_url", "general.base_model.0.repo_url"];
        let id = |address: String| {
            let rest = address.split_once("huggingface.co/")?.1.trim_matches('/').to_owned();
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            (rest.matches('/').count() == 1 && rest.chars().all(is_plain)).then_some(rest)
        };
        keys.into_iter().find_map(|key| id(self.string(key)?))
    }

    fn removal(&self, text: &mut String, parent_file: &str) {
        text.push_str("## What was removed\n\n");
        let by = match ChosenBy::of_word(&self.method) {
            Some(ChosenBy::List) => "by hand".to_owned(),
            Some(ChosenBy::Method(Method::Bi)) => {
                "by Block Influence (equation 2 of arXiv:2403.03853)".to_owned()
            }
            _ => format!("by {}", markdown(&self.method)),
        };
        let by = match self.by_auto {
            true => format!(
                "{by}: of the sets of several methods, this one lost least where they were measured (`auto`)"
            ),
            false => by,
        };
        if !self.removed.is_empty() {
            let _ = writeln!(
                text,
                "{} {} of the parent's {}, numbered from 0, chosen {by}.",
                if self.removed.len() == 1 { "Block" } else { "Blocks" },
                block_list(&self.removed),
                counted(self.parent.block_count)
            );
        }
        if !self.attention_removed.is_empty() {
            let _ = writeln!(
                text,
                "The attention, but not the feed-forward network, of blocks {}; the architecture is therefore `{}`.",
                block_list(&self.attention_removed),
                code(&self.architecture)
            );
        }
        if let Some(experts) = &self.experts {
            let _ = writeln!(text, "Experts: {experts}, chosen by {}.", markdown(&experts.method));
        }
        let _ = writeln!(
            text,
            "\n{} What made up for the removed blocks: {}.\n",
            match self.n_changed {
                0 => "Everything else is byte for byte that of the parent.".to_owned(),
                n => format!(
                    "All but {n} of the tensors that are left are byte for byte the parent's; `gguf-shorten verify` lists those."
                ),
            },
            match HealMethod::of_word(&self.heal) {
                Some(HealMethod::None) => "nothing".to_owned(),
                _ => markdown(&self.heal),
            }
        );
        let _ = writeln!(
            text,
            "| | parent | this model | |\n| --- | ---: | ---: | ---: |\n| file | {} | {} | |\n| blocks | {} | {} | {} |\n\
             | parameters | {} | {} | {} |\n| bytes | {} | {} | {} |\n",
            markdown(parent_file),
            markdown(&self.file),
            self.parent.block_count,
            self.n_blocks,
            share(self.n_blocks as u64, self.parent.block_count as u64),
            HumanCount(self.parent.parameters),
            HumanCount(self.parameters),
            share(self.parameters, self.parent.parameters),
            DecimalBytes(self.parent.bytes),
            DecimalBytes(self.bytes),
            share(self.bytes, self.parent.bytes)
        );
    }

    fn quality(&self, text: &mut String, parent_file: &str) {
        text.push_str("## Quality and speed\n\n");
        let found = match &self.evaluation {
            Ok(found) => found,
            Err(reason) => {
                let _ = writeln!(
                    text,
                    "Not measured: {}. To measure it:\n\n    {}\n",
                    markdown(reason),
                    command(&["eval", &self.file, "--parent", parent_file].map(str::to_owned))
                );
                return;
            }
        };
        let _ = writeln!(
            text,
            "Measured with gguf-shorten {} (llama.cpp {}) on {} tokens of {} text, windows of {}, {} CPU {}{}.\n",
            found.gguf_shorten,
            found.llama_cpp,
            HumanCount(found.calibration.tokens as u64),
            markdown(&found.calibration.source),
            found.calibration.window,
            found.threads,
            if found.threads == 1 { "thread" } else { "threads" },
            match self.same_text {
                true => ". The blocks were chosen on the same text, so expect worse on other text",
                false => "",
            }
        );
        text.push_str("| | parent | this model |\n| --- | ---: | ---: |\n");
        let mut row = |what: &str, parent: String, own: String| {
            let _ = writeln!(text, "| {what} | {parent} | {own} |");
        };
        row(
            "perplexity",
            with_error(found.parent_perplexity, found.parent_perplexity_stderr, 2),
            with_error(Some(found.perplexity), found.perplexity_stderr, 2),
        );
        if let Some(kl) = &found.kl_divergence {
            row(
                "KL divergence from the parent, nats",
                "0".to_owned(),
                with_error(Some(kl.mean), kl.mean_stderr, 4),
            );
        }
        if let Some(same) = found.same_top {
            row("same likeliest token as the parent", "100 %".to_owned(), format!("{:.1} %", 100.0 * same));
        }
        let speed = found.tokens_per_second;
        let parent_speed = found.parent_tokens_per_second;
        let shown =
            |speed: Option<f64>| speed.map_or("not measured".to_owned(), |speed| format!("{speed:.1}"));
        row(
            "prompt, tokens per second",
            shown(parent_speed.map(|speed| speed.prompt)),
            shown(speed.map(|speed| speed.prompt)),
        );
        row(
            "decoding, tokens per second",
            shown(parent_speed.map(|speed| speed.decode)),
            shown(speed.map(|speed| speed.decode)),
        );
        text.push_str(
            "\nOther text and other machines give other figures. No benchmark of reasoning or code was run.\n\n",
        );
    }

    fn usage(&self, text: &mut String) {
        let plain = |word: &str| crate::files::shell::shell(word);
        let _ = writeln!(
            text,
            "## Use\n\nWith llama.cpp:\n\n    llama-cli -m {} -p 'Once upon a time'\n",
            plain(&self.file)
        );
        if self.n_files > 1 {
            let _ = writeln!(text, "All {} files must lie in one folder; name the first.\n", self.n_files);
        } else {
            let _ = writeln!(
                text,
                "With Ollama, from a file `Modelfile` that says `FROM ./{}`:\n\n    ollama create my-model -f Modelfile\n    \
                 ollama run my-model\n",
                code(&self.file)
            );
        }
    }

    fn origin(&self, text: &mut String, parent_file: &str) {
        let _ = writeln!(
            text,
            "## Where it comes from\n\nMade by gguf-shorten {} from {}. That this file is its parent without those blocks is \
             proven by\n\n    {}\n\n| | BLAKE3 of all bytes |\n| --- | --- |\n| {} | `{}` |\n| {} | `{}` |\n",
            env!("CARGO_PKG_VERSION"),
            markdown(parent_file),
            command(&["verify", &self.file, "--parent", parent_file].map(str::to_owned)),
            markdown(parent_file),
            self.parent.blake3.as_deref().unwrap_or("unknown"),
            markdown(&self.file),
            self.blake3
        );
        let name = self.string("general.name");
        let author = self.string("general.organization").or(self.string("general.author"));
        match (self.string("general.license"), name) {
            (Some(licence), name) => {
                let _ = writeln!(
                    text,
                    "The licence is that of the parent: {}{}{}.",
                    markdown(&licence),
                    name.map_or(String::new(), |name| format!(", of {}", markdown(&name))),
                    author.map_or(String::new(), |author| format!(" by {}", markdown(&author)))
                );
            }
            (None, _) => text.push_str(
                "The parent's metadata name no licence. That of the parent holds for this file too; look it up before you \
                 pass this file on.\n",
            ),
        }
    }

    fn string(&self, key: &str) -> Option<String> {
        let value = self.metadata.get(key)?.value().as_bytes().ok()?;
        Some(String::from_utf8_lossy(value).trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// The first strings of an array. A card is no place for thousands.
    fn strings(&self, key: &str) -> Vec<String> {
        const MOST: usize = 64;
        let Some(Ok(array)) = self.metadata.get(key).map(|entry| entry.value().as_array()) else {
            return Vec::new();
        };
        array
            .byte_strings()
            .take(MOST)
            .map_while(Result::ok)
            .map(|value| String::from_utf8_lossy(value).into_owned())
            .collect()
    }
}

/// The name of a file, without its folder.
fn file_name(path: &str) -> String {
    let name = std::path::Path::new(path).file_name();
    name.map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// A string of YAML: one of JSON is that too.
fn yaml(value: &str) -> String {
    let value = value.replace(is_unprintable, "\u{fffd}");
    serde_json::Value::String(value).to_string()
}

/// Text between backticks.
fn code(text: &str) -> String {
    text.replace(is_unprintable, "\u{fffd}").replace('`', "'")
}

fn share(part: u64, whole: u64) -> String {
    match whole {
        0 => String::new(),
        whole => format!("{:.1} %", 100.0 * part as f64 / whole as f64),
    }
}

fn with_error(value: Option<f64>, stderr: Option<f64>, digits: usize) -> String {
    let Some(value) = value else {
        return "not measured".to_owned();
    };
    let stderr = stderr.map_or(String::new(), |stderr| format!(" \u{b1} {stderr:.digits$}"));
    format!("{value:.digits$}{stderr}")
}
