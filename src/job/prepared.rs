//! A model that is ready to be evaluated, or to go on with a text.

use super::attach::AdapterSettings;
use super::event::{Event, OnEvent, note, warn};
use super::files::ModelFiles;
use super::model::ModelSettings;
use crate::adapters::{Choice, choice};
use crate::analyze::logits::vocabulary;
use crate::api;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::generate::{
    Decoder, DecoderOptions, GenerationArguments, Message, Prompt, PromptRow, PromptText, Settings,
    generation_config,
};
use crate::infer::Verified;
use crate::select::Selection;
use crate::text::{SUSPECT, Tokenizer};
use serde_json::{Map, Value, json};

/// A model with its adapters, its tokenizer, and how it generates.
pub(super) struct Prepared {
    pub(super) files: ModelFiles,
    pub(super) model: Verified,
    /// What the interface selected before adapters were attached; `None` where no interface is known.
    selection: Option<Selection>,
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) settings: Settings,
}

impl Prepared {
    /// Reads a model and what stands beside it, and attaches the adapters that are named. `generation` stands over the model's own
    /// `generation_config.json`.
    pub(super) fn open(
        files: ModelFiles,
        model: &ModelSettings,
        generation: Map<String, Value>,
        events: OnEvent<'_>,
    ) -> Result<Self> {
        let arguments = arguments(&files, generation, events)?;
        let adapters = &model.adapters().adapters;
        let tokenizer = files.tokenizer(model.tokenizer.as_deref(), adapters)?;
        let base = files.open(events)?;
        warn(
            events,
            &tokenizer.as_ref().and_then(|t| files.foreign(t, &base)),
        )?;
        let (model, selection) = adapted(base, &files, &model.adapters(), events)?;
        let settings = Settings::new(arguments, tokenizer.as_ref(), files.positions());
        Ok(Prepared {
            files,
            model,
            selection,
            tokenizer,
            settings,
        })
    }

    /// Prompts as tokens. With `chat`, a text is what a user says.
    pub(super) fn encode(
        &self,
        texts: &[PromptRow],
        chat: bool,
        kwargs: &Map<String, Value>,
    ) -> Result<Vec<Prompt>> {
        let tokenizer = self.tokenizer.as_ref();
        let said = |text: &str| {
            vec![Message {
                role: "user".into(),
                content: text.to_owned(),
            }]
        };
        let encode = |text: &PromptText| match text {
            PromptText::Ids(ids) => Ok(ids.clone().into()),
            PromptText::Text(text) if chat => conversation(&said(text), kwargs, tokenizer),
            PromptText::Text(text) => Prompt::new(text, true, tokenizer),
            PromptText::Messages(messages) => conversation(messages, kwargs, tokenizer),
        };
        let choice = choice(self.model.model())?;
        let row = |(i, row): (usize, &PromptRow)| {
            let chosen = chosen(choice.as_ref(), row.chosen.as_ref())
                .map_err(|d| Error::new(ErrorKind::Run, d.at(format!("prompt {}", i + 1))))?;
            Ok(Prompt {
                chosen,
                ..encode(&row.text)?
            })
        };
        texts.iter().enumerate().map(row).collect()
    }

    /// Says and refuses what is wrong with prompts.
    pub(super) fn check_prompts(&self, prompts: &[Prompt], events: OnEvent<'_>) -> Result<()> {
        self.check_ids(prompts)?;
        self.check_bos(prompts, events)?;
        warn(events, &self.unknown(prompts)?)
    }

    /// Warns of prompts that begin with the beginning-of-sequence token twice.
    fn check_bos(&self, prompts: &[Prompt], events: OnEvent<'_>) -> Result<()> {
        let Some(bos) = self.tokenizer.as_ref().and_then(Tokenizer::bos_id) else {
            return Ok(());
        };
        let twice = prompts.iter().filter(|p| p.ids.starts_with(&[bos, bos]));
        match twice.count() {
            0 => Ok(()),
            n => note(
                events,
                format!(
                    "warning: {n} prompts begin with the beginning-of-sequence token twice: the tokenizer adds it, so the text should not have it"
                ),
            ),
        }
    }

    /// Refuses prompts with tokens that the model's table does not have.
    fn check_ids(&self, prompts: &[Prompt]) -> Result<()> {
        let Some(rows) = vocabulary(&self.model.model().graph) else {
            return Ok(());
        };
        let outside = |p: &Prompt| p.ids.iter().copied().find(|id| !(0..rows).contains(id));
        let Some((at, id)) = prompts
            .iter()
            .enumerate()
            .find_map(|(at, p)| Some((at, outside(p)?)))
        else {
            return Ok(());
        };
        let message = format!("token id {id} is outside 0..{rows}, the model's vocabulary");
        let d = Diagnostic::error("prompt-token", message).at(format!("prompt {at}"));
        let d = match &self.tokenizer {
            Some(t) => d.help(format!(
                "the tokenizer, of {} tokens, is of another model: give the model's own, --tokenizer",
                t.size()
            )),
            None => d.help("give ids of the model's own tokenizer"),
        };
        Err(Error::new(ErrorKind::Run, d))
    }

