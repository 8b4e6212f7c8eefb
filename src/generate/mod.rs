//! Text from a decoder: its graph is executed token by token, with a cache of keys and values where there is one or can be one.
//!
//! [`Decoder`] turns tokens into the logits of the next one and knows no text; [`GenerationArguments`] and [`Processors`] choose the
//! next token, with Hugging Face's names and meanings; [`generate`] puts them together for prompts in batches.
//!
//! Law: what a prompt gets does not depend on the prompts beside it, nor on whether there is a cache.

mod args;
mod decoder;
mod prompts;
mod run;
mod sample;
mod score;
mod text;

#[cfg(test)]
pub(crate) use args::Ids;
pub(crate) use args::{GenerationArguments, generation_config};
pub(crate) use decoder::{Decoder, DecoderOptions, Memory};
pub(crate) use prompts::{Message, PromptRow, PromptText, prompts, read_prompts};
pub(crate) use run::{Dialogue, FinishReason, Generated, Heard, Prompt, Settings, generate};
pub(crate) use score::{Scored, Scorer, score};

use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind};

fn failed(code: &'static str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Run, Diagnostic::error(code, message))
}
