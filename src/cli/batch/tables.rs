//! Options of single models, from a TOML file. It has a table for each pattern of names, with the flags of the main job as
//! keys.
//!
//! ```toml
//! ["*Q8_0*.gguf"]
//! drop = "10%"
//!
//! ["experiments/**"]
//! method = "sequential"
//! keep = [0, 1, 31]
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use glob::{MatchOptions, Pattern};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::cli::args::flags::Flags;
use crate::cli::args::flags::Setting;
use crate::error::Usage;
use crate::files::place::read_at_most;
use crate::files::staged::folder_of;

/// The key for the output's name, no flag of all models.
const OUTPUT: &str = "output";

/// The longest file of tables.
const MAX_BYTES: u64 = 16 << 20;

/// The tables of one file, in the order of their lines.
#[derive(Debug)]
pub struct Tables {
    path: PathBuf,
    tables: Vec<Table>,
}

#[derive(Debug)]
struct Table {
    pattern: Pattern,
    name: String,
    line: usize,
    settings: Vec<(String, usize, Setting)>,
    output: Option<String>,
}

impl Tables {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// A file that cannot be read; [`Usage`] with the line for what is no TOML, no table, no pattern, or no flag of the main
    /// job.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_at_most(path, MAX_BYTES, "options of models");
        let text = bytes.and_then(|bytes| Ok(String::from_utf8(bytes)?));
        let text = text.with_context(|| path.display().to_string())?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let line_at = |byte: usize| 1 + text.bytes().take(byte).filter(|&b| b == b'\n').count();
        let wrong = |line: usize, what: &str| Usage(format!("{}:{line}: {what}", path.display())).into();
        let root = DeTable::parse(text).map_err(|error| -> anyhow::Error {
            let line = error.span().map_or(1, |span| line_at(span.start));
            wrong(line, &format!("not TOML: {}", error.message().replace('\n', ", ")))
        })?;
        let mut tables = Vec::new();
        for (name, value) in root.get_ref() {
            let line = line_at(name.span().start);
            let name = name.get_ref().to_string();
            let DeValue::Table(entries) = value.get_ref() else {
                return Err(wrong(
                    line,
                    &format!(
                        "'{name}' is not a table; expected one for each pattern of names, such as [\u{22}*Q8_0*.gguf\u{22}]"
                    ),
                ));
            };
            let pattern = Pattern::new(&name).map_err(|error| {
                wrong(line, &format!("'{name}' is not a pattern of names: {}", error.msg))
            })?;
            let mut table = Table { pattern, name, line, settings: Vec::new(), output: None };
            let mut entries: Vec<_> = entries.iter().collect();
            entries.sort_by_key(|(key, _)| key.span().start);
            for (key, value) in entries {
                let line = line_at(key.span().start);
                let key = key.get_ref().to_string();
                let setting = setting(value).ok_or_else(|| {
                    wrong(line, &format!("'{key}' is not text, a number, true, false, or a list of those"))
                })?;
                if key == OUTPUT {
                    let name = match &setting {
                        Setting::Value(name) => file_name(name),
                        _ => None,
                    };
                    table.output = Some(name.ok_or_else(|| {
                        wrong(line, "'output' is not the name of a file in the folder of outputs")
                    })?);
                    continue;
                }
                // The flag is checked here, even where no model has the table.
                Flags::default()
                    .set(&key, &setting, folder_of(path))
                    .map_err(|error| wrong(line, &error.to_string()))?;
                table.settings.push((key, line, setting));
            }
            tables.push(table);
        }
        tables.sort_by_key(|table| table.line);
        Ok(Self { path: path.to_owned(), tables })
    }

    /// Changes `flags` as the tables for the model at `path` say. They go in the order of their lines. Returns the name of the
    /// output, if they give one, and the lines of those tables.
    ///
    /// # Errors
    /// [`Usage`] for a setting that does not fit its flag.
    pub fn apply(&self, path: &Path, flags: &mut Flags) -> Result<(Option<String>, Vec<usize>)> {
        let mut output = None;
        let mut lines = Vec::new();
        for table in self.tables.iter().filter(|table| table.is_for(path)) {
            lines.push(table.line);
            for (key, line, setting) in &table.settings {
                flags
                    .set(key, setting, folder_of(&self.path))
                    .map_err(|error| Usage(format!("{}:{line}: {error}", self.path.display())))?;
            }
            output = table.output.clone().or(output);
        }
        Ok((output, lines))
    }

    /// The tables not among these lines, each as a few words.
    #[must_use]
    pub fn without(&self, lines: &[usize]) -> Vec<String> {
        let unused = self.tables.iter().filter(|t| !lines.contains(&t.line));
        unused.map(|t| format!("{}:{}: '{}'", self.path.display(), t.line, t.name)).collect()
    }

    /// Where the tables are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Table {
    /// A pattern without a folder is for the file's name alone. One with folders is for the end of the path.
    fn is_for(&self, path: &Path) -> bool {
        let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
        if !self.name.contains('/') {
            let name = path.file_name().unwrap_or_default();
            return self.pattern.matches_path_with(Path::new(name), options);
        }
        let mut rest = Some(path);
        let whole = self.pattern.matches_path_with(path, options);
        whole
            || std::iter::from_fn(|| {
                let mut components = rest?.components();
                components.next()?;
                rest = Some(components.as_path());
                rest
            })
            .any(|end| self.pattern.matches_path_with(end, options))
    }
}