    /// Refuses prompts of which the tokenizer knows nothing, and warns of those of which it does not know much.
    fn unknown(&self, prompts: &[Prompt]) -> Result<Option<Diagnostic>> {
        let Some(tokenizer) = self.tokenizer.as_ref() else {
            return Ok(None);
        };
        let tokens: usize = prompts.iter().map(|p| p.ids.len()).sum();
        let unknown: u64 = prompts.iter().map(|p| tokenizer.unknown(&p.ids)).sum();
        let share = unknown as f64 / tokens.max(1) as f64;
        if share <= SUSPECT {
            return Ok(None);
        }
        let message = format!(
            "{:.0} % of the prompts' tokens ({unknown} of {tokens}) are unknown to the tokenizer",
            100.0 * share
        );
        let make = if unknown as usize == tokens {
            Diagnostic::error
        } else {
            Diagnostic::warning
        };
        let d = make("tokenizer-unknown", message)
            .help("is it the model's own? Give another one: --tokenizer");
        if unknown as usize == tokens {
            return Err(Error::new(ErrorKind::Run, d));
        }
        Ok(Some(d))
    }

    /// The decoder of the model, compiled as the settings say.
    pub(super) fn decoder(&self, model: &ModelSettings, events: OnEvent<'_>) -> Result<Decoder> {
        let args = &self.settings.args;
        let options = DecoderOptions {
            use_cache: args.use_cache,
            portable: model.portable,
            decoder_start_token_id: args.decoder_start_token_id,
            cache_size: self.files.cache_size(),
            compile: model.compile_options()?,
        };
        let decoder = Decoder::new(self.model.clone(), self.selection.as_ref(), options)?;
        warn(events, decoder.warnings())?;
        Ok(decoder)
    }
}

/// The id of the adapter that a prompt is for, where the graph chooses one for each sample.
fn chosen(
    choice: Option<&Choice>,
    said: Option<&Value>,
) -> std::result::Result<Option<i64>, Diagnostic> {
    match (choice, said) {
        (None, None) => Ok(None),
        (None, Some(said)) => {
            let found = format!("it is for {said}, and the model has nothing to choose from");
            Err(Diagnostic::error("prompt-adapter", found)
                .help("attach several adapters with --adapter-ids, or a setup with `MultiTask`"))
        }
        (Some(choice), None) if choice.or_none => Ok(Some(-1)),
        (Some(choice), said) => {
            let id = said.and_then(|said| choice.id(said));
            id.map(Some).ok_or_else(|| {
                let found = match said {
                    Some(Value::String(name)) => format!("it is for `{name}`, which the model does not have"),
                    Some(said) => format!("it is for {said}, which the model does not have"),
                    None => "it does not say which adapter it is for".to_owned(),
                };
                Diagnostic::error("prompt-adapter", found).help(format!(
                    "--adapter-name NAME, or `adapter_ids` in a row of a file of prompts; NAME is one of {}",
                    choice.names.join(", ")
                ))
            })
        }
    }
}

/// How to generate: what the model's files say, with what is given over it.
fn arguments(
    files: &ModelFiles,
    given: Map<String, Value>,
    events: OnEvent<'_>,
) -> Result<GenerationArguments> {
    let (config, warnings) = generation_config(&files.path)?;
    let of_sampling =
        ["temperature", "top_k", "top_p", "min_p"].map(|field| (field, given.contains_key(field)));
    let arguments = GenerationArguments::over(&config, given)?;
    arguments.validate()?;
    warn(events, &warnings)?;
    for (field, given) in of_sampling {
        if given && !arguments.do_sample {
            let flag = field.replace('_', "-");
            let line = format!("warning: --{flag} has no effect without --do-sample");
            note(events, line)?;
        }
    }
    Ok(arguments)
}

fn adapted(
    model: Verified,
    files: &ModelFiles,
    adapters: &AdapterSettings,
    events: OnEvent<'_>,
) -> Result<(Verified, Option<Selection>)> {
    if !adapters.adapters.is_empty() {
        let adapted = adapters.attach(model, &files.path, 42, false, events)?;
        api::check_finite(&adapted.model, Some(&adapted.selection))?;
        return Ok((adapted.model, Some(adapted.selection)));
    }
    let found = adapters.interface(&files.path, &model);
    let found = found.and_then(|i| i.select(&model));
    api::check_finite(&model, found.as_ref().ok())?;
    match found {
        Ok(selection) => Ok((model, Some(selection))),
        Err(e) if adapters.interface.is_some() => Err(e),
        Err(e) => {
            let line = format!("the layers are not known, nothing is cached: {e}");
            events(&Event::Detail(line))?;
            Ok((model, None))
        }
    }
}

/// A conversation in the form of the model's chat template.
fn conversation(
    messages: &[Message],
    kwargs: &Map<String, Value>,
    tokenizer: Option<&Tokenizer>,
) -> Result<Prompt> {
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
    let said = |m: &Message| json!({ "role": m.role, "content": m.content });
    let messages: Vec<Value> = messages.iter().map(said).collect();
    let text = tokenizer.chat(&messages, kwargs, true)?;
    Prompt::new(&text, false, Some(tokenizer))
}
