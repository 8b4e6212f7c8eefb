//! Rows that are conversations: their text by the chat template, and which of it is learned.

use super::{Encoder, Found, Outcome, reason};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::text::{ChatOptions, ChatTemplate, Tokenizer, chosen, template_source};
use crate::train::data::args::{AssistantLoss, AssistantTurn, DataArguments};
use crate::train::data::forms::{conversation, learned, messages};
use crate::train::data::roles::Roles;
use crate::train::data::tokens::overlap;
use serde_json::{Map, Value};
use std::ops::Range;

impl Encoder<'_> {
    pub(super) fn chat(&self) -> Found<&ChatTemplate> {
        let none = "messages need a chat template: put tokenizer_config.json or chat_template.jinja beside tokenizer.json, or give `chat_template`";
        self.tokenizer()?;
        self.chat.as_ref().ok_or_else(|| none.to_owned())
    }

    /// The tools of a row; a table holds them as JSON text, and an empty one where there are none.
    pub(super) fn tools(roles: &Roles<'_>) -> Found<Option<Value>> {
        let empty = |v: &Value| v.as_str().is_some_and(|s| s.trim().is_empty());
        if roles.get("tools").is_none_or(empty) {
            return Ok(None);
        }
        roles.list("tools").map(|list| Some(Value::Array(list)))
    }

    /// The variables of the template, those of the row before those of all.
    pub(super) fn kwargs(&self, roles: &Roles<'_>) -> Found<Map<String, Value>> {
        let mut all = self.args.chat_template_kwargs.clone();
        let own = match roles.get("chat_template_kwargs") {
            None => return Ok(all),
            Some(Value::Object(own)) => own.clone(),
            Some(Value::String(text)) => serde_json::from_str(text)
                .map_err(|_| format!("`chat_template_kwargs` is {text:?}, not an object"))?,
            Some(other) => return Err(format!("`chat_template_kwargs` is {other}, not an object")),
        };
        if chosen(&own).map_err(|e| reason(&e))?.is_some() {
            return Err("`chat_template_kwargs` of a row cannot choose a template".to_owned());
        }
        // What a table does not have in a row is null there.
        all.extend(own.into_iter().filter(|(_, v)| !v.is_null()));
        Ok(all)
    }

    /// A conversation.
    pub(super) fn conversation(&self, roles: &Roles<'_>) -> Found<Outcome> {
        let (tools, kwargs) = (Self::tools(roles)?, self.kwargs(roles)?);
        let chat = self.chat()?;
        let messages = conversation(roles, chat.reads_calls())?;
        let options = ChatOptions {
            add_generation_prompt: false,
            tools: tools.as_ref(),
            kwargs: Some(&kwargs),
        };
        let learned = learned(&messages)?;
        let (text, spans) = match self.args.assistant_only_loss {
            AssistantLoss::Turns(false) if learned.contains(&false) => {
                return Err("a message has `weight` 0, and all of the conversation is learned: set `assistant_only_loss`".to_owned());
            }
            AssistantLoss::Turns(false) => {
                let text = chat
                    .render(&messages, options)
                    .map_err(|e| reason(&e))?
                    .text;
                let all = 0..text.len();
                (text, vec![all])
            }
            AssistantLoss::Turns(true) => {
                let (text, spans) = chat.turns(&messages, options).map_err(|e| reason(&e))?;
                (text, weighed(spans, &learned)?)
            }
            AssistantLoss::One(AssistantTurn::Last) => {
                let whole = chat.render(&messages, options).map_err(|e| reason(&e))?;
                let last = messages.iter().rposition(|m| m["role"] == "assistant");
                let span = match (whole.assistant, last) {
                    (Some(spans), _) => spans.last().cloned(),
                    (None, Some(i)) => Some(
                        chat.added(&messages, i..i + 1, &whole.text, options)
                            .map_err(|e| reason(&e))?,
                    ),
                    (None, None) => None,
                };
                let span = span.filter(|_| learned.last() != Some(&false));
                (whole.text, span.into_iter().collect())
            }
        };
        self.spoken(&text, &spans)
    }

    /// Messages that are learned behind messages that are read.
    pub(super) fn reply(
        &self,
        prompt: &[Value],
        completion: &[Value],
        roles: &Roles<'_>,
    ) -> Found<Outcome> {
        let chat = self.chat()?;
        let (tools, kwargs) = (Self::tools(roles)?, self.kwargs(roles)?);
        let options = ChatOptions {
            add_generation_prompt: false,
            tools: tools.as_ref(),
            kwargs: Some(&kwargs),
        };
        let calls = chat.reads_calls();
        let (asked, said) = (messages(prompt, calls)?, messages(completion, calls)?);
        if learned(&said)?.contains(&false) {
            return Err(
                "a message of the completion has `weight` 0, and all of it is learned".to_owned(),
            );
        }
        let all = [asked, said].concat();
        let text = chat.render(&all, options).map_err(|e| reason(&e))?.text;
        let span = chat
            .added(&all, prompt.len()..all.len(), &text, options)
            .map_err(|e| reason(&e))?;
        self.spoken(&text, &[span])
    }

    fn spoken(&self, text: &str, spans: &[Range<usize>]) -> Found<Outcome> {
        let tokens = self.tokens(text, None, false)?;
        let mut out = self.masked(text, tokens, |t| spans.iter().any(|s| overlap(&t.span, s)))?;
        out.chat = true;
        Ok(out)
    }
}

/// The spans of the turns that are learned; `learned` says it of each turn.
fn weighed(spans: Vec<Range<usize>>, learned: &[bool]) -> Found<Vec<Range<usize>>> {
    if !learned.contains(&false) {
        return Ok(spans);
    }
    if spans.len() != learned.len() {
        return Err(format!(
            "a message has `weight` 0, and the template marks {} spans for {} turns of the assistant: which is whose is not known",
            spans.len(),
            learned.len()
        ));
    }
    let both = spans.into_iter().zip(learned);
    Ok(both.filter(|(_, l)| **l).map(|(span, _)| span).collect())
}

/// The template of conversations: the one that is asked for, or the tokenizer's.
///
/// # Errors
/// One that does not parse, is not there, or is asked for in two ways.
pub(super) fn template(
    args: &DataArguments,
    tokenizer: Option<&Tokenizer>,
) -> Result<Option<ChatTemplate>> {
    let Some(tokenizer) = tokenizer else {
        return Ok(None);
    };
    let chosen = chosen(&args.chat_template_kwargs)?;
    if let (Some(one), Some(other)) = (chosen, &args.chat_template)
        && one != other
    {
        let d = Diagnostic::error(
            "chat-template",
            "`chat_template` and `chat_template_kwargs` choose different templates",
        );
        return Err(Error::new(ErrorKind::Train, d.help("remove one of them")));
    }
    if let Some(given) = chosen {
        return tokenizer.template(given).map(Some);
    }
    let Some(given) = &args.chat_template else {
        return if tokenizer.has_chat_template() {
            tokenizer.chat_template().map(Some)
        } else {
            Ok(None)
        };
    };
    if let Some(named) = tokenizer.named_template(given)? {
        return Ok(Some(named));
    }
    let source = template_source(given)?;
    ChatTemplate::new(&source, tokenizer.special_tokens().clone()).map(Some)
}
