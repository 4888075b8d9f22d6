//! One task's share of models that several tasks work on.

use crate::error::Usage;
use anyhow::{Context, Result, bail};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Task `number` of `count`, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    number: u64,
    count: u64,
}

impl Task {
    fn new(number: u64, count: u64) -> Option<Self> {
        (1..=count).contains(&number).then_some(Self { number, count })
    }

    /// The task that Slurm's array variables name; `None` outside of an array. `get` looks up a variable.
    ///
    /// # Errors
    /// [`Usage`] where they are no numbers, or the array is not a range, so that a task cannot know which one it is.
    pub fn from_slurm(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let Some(id) = get("SLURM_ARRAY_TASK_ID") else {
            return Ok(None);
        };
        let number = |name: &str, text: Option<String>, default: Option<u64>| -> Result<u64> {
            let Some(text) = text.or(default.map(|n| n.to_string())) else {
                bail!(Usage(format!(
                    "SLURM_ARRAY_TASK_ID is set, but {name} is not; --task I/N says which share to take"
                )));
            };
            text.parse::<u64>().ok().with_context(|| Usage(format!("{name} is '{text}', expected a number")))
        };
        let id = number("SLURM_ARRAY_TASK_ID", Some(id), None)?;
        let of = |name: &str, default| number(name, get(name), default);
        let count = of("SLURM_ARRAY_TASK_COUNT", None)?;
        let min = of("SLURM_ARRAY_TASK_MIN", Some(0))?;
        let step = of("SLURM_ARRAY_TASK_STEP", Some(1))?.max(1);
        let max = of("SLURM_ARRAY_TASK_MAX", Some(id))?;
        // In a list such as 1,2,4 no task knows its place.
        let is_range = max.saturating_sub(min) / step < count;
        let index = id.checked_sub(min).filter(|above| is_range && above % step == 0);
        let task = index.and_then(|above| Self::new(above / step + 1, count));
        match task {
            Some(task) => Ok(Some(task)),
            None => bail!(Usage(format!(
                "Slurm's array task {id} is not one of {count} from {min} in steps of {step}; --task I/N says which share to \
                 take"
            ))),
        }
    }

    /// Whether a model with this fingerprint is this task's.
    #[must_use]
    pub fn takes(&self, fingerprint: u64) -> bool {
        fingerprint % self.count == self.number - 1
    }

    /// The name of this task's results file, made from that of all.
    #[must_use]
    pub fn results(&self, path: &Path) -> PathBuf {
        let mut name = path.file_stem().unwrap_or_default().to_owned();
        name.push(format!("-{}-of-{}", self.number, self.count));
        if let Some(extension) = path.extension() {
            name.push(".");
            name.push(extension);
        }
        path.with_file_name(name)
    }
}

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("'{text}' is not a task; expected one such as 2/4, of 1/4 to 4/4");
        let (number, count) = text.split_once('/').ok_or_else(expected)?;
        let parse = |text: &str| {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| text.parse::<u64>().ok()).flatten()
        };
        let both = parse(number).zip(parse(count));
        let task = both.and_then(|(number, count)| Self::new(number, count));
        task.ok_or_else(expected)
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_counted_from_one() {
        assert_eq!("2/4".parse(), Ok(Task { number: 2, count: 4 }));
        for wrong in ["", "2", "0/4", "5/4", "a/b", "1/0", "-1/4", "1/4/2", "+1/4", "1/ 4"] {
            assert!(wrong.parse::<Task>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_fingerprint_is_taken_once() {
        for count in 1..9 {
            for fingerprint in (0..1000).map(|i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
                let n = (1..=count).filter(|&number| Task { number, count }.takes(fingerprint)).count();
                assert_eq!(n, 1);
            }
        }
    }

    #[test]
    fn slurm_arrays_are_ranges() {
        let task = |variables: &[(&str, &str)]| {
            let get = |name: &str| {
                let found = variables.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            Task::from_slurm(get).map(|task| task.map(|task| task.to_string()))
        };
        assert_eq!(task(&[]).unwrap(), None);
        let id = ("SLURM_ARRAY_TASK_ID", "7");
        let count = ("SLURM_ARRAY_TASK_COUNT", "4");
        let min = ("SLURM_ARRAY_TASK_MIN", "3");
        let step = ("SLURM_ARRAY_TASK_STEP", "2");
        assert_eq!(task(&[id, count, min, step]).unwrap().as_deref(), Some("3/4"));
        // 3, 5, 7, 9 are four; of 3, 4, 5, 6 the fifth is none.
        let gaps = [("SLURM_ARRAY_TASK_ID", "3"), ("SLURM_ARRAY_TASK_MAX", "9"), count, min];
        for wrong in [&[id][..], &[id, min], &[id, count, min], &[id, count], &gaps] {
            assert!(task(wrong).unwrap_err().is::<Usage>(), "{wrong:?}");
        }
    }

    #[test]
    fn results_of_tasks_have_names_of_their_own() {
        let task = Task { number: 2, count: 4 };
        assert_eq!(task.results(Path::new("d/r.jsonl")), Path::new("d/r-2-of-4.jsonl"));
        assert_eq!(task.results(Path::new("r")), Path::new("r-2-of-4"));
    }
}
