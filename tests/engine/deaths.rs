//! The end of a process that llama.cpp ends: one line, and nothing is left. All of it happens in another process.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ggml::Backend;
use ggml::testing::{DEADLY, fail_check, raise, with_log_locked};
use gguf_shorten::files::staged::Staged;
use gguf_shorten::gguf::ValueOut;

use crate::eval::byte_model;

const PROGRAM: &str = env!("CARGO_BIN_EXE_gguf-shorten");

/// How the other process dies, and the folder of its files.
const DEATH: &str = "GGUF_SHORTEN_TEST_DEATH";
const FOLDER: &str = "GGUF_SHORTEN_TEST_FOLDER";

/// Longer than any of it takes.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a command to its end, which must come.
fn run(command: &mut Command) -> Output {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > TIMEOUT {
            child.kill().unwrap();
            panic!("{command:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Goes on for ever, with room for more each time.
fn recurse(depth: u64) -> u64 {
    if depth == u64::MAX {
        return 0;
    }
    let room = [depth; 64];
    std::hint::black_box(&room);
    recurse(depth + 1) + room[depth as usize % 64]
}

fn die(how: &str) {
    let signal = |name: &str| {
        let found = DEADLY.iter().find(|(deadly, _)| *deadly == name);
        found.unwrap().1
    };
    match how.split_once(' ') {
        Some(("thread", name)) => std::thread::scope(|scope| {
            scope.spawn(|| raise(signal(name)));
        }),
        Some(("threads", name)) => std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| raise(signal(name)));
            }
        }),
        Some(("locked", name)) => {
            let (mut out, err) = (std::io::stdout().lock(), std::io::stderr().lock());
            out.flush().unwrap();
            with_log_locked(|| raise(signal(name)));
            drop(err);
        }
        None if how == "check" => fail_check(),
        None if how == "abort" => std::process::abort(),
        None if how == "overflow" => {
            std::hint::black_box(recurse(0));
        }
        _ => raise(signal(how)),
    }
}

#[test]
fn dies_for_another_process() {
    let (Ok(how), Ok(folder)) = (std::env::var(DEATH), std::env::var(FOLDER)) else {
        return;
    };
    ggml::fault::install("gguf-shorten: ");
    Backend::init().on_abort("gguf-shorten: m.gguf: ");
    let folder = Path::new(&folder);
    let permissions = std::fs::metadata(folder).unwrap().permissions();
    let staged = ["a", "b"].map(|name| {
        let path = folder.join(name);
        Staged::new(&path, true, &permissions).unwrap()
    });
    assert_eq!(names(folder).len(), 3);
    die(&how);
    drop(staged);
    unreachable!("{how}");
}

#[test]
fn a_deadly_signal_is_one_line_and_leaves_nothing() {
    let mut deaths: Vec<(String, String)> = Vec::new();
    for (name, what) in [
        ("SIGFPE", "arithmetic error"),
        ("SIGSEGV", "invalid memory reference"),
        ("SIGBUS", "memory that cannot be read"),
        ("SIGTRAP", "trap"),
        ("SIGSYS", "system call that is not allowed"),
        ("SIGILL", "illegal instruction"),
        ("SIGABRT", "abort"),
    ] {
        let line = format!("died of {name} ({what})");
        for how in ["", "thread ", "threads "] {
            deaths.push((format!("{how}{name}"), line.clone()));
        }
        let words = format!("{line}; it said last: words");
        deaths.push((format!("locked {name}"), words));
    }
    let check = "llama.cpp gave up on this model: a check (x.cpp:7)";
    deaths.push(("check".to_owned(), check.to_owned()));
    deaths.push(("abort".to_owned(), "died of SIGABRT (abort)".to_owned()));
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        let line = "died of SIGSEGV (stack overflow)";
        deaths.push(("overflow".to_owned(), line.to_owned()));
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("b"), "old").unwrap();
    for (how, line) in deaths {
        // With one test thread the test runs on the main thread.
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "deaths::dies_for_another_process", "--nocapture"])
            .args(["--test-threads", "1"])
            .env(DEATH, &how)
            .env(FOLDER, folder.path());
        let output = run(&mut command);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{how}: {stderr}");
        let (first, rest) = stderr.split_once('\n').unwrap();
        assert_eq!(first, format!("gguf-shorten: m.gguf: {line}"), "{how}");
        let hint = if how.ends_with("SIGBUS") {
            "hint: a file that is made shorter while it is read ends a process so\n"
        } else {
            ""
        };
        assert_eq!(rest, hint, "{how}");
        assert_eq!(names(folder.path()), ["b"], "{how}");
        let old = std::fs::read(folder.path().join("b")).unwrap();
        assert_eq!(old, b"old", "{how}");
    }
}

