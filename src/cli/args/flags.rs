//! The main job's flags, as they go to each model's process. They are whatever flags the main job has.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::cli::args::ShortenArgs;

/// Arguments of the main job that `batch` sets, or has itself.
const OF_BATCH: &[&str] = &["model", "output", "json", "quiet", "verbose", "color"];

/// Flags that name one file for each model. They cannot be the same for all.
const OF_ONE_MODEL: &[&str] = &["imatrix", "imatrix_out", "card", "ollama"];

/// Flags that name a file which is written.
const WRITTEN: &[&str] = &["imatrix-out", "card"];

/// Flags on which the result does not depend.
const WITHOUT_EFFECT: &[&str] = &["threads", "memory", "force", "min-free", "dry-run", "scratch", "no-cache"];

/// Flags with their values, by their long names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags(BTreeMap<String, Vec<Vec<OsString>>>);

/// The main job's command with all its arguments.
fn shorten() -> Command {
    let mut command = ShortenArgs::augment_args(Command::new("shorten"));
    command.build();
    command
}

fn is_of_batch(arg: &Arg) -> bool {
    OF_BATCH.contains(&arg.get_id().as_str()) || arg.get_long().is_none_or(|long| long == "help")
}

/// The flags that can be the same for all models.
fn for_all() -> Vec<Arg> {
    let command = ShortenArgs::augment_args(Command::new("shorten"));
    let arguments = command
        .get_arguments()
        .filter(|arg| !is_of_batch(arg) && !OF_ONE_MODEL.contains(&arg.get_id().as_str()));
    arguments.cloned().collect()
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        // What one model must be told, a table may tell for each.
        let args = for_all().into_iter().map(|arg| match arg.get_id().as_str() {
            "drop" => arg.required_unless_present_any(["config", "target_size", "max_ppl", "max_kl"]),
            _ => arg,
        });
        command.args(args)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        for arg in for_all() {
            let (id, Some(long)) = (arg.get_id().as_str(), arg.get_long()) else {
                continue;
            };
            if matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            let values = if takes_values(&arg) {
                let occurrences = matches.get_raw_occurrences(id).into_iter().flatten();
                occurrences.map(|values| values.map(OsStr::to_owned).collect()).collect()
            } else {
                vec![Vec::new()]
            };
            flags.0.insert(long.to_owned(), values);
        }
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn takes_values(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// The value of one flag in a table of options.
#[derive(Clone, Debug, PartialEq)]
pub enum Setting {
    /// Whether it is given, of a flag without value.
    Given(bool),
    /// Its value as text.
    Value(String),
    /// Its values as text.
    Values(Vec<String>),
}

impl Flags {
    /// Whether the flag of this long name is given.
    #[must_use]
    pub fn has(&self, long: &str) -> bool {
        self.0.contains_key(long)
    }

    /// The only value of a flag.
    #[must_use]
    pub fn value(&self, long: &str) -> Option<&OsStr> {
        Some(self.0.get(long)?.first()?.first()?)
    }

    /// Sets a flag with one value, where it is not given.
    pub fn or_set(&mut self, long: &str, value: &str) {
        let value = || vec![vec![value.into()]];
        self.0.entry(long.to_owned()).or_insert_with(value);
    }

    /// Gives a flag without value.
    pub fn give(&mut self, long: &str) {
        self.0.insert(long.to_owned(), vec![Vec::new()]);
    }

    /// Takes a flag away.
    pub fn take(&mut self, long: &str) {
        self.0.remove(long);
    }

    /// Sets the flag `long` as a table of options says. Its old value goes, and so do flags that do not go with it. Paths
    /// count from `folder`.
    ///
    /// # Errors
    /// A flag that the main job does not have, or that `batch` sets; a setting of another kind than the flag's.
    pub fn set(&mut self, long: &str, setting: &Setting, folder: &Path) -> Result<()> {
        let command = shorten();
        let found = command.get_arguments().find(|arg| {
            arg.get_long() == Some(long)
                || arg.get_visible_aliases().is_some_and(|names| names.contains(&long))
        });
        let Some((arg, long)) = found.and_then(|arg| Some((arg, arg.get_long()?))) else {
            bail!("'{long}' is not a flag of the main job");
        };
        if is_of_batch(arg) {
            bail!("'{long}' is not for a single model of a batch");
        }
        let is_path = arg.get_value_parser().type_id() == TypeId::of::<PathBuf>();
        let value = |text: &String| -> OsString {
            match is_path {
                true => folder.join(text).into_os_string(),
                false => text.into(),
            }
        };
        let n_values = arg.get_num_args().map_or(1, |range| range.max_values());
        let values = match (setting, takes_values(arg)) {
            (Setting::Given(false), _) => {
                self.take(long);
                return Ok(());
            }
            (Setting::Given(true), false) => vec![Vec::new()],
            (_, false) => bail!("'{long}' is true or false"),
            (Setting::Given(true), true) => bail!("'{long}' needs a value"),
            (Setting::Value(text), true) => vec![vec![value(text)]],
            (Setting::Values(texts), true) if n_values > 1 => {
                vec![texts.iter().map(value).collect()]
            }
            (Setting::Values(texts), true) if matches!(arg.get_action(), ArgAction::Append) => {
                texts.iter().map(|text| vec![value(text)]).collect()
            }
            // A list of numbers is one value.
            (Setting::Values(texts), true) => vec![vec![value(&texts.join(","))]],
        };
        let conflicts = command.get_arg_conflicts_with(arg).into_iter();
        let reverse = command.get_arguments().filter(|other| {
            let conflicts = command.get_arg_conflicts_with(other);
            conflicts.iter().any(|one| one.get_id() == arg.get_id())
        });
        let others: Vec<String> = conflicts
            .chain(reverse)
            .filter_map(|other| other.get_long().map(str::to_owned))
            .filter(|other| other != long)
            .collect();
        others.iter().for_each(|other| self.take(other));
        self.0.insert(long.to_owned(), values);
        Ok(())
    }

    /// The flags as arguments.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        for (long, occurrences) in &self.0 {
            for values in occurrences {
                let mut flag = OsString::from(format!("--{long}"));
                // In one word, so that a value may begin with a hyphen.
                if let [value] = &values[..] {
                    flag.push("=");
                    flag.push(value);
                    arguments.push(flag);
                } else {
                    arguments.push(flag);
                    arguments.extend(values.iter().cloned());
                }
            }
        }
        arguments
    }

    /// Hash of all on which the result depends: the flags with their values, and of files that are read their content. The value
    /// that a flag has by default counts, as another version may have another one.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn blake3(&self) -> std::io::Result<blake3::Hash> {
        let command = shorten();
        let mut flags = self.clone();
        for arg in command.get_arguments().filter(|arg| takes_values(arg)) {
            if let (Some(long), Some(value)) = (arg.get_long(), arg.get_default_values().first()) {
                flags.0.entry(long.to_owned()).or_insert_with(|| vec![vec![value.into()]]);
            }
        }
        let mut hasher = blake3::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for (long, occurrences) in &flags.0 {
            if WITHOUT_EFFECT.contains(&long.as_str()) {
                continue;
            }
            add(long.as_bytes());
            let arg = command.get_arguments().find(|arg| arg.get_long() == Some(long));
            let is_path = arg.is_some_and(|arg| arg.get_value_parser().type_id() == TypeId::of::<PathBuf>())
                && !WRITTEN.contains(&long.as_str());
            for values in occurrences {
                for (i, value) in values.iter().enumerate() {
                    let path = Path::new(value);
                    // Of several files the first is read, the others are written.
                    if is_path && i == 0 && path.is_file() {
                        let mut file = blake3::Hasher::new();
                        file.update_reader(fs::File::open(path)?)?;
                        add(file.finalize().as_bytes());
                    } else {
                        add(value.as_encoded_bytes());
                    }
                }
            }
        }
        Ok(hasher.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Batch {
        #[arg(long)]
        config: Option<PathBuf>,
        #[command(flatten)]
        flags: Flags,
    }

    fn flags(line: &str) -> Result<Flags, clap::Error> {
        let words = std::iter::once("batch").chain(line.split_whitespace());
        Ok(Batch::try_parse_from(words)?.flags)
    }

    fn shown(flags: &Flags) -> String {
        let words = flags.arguments();
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn flags_of_the_main_job_are_passed_on_as_they_are() {
        for line in [
            "--drop=25%",
            "--blocks=3-5,7",
            "--calibration=a --calibration=b --drop=2 --gpu-layers=-1 --portable",
        ] {
            assert_eq!(shown(&flags(line).unwrap()), line);
        }
        // What is a default is not said.
        assert_eq!(shown(&flags("--drop 2").unwrap()), "--drop=2");
        for wrong in ["", "--drop=0", "--drop=1 --blocks=2", "--drop 1 -o x", "--nope"] {
            assert!(flags(wrong).is_err(), "{wrong}");
        }
        assert!(flags("--config x").is_ok());
    }

    #[test]
    fn every_flag_of_the_main_job_can_be_given_or_is_left_out_by_name() {
        let command = shorten();
        let all = command.get_arguments().map(|arg| arg.get_id().as_str());
        let passed: Vec<String> = for_all().iter().map(|a| a.get_id().to_string()).collect();
        for id in all.filter(|id| *id != "help") {
            let left_out = OF_BATCH.contains(&id) || OF_ONE_MODEL.contains(&id);
            assert_eq!(passed.iter().any(|one| one == id), !left_out, "{id}");
        }
    }

    #[test]
    fn a_setting_takes_the_place_of_a_flag_and_of_what_it_does_not_go_with() {
        let folder = Path::new("conf");
        let mut flags = flags("--drop=25% --keep=0 --portable --calibration=x").unwrap();
        let text = |text: &str| Setting::Value(text.to_owned());
        let texts = |texts: &[&str]| Setting::Values(texts.iter().map(|t| (*t).to_owned()).collect());
        flags.set("drop", &text("2"), folder).unwrap();
        flags.set("calibration", &texts(&["a", "/b"]), folder).unwrap();
        assert_eq!(shown(&flags), "--calibration=conf/a --calibration=/b --drop=2 --keep=0 --portable");
        flags.set("blocks", &texts(&["3", "4"]), folder).unwrap();
        flags.set("portable", &Setting::Given(false), folder).unwrap();
        flags.set("imatrix", &texts(&["i", "o"]), folder).unwrap();
        assert_eq!(
            shown(&flags),
            "--blocks=3,4 --calibration=conf/a --calibration=/b --imatrix conf/i conf/o"
        );
        for (long, setting) in [
            ("dorp", text("1")),
            ("output", text("x")),
            ("json", text("x")),
            ("help", Setting::Given(true)),
            ("portable", text("x")),
            ("drop", Setting::Given(true)),
        ] {
            assert!(flags.set(long, &setting, folder).is_err(), "{long}");
        }
    }

    #[test]
    fn the_hash_is_that_of_what_is_read_and_leaves_out_what_has_no_effect() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| {
            let path = folder.path().join(name);
            fs::write(&path, "text").unwrap();
            path
        });
        let hash = |line: &str| flags(line).unwrap().blake3().unwrap();
        let line = |path: &Path| format!("--drop 2 --calibration {}", path.display());
        assert_eq!(hash(&line(&a)), hash(&line(&b)));
        assert_eq!(hash(&line(&a)), hash(&format!("{} --threads 3 --force", line(&b))));
        fs::write(&b, "other").unwrap();
        assert_ne!(hash(&line(&a)), hash(&line(&b)));
        assert_ne!(hash("--drop 2"), hash("--drop 3"));
        assert_ne!(hash("--drop 2"), hash("--drop 2 --portable"));
        // By whatever name it is the default.
        assert_eq!(hash("--drop 2"), hash("--drop 2 --method auto"));
        assert_ne!(hash("--drop 2"), hash("--drop 2 --method bi"));
    }
}
