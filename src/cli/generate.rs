//! `rewrite generate`.

use super::args::{AdapterArgs, ExecArgs, GenerateArgs};
use super::{Ui, attach, compile_options, open, stdout, usage};
use crate::diag::{Diagnostic, Severity};
use crate::error::{Error, ErrorKind, Result};
use crate::generate::{
    Decoder, DecoderOptions, Generation, GenerationArguments, Memory, Message, Prompt, PromptText,
    Settings, generate, generation_config, read_prompts,
};
use crate::infer::Verified;
use crate::ir::contract;
use crate::select::Selection;
use crate::text::Tokenizer;
use crate::train::Task;
use indicatif::ProgressBar;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

pub(super) fn run(args: &GenerateArgs, ui: &Ui) -> Result<()> {
    let texts = prompts(args)?;
    let mut given = args.generation.given.clone();
    if !args.stop_strings.is_empty() {
        given.insert("stop_strings".into(), json!(args.stop_strings));
    }
    let mut prepared = Prepared::new(
        &args.model,
        &args.select,
        args.tokenizer.as_deref(),
        &given,
        ui,
    )?;
    let g = &prepared.model.model().graph;
    if g.find(contract::DECODER_INPUT_IDS).is_none() {
        super::train::fits(&prepared.model, Task::CausalLm, true)?;
    }
    if g.find(contract::TASK_IDS).is_some_and(|v| g.is_input(v)) {
        return Err(usage(
            "a `MultiTask` chooses the adapter of each sample, and a prompt says none",
            "--active NAME, with the adapter to generate with",
        ));
    }
    let many = texts.len() * prepared.settings.args.num_return_sequences > 1;
    let stream = args.stream && !ui.json;
    if stream && many {
        // One text after the other.
        prepared.settings.args.batch_size = 1;
    }
    let prompts = prepared.encode(&texts, args.chat)?;
    let decoder = prepared.decoder(&args.exec, args.portable, ui)?;
    let bar = if ui.progress() && !stream {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    bar.enable_steady_tick(Duration::from_millis(200));
    let started = Instant::now();
    let mut last = None;
    let mut pieces = 0usize;
    let mut show = |index: usize, piece: &str| {
        pieces += 1;
        bar.set_message(format!("{pieces} pieces of text"));
        if !stream {
            return Ok(());
        }
        let border = if last.is_some_and(|l| l != index) {
            "\n"
        } else {
            ""
        };
        last = Some(index);
        stdout(format!("{border}{piece}").as_bytes())
    };
    let texts = generate(
        &decoder,
        prepared.tokenizer.as_ref(),
        &prompts,
        &prepared.settings,
        &mut show,
    )?;
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    if stream {
        return stdout(b"\n");
    }
    let tokens: usize = texts.iter().map(|t| t.ids.len()).sum();
    let report = json!({
        "results": texts, "new_tokens": tokens, "tokens_per_second": tokens as f64 / seconds.max(1e-9),
        "cache": match decoder.memory() { Memory::None => "none", Memory::Own => "own", Memory::Added => "added" },
    });
    ui.result(&report, || {
        texts
            .iter()
            .map(|t| line(t, prepared.tokenizer.is_some()))
            .collect()
    })
}

/// A text as it is printed: its ids where there is no tokenizer.
fn line(text: &Generation, readable: bool) -> String {
    if readable {
        return format!("{}\n", text.text);
    }
    let ids: Vec<String> = text.ids.iter().map(ToString::to_string).collect();
    format!("{}\n", ids.join(" "))
}

fn prompts(args: &GenerateArgs) -> Result<Vec<PromptText>> {
    let mut texts: Vec<PromptText> = args.prompt.iter().cloned().map(PromptText::Text).collect();
    if let Some(path) = &args.prompts {
        texts.extend(read_prompts(path)?);
    }
    if texts.is_empty() {
        return Err(usage(
            "no prompt was given",
            "--prompt TEXT, or --prompts FILE",
        ));
    }
    Ok(texts)
}

/// A model with everything that stands beside it.
pub(super) struct Prepared {
    pub(super) model: Verified,
    pub(super) selection: Option<Selection>,
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) settings: Settings,
    config: Value,
}

impl Prepared {
    pub(super) fn new(
        path: &Path,
        select: &AdapterArgs,
        tokenizer: Option<&Path>,
        given: &Map<String, Value>,
        ui: &Ui,
    ) -> Result<Self> {
        let (config, warnings) = generation_config(path)?;
        let arguments = GenerationArguments::over(&config, given.clone())?;
        arguments.validate()?;
        ui.warnings(&warnings);
        for field in ["temperature", "top_k", "top_p", "min_p"] {
            if given.contains_key(field) && !arguments.do_sample {
                ui.note(&format!(
                    "warning: --{} has no effect without --do-sample",
                    field.replace('_', "-")
                ));
            }
        }
        let beside = path.with_file_name("tokenizer.json");
        let tokenizer = match tokenizer {
            Some(path) => Some(Tokenizer::open(path)?),
            None if beside.exists() => Some(Tokenizer::open(&beside)?),
            None => None,
        };
        let model = open(path, ui)?;
        let (model, selection) = if select.adapters.is_empty() {
            let selection = attach::interface(select.interface.as_deref(), path, &model)
                .and_then(|i| i.select(&model));
            match selection {
                Ok(selection) => (model, Some(selection)),
                Err(e) if select.interface.is_some() => return Err(e),
                Err(e) => {
                    if ui.verbose > 0 {
                        ui.note(&format!("the layers are not known, nothing is cached: {e}"));
                    }
                    (model, None)
                }
            }
        } else {
            let adapted = attach::attached(model, path, select, 42, false, ui)?;
            (adapted.model, Some(adapted.selection))
        };
        let config = config_beside(path);
        let settings = Settings::new(arguments, tokenizer.as_ref(), positions(&config));
        Ok(Prepared {
            model,
            selection,
            tokenizer,
            settings,
            config,
        })
    }