/// An allocator whose one call sends a signal with its lock held. The number of calls goes to a file.
const ALLOCATOR: &str = r#"
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void __libc_free(void *);
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long calls, faulty;
static void begin(void) {
    pthread_mutex_lock(&lock);
    if (++calls == faulty) raise(SIGSEGV);
}
static void end(void) { pthread_mutex_unlock(&lock); }
void *malloc(size_t n) { begin(); void *p = __libc_malloc(n); end(); return p; }
void *calloc(size_t n, size_t m) { begin(); void *p = __libc_calloc(n, m); end(); return p; }
void *realloc(void *q, size_t n) { begin(); void *p = __libc_realloc(q, n); end(); return p; }
void free(void *p) { begin(); __libc_free(p); end(); }
__attribute__((constructor)) static void read_faulty(void) {
    const char *text = getenv("FAULTY_CALL");
    faulty = text ? atol(text) : 0;
}
__attribute__((destructor)) static void write_calls(void) {
    const char *path = getenv("CALLS_FILE");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (file) { fprintf(file, "%ld", calls); fclose(file); }
}
"#;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn a_fault_inside_the_allocator_is_one_line_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("allocator.c"), ALLOCATOR).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let built = Command::new(compiler)
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([path("allocator.so"), path("allocator.c")])
        .status()
        .unwrap();
    assert!(built.success());
    let folder = path("models");
    std::fs::create_dir(&folder).unwrap();
    let spec = byte_model("llama", 4);
    spec.save(Backend::init(), &folder.join("m.gguf")).unwrap();
    std::fs::write(folder.join("text"), "the quick brown fox ".repeat(400)).unwrap();
    // The card is measured while the output has another name.
    let arguments = "m.gguf --drop 1 --calibration text --tokens 256 --window 64 --threads 2 --quiet --no-cache \
                     --card card.md -o out.gguf";
    let command = |faulty: u64| {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments.split_whitespace())
            .current_dir(&folder)
            .env("LD_PRELOAD", path("allocator.so"))
            .env("CALLS_FILE", path("calls"))
            .env("FAULTY_CALL", faulty.to_string());
        command
    };
    let output = run(&mut command(0));
    assert!(output.status.success(), "{output:?}");
    let n_calls: u64 = std::fs::read_to_string(path("calls")).unwrap().parse().unwrap();
    for name in ["card.md", "out.gguf"] {
        std::fs::remove_file(folder.join(name)).unwrap();
    }
    const N_FAULTS: u64 = 8;
    for i in 1..N_FAULTS {
        let output = run(&mut command(n_calls * i / N_FAULTS));
        let stderr = String::from_utf8(output.stderr).unwrap();
        let what = format!("call {i} of {N_FAULTS} parts: {}: {stderr}", output.status);
        assert_eq!(output.status.code(), Some(1), "{what}");
        assert!(stderr.starts_with("gguf-shorten: "), "{what}");
        let dies = "died of SIGSEGV (invalid memory reference)";
        assert!(stderr.contains(dies) && stderr.lines().count() == 1, "{what}");
        assert_eq!(names(&folder), ["m.gguf", "text"], "{what}");
    }
}

/// A model of whose blocks none compresses keys 4:1: llama.cpp divides by zero.
fn dead_model(path: &Path) {
    let mut spec = byte_model("deepseek4", 4);
    let ratios = ValueOut::u32s(&[0, 128, 0, 128]);
    spec.extra.push((".attention.compress_ratios", ratios));
    spec.save(Backend::init(), path).unwrap();
}

#[test]
fn a_model_of_which_llama_cpp_dies_is_one_line_in_every_command() {
    let dir = tempfile::tempdir().unwrap();
    dead_model(&dir.path().join("m.gguf"));
    std::fs::write(dir.path().join("text"), "the quick brown fox ".repeat(400)).unwrap();
    let text = "--calibration text --tokens 256 --window 64 --threads 2";
    let before = names(dir.path());
    let cache = tempfile::tempdir().unwrap();
    for arguments in [
        format!("score m.gguf {text}"),
        format!("eval m.gguf {text}"),
        format!("compare --parent m.gguf --drop 1 {text}"),
        format!("m.gguf --drop 1 --card card.md -o out.gguf {text}"),
        format!("m.gguf --drop 1 --method ablate -o out.gguf {text}"),
        format!("m.gguf --drop 1 --method search -o out.gguf {text}"),
        format!("m.gguf --max-kl 1 -o out.gguf {text}"),
    ] {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments.split_whitespace())
            .arg("--quiet")
            .env("GGUF_SHORTEN_CACHE", cache.path())
            .current_dir(dir.path());
        let output = run(&mut command);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments}: {stderr}");
        let line = stderr.trim_end_matches('\n');
        assert!(!line.contains('\n'), "{arguments}: {stderr}");
        let is_told = line
            .starts_with("gguf-shorten: m.gguf: llama.cpp died of SIGFPE (arithmetic error) while ")
            && line.contains("; it said last: ");
        assert!(is_told, "{arguments}: {line}");
        assert_eq!(names(dir.path()), before, "{arguments}");
    }
}

#[test]
fn a_batch_goes_on_after_a_model_of_which_llama_cpp_dies() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("models")).unwrap();
    dead_model(&dir.path().join("models/a.gguf"));
    byte_model("llama", 4).save(Backend::init(), &dir.path().join("models/b.gguf")).unwrap();
    std::fs::write(dir.path().join("text"), "the quick brown fox ".repeat(400)).unwrap();
    let mut command = Command::new(PROGRAM);
    command
        .args(
            "batch models --out-dir out --drop 1 --calibration text --tokens 256 --window 64 --threads 1"
                .split_whitespace(),
        )
        .args(["--quiet", "--no-cache"])
        .current_dir(dir.path());
    let output = run(&mut command);
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("llama.cpp died of SIGFPE"), "{said}");
    let outputs = names(&dir.path().join("out"));
    let is_of = |start: &str| {
        let is_model = |name: &&String| name.starts_with(start) && name.ends_with(".gguf");
        outputs.iter().filter(is_model).count()
    };
    assert_eq!((is_of("a"), is_of("b")), (0, 1), "{outputs:?}");
}
