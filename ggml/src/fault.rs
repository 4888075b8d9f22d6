//! The end of a process that llama.cpp ends: one line on stderr, and nothing left.
//!
//! llama.cpp ends a process by a check that fails (`GGML_ASSERT`), of which it tells, or by a signal: a division by zero,
//! memory that is not there. The thread that ends may hold any lock, that of the allocator too. So all that is said and
//! removed then lies ready in atomics and in memory that is never freed, and the end itself only writes, unlinks and exits.

use std::ffi::{CStr, c_char};
use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

#[cfg(unix)]
mod signals;

#[cfg_attr(unix, path = "fault/unix.rs")]
#[cfg_attr(not(unix), path = "fault/other.rs")]
mod system;

/// Text that can be read whatever its writer is doing. While it is written it may be neither the old nor the new one.
struct Text<const N: usize> {
    bytes: [AtomicU8; N],
    len: AtomicUsize,
}

impl<const N: usize> Text<N> {
    const fn new() -> Self {
        Self { bytes: [const { AtomicU8::new(0) }; N], len: AtomicUsize::new(0) }
    }

    fn clear(&self) {
        self.len.store(0, Ordering::Release);
    }

    /// Appends what there is room for; control characters become spaces.
    fn push(&self, bytes: impl Iterator<Item = u8>) {
        let mut len = self.len.load(Ordering::Relaxed);
        for (to, byte) in self.bytes.iter().skip(len).zip(bytes) {
            let byte = if byte.is_ascii_control() { b' ' } else { byte };
            to.store(byte, Ordering::Relaxed);
            len += 1;
        }
        self.len.store(len, Ordering::Release);
    }

    fn iter(&self) -> impl Iterator<Item = u8> {
        let len = self.len.load(Ordering::Acquire);
        self.bytes.iter().take(len).map(|byte| byte.load(Ordering::Relaxed))
    }
}

/// What the line begins with: program and file.
static PREFIX: Text<4608> = Text::new();

/// The last warning or error of llama.cpp, since [`crate::log::clear`].
static LAST_WORDS: Text<512> = Text::new();

/// The line itself; a hint follows.
static LINE: Text<6144> = Text::new();

/// Sets what the line begins with.
pub(crate) fn set_prefix(prefix: &str) {
    // Two writers would mix two texts.
    static WRITER: Mutex<()> = Mutex::new(());
    let _writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
    PREFIX.clear();
    PREFIX.push(prefix.bytes());
}

/// What llama.cpp said last.
#[cfg(test)]
pub(crate) fn last_words() -> String {
    String::from_utf8_lossy(&LAST_WORDS.iter().collect::<Vec<u8>>()).into_owned()
}

/// Sets what llama.cpp said last. The caller is the only one.
pub(crate) fn set_last_words(words: &str) {
    LAST_WORDS.clear();
    LAST_WORDS.push(words.bytes());
}

/// Something that llama.cpp does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Reads a model.
    Loading,
    /// Makes memory and graph.
    Preparing,
    /// Computes.
    Evaluating,
    /// Writes a model in another type.
    Quantizing,
}

const WORKS: [&str; 4] = ["loading the model", "preparing an evaluation", "evaluating", "quantizing"];

/// How many calls are at each.
static AT_WORK: [AtomicUsize; WORKS.len()] = [const { AtomicUsize::new(0) }; WORKS.len()];

/// A call of llama.cpp that has not returned.
pub(crate) struct AtWork(Work);

