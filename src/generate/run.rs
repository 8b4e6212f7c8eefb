//! Prompts in, texts out.

use super::decoder::{Decoder, Logits, Session};
use super::sample::{Processors, draw, greedy, uniform};
use super::text::Pieces;
use super::{GenerationArguments, failed};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::text::Tokenizer;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A prompt, as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prompt {
    /// Token ids.
    pub ids: Vec<i64>,
    /// The task or adapter that it is for, where the graph chooses one for each sample.
    pub chosen: Option<i64>,
}

impl From<Vec<i64>> for Prompt {
    fn from(ids: Vec<i64>) -> Self {
        Prompt { ids, chosen: None }
    }
}

/// What arguments and model say together.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// How to generate.
    pub args: GenerationArguments,
    /// Tokens that end a text.
    pub eos: Vec<i64>,
    /// Most tokens of a text, prompt included, that the model has positions for.
    pub max_positions: Option<usize>,
    /// When texts end, finished or not.
    pub until: Until,
}

/// When texts end that are not finished.
#[derive(Clone, Debug, Default)]
pub(crate) struct Until {
    /// Once this is set.
    pub flag: Option<Arc<AtomicBool>>,
    /// Once it is so late.
    pub time: Option<Instant>,
}

impl Until {
    fn is_now(&self) -> bool {
        self.flag
            .as_ref()
            .is_some_and(|f| f.load(Ordering::Relaxed))
            || self.time.is_some_and(|t| Instant::now() >= t)
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it.
    Eos,
    /// A stop string came.
    Stop,
    /// It has as many tokens as are allowed, or as the model has positions for.
    Length,
    /// It was asked to end.
    Interrupted,
}

/// A generated text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generated {
    /// Index of the prompt.
    pub prompt: usize,
    /// Which of the prompt's texts.
    pub sequence: usize,
    /// Number of the prompt's tokens.
    pub prompt_tokens: usize,
    /// New tokens, the one that ended the text included.
    pub ids: Vec<i64>,
    /// New text; empty without a tokenizer.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The child of a `Parallel` that it is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
}

