//! Files of tasks with several answers -> tasks. Pure: from text to tasks; a line that is wrong is named.
//!
//! HellaSwag comes in llama.cpp's text form, six lines for each task (`perplexity.cpp: hellaswag_score`). They are the
//! beginning of a text, the number of the right ending from 0 to 3, and four endings. Other tasks come as JSON lines, an object
//! on each. It is in the shape of ARC (`"choices": {"text": [...], "label": [...]}, "answerKey": "B"`) or of MMLU (`"choices":
//! [...], "answer": 1`); both may be mixed.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::Path;

use crate::files::place::read_at_most;

/// The most answers that a task may have.
pub const MAX_CHOICES: usize = 64;

/// The longest file of tasks.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// A task: which of the choices continues the context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The line where it begins, counted from 1.
    pub line: usize,
    /// What all choices continue, after a blank.
    pub context: String,
    /// The possible continuations, at least two.
    pub choices: Vec<String>,
    /// Which of them is right, counted from 0.
    pub right: usize,
}

impl Task {
    /// The context followed by each choice.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        self.choices.iter().map(|choice| format!("{} {choice}", self.context))
    }
}

/// Reads tasks of either form. They are JSON lines where the first text begins as an object does, else HellaSwag.
///
/// # Errors
/// As [`json_lines`] and [`hellaswag`].
pub fn any(text: &str) -> Result<Vec<Task>> {
    match text.trim_start().starts_with('{') {
        true => json_lines(text),
        false => hellaswag(text),
    }
}

/// Reads HellaSwag in llama.cpp's text form.
///
/// # Errors
/// No task; a number of lines that six does not divide; a line that is not what it has to be. Each with its line.
pub fn hellaswag(text: &str) -> Result<Vec<Task>> {
    let lines: Vec<&str> = text.lines().collect();
    ensure!(!lines.is_empty(), "has no task");
    let (tasks, rest) = lines.as_chunks::<6>();
    let mut found = Vec::with_capacity(tasks.len());
    for (i, [context, right, choices @ ..]) in tasks.iter().enumerate() {
        let line = i * 6 + 1;
        ensure!(!context.trim().is_empty(), "line {line} is empty, expected the beginning of a text");
        let right = match right.trim().parse::<usize>() {
            Ok(right) if right < choices.len() => right,
            _ => bail!(
                "line {} is {}, expected the number of the right ending, 0 to 3",
                line + 1,
                shown(right)
            ),
        };
        if let Some(at) = choices.iter().position(|choice| choice.trim().is_empty()) {
            bail!("line {} is empty, expected an ending", line + 2 + at);
        }
        found.push(Task {
            line,
            context: (*context).to_owned(),
            choices: choices.map(str::to_owned).to_vec(),
            right,
        });
    }
    ensure!(
        rest.is_empty(),
        "ends at line {}, after {} of the 6 lines of a task, expected a context, the number of the right ending, and 4 \
         endings",
        lines.len(),
        rest.len()
    );
    Ok(found)
}

/// Reads tasks of one question each from JSON lines. Empty lines are left out.
///
/// # Errors
/// No task; a line that is not a task, with its number and what was expected.
pub fn json_lines(text: &str) -> Result<Vec<Task>> {
    let mut found = Vec::new();
    for (i, text) in text.lines().enumerate() {
        if !text.trim().is_empty() {
            let task = json_task(text, i + 1).with_context(|| format!("line {}", i + 1))?;
            found.push(task);
        }
    }
    ensure!(!found.is_empty(), "has no task");
    Ok(found)
}

