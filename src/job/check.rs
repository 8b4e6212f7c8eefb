//! What is refused before work begins: settings that are missing, outputs that are there, graphs that cannot do a task.

use crate::adapters::heads::Noted;
use crate::adapters::{Config, spec};
use crate::analyze::logits::{logits, of_heads, vocabulary};
use crate::api::{self, Adapted};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::{Fact, contract};
use crate::select::Interface;
use crate::staging;
use crate::train::Task;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

/// Does what prepares a run, and beside it, as that reads every weight, sees that they are numbers.
///
/// # Errors
/// Those of the work, then [`ErrorKind::Invalid`] for weights that are not finite.
pub(super) fn with_finite_weights<T>(
    adapted: &Adapted,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    thread::scope(|scope| {
        let check = || api::check_finite(&adapted.model, Some(&adapted.selection));
        let checked = scope.spawn(check);
        let done = work()?;
        checked.join().unwrap_or_else(|p| resume_unwind(p))?;
        Ok(done)
    })
}

/// An error about what a job was asked for.
pub(crate) fn usage(message: impl Into<String>, help: &str) -> Error {
    let finding = Diagnostic::error("arguments", message);
    Error::new(ErrorKind::Usage, finding.help(help))
}

/// Refuses a text that names no device.
///
/// # Errors
/// What there is.
pub(crate) fn check_device(text: &str) -> Result<()> {
    crate::runtime::named(text).map(|_| ())
}

/// Refuses a text that is neither a path nor the name of a built-in interface. Whether a path leads anywhere is seen later.
///
/// # Errors
/// What there is.
pub(crate) fn check_interface(text: &str) -> Result<()> {
    let name = text.strip_suffix(".json").unwrap_or(text);
    if is_path(text) || Interface::builtin(name).is_some() {
        return Ok(());
    }
    Interface::resolve(text).map(|_| ())
}

/// Refuses an adapter, `SPEC` or `NAME=SPEC`, that is neither a path nor a configuration. Whether a path leads anywhere is seen later.
///
/// # Errors
/// What is wrong with the configuration.
pub(crate) fn check_spec(text: &str) -> Result<()> {
    let (_, spec) = spec::split(text);
    if !spec::is_identifier(spec) && is_path(spec) {
        return Ok(());
    }
    Config::parse(spec).map(|_| ())
}

/// Refuses what cannot be meant as a fusion.
///
/// # Errors
/// What is wrong with the configuration.
pub(crate) fn check_fusion(text: &str) -> Result<()> {
    let (_, spec) = spec::split(text);
    if is_path(spec) {
        return Ok(());
    }
    Config::parse_fusion(spec).map(|_| ())
}

/// Refuses what cannot be meant as a setup.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_setup(text: &str) -> Result<()> {
    spec::setup(text).map(|_| ())
}

/// Whether a text is one of the Hub's, the path of something, or written as only a path is.
fn is_path(text: &str) -> bool {
    let path = Path::new(text);
    let written = text.contains(['/', '\\']) || path.extension().is_some_and(|e| e == "json");
    path.exists() || text.starts_with("hub:") || written
}

/// The error of an output that is there and must not be replaced.
pub(crate) fn exists(path: &Path) -> Error {
    let d = Diagnostic::error("exists", format!("{} exists", path.display()));
    Error::new(
        ErrorKind::Io,
        d.help("give --force to replace it, or write elsewhere"),
    )
}

/// Refuses an output that is there, unless it is to be replaced.
pub(crate) fn ensure_absent(path: &Path, force: bool) -> Result<()> {
    if path.exists() && !force {
        return Err(exists(path));
    }
    Ok(())
}

/// Refuses an output that is one of the inputs: inputs are never modified.
pub(crate) fn keep<'a>(output: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let Ok(there) = output.canonicalize() else {
        return Ok(());
    };
    let same = inputs
        .into_iter()
        .any(|i| i.canonicalize().is_ok_and(|i| i == there));
    if !same {
        return Ok(());
    }
    let d = Diagnostic::error("input-kept", format!("{} is an input", output.display()));
    Err(Error::new(
        ErrorKind::Io,
        d.help("inputs are never modified: choose another output"),
    ))
}

/// Writes a file under a temporary name and renames it.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    staging::write(path, bytes, false).map_err(|e| Error::io(path, "cannot write", e))
}

/// Refuses a graph that cannot do a task.
pub(super) fn fits(model: &Verified, task: Task, usual_loss: bool) -> Result<()> {
    let g = &model.model().graph;
    let refused = |what: String, help: &str| {
        let d = Diagnostic::error("task", what);
        Err(Error::new(ErrorKind::Train, d.help(help)))
    };
    let decodes = g
        .find(contract::DECODER_INPUT_IDS)
        .is_some_and(|v| g.is_input(v));
    if task == Task::Seq2seq && !decodes {
        return refused(
            "the task seq2seq needs an encoder-decoder: the graph has no input `decoder_input_ids`"
                .into(),
            "a decoder learns completions with the task causal-lm: columns `prompt` and `completion`",
        );
    }
    if task == Task::CausalLm && usual_loss && decodes {
        return refused(
            "the task causal-lm needs a decoder; this graph is an encoder-decoder: it has the input `decoder_input_ids`".into(),
            "--task seq2seq",
        );
    }
    let output = logits(g, None).ok();
    let Some(output) = output.filter(|_| task == Task::CausalLm && usual_loss) else {
        return Ok(());
    };
    let fact = model.fact(output);
    let width = fact.and_then(|f| f.size(-1));
    let words = vocabulary(g);
    let foreign =
        g.name_of(output) != contract::LOGITS && width.zip(words).is_some_and(|(w, v)| w != v);
    let whole = fact.and_then(Fact::rank).is_some_and(|r| r < 3);
    if foreign || whole {
        let shape = fact
            .and_then(|f| f.dims.as_ref())
            .map_or_else(String::new, |dims| {
                let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
                format!("[{}]", dims.join(", "))
            });
        let words = words.map_or_else(|| "vocabulary".to_owned(), |v| v.to_string());
        let what = format!(
            "the graph has no logits of tokens: its output `{}` is {shape}, expected [batch, tokens, {words}]",
            g.name_of(output)
        );
        return refused(
            what,
            "export the model with its language-model head, or choose another task: --task classification, regression, …",
        );
    }
    Ok(())
}

