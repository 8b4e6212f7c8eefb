//! Text in and out of token ids: tokenizers, templates and chat templates. Knows no model and no dataset.

mod chat;
mod settings;
mod template;
mod tokenizer;

pub(crate) use chat::{ChatOptions, ChatTemplate};
pub(crate) use template::Template;
pub(crate) use tokenizer::{SUSPECT, Token, Tokenizer};
