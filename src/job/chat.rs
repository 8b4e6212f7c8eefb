//! A conversation with a model, turn by turn.

use super::event::{Event, OnEvent};
use super::prepared::Prepared;
use crate::error::Result;
use crate::generate::{
    Decoder, Dialogue, Generated, Heard, Memory, Message, Prompt, PromptRow, PromptText,
};
use crate::text::Tokenizer;
use serde_json::{Map, Value, json};
use std::time::Instant;

/// A conversation. With a chat template, what was said is given to the model in its form; without one, the text just goes on.
pub(crate) struct Conversation<'a> {
    prepared: &'a Prepared,
    decoder: &'a Decoder,
    dialogue: Dialogue<'a>,
    kwargs: Map<String, Value>,
    adapter: Option<String>,
    messages: Vec<Message>,
    /// The text up to here, where there is no template.
    plain: String,
}

/// What the model said.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    /// The answer.
    pub answer: Generated,
    /// Tokens of the conversation that were not computed again.
    pub kept: usize,
    /// Wall time in seconds.
    pub seconds: f64,
}

impl<'a> Conversation<'a> {
    /// Nothing was said yet.
    ///
    /// # Errors
    /// A model without a tokenizer.
    pub(super) fn new(
        prepared: &'a Prepared,
        decoder: &'a Decoder,
        kwargs: Map<String, Value>,
        adapter: Option<String>,
    ) -> Result<Self> {
        if prepared.tokenizer.is_none() {
            Prompt::new("", true, None)?;
        }
        Ok(Conversation {
            prepared,
            decoder,
            dialogue: Dialogue::new(decoder),
            kwargs,
            adapter,
            messages: Vec::new(),
            plain: String::new(),
        })
    }

    /// Whether there is a chat template.
    pub(crate) fn has_template(&self) -> bool {
        let tokenizer = self.prepared.tokenizer.as_ref();
        tokenizer.is_some_and(Tokenizer::has_chat_template)
            || self.kwargs.contains_key("chat_template")
    }

    /// Whether keys and values are kept from turn to turn.
    pub(crate) fn keeps(&self) -> bool {
        self.decoder.memory() != Memory::None
    }

    /// Forgets what was said; what the system says stays.
    pub(crate) fn reset(&mut self) {
        self.messages.retain(|m| m.role == "system");
        self.plain.clear();
    }

    /// Begins anew with another text of the system, or with none.
    pub(crate) fn system(&mut self, text: &str) {
        self.messages.clear();
        self.plain.clear();
        if !text.is_empty() {
            self.messages.push(message("system", text));
        }
    }

    /// Says something to the model, which answers. What comes of the answer is an [`Event::Text`].
    ///
    /// # Errors
    /// What the template says about the messages, a conversation that is longer than the model's positions; then it is as it was before.
    pub(crate) fn say(&mut self, text: &str, events: OnEvent<'_>) -> Result<Turn> {
        let started = Instant::now();
        let template = self.has_template();
        let mut messages = self.messages.clone();
        messages.push(message("user", text));
        let plain = format!("{}{text}", self.plain);
        let row = PromptRow {
            text: if template {
                PromptText::Messages(messages.clone())
            } else {
                PromptText::Text(plain.clone())
            },
            chosen: self.adapter.as_ref().map(|name| json!(name)),
        };
        let prompts = self.prepared.encode(&[row], template, &self.kwargs)?;
        self.prepared.check_prompts(&prompts, events)?;
        let tokenizer = self.prepared.tokenizer.as_ref();
        let settings = &self.prepared.settings;
        let heard = &mut |_: usize, heard: Heard<'_>| match heard {
            Heard::Piece(piece) => {
                let piece = piece.to_owned();
                events(&Event::Text { index: 0, piece })
            }
            Heard::Whole(_) => Ok(()),
        };
        let answered = self
            .dialogue
            .answer(tokenizer, &prompts[0], settings, heard);
        let (answer, kept) = answered?;
        messages.push(message("assistant", &answer.text));
        self.messages = messages;
        self.plain = plain + &answer.text;
        if !self.plain.ends_with(char::is_whitespace) {
            self.plain.push('\n');
        }
        Ok(Turn {
            answer,
            kept,
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}

fn message(role: &str, content: &str) -> Message {
    Message {
        role: role.to_owned(),
        content: content.to_owned(),
    }
}
