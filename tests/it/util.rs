//! A folder of one test, and running the program in it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_gguf-shorten");

/// Longer than any run here takes. A program that waits for something, such as the other end of a pipe, does not end.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The temporary folder of one test; removed with all it holds.
pub struct Dir(tempfile::TempDir);

impl Dir {
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("gguf-shorten-test-").tempdir().unwrap())
    }

    pub fn root(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn exists(&self, name: &str) -> bool {
        fs::symlink_metadata(self.path(name)).is_ok()
    }

    /// The names in the folder, hidden ones too, sorted.
    pub fn names(&self) -> Vec<String> {
        self.snapshot().into_keys().collect()
    }

    /// The program with these arguments, separated by blanks. Paths count from this folder.
    pub fn run(&self, arguments: &str) -> TestCommand<'_> {
        self.run_with(arguments.split_whitespace())
    }

    /// The program with these arguments.
    pub fn run_with<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> TestCommand<'_> {
        let mut command = Command::new(PROGRAM);
        command.args(arguments);
        TestCommand::new(self, command)
    }

    /// A line of shell; the program is `$PROGRAM`.
    pub fn sh(&self, line: &str) -> TestCommand<'_> {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        TestCommand::new(self, command)
    }

    /// What every file is, so that any change shows. Large files stand for themselves by length and time.
    fn snapshot(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let mut folders = vec![self.root().to_owned()];
        while let Some(folder) = folders.pop() {
            // An unreadable folder is taken as unwritable too.
            let Ok(entries) = fs::read_dir(&folder) else {
                continue;
            };
            for entry in entries {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(self.root()).unwrap();
                let name = name.display().to_string();
                // Another running process may remove a file after it is listed.
                let Ok(metadata) = fs::symlink_metadata(&path) else {
                    continue;
                };
                let is = if metadata.is_dir() {
                    folders.push(path);
                    "folder".to_owned()
                } else if metadata.is_symlink() {
                    format!("link to {}", fs::read_link(&path).unwrap().display())
                } else if !metadata.is_file() {
                    "special".to_owned()
                } else if metadata.len() > 1 << 20 {
                    format!("{} bytes of {:?}", metadata.len(), metadata.modified())
                } else {
                    let bytes = fs::read(&path).unwrap_or_default();
                    format!("{} bytes, {}", metadata.len(), blake3::hash(&bytes))
                };
                all.insert(name, is);
            }
        }
        all
    }
}

/// A cache that no other run of the tests uses.
fn cache() -> &'static Path {
    static CACHE: std::sync::LazyLock<PathBuf> = std::sync::LazyLock::new(|| {
        let name = format!("gguf-shorten-test-cache-{}", std::process::id());
        std::env::temp_dir().join(name)
    });
    &CACHE
}

/// The program, about to run in a folder.
pub struct TestCommand<'d> {
    dir: &'d Dir,
    command: Command,
}

impl<'d> TestCommand<'d> {
    fn new(dir: &'d Dir, mut command: Command) -> Self {
        command
            .current_dir(dir.root())
            .env("PROGRAM", PROGRAM)
            // Neither the user's models nor what the user has measured.
            .env("HOME", dir.path("no-home"))
            .env("GGUF_SHORTEN_CACHE", cache())
            .env_remove("OLLAMA_MODELS")
            .env_remove("HF_HOME")
            .env_remove("HF_HUB_CACHE")
            .env_remove("HUGGINGFACE_HUB_CACHE")
            .env_remove("XDG_CACHE_HOME")
            .env_remove("LLAMA_CACHE")
            .env_remove("NO_COLOR")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self { dir, command }
    }

    /// With a path in its environment.
    pub fn env(mut self, name: &str, path: &Path) -> Self {
        self.command.env(name, path);
        self
    }

    /// Starts the program without waiting for it.
    pub fn spawn(mut self) -> Child {
        self.command.spawn().unwrap()
    }