/// The name of a file without folder.
fn file_name(name: &str) -> Option<String> {
    (Path::new(name).file_name() == Some(name.as_ref())).then(|| name.to_owned())
}

fn setting(value: &Spanned<DeValue<'_>>) -> Option<Setting> {
    match value.get_ref() {
        DeValue::Boolean(given) => Some(Setting::Given(*given)),
        DeValue::Array(values) => {
            let texts: Option<Vec<String>> = values.iter().map(|v| text(v.get_ref())).collect();
            texts.filter(|texts| !texts.is_empty()).map(Setting::Values)
        }
        value => text(value).map(Setting::Value),
    }
}

fn text(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Tables, String> {
        Tables::parse(Path::new("c/zoo.toml"), text).map_err(|error| {
            assert!(error.is::<Usage>());
            error.to_string()
        })
    }

    fn applied(tables: &Tables, path: &str) -> (String, Option<String>) {
        let mut flags = Flags::default();
        let (output, _) = tables.apply(Path::new(path), &mut flags).unwrap();
        let words = flags.arguments();
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        (words.join(" "), output)
    }

    #[test]
    fn tables_are_for_the_models_that_their_patterns_name() {
        let tables = parse(
            "['*Q8*.gguf']\ndrop = '10%'\n['x/**']\nmethod = 'reverse'\nkeep = [0, 3]\n\
             ['a-Q8.gguf']\ndrop = 3\noutput = 'b.gguf'\n",
        )
        .unwrap();
        assert_eq!(applied(&tables, "m/c-Q8.gguf"), ("--drop=10%".into(), None));
        let both = applied(&tables, "m/x/y/a-Q8.gguf");
        assert_eq!(both, ("--drop=3 --keep=0,3 --method=reverse".into(), Some("b.gguf".into())));
        assert_eq!(applied(&tables, "m/c.gguf"), (String::new(), None));
        assert_eq!(tables.without(&[1, 3]), ["c/zoo.toml:6: 'a-Q8.gguf'"]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, message) in [
            ("\n['a']\ndorp = 1\n", "3: 'dorp' is not a flag of the main job"),
            (
                "drop = 1\n",
                "1: 'drop' is not a table; expected one for each pattern of names, such as [\"*Q8_0*.gguf\"]",
            ),
            ("['a']\ndrop = {}\n", "2: 'drop' is not text, a number, true, false, or a list of those"),
            ("['a']\nkeep = []\n", "2: 'keep' is not text, a number, true, false, or a list of those"),
            ("['a']\nportable = 1\n", "2: 'portable' is true or false"),
            ("['a']\njson = 'x'\n", "2: 'json' is not for a single model of a batch"),
            ("['a']\noutput = '../x'\n", "2: 'output' is not the name of a file in the folder of outputs"),
            (
                "['a***']\n",
                "1: 'a***' is not a pattern of names: wildcards are either regular `*` or recursive `**`",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), format!("c/zoo.toml:{message}"));
        }
        assert!(parse("['a']\n\ndrop 1\n").unwrap_err().starts_with("c/zoo.toml:3: not TOML: "));
        assert!(parse("['a']\n['a']\n").unwrap_err().starts_with("c/zoo.toml:2: not TOML: "));
    }
}
