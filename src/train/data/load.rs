//! From data arguments to datasets: files are read row by row, rows become examples in parallel and in order, and what went wrong is
//! counted and reported.

use super::args::{DataArguments, EvalSplit, OnBadRow, Task};
use super::dataset::{Builder, Dataset};
use super::encode::{Encoder, NO_TOKENS, Outcome, TextPair};
use super::mask::Marker;
use super::report::{DataReport, FOREIGN, ReadReport};
use super::source::{Fault, Row, Source};
use super::splits::{Part, meet};
use super::{Example, IGNORE, Labels};
use crate::diag::{Diagnostic, nearest};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime;
use crate::text::{SUSPECT, Tokenizer};
use crate::train::batch::epoch_order;
use indexmap::IndexSet;
use serde_json::Value;
use std::path::PathBuf;

/// Rows that are tokenized together, by number and by the bytes of their texts.
const CHUNK: (usize, usize) = (1024, 4 << 20);

/// Bad rows that are reported in full.
const SHOWN: usize = 5;

/// The data of a run.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// What is trained on.
    pub train: Dataset,
    /// What is evaluated on, if anything.
    pub eval: Option<Dataset>,
    /// The token that fills rows of a batch.
    pub pad_id: i64,
    /// The longest sequence in tokens that an example may have.
    pub max_length: usize,
    /// The chat template, where it made examples.
    pub chat_template: Option<String>,
    /// The date that it was given, where it asks for one.
    pub chat_date: Option<String>,
    /// What was read.
    pub report: DataReport,
}

/// The classes of labels: all have names, or all have numbers.
#[derive(Default)]
struct Classes {
    names: Vec<String>,
    /// The names are those of `label_names`, in which numbers count as ids.
    given: bool,
    /// No name is added.
    fixed: bool,
    /// The first label that is a number.
    number: Option<i64>,
}

impl Classes {
    fn of(given: Option<&[String]>) -> Self {
        Classes {
            names: given.unwrap_or_default().to_vec(),
            given: given.is_some(),
            fixed: given.is_some(),
            number: None,
        }
    }

    fn id(&mut self, name: &str) -> std::result::Result<i64, String> {
        if let Some(id) = self.names.iter().position(|n| n == name) {
            return Ok(id as i64);
        }
        if let (Some(number), false) = (self.number, self.given) {
            return Err(mixed(&format!("{name:?}"), "numbers", &number.to_string()));
        }
        if self.fixed {
            let near = nearest(name, self.names.iter().map(String::as_str));
            let near = near.map_or_else(
                || format!("classes are {}", self.names.join(", ")),
                |n| format!("did you mean `{n}`?"),
            );
            return Err(format!("there is no class {name:?}; {near}"));
        }
        self.names.push(name.to_owned());
        Ok(self.names.len() as i64 - 1)
    }

    fn number(&mut self, id: i64) -> std::result::Result<(), String> {
        if !self.given && !self.names.is_empty() {
            let names: Vec<&str> = self.names.iter().take(SHOWN).map(String::as_str).collect();
            return Err(mixed(&id.to_string(), "names", &names.join(", ")));
        }
        self.number.get_or_insert(id);
        Ok(())
    }
}

fn mixed(label: &str, kind: &str, others: &str) -> String {
    format!(
        "label is {label}, but other labels are {kind}: {others}; write all of them in one way, or name the classes in `label_names`"
    )
}

