//! Text in and out of token ids: tokenizers, templates and chat templates. Knows no model and no dataset.

mod chat;
mod classes;
mod fields;
mod growth;
mod settings;
mod template;
mod tokenizer;

pub(crate) use chat::{ChatOptions, ChatTemplate, chosen};
pub(crate) use template::Template;
pub(crate) use tokenizer::{
    CHAT_TEMPLATE, SUSPECT, Token, Tokenizer, is_template_file, template_source,
};
