//! Text in and out of token ids: tokenizers, templates and chat templates. Knows no model and no dataset.

mod chat;
mod template;
mod tokenizer;

pub use chat::{Chat, ChatOptions, ChatTemplate};
pub use template::Template;
pub use tokenizer::{Token, Tokenizer};