impl DataArguments {
    /// Reads, tokenizes and splits the data. `vocab` is the size of the model's vocabulary, against which ids are checked; `seed` draws
    /// the evaluation split; `note` is told what a user should know.
    ///
    /// # Errors
    /// Arguments that make no sense, files that cannot be read, bad rows unless they are to be skipped, and data nothing can be learned
    /// from.
    pub(crate) fn load(
        &self,
        tokenizer: Option<&Tokenizer>,
        vocab: Option<i64>,
        seed: u64,
        note: &mut dyn FnMut(String),
    ) -> Result<Loaded> {
        self.validate()?;
        let encoder = Encoder::new(self, tokenizer, vocab)?;
        if self.task == Task::MultiLabel && self.label_names.is_none() {
            let names = self.listed(&encoder)?;
            if !names.is_empty() {
                note(format!("classes: {}", names.join(", ")));
                let named = DataArguments {
                    label_names: Some(names),
                    ..self.clone()
                };
                return named.load(tokenizer, vocab, seed, note);
            }
        }
        let mut classes = Classes::of(self.label_names.as_deref());
        let drawn = match &self.eval_split {
            Some(split @ (EvalSplit::Count(_) | EvalSplit::Share(_))) => Some(split),
            Some(EvalSplit::Named(_)) | None => None,
        };
        let limit = if drawn.is_some() {
            None
        } else {
            self.max_train_samples
        };
        let (train_parts, eval_parts) = (self.train_parts()?, self.eval_parts()?);
        if let Some(eval) = &eval_parts
            && meet(&train_parts, eval)
        {
            note(
                "evaluation reads rows that are trained on: `train_split` and `eval_split` overlap"
                    .to_owned(),
            );
        }
        let (all, data) = self.read(&train_parts, limit, &encoder, &mut classes)?;
        // What evaluation data names must be a class that was trained.
        classes.fixed |= !classes.names.is_empty();
        let (train, eval, eval_data) = match (drawn, eval_parts) {
            (Some(split), _) => {
                let (train, eval) = self.draw(&all, split, seed)?;
                (train, Some(eval), None)
            }
            (None, Some(parts)) => {
                let (eval, report) =
                    self.read(&parts, self.max_eval_samples, &encoder, &mut classes)?;
                (all, Some(eval), Some(report))
            }
            (None, None) => (all, None, None),
        };
        let tokens = |d: &Dataset| d.lengths().iter().map(|&n| u64::from(n)).sum();
        let report = DataReport {
            data,
            eval_data,
            train_examples: train.len(),
            train_tokens: tokens(&train),
            eval_examples: eval.as_ref().map_or(0, Dataset::len),
            eval_tokens: eval.as_ref().map_or(0, tokens),
            label_names: classes.names,
        };
        let spoken = report.data.conversations > 0;
        let chat_template = encoder.chat_source().filter(|_| spoken).map(str::to_owned);
        self.tell(&report, tokenizer, &encoder, note);
        Ok(Loaded {
            train,
            eval,
            pad_id: encoder.pad_id,
            max_length: self.max_length(tokenizer),
            chat_template,
            chat_date: encoder.chat_date.clone(),
            report,
        })
    }

