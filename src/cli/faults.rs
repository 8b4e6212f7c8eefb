//! What is shown of a fault of this program: a panic that no fence caught.

use crate::diag::Diagnostic;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write;
use std::panic::{self, PanicHookInfo};
use std::process::ExitCode;

/// Shows faults as errors, with the calls that led to them only where `RUST_BACKTRACE` asks for them.
pub(super) fn watch() {
    panic::set_hook(Box::new(|info| {
        let mut text = finding(info).to_string();
        let calls = Backtrace::capture();
        if calls.status() == BacktraceStatus::Captured {
            text += &format!("\n{calls}");
        }
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }));
}

fn finding(info: &PanicHookInfo<'_>) -> Diagnostic {
    let said = info.payload_as_str().unwrap_or("it does not say why");
    let at = info.location().map(ToString::to_string);
    Diagnostic::error("internal", format!("a fault of this program: {said}"))
        .at(at.unwrap_or_default())
        .help("report it with the command, and with the input if you may; RUST_BACKTRACE=1 shows the calls that led to it")
}

/// Ends the process after a fault: what was staged is gone, and the fault has been shown.
pub(super) fn end() -> ExitCode {
    crate::staging::remove_all();
    ExitCode::FAILURE
}