    /// Prompts as tokens.
    pub(super) fn encode(&self, texts: &[PromptText], chat: bool) -> Result<Vec<Prompt>> {
        let tokenizer = self.tokenizer.as_ref();
        let said = |text: &str| {
            vec![Message {
                role: "user".into(),
                content: text.to_owned(),
            }]
        };
        let encode = |text: &PromptText| match text {
            PromptText::Ids(ids) => Ok(Prompt { ids: ids.clone() }),
            PromptText::Text(text) if chat => conversation(&said(text), tokenizer),
            PromptText::Text(text) => Prompt::new(text, true, tokenizer),
            PromptText::Messages(messages) => conversation(messages, tokenizer),
        };
        texts.iter().map(encode).collect()
    }

    /// Names of the classes in the order of their ids, as config.json or the head that was attached gives them.
    pub(super) fn classes(&self) -> Option<Vec<String>> {
        let ids = self.config["label2id"].as_object()?;
        let mut names: Vec<(i64, String)> = ids
            .iter()
            .filter_map(|(n, i)| Some((i.as_i64()?, n.clone())))
            .collect();
        names.sort_unstable();
        Some(names.into_iter().map(|(_, n)| n).collect())
    }

    pub(super) fn decoder(&self, exec: &ExecArgs, portable: bool, ui: &Ui) -> Result<Decoder> {
        let args = &self.settings.args;
        let size = |name: &str| self.config[name].as_u64().map(|n| n as usize);
        let heads = size("num_key_value_heads")
            .or(size("num_attention_heads"))
            .or(size("n_head"));
        let divided = || Some(size("hidden_size")? / size("num_attention_heads")?.max(1));
        let options = DecoderOptions {
            use_cache: args.use_cache,
            portable,
            decoder_start_token_id: args.decoder_start_token_id,
            cache_size: heads
                .zip(size("head_dim").or_else(divided))
                .map(|(a, b)| [a, b]),
            compile: compile_options(exec)?,
        };
        let decoder = Decoder::new(self.model.clone(), self.selection.as_ref(), options)?;
        ui.warnings(
            decoder
                .warnings()
                .iter()
                .filter(|d| d.severity == Severity::Warning),
        );
        Ok(decoder)
    }
}

/// A conversation in the form of the model's chat template.
fn conversation(messages: &[Message], tokenizer: Option<&Tokenizer>) -> Result<Prompt> {
    let Some(tokenizer) = tokenizer else {
        let d = Diagnostic::error(
            "tokenizer-missing",
            "a conversation needs a tokenizer and its chat template",
        );
        return Err(Error::new(
            ErrorKind::Unsupported,
            d.help("put tokenizer.json and tokenizer_config.json beside the model"),
        ));
    };
    let said = |m: &Message| serde_json::json!({ "role": m.role, "content": m.content });
    let messages: Vec<Value> = messages.iter().map(said).collect();
    Prompt::new(&tokenizer.chat(&messages, true)?, false, Some(tokenizer))
}

/// What `config.json` beside a model says; null where there is none. A text model inside another one has its own part.
/// How many positions a model was made for.
fn positions(config: &Value) -> Option<usize> {
    let names = ["max_position_embeddings", "n_positions", "n_ctx"];
    let found = names.iter().find_map(|k| config[*k].as_u64());
    found.and_then(|n| usize::try_from(n).ok())
}

/// Rows end where the positions of the model beside its config.json end, unless a longer length was asked for.
pub(super) fn within_positions(length: &mut Option<usize>, model: &Path, ui: &Ui) {
    /// The usual length.
    const USUAL: usize = 2048;
    let Some(most) = positions(&config_beside(model)) else {
        return;
    };
    match *length {
        None if most < USUAL => *length = Some(most),
        Some(asked) if asked > most => ui.note(&format!(
            "warning: `max_seq_length` is {asked}, and the model was made for {most} positions; longer rows may fail"
        )),
        None | Some(_) => {}
    }
}

fn config_beside(model: &Path) -> Value {
    let text = std::fs::read_to_string(model.with_file_name("config.json")).unwrap_or_default();
    let config: Value = serde_json::from_str(&text).unwrap_or_default();
    match config.get("text_config") {
        Some(inner) => inner.clone(),
        None => config,
    }
}
