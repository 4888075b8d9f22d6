//! Signals by which a process dies, handled. The handlers call only what POSIX calls async-signal-safe: `write`, `unlink`,
//! `rmdir`, `pause`, `pthread_self`, `getpid`, `kill` and `_exit`; they take no lock and no memory.

use std::ffi::{c_int, c_void};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::{LAST_WORDS, LINE, at_work, end};

/// A signal, its name, and what it is.
const DEADLY: [(c_int, &str, &str); 7] = [
    (libc::SIGFPE, "SIGFPE", "arithmetic error"),
    (libc::SIGSEGV, "SIGSEGV", "invalid memory reference"),
    (libc::SIGBUS, "SIGBUS", "memory that cannot be read"),
    (libc::SIGILL, "SIGILL", "illegal instruction"),
    (libc::SIGABRT, "SIGABRT", "abort"),
    (libc::SIGTRAP, "SIGTRAP", "trap"),
    (libc::SIGSYS, "SIGSYS", "system call that is not allowed"),
];

/// Signals that ask a process to end. By a user, a terminal, a queue of jobs, a limit of time.
const ENDING: [c_int; 9] = [
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGXCPU,
];

/// Signals of which only other processes can tell.
const SEEN: [(c_int, &str); 2] = [(libc::SIGKILL, "SIGKILL"), (libc::SIGTERM, "SIGTERM")];

/// The signal that ended a process, and its name. Systems number them differently.
pub(super) fn of_status(status: ExitStatus) -> Option<(i32, Option<&'static str>)> {
    let signal = status.signal()?;
    let named = DEADLY.iter().map(|(number, name, _)| (*number, *name)).chain(SEEN);
    let name = named.into_iter().find(|(number, _)| *number == signal).map(|(_, name)| name);
    Some((signal, name))
}

/// Bytes of the main thread's stack for handlers. Other threads have that of Rust's own handler, which this one takes the
/// place of; those of ggml have none, and go on with their own.
const STACK: usize = 64 << 10;

/// Handles all of them. Called on the main thread, once.
pub(super) fn install() {
    let stack = libc::stack_t {
        ss_sp: Box::leak(vec![0u8; STACK].into_boxed_slice()).as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: STACK,
    };
    // SAFETY: the stack is memory that is never freed or used otherwise; the old one is not asked for.
    unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
    // SAFETY: all zeros are an action: the default one, without flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_signal;
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // Nothing comes between: a second fault in the handler ends the process.
    // SAFETY: the set is a valid place to write to.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    for (signal, ..) in DEADLY {
        // SAFETY: the action is whole, and its handler has the signature that SA_SIGINFO asks for.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

/// Makes an interrupt of each signal that asks for the end. Those that the process was started to ignore, as by `nohup`, stay
/// so.
pub(super) fn install_interrupts() {
    // SAFETY: all zeros are an action: the default one, without flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int) = interrupt;
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
    for signal in ENDING {
        let mut old = action;
        // SAFETY: no new action is set, and the place for the old one is valid.
        unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut old) };
        if old.sa_sigaction == libc::SIG_DFL {
            // SAFETY: the action is whole, and its handler takes a number alone, as without SA_SIGINFO.
            unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        }
    }
}

extern "C" fn interrupt(_: c_int) {
    // SAFETY: it has no conditions.
    let process = unsafe { libc::getpid() };
    // SAFETY: any number may be passed; to the own process it cannot fail.
    unsafe { libc::kill(process, libc::SIGINT) };
}

extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let known = DEADLY.iter().find(|(number, ..)| *number == signal);
    let (name, mut what) = known.map_or(("a signal", "unknown"), |(_, name, what)| (*name, *what));
    if matches!(signal, libc::SIGSEGV | libc::SIGBUS) && is_beside_stack(info, context) {
        what = "stack overflow";
    }
    let tell = || {
        let push = |text: &str| LINE.push(text.bytes());
        let work = at_work();
        if work.is_some() {
            push("llama.cpp ");
        }
        for text in ["died of ", name, " (", what, ")"] {
            push(text);
        }
        if let Some(work) = work {
            push(" while ");
            push(work);
        }
        if LAST_WORDS.iter().next().is_some() {
            push("; it said last: ");
            LINE.push(LAST_WORDS.iter());
        }
    };
    let hint =
        (signal == libc::SIGBUS).then_some("a file that is made shorter while it is read ends a process so");
    end(&tell, hint)
}

/// Whether the faulting address lies near the stack pointer: a stack overflow.
#[cfg(all(target_os = "linux", target_env = "gnu", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn is_beside_stack(info: *mut libc::siginfo_t, context: *mut c_void) -> bool {
    /// A function makes room for all of its variables at once.
    const NEAR: usize = 64 << 10;
    if info.is_null() || context.is_null() {
        return false;
    }
    // SAFETY: the system passes what SA_SIGINFO asks for, and it is not null.
    let info = unsafe { &*info };
    // SAFETY: of these signals the system sets the address.
    let address = unsafe { info.si_addr() } as usize;
    // SAFETY: as above.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    #[cfg(target_arch = "x86_64")]
    let stack = usize::try_from(context.uc_mcontext.gregs[libc::REG_RSP as usize]).unwrap_or(0);
    #[cfg(target_arch = "aarch64")]
    let stack = usize::try_from(context.uc_mcontext.sp).unwrap_or(0);
    // Sent by a process, it has no address.
    info.si_code > 0 && address.abs_diff(stack) < NEAR
}

#[cfg(not(all(
    target_os = "linux",
    target_env = "gnu",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
fn is_beside_stack(_info: *mut libc::siginfo_t, _context: *mut c_void) -> bool {
    false
}