/// What a task asks of a head that a graph has.
pub(super) struct Asked<'a> {
    pub(super) task: Task,
    /// Number of classes, or of values of an example, that the data has.
    pub(super) labels: usize,
    /// The classes' names, as far as they are known.
    pub(super) names: &'a [String],
}

fn unfit(what: String) -> Error {
    let d = Diagnostic::error("head-task", what);
    Error::new(
        ErrorKind::Train,
        d.help("choose the task that the head was made for (--task), or train on the base model without this head"),
    )
}

/// Refuses a head that was made for another task, as far as the graph says what it was made for.
pub(super) fn head_type_fits(model: &Verified, task: Task) -> Result<()> {
    let types: &[&str] = match task {
        Task::CausalLm | Task::Seq2seq | Task::MaskedLm => return Ok(()),
        Task::Classification | Task::Regression => &["classification", "image_classification"],
        Task::MultiLabel => &["multilabel_classification", "image_classification"],
        Task::TokenClassification => &["tagging"],
        Task::QuestionAnswering => &["question_answering"],
    };
    let noted = crate::api::heads(model)?;
    let g = &model.model().graph;
    let several = of_heads(g).filter_map(|p| contract::head_output(g.name_of(p.value)));
    let several: Vec<&str> = several.map(|(_, head)| head).collect();
    let used = noted.iter().filter(|h| several.contains(&&*h.name));
    let used = if several.is_empty() {
        noted.last().into_iter().collect()
    } else {
        used.collect::<Vec<_>>()
    };
    let other = |h: &&&Noted| h.is_flexible() && !types.contains(&h.word());
    if let Some(head) = used.iter().find(other) {
        let (name, word) = (&head.name, head.word());
        return Err(unfit(format!(
            "the head of `{name}` is of the type {word}, and the task {} needs one of the type {}",
            task.name(),
            types[0]
        )));
    }
    Ok(())
}

/// Refuses data with other labels than a graph's head has scores for. What is not known of their shape is taken to fit.
pub(super) fn head_fits(model: &Verified, asked: &Asked<'_>) -> Result<()> {
    let g = &model.model().graph;
    let output = g.find(contract::LOGITS).filter(|v| g.is_output(*v));
    let outputs = output.into_iter().chain(of_heads(g).map(|p| p.value));
    let mut scores = outputs.filter_map(|v| model.fact(v));
    match asked.task {
        Task::Classification | Task::Regression | Task::MultiLabel | Task::TokenClassification => {
            scores.try_for_each(|scores| scores_fit(scores, asked))
        }
        Task::CausalLm | Task::Seq2seq | Task::QuestionAnswering | Task::MaskedLm => Ok(()),
    }
}

fn scores_fit(scores: &Fact, asked: &Asked<'_>) -> Result<()> {
    let Asked {
        task,
        labels,
        names,
    } = *asked;
    let rank = scores.rank();
    let tokens = task == Task::TokenClassification;
    let fits = |rank: usize| match rank {
        3 => tokens,
        2 => !tokens,
        1 => task == Task::Regression && labels == 1,
        _ => false,
    };
    if let Some(rank) = rank.filter(|r| !fits(*r)) {
        let of = if tokens {
            "each token"
        } else {
            "the whole text"
        };
        return Err(unfit(format!(
            "the task {} needs scores of {of}, and the head's output `{}` has {rank} axes",
            task.name(),
            contract::LOGITS
        )));
    }
    let width = scores.size(-1).and_then(|w| usize::try_from(w).ok());
    let Some(width) = width.filter(|_| rank != Some(1)) else {
        return Ok(());
    };
    if matches!(task, Task::Regression | Task::MultiLabel) {
        if labels != width {
            return Err(unfit(format!(
                "the task {} has {labels} values for each example here, and the head gives {width}",
                task.name()
            )));
        }
        return Ok(());
    }
    if width < 2 {
        return Err(unfit(format!(
            "the head gives one number, and the task {} needs a score for each class",
            task.name()
        )));
    }
    if labels > width {
        let what = match names.get(width..labels) {
            Some(beyond) => format!(
                "the data has {labels} classes, and the head tells {width} apart: `{}` too many",
                beyond.join("`, `")
            ),
            None => format!(
                "the data has class {}, and the head tells {width} apart: 0 to {}",
                labels - 1,
                width - 1
            ),
        };
        let d = Diagnostic::error("head-classes", what);
        return Err(Error::new(
            ErrorKind::Train,
            d.help("correct the labels, or train a new head on the base model: its classes come from the data"),
        ));
    }
    Ok(())
}
