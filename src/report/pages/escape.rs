//! Text of files, which may be anything, inside of other languages.

use crate::files::shell::{is_unprintable, shell};

/// For the text and the attributes of HTML and XML.
#[must_use]
pub fn markup(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if is_unprintable(c) => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// For a line of Markdown, also inside of a table.
#[must_use]
pub fn markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '(' | ')' | '|' | '#' | '~' | '!' | '$' => {
                escaped.push('\\');
                escaped.push(c);
            }
            // No address becomes a link by itself.
            ':' => escaped.push_str("&#58;"),
            '@' => escaped.push_str("&#64;"),
            c if is_unprintable(c) => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A command of this program for a POSIX shell.
#[must_use]
pub fn command(arguments: &[String]) -> String {
    let words = arguments.iter().map(|word| shell(word));
    let words: Vec<_> = std::iter::once("gguf-shorten".to_owned()).chain(words).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_name_is_taken_for_markup() {
        assert_eq!(
            markup("<script>alert('x')</script>&\"\u{0}\u{202e}"),
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;\u{fffd}\u{fffd}"
        );
        assert_eq!(
            markdown("a|b [x](javascript:y) <b> `c`"),
            "a\\|b \\[x\\]\\(javascript&#58;y\\) &lt;b&gt; \\`c\\`"
        );
    }

    #[test]
    fn words_of_a_command_stay_words() {
        assert_eq!(shell("a/b-1.gguf"), "a/b-1.gguf");
        assert_eq!(shell("it's $(x)"), "'it'\\''s $(x)'");
        assert_eq!(shell(""), "''");
        assert_eq!(command(&["score".to_owned(), "a b".to_owned()]), "gguf-shorten score 'a b'");
    }
}