fn json_task(text: &str, line: usize) -> Result<Task> {
    let Ok(Value::Object(task)) = serde_json::from_str(text) else {
        bail!("is not a JSON object, expected one with question, choices, and answerKey or answer");
    };
    let question = match task.get("question") {
        Some(Value::String(question)) if !question.trim().is_empty() => question,
        _ => bail!("has no text 'question'"),
    };
    let (choices, right) = match task.get("choices") {
        Some(Value::Object(choices)) => {
            let choices_text = strings(choices.get("text"), "choices.text")?;
            let labels = strings(choices.get("label"), "choices.label")?;
            ensure!(
                labels.len() == choices_text.len(),
                "'choices.label' has {} entries, expected {} as in 'choices.text'",
                labels.len(),
                choices_text.len()
            );
            let Some(Value::String(key)) = task.get("answerKey") else {
                bail!("has no text 'answerKey'");
            };
            let Some(right) = labels.iter().position(|label| label == key) else {
                bail!("'answerKey' is {}, expected one of 'choices.label'", shown(key));
            };
            (choices_text, right)
        }
        Some(choices @ Value::Array(_)) => {
            let choices = strings(Some(choices), "choices")?;
            let answer = task.get("answer").and_then(Value::as_u64);
            let right = answer.and_then(|answer| usize::try_from(answer).ok());
            match right.filter(|&right| right < choices.len()) {
                Some(right) => (choices, right),
                None => bail!(
                    "'answer' is {}, expected a number from 0 to {}",
                    task.get("answer").map_or("missing".to_owned(), |answer| shown(&answer.to_string())),
                    choices.len() - 1
                ),
            }
        }
        _ => {
            bail!("has no 'choices', expected an array of texts, or an object with text and label")
        }
    };
    Ok(Task { line, context: format!("Question: {question}\nAnswer:"), choices, right })
}

/// An array of 2 to [`MAX_CHOICES`] texts, none of them empty.
fn strings(value: Option<&Value>, name: &str) -> Result<Vec<String>> {
    let Some(Value::Array(values)) = value else {
        bail!("has no array '{name}'");
    };
    ensure!(
        (2..=MAX_CHOICES).contains(&values.len()),
        "'{name}' has {} entries, expected 2 to {MAX_CHOICES}",
        values.len()
    );
    values
        .iter()
        .enumerate()
        .map(|(i, value)| match value {
            Value::String(text) if !text.trim().is_empty() => Ok(text.clone()),
            _ => bail!("entry {i} of '{name}' is not a text"),
        })
        .collect()
}

/// A piece of the file in quotes, cut for an error line.
fn shown(text: &str) -> String {
    const MAX: usize = 40;
    let text: String = text.chars().map(|c| if c.is_control() || c == '"' { ' ' } else { c }).collect();
    if text.chars().count() <= MAX {
        return format!("'{text}'");
    }
    let start: String = text.chars().take(MAX).collect();
    format!("'{start}...'")
}