impl AtWork {
    pub(crate) fn new(work: Work) -> Self {
        AT_WORK[work as usize].fetch_add(1, Ordering::Relaxed);
        Self(work)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        AT_WORK[self.0 as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

/// What it is at, told of a signal.
#[cfg(unix)]
fn at_work() -> Option<&'static str> {
    let mut works = WORKS.into_iter().zip(&AT_WORK);
    works.find(|(_, n)| n.load(Ordering::Relaxed) > 0).map(|(work, _)| work)
}

/// Paths to remove when the process ends early. Null where there is room for one. They are never freed.
struct Names {
    names: [AtomicPtr<system::Name>; 64],
    more: OnceLock<Box<Names>>,
}

impl Names {
    const fn new() -> Self {
        Self { names: [const { AtomicPtr::new(std::ptr::null_mut()) }; 64], more: OnceLock::new() }
    }
}

static NAMES: Names = Names::new();

/// Whether the process ends now.
static IS_ENDING: AtomicBool = AtomicBool::new(false);

/// A file or empty folder, removed on an abort or by [`remove_all`]. Dropped, it is forgotten.
#[derive(Debug)]
pub struct RemovedOnDeath(Option<&'static AtomicPtr<system::Name>>);

impl RemovedOnDeath {
    /// Takes down a name, best before there is a file of it. While the process ends, this does not return.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let name = system::name(path);
        let slot = name.map(|name| Self::take(Box::leak(Box::new(name))));
        let removed = Self(slot);
        removed.check();
        removed
    }

    fn take(name: &'static mut system::Name) -> &'static AtomicPtr<system::Name> {
        let name = std::ptr::from_mut(name);
        let mut names: &'static Names = &NAMES;
        loop {
            let is_taken = |slot: &&AtomicPtr<system::Name>| {
                let free = std::ptr::null_mut();
                slot.compare_exchange(free, name, Ordering::SeqCst, Ordering::Relaxed).is_ok()
            };
            if let Some(slot) = names.names.iter().find(is_taken) {
                return slot;
            }
            names = names.more.get_or_init(|| Box::new(Names::new()));
        }
    }

    /// Called when there is a file of the name. Whoever ends the process may have looked for it too early. It is removed
    /// then, and this does not return.
    pub fn check(&self) {
        if !IS_ENDING.load(Ordering::SeqCst) {
            return;
        }
        if let Some(name) = self.0.and_then(name_in) {
            system::remove(name);
        }
        loop {
            std::thread::park();
        }
    }
}

impl Drop for RemovedOnDeath {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.store(std::ptr::null_mut(), Ordering::SeqCst);
        }
    }
}

fn name_in(slot: &AtomicPtr<system::Name>) -> Option<&'static system::Name> {
    let name = slot.load(Ordering::SeqCst);
    // SAFETY: null, or what `RemovedOnDeath::new` has leaked, so that it lives and stays as it is.
    unsafe { name.as_ref() }
}

/// Removes every registered path. Takes no lock.
pub fn remove_all() {
    let mut names = Some(&NAMES);
    while let Some(some) = names {
        some.names.iter().filter_map(name_in).for_each(system::remove);
        names = some.more.get().map(Box::as_ref);
    }
}

/// Whether stderr is a terminal, perhaps with an unfinished progress bar.
static IS_TERMINAL: AtomicBool = AtomicBool::new(false);

/// Makes one line of a signal by which llama.cpp dies. It begins with `prefix`, or with what [`crate::Backend::on_abort`] sets.
/// Called on the main thread, once.
pub fn install(prefix: &str) {
    set_prefix(prefix);
    IS_TERMINAL.store(std::io::stderr().is_terminal(), Ordering::Relaxed);
    #[cfg(unix)]
    signals::install();
}

/// Makes an interrupt (SIGINT) of every signal that asks for the end. Such are SIGTERM, SIGQUIT or SIGUSR1. The caller handles
/// the interrupt. Those that the process ignores, as under `nohup`, stay so.
pub fn install_interrupts() {
    #[cfg(unix)]
    signals::install_interrupts();
}

/// The signal that ended a process, and its name where it has a known one. `None` where none did.
#[must_use]
pub fn signal_of(status: std::process::ExitStatus) -> Option<(i32, Option<&'static str>)> {
    #[cfg(unix)]
    return signals::of_status(status);
    #[cfg(not(unix))]
    {
        let _ = status;
        None
    }
}

/// Ends the process at once. Destructors of C++ would pull from under other threads what they work with.
pub fn exit(status: i32) -> ! {
    system::exit(status)
}

