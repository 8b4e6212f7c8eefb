//! The way in for a program that is no terminal: a command's arguments in, its JSON document out, what it says to a function.
//!
//! No signal is handled here and no process ended: whose process it is decides that.

use super::{Ui, carry_out, habits, help, remote};
use crate::error::{Error, ErrorKind, Result};
use crate::job::Event;
use serde_json::Value;
use std::cell::RefCell;
use std::ffi::OsString;
use std::rc::Rc;

/// Who hears what a command says.
type Hear = Box<dyn FnMut(&Event) -> Result<()>>;

/// Where a command's result and what it says go, in the place of a terminal.
#[derive(Clone)]
pub(super) struct Door(Rc<Inside>);

struct Inside {
    hear: RefCell<Hear>,
    heard: RefCell<Result<()>>,
    result: RefCell<Value>,
}

impl Door {
    fn new(hear: Hear) -> Self {
        Door(Rc::new(Inside {
            hear: RefCell::new(hear),
            heard: RefCell::new(Ok(())),
            result: RefCell::new(Value::Null),
        }))
    }

    /// Keeps the result.
    pub(super) fn put(&self, result: &Value) {
        self.0.result.replace(result.clone());
    }

    /// Passes an event on; what its hearer refuses ends the command.
    pub(super) fn say(&self, event: &Event) -> Result<()> {
        (self.0.hear.borrow_mut())(event)
    }

    /// The same from where nothing can be refused: the command ends when it is done.
    pub(super) fn mention(&self, event: &Event) {
        let said = self.say(event);
        let mut heard = self.0.heard.borrow_mut();
        if heard.is_ok() {
            *heard = said;
        }
    }
}

/// Carries a command of `rewrite` out in this process, with the arguments that stand behind the program's name. What comes back is the
/// document that `--json` prints; a text for `--help` and `--version`, and null for a command that has none.
///
/// # Errors
/// Those of the command; arguments that are no command ([`ErrorKind::Usage`]); what `hear` returns.
pub fn command(
    arguments: impl IntoIterator<Item = OsString>,
    hear: impl FnMut(&Event) -> Result<()> + 'static,
) -> Result<Value> {
    let door = Door::new(Box::new(hear));
    let ui = Ui {
        json: true,
        quiet: false,
        verbose: 0,
        events: false,
        door: Some(door.clone()),
    };
    let given = std::iter::once(OsString::from("rewrite")).chain(arguments);
    let given = remote::arguments(habits::arguments(given.collect()), &ui)?;
    let cli = match help::parsed(&given) {
        Ok(cli) => cli,
        // Help or the version was asked for.
        Err(e) if !e.use_stderr() => return Ok(Value::String(e.render().to_string())),
        Err(e) => return Err(Error::new(ErrorKind::Usage, help::refusal(&e, &given))),
    };
    carry_out(cli, &ui)?;
    door.0.heard.replace(Ok(()))?;
    Ok(door.0.result.take())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::Diagnostic;

    fn given(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_command_gives_its_document_and_says_what_it_does() {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/qwen3/model.onnx");
        let said = Rc::new(RefCell::new(Vec::new()));
        let ear = Rc::clone(&said);
        let out = command(
            given(&format!("{model} -a lora[r=2] --dry-run")),
            move |e| {
                ear.borrow_mut().push(e.clone());
                Ok(())
            },
        );
        let out = out.unwrap();
        assert_eq!(out["dry_run"], true);
        assert_eq!(out["selected"]["layers"], 2);
        let read = |e: &Event| matches!(e, Event::Detail(line) if line.starts_with("read "));
        assert!(said.borrow().iter().any(read), "{said:?}");
    }

    #[test]
    fn who_hears_may_end_a_command() {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/qwen3/model.onnx");
        let enough = |_: &Event| {
            let d = Diagnostic::error("enough", "enough");
            Err(Error::new(ErrorKind::Run, d))
        };
        let e = command(given(&format!("inspect {model}")), enough).unwrap_err();
        assert_eq!(e.findings()[0].code, "enough");
    }

    #[test]
    fn wrong_arguments_are_an_error_of_usage() {
        for line in ["inspect", "nosuch", "inspect m.onnx --nosuch"] {
            let e = command(given(line), |_| Ok(())).unwrap_err();
            assert!(!e.findings()[0].message.contains("error:"), "{e}");
            if line != "nosuch" {
                assert_eq!(e.kind(), ErrorKind::Usage, "{line}: {e}");
            }
        }
    }
}