/// Reads the first `n` tasks of the file at `path`. All of it has to be well-formed.
pub(crate) fn read_tasks(
    path: &Path,
    n: usize,
    parse: fn(&str) -> Result<Vec<Task>>,
) -> Result<(&Path, Vec<Task>)> {
    let at_path = || path.display().to_string();
    let bytes = read_at_most(path, MAX_FILE_BYTES, "tasks").with_context(at_path)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let start = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = start.iter().filter(|&&byte| byte == b'\n').count() + 1;
        anyhow::anyhow!("line {line} is not UTF-8 text")
    });
    let mut tasks = text.and_then(|text| parse(&text)).with_context(at_path)?;
    tasks.truncate(n);
    Ok((path, tasks))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: &str = "A man sits. He\n2\nis a.\nis b.\nis c.\nis d.\n";

    #[test]
    fn hellaswag_tasks_have_six_lines() {
        let tasks = hellaswag(&TASK.repeat(3)).unwrap();
        assert_eq!(tasks.len(), 3);
        assert_eq!((tasks[1].line, tasks[1].right), (7, 2));
        assert_eq!(tasks[1].texts().nth(3).unwrap(), "A man sits. He is d.");
        // Line ends of other systems, and none at the end.
        assert_eq!(hellaswag(&TASK.replace('\n', "\r\n")).unwrap()[0].right, 2);
        assert_eq!(hellaswag(TASK.trim_end()).unwrap().len(), 1);
    }

    #[test]
    fn malformed_hellaswag_names_its_line() {
        let error = |text: &str| hellaswag(text).unwrap_err().to_string();
        assert_eq!(error(""), "has no task");
        assert_eq!(
            error(&TASK.repeat(2).replacen("\n2\n", "\n4\n", 1)),
            "line 2 is '4', expected the number of the right ending, 0 to 3"
        );
        assert_eq!(
            error(&(TASK.to_owned() + &TASK.replace("\n2\n", "\n-1\n"))),
            "line 8 is '-1', expected the number of the right ending, 0 to 3"
        );
        assert_eq!(error(&TASK.replace("is b.", "")), "line 4 is empty, expected an ending");
        assert_eq!(
            error(&TASK.replace("A man sits. He", " ")),
            "line 1 is empty, expected the beginning of a text"
        );
        assert_eq!(
            error(&(TASK.to_owned() + "A man\n1\n")),
            "ends at line 8, after 2 of the 6 lines of a task, expected a context, the number of the right ending, and \
             4 endings"
        );
    }

    #[test]
    fn both_shapes_of_json_are_read() {
        let text = r#"{"id": "x", "question": "Which?", "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "answerKey": "C"}

{"question": "What?", "subject": "y", "choices": ["one", "two"], "answer": 1}
"#;
        let tasks = json_lines(text).unwrap();
        assert_eq!(tasks.len(), 2);
        assert_eq!((tasks[0].line, tasks[0].right), (1, 2));
        assert_eq!(tasks[0].choices, ["a", "b", "c"]);
        assert_eq!((tasks[1].line, tasks[1].right), (3, 1));
        let texts: Vec<_> = tasks[1].texts().collect();
        assert_eq!(texts, ["Question: What?\nAnswer: one", "Question: What?\nAnswer: two"]);
    }

    #[test]
    fn malformed_json_names_its_line_and_what_was_expected() {
        for (line, expected) in [
            ("[1]", "is not a JSON object"),
            ("{\"question\": ", "is not a JSON object"),
            ("{}", "has no text 'question'"),
            (r#"{"question": "q"}"#, "has no 'choices', expected"),
            (
                r#"{"question": "q", "choices": ["a"], "answer": 0}"#,
                "'choices' has 1 entries, expected 2 to 64",
            ),
            (r#"{"question": "q", "choices": ["a", 1], "answer": 0}"#, "entry 1 of 'choices' is not a text"),
            (
                r#"{"question": "q", "choices": ["a", "b"], "answer": 2}"#,
                "'answer' is '2', expected a number from 0 to 1",
            ),
            (r#"{"question": "q", "choices": ["a", "b"]}"#, "'answer' is missing, expected"),
            (r#"{"question": "q", "choices": ["a", "b"], "answer": -1}"#, "'answer' is '-1'"),
            (
                r#"{"question": "q", "choices": {"text": ["a", "b"]}, "answerKey": "A"}"#,
                "has no array 'choices.label'",
            ),
            (
                r#"{"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B", "C"]}, "answerKey": "A"}"#,
                "'choices.label' has 3 entries, expected 2 as in 'choices.text'",
            ),
            (
                r#"{"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "D"}"#,
                "'answerKey' is 'D', expected one of 'choices.label'",
            ),
            (
                r#"{"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}}"#,
                "has no text 'answerKey'",
            ),
        ] {
            let error = json_lines(&format!("\n{line}\n")).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.starts_with(&format!("line 2: {expected}")), "{line}: {error}");
        }
        assert_eq!(json_lines("\n \n").unwrap_err().to_string(), "has no task");
    }

    #[test]
    fn the_form_is_that_of_the_first_text() {
        let json = r#"{"question": "Why?", "choices": ["a", "b"], "answer": 1}"#;
        assert_eq!(any(&format!("\n {json}")).unwrap()[0].choices.len(), 2);
        assert_eq!(any(TASK).unwrap()[0].choices.len(), 4);
        assert_eq!(any("{\n").unwrap_err().to_string(), "line 1");
        assert_eq!(any("").unwrap_err().to_string(), "has no task");
    }
}
