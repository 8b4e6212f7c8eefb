//! What a job says while it goes on. Whoever calls it decides what is shown.

use crate::diag::{Diagnostic, Severity};
use crate::error::Result;
use crate::train;

/// Something that a job says.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A line about what is done.
    Note(String),
    /// A finding that does not stop the job.
    Warning(Diagnostic),
    /// A line for those who want to know more.
    Detail(String),
    /// A line for those who want to know everything.
    Trace(String),
    /// An event of the training: a step, an entry of the log, an evaluation, a checkpoint.
    Training(train::Event),
    /// The steps begin: from here on, a stop that is asked for leaves a checkpoint.
    Stoppable,
    /// How far work of a known size is.
    Progress {
        /// What is counted: `rows` or `texts`.
        what: &'static str,
        /// Number of those done.
        done: usize,
        /// Number of all.
        total: usize,
    },
    /// A piece of generated text.
    Text {
        /// Index of the text among all results.
        index: usize,
        /// What is new.
        piece: String,
    },
    /// Texts are going to be generated.
    Asked {
        /// The prompts: their texts, what the user said last, or their tokens.
        prompts: Vec<String>,
        /// Number of texts for each prompt, which stand one behind the other among the results.
        copies: usize,
        /// Number of all texts.
        texts: usize,
        /// Whether they will be texts: they are tokens only, without a tokenizer.
        readable: bool,
    },
    /// A generated text is done.
    Answer {
        /// Index of the text among all results.
        index: usize,
        /// The text.
        text: crate::generate::Generated,
    },
    /// How far the transfer of a file from or to the Hub is.
    Transfer {
        /// Path of the file in its repository.
        file: String,
        /// Bytes done.
        done: u64,
        /// Bytes in all, where that is known.
        total: Option<u64>,
    },
    /// An adapter was pushed to the Hub.
    #[cfg(feature = "hub")]
    Pushed(crate::hub::Pushed),
}

#[cfg(feature = "hub")]
impl Event {
    /// How far a transfer is.
    pub(super) fn transfer(t: crate::hub::Transfer<'_>) -> Self {
        Event::Transfer {
            file: t.file.to_owned(),
            done: t.done,
            total: t.total,
        }
    }
}

/// Receives events. An error ends the job.
pub type OnEvent<'a> = &'a mut dyn FnMut(&Event) -> Result<()>;

/// Says a line.
pub(super) fn note(events: OnEvent<'_>, line: impl Into<String>) -> Result<()> {
    events(&Event::Note(line.into()))
}

/// Lets work say lines that cannot stop it. What a listener refuses ends the job when the work is done.
pub(super) fn notes<T>(
    events: OnEvent<'_>,
    work: impl FnOnce(&mut dyn FnMut(String)) -> Result<T>,
) -> Result<T> {
    let mut heard = Ok(());
    let done = work(&mut |line| {
        if heard.is_ok() {
            heard = note(events, line);
        }
    })?;
    heard.map(|()| done)
}

/// Says how far work is.
pub(super) fn progress(
    events: OnEvent<'_>,
    what: &'static str,
    done: usize,
    total: usize,
) -> Result<()> {
    events(&Event::Progress { what, done, total })
}

/// Says the warnings among findings.
pub(super) fn warn<'a>(
    events: OnEvent<'_>,
    findings: impl IntoIterator<Item = &'a Diagnostic>,
) -> Result<()> {
    findings
        .into_iter()
        .filter(|d| d.severity == Severity::Warning)
        .try_for_each(|d| events(&Event::Warning(d.clone())))
}