/// Prints one line, completed by `tell`, and ends with status 1. Removes what is left before. Of several threads the first
/// does, and the others wait for the end.
fn end(tell: &dyn Fn(), hint: Option<&str>) -> ! {
    system::claim();
    IS_ENDING.store(true, Ordering::SeqCst);
    remove_all();
    LINE.clear();
    if IS_TERMINAL.load(Ordering::Relaxed) {
        system::write(b"\n");
    }
    LINE.push(PREFIX.iter());
    tell();
    system::write_text(&LINE);
    system::write(b"\n");
    if let Some(hint) = hint {
        system::write(b"hint: ");
        system::write(hint.as_bytes());
        system::write(b"\n");
    }
    // Again: files being created during the first call exist now, and folders are empty.
    remove_all();
    system::exit(1)
}

/// Given to `ggml_set_abort_callback`: the caller would call `abort` next.
pub(crate) unsafe extern "C" fn on_abort(message: *const c_char) {
    let reason = if message.is_null() {
        &b"no reason given"[..]
    } else {
        // SAFETY: ggml passes a NUL-terminated buffer that lives until this function returns, and it is not null.
        unsafe { CStr::from_ptr(message) }.to_bytes()
    };
    let (reason, place) = reason_and_place(reason.trim_ascii());
    let tell = || {
        LINE.push(b"llama.cpp gave up on this model: ".iter().copied());
        LINE.push(reason.iter().copied());
        if let Some(place) = place {
            LINE.push(b" (".iter().chain(place).chain(b")").copied());
        }
    };
    end(&tell, None)
}

/// `/long/path/of/the/build/llama-model.cpp:1330: text` -> `text`, `llama-model.cpp:1330`.
fn reason_and_place(message: &[u8]) -> (&[u8], Option<&[u8]>) {
    let Some(at) = message.windows(2).position(|pair| pair == b": ") else {
        return (message, None);
    };
    let (place, text) = (&message[..at], &message[at + 2..]);
    let file = place.rsplit(|byte| matches!(byte, b'/' | b'\\')).next();
    (text, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string<const N: usize>(text: &Text<N>) -> String {
        String::from_utf8(text.iter().collect()).unwrap()
    }

    #[test]
    fn text_is_cut_where_there_is_no_room_and_stays_on_one_line() {
        let text = Text::<8>::new();
        text.push("a\nb".bytes());
        assert_eq!(string(&text), "a b");
        text.push("cdefghij".bytes());
        assert_eq!(string(&text), "a bcdefg");
        text.clear();
        assert_eq!(string(&text), "");
    }

    #[test]
    fn the_place_of_a_reason_is_a_file_and_its_line() {
        let of = |message: &'static str| reason_and_place(message.as_bytes());
        let (reason, place) = of("/a/b/llama-model.cpp:1330: text: more");
        assert_eq!(reason, b"text: more");
        assert_eq!(place, Some(&b"llama-model.cpp:1330"[..]));
        assert_eq!(of("plain"), (&b"plain"[..], None));
    }

    #[test]
    fn names_are_removed_while_they_are_known() {
        // Removes this process's other registered paths too: no other test has any.
        let folder = std::env::temp_dir().join(format!("fault-test-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let names: Vec<_> = (0..200).map(|i| folder.join(i.to_string())).collect();
        let mut known: Vec<_> = names.iter().map(|name| RemovedOnDeath::new(name)).collect();
        let of_folder = RemovedOnDeath::new(&folder);
        for name in &names {
            std::fs::write(name, "").unwrap();
        }
        known.truncate(150);
        remove_all();
        let is_there = |name: &&std::path::PathBuf| name.exists();
        assert_eq!(names.iter().filter(is_there).count(), 50);
        assert!(folder.exists());
        names[150..].iter().for_each(|name| std::fs::remove_file(name).unwrap());
        remove_all();
        assert!(!folder.exists());
        drop((known, of_folder));
    }
}
