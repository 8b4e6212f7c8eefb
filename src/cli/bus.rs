//! What the system stops a process for, and what can still be said then.
//!
//! A file that becomes shorter while it is mapped: the first access behind the new end. And a stack that is at its end: code of others
//! behind the [fence](crate::fence) may call itself without end, which no limit of time or memory stops.

/// Says that a file became shorter, and ends the process as any error does.
#[cfg(unix)]
extern "C" fn shrunk(_: libc::c_int) {
    end(
        b"error[io]: a file that was given became shorter while it was read (a model, its external data, or data)\n  \
        help: leave inputs as they are until the command has ended; write new files and rename them\n",
    );
}

/// Says that code behind the fence went too deep, and ends the process as any error does. Elsewhere it is a fault of this program, which
/// the handler that was there before shows.
#[cfg(unix)]
extern "C" fn overflown(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    if crate::fence::is_inside() {
        end(
            b"error[too-deep]: what was given sends a library that reads it (tract, a tokenizer, a template, Parquet) deeper than its stack\n  \
            help: the file is damaged, or made to do this; `verify` without `--engine tract` compares by this program alone\n",
        );
    }
    // SAFETY: the address is that of a handler of this form, as its flags said when it was taken; `signal` may be called in a handler.
    #[allow(unsafe_code, reason = "a signal handler")]
    unsafe {
        match BEFORE.get() {
            Some(&handler) => {
                let handler = std::mem::transmute::<libc::sighandler_t, Handler>(handler);
                handler(signal, info, context);
            }
            None => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

/// A handler that is told where it happened.
#[cfg(unix)]
type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// The handler that was there before.
#[cfg(unix)]
static BEFORE: std::sync::OnceLock<libc::sighandler_t> = std::sync::OnceLock::new();

#[cfg(unix)]
fn end(text: &'static [u8]) -> ! {
    // SAFETY: both functions are among those that a signal handler may call (POSIX, signal-safety), and the text is static.
    #[allow(unsafe_code, reason = "a signal handler")]
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::_exit(1)
    }
}

/// Handles the signals from now on.
#[cfg(unix)]
pub(super) fn watch() {
    let shrunk: extern "C" fn(libc::c_int) = shrunk;
    let overflown: Handler = overflown;
    // SAFETY: the handlers are functions of the right types that live as long as the program, and call signal-safe functions only; the
    // second runs on the stack of its own that the standard library gives every thread.
    #[allow(unsafe_code, reason = "a signal handler")]
    unsafe {
        libc::signal(libc::SIGBUS, shrunk as libc::sighandler_t);
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut before: libc::sigaction = std::mem::zeroed();
        libc::sigemptyset(&raw mut action.sa_mask);
        action.sa_sigaction = overflown as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        let done = libc::sigaction(libc::SIGSEGV, &raw const action, &raw mut before) == 0;
        let told = before.sa_flags & libc::SA_SIGINFO != 0;
        let usual = [libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction);
        if done && told && !usual {
            let _ = BEFORE.set(before.sa_sigaction);
        }
    }
}

/// There are no such signals here.
#[cfg(not(unix))]
pub(super) fn watch() {}
