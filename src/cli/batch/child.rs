//! The process of one model: this program again, for the main job. What ends it, be it llama.cpp or the system, costs that
//! model alone.
//!
//! Its standard input is a pipe into which nothing is ever written. Where it ends, the parent is gone or wants the child to
//! stop, and the child leaves nothing half done, as on an interrupt. Progress comes on standard error, as lines that begin
//! with a control character; all other lines are what it says.

use super::record::State;
use crate::cli::progress;
use crate::cli::progress::IS_CHILD;
use crate::cli::progress::is_child;
use crate::files::staged as commit;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Limits of what is kept. Bytes of one line, lines of what a process said last, and bytes of a result.
const MAX_LINE: usize = 4 << 10;

const MAX_LINES: usize = 20;

const MAX_RESULT: u64 = 256 << 20;

/// How long children have to stop before they are killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long they have at a second interrupt: no renaming of finished files takes as long.
const LITTLE_PATIENCE: Duration = Duration::from_secs(1);

/// In a child: stops it when its parent is gone, or closes the pipe to it.
pub fn watch_parent() {
    if !is_child() {
        return;
    }
    std::thread::spawn(|| {
        let mut byte = [0];
        while matches!(io::stdin().read(&mut byte), Ok(1..)) {}
        let output = commit::interrupt();
        let _ = writeln!(io::stderr(), "gguf-shorten: interrupted; {output}");
        std::process::exit(130);
    });
}

/// The children that run now.
struct Children {
    /// Whether a batch runs at all.
    is_batch: bool,
    stopping: bool,
    running: Vec<Arc<Mutex<Child>>>,
}

static CHILDREN: Mutex<Children> =
    Mutex::new(Children { is_batch: false, stopping: false, running: Vec::new() });

fn children() -> MutexGuard<'static, Children> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on an interrupt is for the batch.
pub fn begin() {
    children().is_batch = true;
}

/// Whether the batch is to end.
#[must_use]
pub fn is_stopping() -> bool {
    children().stopping
}

/// On an interrupt: has all children of a batch stop, and no new one begin. Those that take too long, or at the second
/// interrupt no longer than a moment, are killed. `false` if there is no batch.
pub fn stop_all() -> bool {
    if is_stopping() {
        std::thread::sleep(LITTLE_PATIENCE);
    }
    let mut children = children();
    if !children.is_batch {
        return false;
    }
    let again = std::mem::replace(&mut children.stopping, true);
    for child in &children.running {
        // Who holds it waits for a child that has ended.
        if let Ok(mut child) = child.try_lock() {
            drop(child.stdin.take());
            if again {
                let _ = child.kill();
            }
        }
    }
    if !again {
        std::thread::spawn(|| {
            std::thread::sleep(PATIENCE);
            stop_all();
        });
    }
    true
}

/// Progress of a child that runs.
pub trait Listener: Sync {
    /// How far it is with something. Of 0 where the end is not known.
    fn progress(&self, what: &str, position: u64, len: u64);
    /// A line that it said.
    fn line(&self, line: &str);
}

/// A child that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// Its process number.
    pub id: u32,
    /// Its result.
    pub stdout: Vec<u8>,
    /// Its last lines, without notes and warnings, cut to `MAX_LINES` lines.
    pub last_words: Vec<String>,
}

/// Runs this program with `arguments` to its end. `None` if the batch is to end.
///
/// # Errors
/// The system's, if no process can be made.
pub fn run(arguments: &[OsString], listener: &dyn Listener) -> io::Result<Option<Ended>> {
    let mut command = Command::new(program()?);
    command
        .args(arguments)
        .env(IS_CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        // A terminal's interrupt is for the parent, which stops its children.
        command.process_group(0);
    }
    let (child, id, stdout, stderr) = {
        let mut children = children();
        if children.stopping {
            return Ok(None);
        }
        let mut child = command.spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let id = child.id();
        let child = Arc::new(Mutex::new(child));
        children.running.push(Arc::clone(&child));
        (child, id, stdout, stderr)
    };
    let mut words = LastWords::default();
    let stdout = std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut result = Vec::new();
            let mut source = stdout.into_iter().map(|stdout| stdout.take(MAX_RESULT));
            let read = source.try_for_each(|mut stdout| {
                stdout.read_to_end(&mut result)?;
                // Output too long is no result, but must not block the child.
                io::copy(&mut stdout.into_inner(), &mut io::sink()).map(|_| ())
            });
            read.map(|()| result)
        });
        if let Some(stderr) = stderr {
            lines(stderr, &mut |line| words.hear(line, listener));
        }
        reader.join().unwrap_or_else(|_| Ok(Vec::new()))
    });
    let status = child.lock().unwrap_or_else(PoisonError::into_inner).wait();
    children().running.retain(|one| !Arc::ptr_eq(one, &child));
    Ok(Some(Ended { status: status?, id, stdout: stdout?, last_words: words.0 }))
}

/// This program, also where its file was replaced meanwhile.
fn program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let running = PathBuf::from("/proc/self/exe");
    Ok(if !path.exists() && running.exists() { running } else { path })
}

