//! The command line: parses arguments, shows events and prints. What a command does is a call of [`job`](crate::job). Data goes to
//! stdout, everything else to stderr.

mod adapters;
mod args;
mod attach;
mod average;
mod bus;
mod chat;
mod completions;
mod door;
mod eval;
mod exec;
mod export;
mod faults;
mod flags;
mod generate;
mod graphs;
mod habits;
mod help;
mod hub;
mod inspect;
mod interrupt;
mod look;
mod man;
mod merge;
mod progress;
mod remote;
mod run;
mod select;
mod tenants;
mod train;
mod values;

use crate::budget;
use crate::diag::{Diagnostic, Severity, nearest};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::job::{Event, usage};
use crate::onnx::Saved;
use args::{Cli, Command, InterfaceCommand};
use clap::CommandFactory;
use serde_json::json;
use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

pub use crate::fence::Allocator;
pub use door::command;

/// Runs the command line of the process.
pub fn main() -> ExitCode {
    faults::watch();
    interrupt::watch();
    let work = std::panic::AssertUnwindSafe(run);
    std::panic::catch_unwind(work).unwrap_or_else(|_| faults::end())
}

fn run() -> ExitCode {
    let given = habits::arguments(std::env::args_os().collect());
    let before = given.iter().take_while(|a| *a != "--");
    let plain = Ui {
        json: before.clone().any(|a| a == "--json"),
        quiet: before.clone().any(|a| a == "-q" || a == "--quiet"),
        verbose: 0,
        events: before.clone().any(|a| a == "generate"),
        door: None,
    };
    let done = remote::arguments(given, &plain).and_then(|arguments| {
        let cli = match help::parsed(&arguments) {
            Ok(cli) => cli,
            Err(e) => return Ok(refuse(&e, &arguments, &plain)),
        };
        let ui = Ui {
            json: cli.global.json,
            quiet: cli.global.quiet,
            verbose: cli.global.verbose,
            events: plain.events,
            door: None,
        };
        bus::watch();
        carry_out(cli, &ui)
    });
    match done {
        Ok(code) => code,
        Err(e) if broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            let usage = e.kind() == ErrorKind::Usage;
            plain.failed(&e.to_string(), e.findings());
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// Does what a command line asks for, and sees that its inputs stayed what they were.
fn carry_out(cli: Cli, ui: &Ui) -> Result<ExitCode> {
    if let Some(bytes) = cli.global.memory_limit {
        budget::set(bytes);
    }
    let watch = disk::Watch::begin();
    let done = dispatch(cli, ui)?;
    watch
        .unchanged()
        .map_err(|(path, e)| Error::io(&path, "cannot be relied on", e))?;
    Ok(done)
}

/// The command that a word in the place of the model nearly is, when there is no such file.
fn misspelt(word: &str) -> Option<String> {
    let command = Cli::command();
    let names = || command.get_subcommands().map(clap::Command::get_name);
    let known = names().any(|n| n == word) || Path::new(word).exists();
    let near = (!known).then(|| nearest(word, names())).flatten()?;
    Some(format!(
        "there is no command `{word}`; did you mean `{near}`?"
    ))
}

/// Prints what is wrong with the arguments, or the help that was asked for.
fn refuse(e: &clap::Error, arguments: &[std::ffi::OsString], ui: &Ui) -> ExitCode {
    let word = arguments
        .get(1)
        .and_then(|w| w.to_str())
        .unwrap_or_default();
    let conflict = e.kind() == clap::error::ErrorKind::ArgumentConflict;
    let message = conflict.then(|| misspelt(word)).flatten();
    let error = message.map(|message| {
        let kind = clap::error::ErrorKind::InvalidSubcommand;
        Cli::command().error(kind, message)
    });
    let stray = (e.kind() == clap::error::ErrorKind::UnknownArgument)
        .then(|| habits::no_truth(arguments))
        .flatten();
    let error = error.or_else(|| {
        let (flag, word) = stray?;
        let message = format!("{flag} is true or false, and `{word}` follows it\n");
        let kind = clap::error::ErrorKind::InvalidValue;
        Some(clap::Error::raw(kind, message))
    });
    let e = error.as_ref().unwrap_or(e);
    if !e.use_stderr() {
        let _ = e.print();
        return ExitCode::SUCCESS;
    }
    let found = help::refusal(e, arguments);
    ui.failed(&found.to_string(), &[found]);
    ExitCode::from(2)
}

fn broken_pipe(e: &Error) -> bool {
    let source = std::error::Error::source(e).and_then(|s| s.downcast_ref::<std::io::Error>());
    source.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}

fn dispatch(cli: Cli, ui: &Ui) -> Result<ExitCode> {
    let Some(command) = cli.command else {
        let word = cli.attach.model.as_deref().and_then(Path::to_str);
        if let Some(message) = word.and_then(misspelt) {
            return Err(usage(message, "rewrite --help lists the commands"));
        }
        return attach::attach(&cli.attach, ui).map(|()| ExitCode::SUCCESS);
    };
    match command {
        Command::Inspect {
            model,
            of,
            interface,
        } => {
            inspect::inspect(&of.locate(&model, ui)?, interface.as_deref(), ui)?;
        }
        Command::Interface(InterfaceCommand::List) => inspect::list(ui)?,
        Command::Interface(InterfaceCommand::Show { name }) => inspect::show(&name)?,
        Command::Interface(InterfaceCommand::Check {
            interface,
            model,
            of,
        }) => {
            let model = model.map(|m| of.locate(&m, ui)).transpose()?;
            inspect::check(&interface, model.as_deref(), ui)?;
        }
        Command::Interface(InterfaceCommand::Infer {
            model,
            of,
            output,
            force,
        }) => {
            let model = of.locate(&model, ui)?;
            inspect::infer(&model, output.as_deref(), force, ui)?;
        }
        Command::Run(mut args) => {
            args.model = args.select.of.locate(&args.model, ui)?;
            run::run(&args, ui)?;
        }
        Command::Train(args) => train::train(&args, ui)?,
        Command::Eval(args) => eval::run(&args, ui)?,
        Command::Generate(args) => generate::run(&args, ui)?,
        Command::Merge(mut args) => {
            args.model = args.select.of.locate_parts(&args.model, ui)?;
            merge::run(&args, ui)?;
        }
        Command::ExportAdapter(args) => export::run(&args, ui)?,
        Command::Strip {
            model,
            name,
            output,
            force,
        } => graphs::strip(&model, name.as_deref(), &output, force, ui)?,
        Command::Tenants(command) => tenants::run(&command, ui)?,
        Command::Adapter(command) => adapters::run(&command, ui)?,
        Command::Diff { a, b, exit_code } => {
            let same = graphs::diff(&a, &b, ui)?;
            return Ok(if exit_code && !same {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            });
        }
        Command::Print(mut args) => {
            args.model = args.select.of.locate(&args.model, ui)?;
            graphs::print(&args, ui)?;
        }
        Command::Graph(mut args) => {
            args.model = args.select.of.locate(&args.model, ui)?;
            graphs::graph(&args, ui)?;
        }
        Command::Check {
            model,
            of,
            interface,
        } => graphs::check(&model, &of, interface, ui)?,
        Command::Report {
            runs,
            output,
            force,
        } => graphs::report(runs, output, force, ui)?,
        Command::Verify(mut args) => {
            args.a = args.of.locate(&args.a, ui)?;
            args.b = select::VariantArgs::default().locate(&args.b, ui)?;
            graphs::verify(&args, ui)?;
        }
        Command::Hub(command) => hub::run(&command, ui)?,
        Command::Man { folder, force } => man::man(folder.as_deref(), force, ui)?,
        Command::Completions { shell } => {
            stdout(completions::script(shell).as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Bytes on stdout.
fn stdout(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|e| Error::io(Path::new("stdout"), "cannot write", e))
}

/// A text as a terminal is to show it. Names in models and words in data are other people's: what would move the cursor, change colours or
/// turn the direction of writing is written out.
fn visible(text: &str) -> Cow<'_, str> {
    let acts = |c: char| {
        let lays_out = matches!(c, '\n' | '\t');
        let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        (c.is_control() && !lays_out) || turns
    };
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let show = |c: char| {
        if acts(c) {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    Cow::Owned(text.chars().map(show).collect())
}

/// Where output goes.
struct Ui {
    json: bool,
    quiet: bool,
    verbose: u8,
    /// Whether JSON is a stream of events, one a line.
    events: bool,
    /// Where all of it goes, if not to the terminal.
    door: Option<door::Door>,
}

impl Ui {
    /// The result: JSON if asked for, text otherwise.
    fn result(&self, json: &serde_json::Value, text: impl FnOnce() -> String) -> Result<()> {
        if let Some(door) = &self.door {
            door.put(json);
            return Ok(());
        }
        if self.json {
            let mut out = serde_json::to_string_pretty(json).unwrap_or_default();
            out.push('\n');
            return stdout(out.as_bytes());
        }
        stdout(visible(&text()).as_bytes())
    }

    /// An object on a line of its own.
    #[expect(clippy::unused_self, reason = "where output goes is said here")]
    fn line(&self, json: &serde_json::Value) -> Result<()> {
        stdout((json.to_string() + "\n").as_bytes())
    }

    /// Why the work failed: text on stderr, and JSON on stdout if that was asked for.
    fn failed(&self, text: &str, findings: &[Diagnostic]) {
        let shown = visible(text.trim_end());
        let _ = writeln!(anstream::stderr().lock(), "{}", look::coloured(&shown));
        if self.json {
            let finding = |d: &Diagnostic| {
                json!({
                    "code": d.code, "message": d.message, "path": d.path, "notes": d.notes, "help": d.help,
                })
            };
            let findings: Vec<_> = findings.iter().map(finding).collect();
            let _ = if self.events {
                self.line(&json!({ "event": "error", "errors": findings }))
            } else {
                self.result(&json!({ "errors": findings }), String::new)
            };
        }
    }

    /// A line on stderr.
    fn note(&self, text: &str) {
        if let Some(door) = &self.door {
            door.mention(&Event::Note(text.to_owned()));
        } else if !self.quiet {
            let _ = writeln!(
                anstream::stderr().lock(),
                "{}",
                look::coloured(&visible(text))
            );
        }
    }

    /// A line on stderr that was asked for.
    #[expect(clippy::unused_self, reason = "where output goes is said here")]
    fn say(&self, text: &str) {
        let _ = writeln!(std::io::stderr().lock(), "{}", visible(text));
    }

    /// A line on stderr for those who want to know more.
    fn say_more(&self, text: &str) {
        if self.verbose > 0 {
            self.note(text);
        }
    }

    /// Warnings on stderr.
    fn warnings<'a>(&self, findings: impl IntoIterator<Item = &'a Diagnostic>) {
        for f in findings {
            if let Some(door) = &self.door {
                door.mention(&Event::Warning(f.clone()));
            } else if f.severity == Severity::Warning || self.verbose > 0 {
                self.note(&f.to_string());
            }
        }
    }

    /// A line for what a job says.
    fn event(&self, event: &Event) {
        if let Some(door) = &self.door {
            return door.mention(event);
        }
        match event {
            Event::Note(line) => self.note(line),
            Event::Warning(finding) => self.warnings([finding]),
            Event::Detail(line) if self.verbose > 0 => self.note(line),
            Event::Trace(line) if self.verbose > 1 => self.note(line),
            _ => {}
        }
    }

    /// Shows what a job says that needs no bar.
    fn shown(&self, event: &Event) -> Result<()> {
        if let Some(door) = &self.door {
            return door.say(event);
        }
        self.event(event);
        Ok(())
    }

    /// The report of a model that was written.
    fn wrote(&self, saved: &Saved) -> Result<()> {
        self.result(
            &json!({ "model": saved.model, "bytes": saved.bytes }),
            || format!("wrote {}\n", saved.model.display()),
        )
    }

    /// Whether progress bars make sense.
    fn progress(&self) -> bool {
        !self.quiet && !self.json && std::io::stderr().is_terminal()
    }
}

/// Reads and verifies a model.
fn open(path: &Path, ui: &Ui) -> Result<Verified> {
    crate::job::open(path, &mut |event| ui.shown(event))
}

/// Compile options of a command that executes.
fn compile_options(exec: &exec::ExecArgs) -> Result<crate::runtime::CompileOptions> {
    exec.settings().compile_options()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_written_out() {
        let shown = super::visible("a\u{1b}[2Jb\r\u{9b}1m\u{202e}c\td\n");
        assert_eq!(shown, "a\\u{1b}[2Jb\\r\\u{9b}1m\\u{202e}c\td\n");
        assert_eq!(super::visible("plain äöü 中文\n"), "plain äöü 中文\n");
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_main_job_needs_no_subcommand() {
        let cli = help::parsed(["rewrite", "--interface", "qwen3.json", "model.onnx"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.attach.model.unwrap(), Path::new("model.onnx"));
        let cli = help::parsed([
            "rewrite",
            "run",
            "m.onnx",
            "--inputs",
            "i",
            "--outputs",
            "o",
            "--grad",
        ])
        .unwrap();
        let Some(Command::Run(run)) = cli.command else {
            panic!("not run")
        };
        assert_eq!(run.grad, Some(vec![]));
    }

    #[test]
    fn global_flags_stand_anywhere() {
        let cli = help::parsed(["rewrite", "print", "m.onnx", "--quiet"]).unwrap();
        assert!(cli.global.quiet);
    }
}
