//! Generation: a model, adapters and prompts become texts.

use super::chat::Conversation;
use super::check::{fits, usage};
use super::event::{Event, OnEvent, progress};
use super::files::ModelFiles;
use super::model::ModelSettings;
use super::prepared::Prepared;
use super::request::{Purpose, Request, Resolved};
use crate::error::Result;
use crate::generate::{
    Generated, GenerationArguments, Heard, Memory, PromptRow, PromptText, generate, prompts,
    read_prompts,
};
use crate::infer::Verified;
use crate::ir::contract;
use crate::options::{self, Options, fields};
use crate::rewrite::passes::channel;
use crate::train::Task;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Texts from a model: what `rewrite generate` does, as a call.
///
/// Settings are those of the command's flags, under their names in snake case. Of a job file, the model, its interface and its
/// tokenizer are read; adapters are named here.
///
/// ```
/// use onnx_graft::job::Generation;
///
/// let report = Generation::open("fixtures/skill/model.onnx")?
///     .prompt("Question: Tom has 3 apples . Tom buys 4 apples . how many apples has Tom now ? Answer:")
///     .set("max_new_tokens", 2)
///     .run(&mut |_| Ok(()))?;
/// assert_eq!(report.results[0].ids.len(), 2);
/// # Ok::<(), onnx_graft::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Generation {
    request: Request,
    prompts: Vec<String>,
    rows: Vec<PromptRow>,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GenerationReport {
    /// The texts: for each prompt as many as asked for, one behind the other; with a `Parallel`, those of its first child, then of the next.
    pub results: Vec<Generated>,
    /// Number of new tokens.
    pub new_tokens: usize,
    /// New tokens in a second.
    pub tokens_per_second: f64,
    /// Where keys and values were kept.
    pub cache: Memory,
    /// Whether there was a tokenizer: results have tokens only, without it.
    #[serde(skip)]
    pub readable: bool,
}

/// What is asked of a generation besides its model and how it generates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct PromptSettings {
    /// File of prompts, one a line; or JSON lines with `prompt`, `messages` or `input_ids` in a file named .jsonl.
    prompts: Option<String>,
    /// Prompts are what a user says, in the form of the model's chat template.
    chat: bool,
    /// The chat template, as text or as a file (default: the one that an adapter was trained with, else that of the tokenizer).
    chat_template: Option<String>,
    /// Further variables of the chat template: `{"enable_thinking": false}`.
    chat_template_kwargs: Map<String, Value>,
    /// The adapter that prompts are for which do not say one: its name, in a model that chooses one for each sample by `adapter_ids` or
    /// `task_ids`; `__base__` is none.
    adapter_name: Option<String>,
    /// Texts are generated one after the other, so that each comes as a whole.
    one_by_one: bool,
}

impl Options for PromptSettings {}

impl Generation {
    /// A generation with an ONNX file, or with the model of a job file.
    ///
    /// # Errors
    /// A job file that cannot be read, or holds no job.
    pub fn open(file: impl Into<PathBuf>) -> Result<Generation> {
        let generation = Generation::new(Request::new(file));
        generation.request.job_file()?;
        Ok(generation)
    }