    /// The names of classes in the lists of a multi-label task, in the order in which the training rows have them. How long a label is
    /// follows from all of them, so that they are read before the first example is made.
    fn listed(&self, encoder: &Encoder<'_>) -> Result<Vec<String>> {
        let mut names: IndexSet<String> = IndexSet::new();
        let parts = self.train_parts()?;
        for source in parts.iter().flat_map(Part::sources) {
            for row in source?.1 {
                match row {
                    Ok(Row { values, .. }) => names.extend(encoder.class_names(&values)),
                    Err(Fault::Row { .. }) => {}
                    Err(Fault::File(e)) => return Err(e),
                }
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Prompt and completion of the rows that are evaluated on, as text; of the training rows when there are no others. `max_eval_samples`
    /// bounds their number.
    ///
    /// # Errors
    /// As for [`load`](Self::load), and rows that do not tell the two apart.
    pub(crate) fn text_pairs(
        &self,
        tokenizer: Option<&Tokenizer>,
        note: &mut dyn FnMut(String),
    ) -> Result<Vec<TextPair>> {
        self.validate()?;
        let encoder = Encoder::new(self, tokenizer, None)?;
        let parts = self.eval_parts()?.map_or_else(|| self.train_parts(), Ok)?;
        let (mut out, mut skipped) = (Vec::new(), Vec::new());
        for source in parts.iter().flat_map(Part::sources) {
            let (name, source) = source?;
            let unit = source.unit;
            for row in source {
                if self.max_eval_samples.is_some_and(|n| out.len() >= n) {
                    break;
                }
                let (at, pair) = match row {
                    Ok(Row { values, at }) => (at, encoder.texts(&values)),
                    Err(Fault::Row { at, reason }) => (at, Err(reason)),
                    Err(Fault::File(e)) => return Err(e),
                };
                let place = format!("{name}, {unit} {at}");
                match pair {
                    Ok(pair) => out.push(pair),
                    Err(reason) => match (encoder.fault(), self.on_bad_row) {
                        (Some(e), _) => return Err(e),
                        (None, OnBadRow::Error) => return Err(bad_row(&place, reason)),
                        (None, OnBadRow::Skip) => skipped.push(format!("{place}: {reason}")),
                    },
                }
            }
        }
        if !skipped.is_empty() {
            let shown = skipped[..skipped.len().min(SHOWN)].join("\n  ");
            note(format!("{} rows were left out:\n  {shown}", skipped.len()));
        }
        if out.is_empty() {
            return Err(empty(&files(&parts), skipped.len() as u64, skipped.first()));
        }
        Ok(out)
    }

    /// Draws the evaluation examples by the seed. Both parts keep the order of the files.
    fn draw(&self, all: &Dataset, split: &EvalSplit, seed: u64) -> Result<(Dataset, Dataset)> {
        let n = all.len();
        let wanted = match split {
            EvalSplit::Share(share) => (n as f64 * share).ceil() as usize,
            EvalSplit::Count(count) => *count,
            EvalSplit::Named(_) => 0,
        };
        if wanted >= n {
            let d = Diagnostic::error(
                "data-argument",
                format!("`eval_split` takes {wanted} of {n} examples and leaves none to train on"),
            );
            return Err(Error::new(ErrorKind::Train, d.help("take fewer")));
        }
        let mut chosen = vec![false; n];
        // Not the order of the first epoch.
        for i in epoch_order(n, seed, u64::MAX).into_iter().take(wanted) {
            chosen[i] = true;
        }
        let part = |of: bool, limit: Option<usize>| {
            let indices = (0..n).filter(|&i| chosen[i] == of);
            all.select(indices.take(limit.unwrap_or(usize::MAX)))
        };
        Ok((
            part(false, self.max_train_samples),
            part(true, self.max_eval_samples),
        ))
    }

    fn read(
        &self,
        parts: &[Part],
        limit: Option<usize>,
        encoder: &Encoder<'_>,
        classes: &mut Classes,
    ) -> Result<(Dataset, ReadReport)> {
        let sources = parts.iter().flat_map(Part::sources);
        self.collect(sources, &files(parts), limit, encoder, classes)
    }

    fn collect(
        &self,
        sources: impl Iterator<Item = Result<(String, Source)>>,
        files: &[PathBuf],
        limit: Option<usize>,
        encoder: &Encoder<'_>,
        classes: &mut Classes,
    ) -> Result<(Dataset, ReadReport)> {
        let limit = limit.unwrap_or(usize::MAX);
        let builder = Builder::new(
            self.in_memory_max_size,
            self.cache_dir.as_ref().map(PathBuf::from),
        );
        let mut reading = Reading {
            args: self,
            builder,
            report: ReadReport {
                files: files.iter().map(|f| f.display().to_string()).collect(),
                ..ReadReport::default()
            },
            classes,
            width: None,
        };
        for source in sources {
            let (name, mut source) = source?;
            while reading.builder.len() < limit {
                let chunk = chunk(&mut source, limit - reading.builder.len());
                if chunk.is_empty() {
                    break;
                }
                let outcomes = runtime::map(chunk, |row| encode(encoder, row))?;
                if let Some(e) = encoder.fault() {
                    return Err(e);
                }
                for (at, outcome) in outcomes {
                    if reading.builder.len() < limit {
                        reading.take(outcome, || format!("{name}, {} {at}", source.unit))?;
                    }
                }
            }
        }
        let report = reading.report;
        if report.examples == 0 {
            return Err(empty(files, report.skipped, report.reasons.first()));
        }
        if report.unlabelled == report.examples {
            return Err(Self::nothing_to_learn(files, &report));
        }
        if report.unknown_share() > FOREIGN {
            let d = Diagnostic::error("tokenizer-unknown", report.unknown_text()).at(report
                .files
                .first()
                .cloned()
                .unwrap_or_default());
            return Err(Error::new(
                ErrorKind::Train,
                d.help("give the tokenizer that the model was trained with: --tokenizer"),
            ));
        }
        Ok((reading.builder.finish()?, report))
    }

    fn nothing_to_learn(files: &[PathBuf], report: &ReadReport) -> Error {
        let at = files
            .first()
            .map(|f| f.display().to_string())
            .unwrap_or_default();
        let (message, help) = if report.not_found == report.examples {
            let mut lacking = report.not_found().into_iter().filter(|(_, n, _)| *n > 0);
            let (name, n, ids) = lacking.next().unwrap_or(("response", 0, None));
            let help = match ids {
                Some(ids) => format!("in these texts its words are the tokens {ids:?}: give these ids (or those of them that are always the same) as `{name}_template`"),
                None => "it must stand in the text as it is written, and before the longest length is reached".to_owned(),
            };
            let message = match lacking.next() {
                Some((other, more, _)) => format!(
                    "the {name} template is missing in {n} examples, and the {other} template in the other {more}"
                ),
                None => format!("the {name} template is found in no example"),
            };
            (message, help)
        } else {
            (
                "no example has a token that is learned".to_owned(),
                "raise `max_seq_length`, or look at `truncation_side` and the labels".to_owned(),
            )
        };
        Error::new(
            ErrorKind::Train,
            Diagnostic::error("dataset-labels", message)
                .at(at)
                .help(help),
        )
    }

    fn tell(
        &self,
        report: &DataReport,
        tokenizer: Option<&Tokenizer>,
        encoder: &Encoder<'_>,
        note: &mut dyn FnMut(String),
    ) {
        for (what, read) in [
            ("data", Some(&report.data)),
            ("evaluation data", report.eval_data.as_ref()),
        ] {
            let Some(read) = read else { continue };
            let of =
                |n: u64, rest: String| format!("{what}: {n} of {} examples {rest}", read.examples);
            if read.skipped > 0 {
                let more = read.skipped - read.reasons.len() as u64;
                let more = if more > 0 {
                    format!("\n  and {more} more")
                } else {
                    String::new()
                };
                note(format!(
                    "{what}: {} of {} rows were left out:\n  {}{more}",
                    read.skipped,
                    read.rows,
                    read.reasons.join("\n  ")
                ));
            }
            if read.truncated > 0 {
                let longest = self.max_length(tokenizer);
                note(of(read.truncated, format!("were cut to {longest} tokens")));
            }
            for (name, n, ids) in read.not_found().into_iter().filter(|(_, n, _)| *n > 0) {
                let ids = ids.map_or_else(String::new, |ids| {
                    format!("; its words are the tokens {ids:?} there")
                });
                note(of(
                    n,
                    format!(
                        "do not have the {name} template in their tokens, and nothing of them is learned{ids}"
                    ),
                ));
            }
            if read.unlabelled > read.not_found {
                note(of(
                    read.unlabelled - read.not_found,
                    "have no token that is learned".to_owned(),
                ));
            }
            if read.alpaca > 0 {
                note(of(read.alpaca, "have `instruction` and `output`: they are learned as Alpaca's \"### Instruction:\" and \"### Response:\"; `prompt_template` and `completion_template` make another text".to_owned()));
            }
            if read.empty > 0 {
                note(format!(
                    "{what}: {} of {} rows are empty: nothing is learned of them, and they are left out",
                    read.empty, read.rows
                ));
            }
            if read.twice > 0 {
                note(of(read.twice, "begin with the beginning-of-sequence token twice: the text has it, and the tokenizer adds it; take it out of the template, or set `add_special_tokens` to false".to_owned()));
            }
            if read.unknown_share() > SUSPECT {
                note(format!(
                    "warning: {what}: {}: is it the model's own?",
                    read.unknown_text()
                ));
            }
            if read.apart > 0 {
                note(of(read.apart, "have a prompt whose tokens alone are other ones than in the whole text: what is learned begins where the prompt alone would end, as in TRL; let the prompt end before a space, and the completion begin with it".to_owned()));
            }
        }
        if self.task == Task::Classification
            && self.label_names.is_none()
            && !report.label_names.is_empty()
        {
            note(format!("classes: {}", report.label_names.join(", ")));
        }
        if self.response_template.is_some()
            && tokenizer.is_some_and(|t| t.eos_id() == Some(encoder.pad_id))
        {
            note("the padding token is the end-of-sequence token, which is therefore never learned: set `pad_token` to another one".to_owned());
        }
    }
}

/// What has been read so far.
struct Reading<'a> {
    args: &'a DataArguments,
    builder: Builder,
    report: ReadReport,
    classes: &'a mut Classes,
    width: Option<usize>,
}

impl Reading<'_> {
    fn take(
        &mut self,
        outcome: std::result::Result<Outcome, Fault>,
        place: impl Fn() -> String,
    ) -> Result<()> {
        self.report.rows += 1;
        let outcome = outcome.and_then(|mut o| {
            let reason = match self.settle(&mut o) {
                Ok(()) => return Ok(o),
                Err(reason) => reason,
            };
            Err(Fault::Row { at: 0, reason })
        });
        match outcome {
            Ok(o) => self.keep(&o),
            Err(Fault::File(e)) => Err(e),
            // An empty line is a row to `datasets` as well, and nothing is learned of it.
            Err(Fault::Row { reason, .. }) if reason == NO_TOKENS && self.args.task.of_tokens() => {
                self.report.empty += 1;
                Ok(())
            }
            Err(Fault::Row { reason, .. }) => match self.args.on_bad_row {
                OnBadRow::Error => Err(bad_row(&place(), reason)),
                OnBadRow::Skip => {
                    self.report.skipped += 1;
                    if self.report.reasons.len() < SHOWN {
                        self.report.reasons.push(format!("{}: {reason}", place()));
                    }
                    Ok(())
                }
            },
        }
    }

    /// What only the order of the rows decides: ids of new class names, and how many values a label has.
    fn settle(&mut self, o: &mut Outcome) -> std::result::Result<(), String> {
        if let Some(name) = &o.class {
            o.example.labels = Labels::Class(self.classes.id(name)?);
        } else if let Labels::Class(id) = &o.example.labels {
            self.classes.number(*id)?;
        }
        if self.args.task == Task::TokenClassification
            && let Labels::Each(labels) = &mut o.example.labels
        {
            let named: Vec<usize> = o.names.iter().map(|(at, _)| *at).collect();
            for (at, label) in labels.iter().enumerate() {
                if *label != IGNORE && !named.contains(&at) {
                    self.classes.number(*label)?;
                }
            }
            for (at, name) in &o.names {
                labels[*at] = self.classes.id(name)?;
            }
        }
        if let Labels::Values(v) = &o.example.labels {
            let width = *self.width.get_or_insert(v.len());
            if v.len() != width || width == 0 {
                return Err(format!(
                    "{} values, and the rows before have {width}",
                    v.len()
                ));
            }
        }
        Ok(())
    }

    fn keep(&mut self, o: &Outcome) -> Result<()> {
        self.builder.push(&o.example, o.truncated)?;
        for example in &o.more {
            self.builder.push(example, false)?;
            self.report.examples += 1;
            self.report.tokens += example.input_ids.len() as u64;
            self.report.labels += learned(example);
        }
        let r = &mut self.report;
        let (tokens, labels) = (o.example.input_ids.len() as u64, learned(&o.example));
        r.examples += 1;
        r.tokens += tokens;
        r.labels += labels;
        r.longest = r.longest.max(tokens);
        r.truncated += u64::from(o.truncated);
        r.not_found += u64::from(o.not_found.is_some());
        r.no_instruction += u64::from(o.not_found == Some(Marker::Instruction));
        r.unlabelled += u64::from(labels == 0);
        r.apart += u64::from(o.apart);
        r.alpaca += u64::from(o.alpaca);
        r.conversations += u64::from(o.chat);
        r.twice += u64::from(o.twice);
        (r.tokenized, r.unknown) = (r.tokenized + o.tokenized, r.unknown + o.unknown);
        r.see(&o.example.labels);
        let seen = match o.not_found {
            Some(Marker::Instruction) => &mut r.instruction_in_context,
            Some(Marker::Response) | None => &mut r.in_context,
        };
        if seen.is_none() {
            seen.clone_from(&o.in_context);
        }
        Ok(())
    }
}

/// Labels that count towards the loss; of token labels, those that a token stands before.
fn learned(e: &Example) -> u64 {
    match &e.labels {
        Labels::Tokens(l) => l.iter().skip(1).filter(|&&l| l != IGNORE).count() as u64,
        Labels::Sequence(l) | Labels::Each(l) => l.iter().filter(|&&l| l != IGNORE).count() as u64,
        Labels::Class(_) => 1,
        Labels::Span(..) => 2,
        Labels::Values(v) => v.len() as u64,
    }
}

fn chunk(source: &mut Source, most: usize) -> Vec<std::result::Result<Row, Fault>> {
    let (mut out, mut bytes) = (Vec::new(), 0);
    while out.len() < CHUNK.0.min(most) && bytes < CHUNK.1 {
        match source.next() {
            Some(row) => {
                bytes += row
                    .as_ref()
                    .map_or(0, |r| r.values.values().map(weight).sum());
                out.push(row);
            }
            None => break,
        }
    }
    out
}

/// About how many bytes a value takes.
fn weight(v: &Value) -> usize {
    match v {
        Value::String(s) => s.len(),
        Value::Array(list) => list.iter().map(weight).sum(),
        Value::Object(o) => o.values().map(weight).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

fn encode(
    encoder: &Encoder<'_>,
    row: std::result::Result<Row, Fault>,
) -> (u64, std::result::Result<Outcome, Fault>) {
    match row {
        Ok(Row { values, at }) => (
            at,
            encoder
                .encode(&values)
                .map_err(|reason| Fault::Row { at, reason }),
        ),
        Err(Fault::Row { at, reason }) => (at, Err(Fault::Row { at, reason })),
        Err(Fault::File(e)) => (0, Err(Fault::File(e))),
    }
}

/// The files of parts, each once.
fn files(parts: &[Part]) -> Vec<PathBuf> {
    let mut seen = std::collections::BTreeSet::new();
    let all = parts.iter().flat_map(|p| &p.files);
    all.filter(|file| seen.insert(*file)).cloned().collect()
}

fn bad_row(place: &str, reason: String) -> Error {
    let d = Diagnostic::error("dataset-row", reason).at(place);
    Error::new(
        ErrorKind::Train,
        d.help("`on_bad_row`: skip leaves such rows out and counts them"),
    )
}

fn empty(files: &[PathBuf], skipped: u64, first: Option<&String>) -> Error {
    let names: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    let error = |message: String| Diagnostic::error("dataset-empty", message).at(names.join(", "));
    let d = match first {
        Some(first) => {
            error(format!("all {skipped} rows are bad")).note(format!("the first is {first}"))
        }
        None => error("the dataset has no rows".to_owned())
            .help("one JSON object a line: {\"input_ids\": [1, 2, 3]} or {\"text\": \"…\"}"),
    };
    Error::new(ErrorKind::Train, d)
}

/// How rows become examples.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct ReadOptions<'a> {
    /// For rows of text.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Longest sequence in tokens; 0 sets no limit.
    pub max_length: usize,
    /// Size of the vocabulary, when it is known: ids are checked against it.
    pub vocab: Option<i64>,
}

#[cfg(test)]
impl Dataset {
    /// Reads JSON lines in the columns that [`DataArguments`] names roles: `{"input_ids": […], "labels": […]}`, `{"text": "…"}`,
    /// `{"prompt": "…", "completion": "…"}` (the prompt's labels are ignored) or `{"messages": […]}`. Labels default to the ids. A bad row
    /// is an error with its line number. Everything else is as in [`DataArguments::load`], which does more.
    pub(crate) fn read_jsonl(path: &std::path::Path, options: &ReadOptions<'_>) -> Result<Dataset> {
        let args = DataArguments {
            max_seq_length: Some(if options.max_length == 0 {
                usize::MAX
            } else {
                options.max_length
            }),
            ..DataArguments::default()
        };
        let encoder = Encoder::new(&args, options.tokenizer, options.vocab)?;
        let mut classes = Classes::default();
        let source = super::source::json_lines(path).map(|s| (path.display().to_string(), s));
        let files = [path.to_path_buf()];
        let (data, _) = args.collect(
            std::iter::once(source),
            &files,
            None,
            &encoder,
            &mut classes,
        )?;
        Ok(data)
    }
}