    /// Runs to the end, whatever that is.
    pub fn output(self) -> Output<'d> {
        let before = self.dir.snapshot();
        let shown = format!("{:?}", self.command);
        let dir = self.dir;
        let child = self.spawn();
        finish(dir, before, shown, child)
    }

    /// Runs, and wants status 0 and nothing on stderr but notes.
    pub fn succeeds(self) -> Output<'d> {
        let output = self.output();
        output.check(
            output.status.code() == Some(0)
                && output.stderr.lines().all(|line| line.starts_with("gguf-shorten: note: ")),
            "success without a word on stderr but notes",
        );
        output
    }

    /// Runs, and wants status 0 and on stderr these warnings alone.
    pub fn warns(self, warnings: &[&str]) -> Output<'d> {
        let output = self.output();
        output.check(output.status.code() == Some(0), "success");
        let expected: String =
            warnings.iter().map(|warning| format!("gguf-shorten: warning: {warning}\n")).collect();
        output.check(output.stderr == expected, &format!("on stderr: {expected}"));
        output.check(output.stderr.lines().all(is_message), "short lines of text without a final stop");
        output
    }

    /// Runs, and wants this status, an error with `phrase`, no change.
    pub fn fails(self, code: i32, phrase: &str) -> Output<'d> {
        let output = self.refused();
        output.check(output.status.code() == Some(code), &format!("status {code}"));
        output.check(output.error().contains(phrase), &format!("an error with: {phrase}"));
        output
    }

    /// Runs, and wants a well-formed error and an unchanged folder.
    pub fn refused(self) -> Output<'d> {
        let output = self.output();
        output.check_refused();
        output
    }
}

/// Waits for a child that runs in `dir`.
pub fn finish(dir: &Dir, before: BTreeMap<String, String>, command: String, child: Child) -> Output<'_> {
    let id = child.id();
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    let Ok(result) = receive.recv_timeout(TIMEOUT) else {
        signal(id, "KILL");
        panic!("{command}\ndid not end within {TIMEOUT:?}");
    };
    let result = result.unwrap();
    Output {
        dir,
        before,
        command,
        status: result.status,
        stdout: String::from_utf8(result.stdout).unwrap(),
        stderr: String::from_utf8(result.stderr).unwrap(),
    }
}

/// Sends a signal to a process that the test has started.
pub fn signal(id: u32, name: &str) {
    // May have ended already.
    let _ = Command::new("kill").args([format!("-{name}"), id.to_string()]).stderr(Stdio::null()).status();
}

/// Whether programs started here ignore a signal, as under `nohup`. So do those in the background of a script.
pub fn is_ignored(name: &str) -> bool {
    let number = match name {
        "HUP" => 1,
        "QUIT" => 3,
        _ => return false,
    };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (number - 1)) != 0)
}

/// What a run left.
pub struct Output<'d> {
    dir: &'d Dir,
    before: BTreeMap<String, String>,
    command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output<'_> {
    /// The error, without the program's name and without the hint.
    pub fn error(&self) -> &str {
        let line = self.stderr.lines().next().unwrap_or_default();
        line.strip_prefix("gguf-shorten: ").unwrap_or(line)
    }

    /// The hint, if there is one.
    pub fn hint(&self) -> Option<&str> {
        self.stderr.lines().nth(1)?.strip_prefix("hint: ")
    }

    /// Fails with all that is known if `holds` does not.
    #[track_caller]
    pub fn check(&self, holds: bool, expected: &str) {
        if holds {
            return;
        }
        let mut text = format!("expected {expected}\ncommand: {}\n{}", self.command, self.status);
        let _ = write!(text, "\nfolder:");
        for (name, is) in self.dir.snapshot() {
            let _ = write!(text, "\n  {name}: {is}");
        }
        let _ = write!(text, "\nstdout:\n{}\nstderr:\n{}", start(&self.stdout), start(&self.stderr));
        panic!("{text}");
    }

    /// An error as all errors are. Status 1 or 2, one line, perhaps a hint, nothing on stdout, nothing written.
    #[track_caller]
    pub fn check_refused(&self) {
        self.check(matches!(self.status.code(), Some(1 | 2)), "status 1 or 2");
        self.check(self.stdout.is_empty(), "nothing on stdout");
        self.check_error_lines();
        self.check_untouched();
    }

    /// One error line, perhaps a hint.
    #[track_caller]
    pub fn check_error_lines(&self) {
        let lines: Vec<_> = self.stderr.lines().collect();
        self.check(
            matches!(lines.len(), 1 | 2) && self.stderr.ends_with('\n'),
            "one line, and perhaps a hint",
        );
        self.check(lines[0].starts_with("gguf-shorten: "), "a line that begins with the program's name");
        self.check(
            lines.iter().skip(1).all(|line| line.starts_with("hint: ")),
            "a second line that is a hint",
        );
        for line in lines {
            self.check(is_message(line), "short lines of text without a final stop");
        }
    }

    /// A folder as it was before the run.
    #[track_caller]
    pub fn check_untouched(&self) {
        self.check(self.dir.snapshot() == self.before, "nothing written");
    }
}