/// What there is of a text.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Heard<'a> {
    /// What is new.
    Piece(&'a str),
    /// All of it.
    Whole(&'a Generated),
}

/// Receives texts as they come: index among the results, and what there is.
pub(crate) type OnText<'a> = &'a mut dyn FnMut(usize, Heard<'_>) -> Result<()>;

/// Generates texts: for each prompt as many as asked for, one behind the other.
pub(crate) fn generate(
    decoder: &Decoder,
    tokenizer: Option<&Tokenizer>,
    prompts: &[Prompt],
    settings: &Settings,
    on_text: OnText<'_>,
) -> Result<Vec<Generated>> {
    let args = &settings.args;
    args.validate()?;
    check(prompts, settings, tokenizer)?;
    let copies = args.num_return_sequences;
    let mut out: Vec<Option<Generated>> = vec![None; prompts.len() * copies];
    for batch in batches(decoder, prompts, copies, args.batch_size) {
        let made = one_batch(decoder, tokenizer, prompts, &batch, settings, on_text)?;
        for (index, generation) in batch.into_iter().zip(made) {
            on_text(index, Heard::Whole(&generation))?;
            out[index] = Some(generation);
        }
    }
    Ok(out.into_iter().flatten().collect())
}

fn check(prompts: &[Prompt], settings: &Settings, tokenizer: Option<&Tokenizer>) -> Result<()> {
    let mut found = Vec::new();
    let max = settings.max_positions.unwrap_or(usize::MAX);
    for (i, p) in prompts.iter().enumerate() {
        if p.ids.is_empty() {
            let d = Diagnostic::error("prompt-empty", "the prompt has no tokens");
            found.push(
                d.at(format!("prompt {}", i + 1))
                    .help("write at least one word"),
            );
        } else if p.ids.len() >= max {
            let n = p.ids.len();
            let d = Diagnostic::error(
                "prompt-length",
                format!("the prompt has {n} tokens; the model has {max} positions"),
            );
            found.push(
                d.at(format!("prompt {}", i + 1))
                    .help(format!("shorten it to at most {} tokens", max - 1)),
            );
        }
    }
    if tokenizer.is_none() && !settings.args.stop_strings.is_empty() {
        found.push(
            Diagnostic::error("tokenizer-missing", "stop strings need a tokenizer")
                .help("--tokenizer tokenizer.json"),
        );
    }
    if found.is_empty() {
        Ok(())
    } else {
        Err(Error::many(ErrorKind::Run, found))
    }
}

/// Indices of results that are computed together.
fn batches(decoder: &Decoder, prompts: &[Prompt], copies: usize, size: usize) -> Vec<Vec<usize>> {
    let all: Vec<usize> = (0..prompts.len() * copies).collect();
    if decoder.ragged() || decoder.is_encoder_decoder() {
        return all.chunks(size).map(<[usize]>::to_vec).collect();
    }
    let mut by_length: std::collections::BTreeMap<usize, Vec<usize>> =
        std::collections::BTreeMap::new();
    for i in all {
        by_length
            .entry(prompts[i / copies].ids.len())
            .or_default()
            .push(i);
    }
    by_length
        .values()
        .flat_map(|v| v.chunks(size))
        .map(<[usize]>::to_vec)
        .collect()
}

/// A text that grows.
struct Growing<'a> {
    index: usize,
    prompt: &'a [i64],
    ids: Vec<i64>,
    pieces: Option<Pieces<'a>>,
    finished: Option<FinishReason>,
}

fn one_batch(
    decoder: &Decoder,
    tokenizer: Option<&Tokenizer>,
    prompts: &[Prompt],
    batch: &[usize],
    settings: &Settings,
    on_text: OnText<'_>,
) -> Result<Vec<Generated>> {
    let copies = settings.args.num_return_sequences;
    let mut rows: Vec<Growing<'_>> = batch
        .iter()
        .map(|&index| Growing::new(index, &prompts[index / copies].ids, tokenizer, settings))
        .collect();
    let starts: Vec<Vec<i64>> = rows.iter().map(|r| r.prompt.to_vec()).collect();
    let chosen = batch.iter().map(|i| prompts[i / copies].chosen).collect();
    let (mut session, logits) = decoder.begin(&starts, chosen)?;
    grow(&mut session, logits, &mut rows, settings, on_text)?;
    Ok(rows.into_iter().map(|r| r.done(copies)).collect())
}

/// Lets texts grow until each has ended.
fn grow(
    session: &mut Session<'_>,
    mut logits: Logits,
    rows: &mut [Growing<'_>],
    settings: &Settings,
    on_text: OnText<'_>,
) -> Result<()> {
    let args = &settings.args;
    let processors = Processors::new(args, &settings.eos);
    loop {
        let ends = settings.until.is_now();
        let mut next = Vec::with_capacity(rows.len());
        for (i, row) in rows.iter_mut().enumerate() {
            if ends && row.finished.is_none() {
                row.end(on_text)?;
            }
            if row.finished.is_some() {
                next.push(None);
                continue;
            }
            let text = session.rows().get(i).map_or(&[][..], |r| r);
            let mut scores = logits.row(i).to_vec();
            processors.apply(&mut scores, text, row.ids.len());
            let id = if args.do_sample {
                draw(
                    &scores,
                    uniform(args.seed, row.index as u64, row.ids.len() as u64),
                )?
            } else {
                greedy(&scores)?
            };
            row.take(id, text.len(), settings, on_text)?;
            next.push(Some(id));
        }
        if rows.iter().all(|r| r.finished.is_some()) {
            return Ok(());
        }
        logits = session.step(&next)?;
    }
}

/// A text that goes on for several turns: what a turn has in common with the one before is not computed again.
pub(crate) struct Dialogue<'d> {
    decoder: &'d Decoder,
    session: Option<Session<'d>>,
    turns: usize,
}

impl<'d> Dialogue<'d> {
    /// Nothing was said yet.
    pub(crate) fn new(decoder: &'d Decoder) -> Self {
        Dialogue {
            decoder,
            session: None,
            turns: 0,
        }
    }

    /// Goes on with the whole text up to here. The answer, and how many tokens of the text were not computed again.
    ///
    /// # Errors
    /// Those of [`generate`].
    pub(crate) fn answer(
        &mut self,
        tokenizer: Option<&Tokenizer>,
        prompt: &Prompt,
        settings: &Settings,
        on_text: OnText<'_>,
    ) -> Result<(Generated, usize)> {
        check(std::slice::from_ref(prompt), settings, tokenizer)?;
        // What is drawn differs from turn to turn.
        let row = Growing::new(self.turns, &prompt.ids, tokenizer, settings);
        self.turns += 1;
        // A turn that fails leaves nothing behind.
        let (mut session, logits, reused) = if let Some(mut session) = self.session.take() {
            let (logits, reused) = session.go_on(&prompt.ids)?;
            (session, logits, reused)
        } else {
            let chosen = prompt.chosen.map(|c| vec![c]);
            let (session, logits) = self
                .decoder
                .begin(std::slice::from_ref(&prompt.ids), chosen)?;
            (session, logits, 0)
        };
        let mut rows = [row];
        grow(&mut session, logits, &mut rows, settings, on_text)?;
        self.session = Some(session);
        let [row] = rows;
        Ok((row.done(usize::MAX), reused))
    }
}

impl<'a> Growing<'a> {
    fn new(
        index: usize,
        prompt: &'a [i64],
        tokenizer: Option<&'a Tokenizer>,
        settings: &'a Settings,
    ) -> Self {
        let args = &settings.args;
        Growing {
            index,
            prompt,
            ids: Vec::new(),
            pieces: tokenizer.map(|t| Pieces::new(t, &args.stop_strings, args.skip_special_tokens)),
            finished: None,
        }
    }

    /// The text as a result, of which there are so many for each prompt.
    fn done(self, copies: usize) -> Generated {
        Generated {
            prompt: self.index / copies,
            sequence: self.index % copies,
            prompt_tokens: self.prompt.len(),
            text: self
                .pieces
                .map_or_else(String::new, |p| p.text().to_owned()),
            ids: self.ids,
            finish_reason: self.finished.unwrap_or(FinishReason::Length),
            adapter: None,
        }
    }

    /// Ends the text where it is.
    fn end(&mut self, on_text: OnText<'_>) -> Result<()> {
        self.finished = Some(FinishReason::Interrupted);
        let rest = match &mut self.pieces {
            Some(pieces) => pieces.finish()?,
            None => "",
        };
        if rest.is_empty() {
            return Ok(());
        }
        on_text(self.index, Heard::Piece(rest))
    }

    /// Adds a token behind `length` others.
    fn take(
        &mut self,
        id: i64,
        length: usize,
        settings: &Settings,
        on_text: OnText<'_>,
    ) -> Result<()> {
        self.ids.push(id);
        let ended = settings.eos.contains(&id);
        let mut stopped = false;
        if let Some(pieces) = &mut self.pieces {
            // What ends a text is no part of it, special or not.
            if !ended {
                stopped = pieces.push(id)?;
            }
        }
        let full = self.ids.len() >= settings.args.max_new_tokens
            || settings.max_positions.is_some_and(|m| length + 1 >= m);
        self.finished = match (ended, stopped, full) {
            (true, _, _) => Some(FinishReason::Eos),
            (_, true, _) => Some(FinishReason::Stop),
            (_, _, true) => Some(FinishReason::Length),
            _ => None,
        };
        let Some(pieces) = &mut self.pieces else {
            return Ok(());
        };
        let piece = pieces.ready().to_owned();
        let rest = if self.finished.is_some() {
            pieces.finish()?.to_owned()
        } else {
            String::new()
        };
        if piece.is_empty() && rest.is_empty() {
            return Ok(());
        }
        on_text(self.index, Heard::Piece(&(piece + &rest)))
    }
}

impl Settings {
    /// Arguments with what the model's files say.
    pub(crate) fn new(
        args: GenerationArguments,
        tokenizer: Option<&Tokenizer>,
        max_positions: Option<usize>,
    ) -> Self {
        let own = || tokenizer.and_then(Tokenizer::eos_id).into_iter().collect();
        let eos = args
            .eos_token_id
            .as_ref()
            .map_or_else(own, |ids| ids.list().to_vec());
        Settings {
            args,
            eos,
            max_positions,
            until: Until::default(),
        }
    }
}

impl Prompt {
    /// A prompt of text.
    ///
    /// # Errors
    /// Without a tokenizer.
    pub(crate) fn new(text: &str, special: bool, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let Some(tokenizer) = tokenizer else {
            let mut e = failed("tokenizer-missing", "a prompt of text needs a tokenizer");
            e = Error::new(
                e.kind(),
                e.findings()[0]
                    .clone()
                    .help("put tokenizer.json beside the model, or give --tokenizer FILE"),
            );
            return Err(e);
        };
        Ok(tokenizer.encode(text, special)?.into())
    }
}
