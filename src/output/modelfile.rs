//! A Modelfile: what `ollama create` makes a model from. Pure.
//!
//! Ollama's parser (`ollama: parser/parser.go`) knows no escapes. A value stands in three quotation marks, in one, or in none,
//! and ends at the first line that ends with the marks that it began with. Characters that cannot be printed are dropped. So a
//! text is written in the way in which that parser reads it back, or not at all.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The content of a Modelfile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modelfile {
    /// The files of weights, by their paths from the Modelfile's folder.
    pub from: Vec<String>,
    /// How a conversation becomes a prompt. Where there is none Ollama takes what it knows for the GGUF's own.
    pub template: Option<String>,
    /// The built-in that makes prompts.
    pub renderer: Option<String>,
    /// The built-in that reads answers.
    pub parser: Option<String>,
    /// The release of Ollama that it needs.
    pub requires: Option<String>,
    /// What the model is told first.
    pub system: Option<String>,
    /// Sampling and the like: names and values.
    pub parameters: Vec<(String, String)>,
    /// A conversation that comes first: roles and texts.
    pub messages: Vec<(String, String)>,
    /// Licences.
    pub licenses: Vec<String>,
}

impl Modelfile {
    /// The text of the file.
    ///
    /// # Errors
    /// A value that the parser would not read back.
    pub fn text(&self) -> Result<String> {
        let mut text = String::new();
        let mut put = |command: &str, value: &str| -> Result<()> {
            let value = quote(value).with_context(|| command.to_owned())?;
            writeln!(text, "{command} {value}")?;
            Ok(())
        };
        for from in &self.from {
            put("FROM", from)?;
        }
        for (command, value) in [
            ("TEMPLATE", &self.template),
            ("RENDERER", &self.renderer),
            ("PARSER", &self.parser),
            ("REQUIRES", &self.requires),
            ("SYSTEM", &self.system),
        ] {
            if let Some(value) = value {
                put(command, value)?;
            }
        }
        for (name, value) in &self.parameters {
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            ensure!(
                !name.is_empty() && name.bytes().all(is_name),
                "'{}' is not the name of a parameter",
                name.escape_debug()
            );
            put(&format!("PARAMETER {name}"), value)?;
        }
        for (role, message) in &self.messages {
            ensure!(
                matches!(role.as_str(), "system" | "user" | "assistant"),
                "'{}' is not the role of a message",
                role.escape_debug()
            );
            put(&format!("MESSAGE {role}"), message)?;
        }
        for license in &self.licenses {
            put("LICENSE", license)?;
        }
        Ok(text)
    }
}

/// The parameters of a JSON object, as Ollama stores them. A list stands for several of one name.
///
/// # Errors
/// Another value than such an object.
pub fn parameters(json: &Value) -> Result<Vec<(String, String)>> {
    let object = json.as_object().context("is not a JSON object")?;
    let mut parameters = Vec::new();
    for (name, value) in object {
        let values = match value {
            Value::Array(values) => values.iter().collect(),
            value => vec![value],
        };
        for value in values {
            let value = match value {
                Value::String(text) => text.clone(),
                Value::Number(_) | Value::Bool(_) => value.to_string(),
                Value::Null | Value::Array(_) | Value::Object(_) => {
                    bail!("parameter '{}' has no value that a Modelfile can hold", name.escape_debug())
                }
            };
            parameters.push((name.clone(), value));
        }
    }
    Ok(parameters)
}

/// A value as the parser reads it back.
///
/// ```
/// use gguf_shorten::output::modelfile::quote;
///
/// assert_eq!(quote("{{ .Prompt }}").unwrap(), "{{ .Prompt }}");
/// assert_eq!(quote("a \"b\"\nc").unwrap(), "\"\"\"a \"b\"\nc\"\"\"");
/// assert!(quote("a\"\"\"\nb\"\nc").is_err());
/// ```
///
/// # Errors
/// A text that no quotation marks can hold.
pub fn quote(text: &str) -> Result<String> {
    let plain = [text.to_owned(), format!("\"{text}\""), format!("\"\"\"{text}\"\"\"")];
    // Text of several lines takes triple quotes first, as people write it.
    let [first, second, third] = plain;
    let order = match text.contains('\n') {
        true => [third, second, first],
        false => [first, second, third],
    };
    let found = order.into_iter().find(|quoted| read_back(quoted).as_deref() == Some(text));
    found.with_context(|| {
        let odd = text.chars().find(|&c| !is_print(c) && !matches!(c, '\n' | '\r' | '\t'));
        match odd {
            Some(odd) => format!("the character U+{:04X} cannot stand in a Modelfile", u32::from(odd)),
            None => "a line ends with quotation marks, which would end the text in a Modelfile".to_owned(),
        }
    })
}

/// What Ollama's parser makes of a line that ends with this value. `None` unless it takes all of it (`parser.go: ParseFile`).
fn read_back(quoted: &str) -> Option<String> {
    let mut read = String::new();
    for c in quoted.chars() {
        match c {
            // Ends the value, if it can be one.
            '\n' | '\r' => {
                if unquote(read.trim()).is_some() {
                    return None;
                }
                read.push(c);
            }
            ' ' | '\t' => read.push(c),
            _ if is_print(c) => read.push(c),
            _ => {}
        }
    }
    unquote(read.trim()).map(str::to_owned)
}

/// `parser.go: unquote`
fn unquote(text: &str) -> Option<&str> {
    for (marks, least) in [("\"\"\"", 6), ("\"", 2)] {
        if let Some(rest) = text.strip_prefix(marks) {
            return rest.strip_suffix(marks).filter(|_| text.len() >= least);
        }
    }
    Some(text)
}

