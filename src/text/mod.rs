//! Text in and out of token ids: tokenizers and templates. Knows no model and no dataset.

mod tokenizer;

pub use tokenizer::Tokenizer;