/// Compares with the text of that name under `testdata/golden/`; `GGUF_SHORTEN_BLESS=1` rewrites it.
#[track_caller]
pub fn golden(name: &str, text: &str) {
    // A new version of the program changes nothing else.
    let version = format!("gguf_shorten.version = str \"{}\"", env!("CARGO_PKG_VERSION"));
    let text = text.replace(&version, "gguf_shorten.version = str \"(version)\"");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden").join(name);
    if std::env::var_os("GGUF_SHORTEN_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let expected =
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for (i, (expected, found)) in expected.lines().zip(text.lines()).enumerate() {
        assert_eq!(found, expected, "{name}, line {}", i + 1);
    }
    assert_eq!(text, expected, "{name}");
}

/// What commands say, for a golden: each after its title.
#[derive(Default)]
pub struct Said(String);

impl Said {
    /// Adds what a run says that is refused with this status.
    #[track_caller]
    pub fn refused(&mut self, title: &str, command: TestCommand<'_>, code: i32) {
        let output = command.refused();
        output.check(output.status.code() == Some(code), &format!("status {code}"));
        self.add(&format!("{title} (status {code})"), &output.stderr);
    }

    /// Adds lines.
    pub fn add(&mut self, title: &str, text: &str) {
        let _ = writeln!(self.0, "{title}");
        text.lines().for_each(|line| self.0.extend(["    ", line, "\n"]));
    }

    /// Compares all of it with the golden of that name.
    #[track_caller]
    pub fn compare(&self, name: &str) {
        golden(name, &self.0);
    }
}

/// As much of a text as one looks at.
fn start(text: &str) -> String {
    let mut shown: String = text.chars().take(4000).collect();
    if shown.len() < text.len() {
        shown.push_str("\n...");
    }
    shown
}

/// Whether this can be shown as one line of an error.
pub fn is_message(line: &str) -> bool {
    let rust = ["Some(", "Err(", "Os {", "\"", "unwrap", "panicked"];
    line.len() < 400
        && !line.ends_with('.')
        && !line.chars().any(char::is_control)
        && !rust.iter().any(|syntax| line.contains(syntax))
}

/// A command prefix that drops root's rights, if tests have them. `None` if that cannot be done.
#[cfg(unix)]
pub fn unprivileged(dir: &Dir) -> Option<&'static str> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    if fs::metadata(dir.root()).unwrap().uid() != 0 {
        return Some("");
    }
    // Nobody's user has to get in.
    fs::set_permissions(dir.root(), fs::Permissions::from_mode(0o777)).unwrap();
    let wrapper = "setpriv --reuid=65534 --regid=65534 --clear-groups --";
    let works = dir.sh(&format!("{wrapper} $PROGRAM --version")).output().status.success();
    works.then_some(wrapper)
}
