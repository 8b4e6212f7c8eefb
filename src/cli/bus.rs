//! A file that becomes shorter while it is mapped: the system then stops the process with a signal, on the first access behind the new end.
//! Nothing can be computed any more, but what happened can be said.

/// Says it, and ends the process as any error does.
#[cfg(unix)]
extern "C" fn shrunk(_: libc::c_int) {
    const TEXT: &[u8] = b"error[io]: a file that was given became shorter while it was read (a model, its external data, or data)\n  \
        help: leave inputs as they are until the command has ended; write new files and rename them\n";
    // SAFETY: both functions are among those that a signal handler may call (POSIX, signal-safety), and the text is static.
    #[allow(unsafe_code, reason = "a signal handler")]
    unsafe {
        libc::write(2, TEXT.as_ptr().cast(), TEXT.len());
        libc::_exit(1);
    }
}

/// Handles the signal from now on.
#[cfg(unix)]
pub(super) fn watch() {
    let handler: extern "C" fn(libc::c_int) = shrunk;
    // SAFETY: the handler is a function of the right type that lives as long as the program, and calls signal-safe functions only.
    #[allow(unsafe_code, reason = "a signal handler")]
    unsafe {
        libc::signal(libc::SIGBUS, handler as libc::sighandler_t);
    }
}

/// There is no such signal here.
#[cfg(not(unix))]
pub(super) fn watch() {}