/// Calls `hear` with every line, whatever its bytes. Long ones are cut.
fn lines(mut source: impl Read, hear: &mut dyn FnMut(&str)) {
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    let mut say = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line);
        hear(text.trim_end_matches('\r'));
        line.clear();
    };
    // What can no longer be read has ended.
    while let Ok(n @ 1..) = source.read(&mut buffer) {
        for &byte in &buffer[..n] {
            match byte {
                b'\n' => say(&mut line),
                byte if line.len() < MAX_LINE => line.push(byte),
                _ => {}
            }
        }
    }
    if !line.is_empty() {
        say(&mut line);
    }
}

#[derive(Default)]
struct LastWords(Vec<String>);

impl LastWords {
    fn hear(&mut self, line: &str, listener: &dyn Listener) {
        if let Some((what, position, len)) = progress::parse(line) {
            listener.progress(what, position, len);
            return;
        }
        // The start of such a line, where the process ended within it.
        if line.starts_with(progress::MARK) {
            return;
        }
        listener.line(line);
        if line.starts_with(NOTE) || line.starts_with(WARNING) {
            return;
        }
        if self.0.len() == MAX_LINES {
            self.0.remove(0);
        }
        self.0.push(line.to_owned());
    }
}

/// What notes and warnings begin with, and all that this program says.
pub const NOTE: &str = "gguf-shorten: note: ";
/// See [`NOTE`].
pub const WARNING: &str = "gguf-shorten: warning: ";
const OWN: &str = "gguf-shorten: ";

const HINT: &str = "hint: ";

/// Why a model is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Failed, or stopped.
    pub state: State,
    /// The reason.
    pub error: String,
    /// A remedy.
    pub hint: Option<String>,
}

impl Ended {
    /// Why the model is not done; `None` if it is.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        if self.status.success() {
            return None;
        }
        let words = &self.last_words;
        let own = words.iter().rposition(|line| line.starts_with(OWN));
        let code = self.status.code();
        let (error, hint) = match (code, own) {
            (Some(_), Some(at)) => {
                let next = words.get(at + 1).and_then(|line| line.strip_prefix(HINT));
                (words[at][OWN.len()..].to_owned(), next)
            }
            _ => {
                let (how, remedy) = self.death();
                let error = match words.last() {
                    Some(last) => format!("its process {how}; it said last: {last}"),
                    None => format!("its process {how}, without a word"),
                };
                (error, remedy)
            }
        };
        let state = match code {
            // Stopped, or ended without a chance to clean up.
            Some(130) | None => State::Unfinished,
            Some(_) => State::Failed,
        };
        Some(Failure { state, error, hint: hint.map(str::to_owned) })
    }

    /// How a process ended that gave no reason, and a remedy.
    fn death(&self) -> (String, Option<&'static str>) {
        if let Some((signal, name)) = ggml::fault::signal_of(self.status) {
            let remedy = match name {
                Some("SIGBUS") => Some("a file that is made shorter while it is read ends a process so"),
                Some("SIGKILL") => {
                    Some("a system that runs out of memory ends a process so; fewer --jobs need less")
                }
                _ => None,
            };
            let name = name.map_or_else(String::new, |name| format!(" ({name})"));
            return (format!("was ended by signal {signal}{name}"), remedy);
        }
        let code = self.status.code();
        let code = code.map_or("unknown".to_owned(), |code| code.to_string());
        (format!("ended with status {code}"), None)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn ended(raw: i32, words: &[&str]) -> Option<(String, Option<String>)> {
        let ended = Ended {
            status: ExitStatus::from_raw(raw),
            id: 1,
            stdout: Vec::new(),
            last_words: words.iter().map(|word| (*word).to_owned()).collect(),
        };
        ended.failure().map(|failure| (failure.error, failure.hint))
    }

    #[test]
    fn the_reason_is_the_error_of_the_process_or_how_it_ended() {
        assert_eq!(ended(0, &["anything"]), None);
        assert_eq!(
            ended(1 << 8, &["x", "gguf-shorten: m: bad", "hint: do"]),
            Some(("m: bad".into(), Some("do".into())))
        );
        let (error, hint) = ended(9, &["a", "b"]).unwrap();
        assert_eq!(error, "its process was ended by signal 9 (SIGKILL); it said last: b");
        assert!(hint.is_some());
        assert_eq!(
            ended(3 << 8, &[]),
            Some(("its process ended with status 3, without a word".into(), None))
        );
    }

    #[test]
    fn lines_are_cut_and_need_not_be_text() {
        let mut text = b"a\xff\r\n\n".to_vec();
        text.extend([b'x'; 3 * MAX_LINE]);
        text.extend(b"\nlast");
        let mut heard = Vec::new();
        lines(&text[..], &mut |line| heard.push(line.to_owned()));
        let long = "x".repeat(MAX_LINE);
        assert_eq!(heard, ["a\u{fffd}", "", &long, "last"]);
    }

    #[test]
    fn the_last_lines_are_kept_without_notes_warnings_and_progress() {
        struct Nobody;
        impl Listener for Nobody {
            fn progress(&self, _: &str, _: u64, _: u64) {}
            fn line(&self, _: &str) {}
        }
        let mut words = LastWords::default();
        for i in 0..50 {
            words.hear(&format!("line {i}"), &Nobody);
            words.hear("gguf-shorten: note: n", &Nobody);
            words.hear("gguf-shorten: warning: w", &Nobody);
            words.hear("\u{1e}progress|writing|1|2", &Nobody);
            words.hear("\u{1e}", &Nobody);
        }
        assert_eq!(words.0.len(), MAX_LINES);
        assert_eq!(words.0.last().map(String::as_str), Some("line 49"));
    }
}
