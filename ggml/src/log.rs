//! Captures the output of llama.cpp and ggml by lines, instead of stderr.

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use llama_cpp_sys_2 as sys;

use crate::fault;

/// How many lines of warnings and errors are kept.
const KEPT_LINES: usize = 32;

/// The kept lines, and the start of the unfinished line.
pub(crate) struct Lines {
    complete: VecDeque<Line>,
    open: String,
    open_is_error: bool,
}

struct Line {
    text: String,
    /// An error, not a warning.
    is_error: bool,
}

static LINES: Mutex<Lines> =
    Mutex::new(Lines { complete: VecDeque::new(), open: String::new(), open_is_error: false });
static ECHO: AtomicBool = AtomicBool::new(false);

/// Also writes every line, whatever its level, to stderr.
pub fn echo(on: bool) {
    ECHO.store(on, Ordering::Relaxed);
}

/// Forgets the kept lines. The next [`last_error`] is about what follows.
pub fn clear() {
    let mut lines = lines();
    lines.complete.clear();
    lines.open.clear();
    fault::set_last_words("");
}

/// The last warning or error that llama.cpp printed. It is on one line, without the C function's name before it.
///
/// `None` if nothing was printed since [`clear`].
#[must_use]
pub fn last_error() -> Option<String> {
    reason(&lines().complete)
}

/// The line that says most. llama.cpp reports a failed load twice. First the cause, then only that it failed. Of a file that
/// its reader refuses, the cause only names the file, and an earlier line says what is wrong.
fn reason(lines: &VecDeque<Line>) -> Option<String> {
    let texts = || lines.iter().map(|line| &*line.text);
    let line =
        texts().rev().find(|line| !line.ends_with("failed to load model")).or_else(|| texts().next_back())?;
    let cause = line
        .split_once("error loading model: ")
        .map_or_else(|| without_function_name(line), |(_, cause)| cause);
    if !cause.contains(": failed to load ") {
        return Some(cause.to_owned());
    }
    let first_error = lines.iter().find(|line| line.is_error);
    let of_reader = first_error.map(|line| &*line.text).filter(|text| text != &line);
    Some(match of_reader {
        Some(text) => without_function_name(text).to_owned(),
        // Whose path is the caller's to say.
        None => match without_function_name(cause).split_once(" from ") {
            Some((what, _)) => what.to_owned(),
            None => cause.to_owned(),
        },
    })
}

/// `some_function: text` -> `text`; a line of another form stays as it is.
fn without_function_name(line: &str) -> &str {
    match line.split_once(": ") {
        Some((name, text)) if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => text,
        _ => line,
    }
}

pub(crate) fn lines() -> MutexGuard<'static, Lines> {
    // A panic under the lock leaves no harmful half change.
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The callback given to `llama_log_set`. Called from any thread.
pub(crate) unsafe extern "C" fn capture(
    level: sys::ggml_log_level,
    text: *const c_char,
    _user_data: *mut c_void,
) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives until this callback returns, and it is not null.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    if ECHO.load(Ordering::Relaxed) {
        eprint!("{text}");
    }
    crate::requantize::watch(&text);
    let mut lines = lines();
    let is_problem = level == sys::GGML_LOG_LEVEL_WARN || level == sys::GGML_LOG_LEVEL_ERROR;
    let continues = level == sys::GGML_LOG_LEVEL_CONT && !lines.open.is_empty();
    if !is_problem && !continues {
        return;
    }
    // Of what is no problem a line would only mislead.
    let says = |line: &&str| line.contains(|c: char| c.is_alphanumeric());
    if let Some(said) = text.lines().rfind(says) {
        fault::set_last_words(without_function_name(said.trim()));
    }
    if lines.open.is_empty() {
        lines.open_is_error = level == sys::GGML_LOG_LEVEL_ERROR;
    }
    lines.open.push_str(&text);
    while let Some(end) = lines.open.find('\n') {
        let line: String = lines.open.drain(..=end).collect();
        if lines.complete.len() == KEPT_LINES {
            lines.complete.pop_front();
        }
        let text = line.trim().to_owned();
        let is_error = lines.open_is_error;
        lines.complete.push_back(Line { text, is_error });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(lines: &[(bool, &str)]) -> VecDeque<Line> {
        let line = |&(is_error, text): &(bool, &str)| Line { text: text.to_owned(), is_error };
        lines.iter().map(line).collect()
    }

    #[test]
    fn what_the_reader_of_files_says_is_kept() {
        let failed = "llama_model_load: error loading model: llama_model_loader: failed to load model from /proc/self/fd/5";
        let again = (true, "llama_model_load_from_file_impl: failed to load model");
        let wrong = "tensor 'a' has offset 96, expected 0";
        let of_reader = format!("gguf_init_from_reader_impl: {wrong}");
        let generic = "gguf_init_from_reader_impl: failed to read tensor data";
        let all = [(false, "x: a warning"), (true, &*of_reader), (true, generic), (true, failed), again];
        assert_eq!(reason(&lines(&all)).as_deref(), Some(wrong));
        assert_eq!(reason(&lines(&[(true, failed), again])).as_deref(), Some("failed to load model"));
        let known = "llama_model_load: error loading model: missing tensor 'b'";
        assert_eq!(
            reason(&lines(&[(true, "x: before"), (true, known), again])).as_deref(),
            Some("missing tensor 'b'")
        );
        assert_eq!(reason(&lines(&[])), None);
    }

    #[test]
    fn the_last_words_are_a_warning_or_an_error() {
        let say = |level, text: &CStr| {
            // SAFETY: the text ends in NUL and outlives the call.
            unsafe { capture(level, text.as_ptr(), std::ptr::null_mut()) };
        };
        say(sys::GGML_LOG_LEVEL_WARN, c"load: a tensor is missing\n");
        say(sys::GGML_LOG_LEVEL_INFO, c"load: all is well\n");
        say(sys::GGML_LOG_LEVEL_DEBUG, c"load: no device found\n");
        assert_eq!(fault::last_words(), "a tensor is missing");
    }

    #[test]
    fn c_function_names_are_cut_and_nothing_else() {
        assert_eq!(without_function_name("llama_model_load: cannot read"), "cannot read");
        assert_eq!(without_function_name("key not found: llama.x"), "key not found: llama.x");
        assert_eq!(without_function_name("plain"), "plain");
    }
}