/// Whether Go's `strconv.IsPrint` holds: letters, marks, numbers, punctuation, symbols, and the blank.
fn is_print(c: char) -> bool {
    // After a letter, `escape_debug` leaves printable characters alone, but for those three.
    matches!(c, '"' | '\'' | '\\') || !['a', c].iter().collect::<String>().escape_debug().any(|c| c == '\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parser as it is written, state by state. The file has commands with names in capitals. Each with its value.
    fn parse(file: &str) -> Option<Vec<(String, String)>> {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            Nil,
            Name,
            Value,
            Word,
            Comment,
        }
        let mut commands = Vec::new();
        let (mut state, mut name, mut b) = (State::Nil, String::new(), String::new());
        for r in file.chars() {
            let is_space = r == ' ' || r == '\t';
            let is_newline = r == '\n' || r == '\r';
            let (next, kept) = match state {
                State::Nil if r == '#' => (State::Comment, None),
                State::Nil if is_space || is_newline => (State::Nil, None),
                State::Nil => (State::Name, Some(r)),
                State::Name if r.is_ascii_alphabetic() => (State::Name, Some(r)),
                State::Name if is_space => (State::Value, None),
                State::Name => return None,
                State::Word if is_space => (State::Value, None),
                State::Word => (State::Word, Some(r)),
                State::Value if is_newline || is_space => (State::Nil, Some(r)),
                State::Value => (State::Value, Some(r)),
                State::Comment if is_newline => (State::Nil, None),
                State::Comment => (State::Comment, None),
            };
            if next != state {
                let mut to = next;
                match state {
                    State::Name => {
                        name = b.clone();
                        if name == "PARAMETER" || name == "MESSAGE" {
                            to = State::Word;
                        }
                    }
                    State::Word => name = format!("{name} {b}"),
                    State::Value => {
                        let value = unquote(b.trim());
                        if value.is_none() || is_space {
                            b.push(r);
                            continue;
                        }
                        commands.push((name.clone(), value?.to_owned()));
                    }
                    State::Nil | State::Comment => {}
                }
                b.clear();
                state = to;
                // What ends a value is not part of the next name.
                if to == State::Nil {
                    continue;
                }
            }
            if let Some(r) = kept.filter(|&r| is_print(r)) {
                b.push(r);
            }
        }
        if state == State::Value {
            commands.push((name, unquote(b.trim())?.to_owned()));
        }
        Some(commands)
    }

    const TEMPLATES: &[&str] = &[
        "{{ .Prompt }}",
        "{{ .System }}\nUSER: {{ .Prompt }}\n",
        " leading and trailing ",
        "\n\nlines around\n\n",
        "{{ if eq .Role \"user\" }}\"\"\"quoted\"\"\" inside\n{{ end }}",
        "ends with a mark\"",
        "\"begins with a mark",
        "\"\"\"begins with three",
        "a line that ends with a mark\"\nand goes on",
        "FROM nowhere\nSYSTEM injected",
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}",
        "tabs\tand \"marks\"\r\nand returns",
        "<｜User｜>▁é\u{301}\u{1F600}",
        "\"",
        "\"\"",
        "",
        "# no comment",
        "a line with three\"\"\" and more\n",
    ];

    #[test]
    fn what_is_written_is_read_back() {
        for text in TEMPLATES {
            let modelfile = Modelfile {
                from: vec!["./a b.gguf".to_owned()],
                template: Some((*text).to_owned()),
                system: Some("told \"first\"".to_owned()),
                parameters: vec![
                    ("stop".to_owned(), (*text).to_owned()),
                    ("top_p".to_owned(), "0.9".to_owned()),
                ],
                messages: vec![("user".to_owned(), (*text).to_owned())],
                licenses: vec!["MIT\n\nas is".to_owned()],
                ..Modelfile::default()
            };
            let written = modelfile.text().unwrap();
            let expected = [
                ("FROM", "./a b.gguf"),
                ("TEMPLATE", text),
                ("SYSTEM", "told \"first\""),
                ("PARAMETER stop", text),
                ("PARAMETER top_p", "0.9"),
                ("MESSAGE user", text),
                ("LICENSE", "MIT\n\nas is"),
            ];
            let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(parse(&written).unwrap(), expected, "{written}");
        }
    }

    #[test]
    fn what_cannot_be_read_back_is_refused() {
        for (text, why) in [
            ("a\"\"\"\nb\"\nc", "a line ends with quotation marks"),
            ("no\u{a0}break", "the character U+00A0"),
            ("zero\u{200b}width\n", "the character U+200B"),
            ("bell\u{7}", "the character U+0007"),
        ] {
            let error = quote(text).unwrap_err().to_string();
            assert!(error.starts_with(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn parameters_are_numbers_texts_and_lists_of_them() {
        let json = serde_json::json!({"stop": ["<a>", "<b>"], "temperature": 0.7, "num_ctx": 4096, "use_mmap": true});
        let mut found = parameters(&json).unwrap();
        found.sort();
        let expected = [
            ("num_ctx", "4096"),
            ("stop", "<a>"),
            ("stop", "<b>"),
            ("temperature", "0.7"),
            ("use_mmap", "true"),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(parameters(&serde_json::json!({"a": {}})).is_err());
        assert!(parameters(&serde_json::json!([])).is_err());
        let odd = Modelfile { parameters: vec![("a b".to_owned(), "1".to_owned())], ..Modelfile::default() };
        assert!(odd.text().is_err());
    }
}