    /// The generation of a request.
    pub fn new(request: Request) -> Generation {
        Generation {
            request,
            prompts: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Adds a prompt.
    #[must_use]
    pub fn prompt(mut self, text: impl Into<String>) -> Generation {
        self.prompts.push(text.into());
        self
    }

    /// Sets something by its name.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<Value>) -> Generation {
        self.request = self.request.set(name, value);
        self
    }

    /// Adds the prompts of lines, which are called so: JSON lines if the first one is an object, else one prompt a line.
    ///
    /// # Errors
    /// Lines that cannot be read, and rows that hold no prompt.
    pub(crate) fn lines(mut self, lines: impl BufRead, name: &str) -> Result<Generation> {
        self.rows.extend(prompts(lines, Path::new(name), None)?);
        Ok(self)
    }

    /// Generates. New text comes as [`Event::Text`] while it is made, and a text that is done as [`Event::Answer`].
    ///
    /// # Errors
    /// Settings that do not fit, files that cannot be read, a graph that has no logits of tokens, and what `events` returns.
    pub fn run(&self, events: OnEvent<'_>) -> Result<GenerationReport> {
        let resolved = self.request.resolve(Purpose::Generate, events)?;
        let asked = asked(&resolved)?;
        let texts = self.texts(&asked)?;
        let (mut prepared, model) = prepared(&resolved, &asked, events)?;
        let copies = prepared.settings.args.num_return_sequences;
        if asked.one_by_one && texts.len() * copies > 1 {
            prepared.settings.args.batch_size = 1;
        }
        let kwargs = &asked.chat_template_kwargs;
        let prompts = prepared.encode(&texts, asked.chat, kwargs)?;
        prepared.check_prompts(&prompts, events)?;
        let children = children(&prepared.model)?;
        let started = Instant::now();
        let total = prompts.len() * copies * children.len();
        let mut results: Vec<Generated> = Vec::with_capacity(total);
        let mut cache = Memory::None;
        let mut done = 0;
        events(&Event::Asked {
            prompts: texts.iter().map(shown).collect(),
            copies,
            texts: total,
            readable: prepared.tokenizer.is_some(),
        })?;
        for (name, own) in children {
            prepared.model = own;
            let decoder = prepared.decoder(&model, events)?;
            let first = results.len();
            let of_child = |text: &Generated| Generated {
                adapter: name.clone(),
                ..text.clone()
            };
            let made = generate(
                &decoder,
                prepared.tokenizer.as_ref(),
                &prompts,
                &prepared.settings,
                &mut |index, heard| {
                    let index = first + index;
                    let text = match heard {
                        Heard::Piece(piece) => {
                            let piece = piece.to_owned();
                            return events(&Event::Text { index, piece });
                        }
                        Heard::Whole(text) => of_child(text),
                    };
                    events(&Event::Answer { index, text })?;
                    done += 1;
                    progress(events, "texts", done, total)
                },
            )?;
            results.extend(made.iter().map(of_child));
            cache = decoder.memory();
        }
        let new_tokens: usize = results.iter().map(|t| t.ids.len()).sum();
        Ok(GenerationReport {
            results,
            new_tokens,
            tokens_per_second: new_tokens as f64 / started.elapsed().as_secs_f64().max(1e-9),
            cache,
            readable: prepared.tokenizer.is_some(),
        })
    }

    /// Prepares the model for a conversation, and lets `talk` hold it. An answer ends when the flag is set.
    ///
    /// # Errors
    /// Those of [`run`](Self::run) that do not hang on prompts; a model with several active adapters; and what `talk` returns.
    pub(crate) fn converse(
        &self,
        stop: &Arc<AtomicBool>,
        events: OnEvent<'_>,
        talk: &mut dyn FnMut(&mut Conversation<'_>) -> Result<()>,
    ) -> Result<()> {
        let resolved = self.request.resolve(Purpose::Generate, events)?;
        let asked = asked(&resolved)?;
        let (mut prepared, model) = prepared(&resolved, &asked, events)?;
        if !channel::children(&prepared.model)?.is_empty() {
            return Err(usage(
                "a conversation is with one adapter, and `Parallel` runs several",
                "--active NAME",
            ));
        }
        prepared.settings.args.num_return_sequences = 1;
        prepared.settings.until.flag = Some(Arc::clone(stop));
        let decoder = prepared.decoder(&model, events)?;
        let (kwargs, adapter) = (asked.chat_template_kwargs, asked.adapter_name);
        let mut conversation = Conversation::new(&prepared, &decoder, kwargs, adapter)?;
        talk(&mut conversation)
    }

    fn texts(&self, asked: &PromptSettings) -> Result<Vec<PromptRow>> {
        let own = self.prompts.iter().cloned().map(PromptText::Text);
        let mut texts: Vec<PromptRow> = own.map(PromptRow::from).collect();
        texts.extend(self.rows.iter().cloned());
        if let Some(path) = &asked.prompts {
            texts.extend(read_prompts(Path::new(path))?);
        }
        for row in &mut texts {
            let all = asked.adapter_name.as_ref().map(|n| json!(n));
            row.chosen = row.chosen.take().or(all);
        }
        if texts.is_empty() {
            return Err(usage(
                "no prompt was given",
                "--prompt TEXT, --prompts FILE, or a text on standard input",
            ));
        }
        Ok(texts)
    }
}

/// The models that generate: with a `Parallel`, each of its children by itself.
fn children(model: &Verified) -> Result<Vec<(Option<String>, Verified)>> {
    let found = channel::children(model)?.into_iter();
    let mut all: Vec<_> = found.map(|(name, model)| (Some(name), model)).collect();
    if all.is_empty() {
        all.push((None, model.clone()));
    }
    Ok(all)
}

/// What is asked besides the model and how it generates.
fn asked(resolved: &Resolved) -> Result<PromptSettings> {
    resolved.check_names(&[
        fields::<ModelSettings>(),
        fields::<PromptSettings>(),
        fields::<GenerationArguments>(),
    ])?;
    resolved.read()
}

/// The model that is asked for, with its template.
fn prepared(
    resolved: &Resolved,
    asked: &PromptSettings,
    events: OnEvent<'_>,
) -> Result<(Prepared, ModelSettings)> {
    let model = resolved.model_settings()?;
    let given = options::take::<GenerationArguments>(&mut resolved.settings.clone());
    let files = ModelFiles::locate(&resolved.model, model.variant.as_deref())?;
    let mut prepared = Prepared::open(files, &model, given, events)?;
    check_graph(&prepared)?;
    if let (Some(tokenizer), Some(given)) = (&mut prepared.tokenizer, &asked.chat_template) {
        tokenizer.set_template(given)?;
    }
    Ok((prepared, model))
}

/// A prompt as it is shown: its text, what was said last, or its tokens.
fn shown(row: &PromptRow) -> String {
    match &row.text {
        PromptText::Text(text) => text.clone(),
        PromptText::Messages(messages) => messages
            .last()
            .map_or_else(String::new, |m| m.content.clone()),
        PromptText::Ids(ids) => {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            ids.join(" ")
        }
    }
}

/// Refuses a graph that cannot go on with a text.
fn check_graph(prepared: &Prepared) -> Result<()> {
    let g = &prepared.model.model().graph;
    if g.find(contract::DECODER_INPUT_IDS).is_none() {
        fits(&prepared.model, Task::CausalLm, true)?;
    }
    Ok(())
}
