//! Interim.
use crate::options::Options;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// On what is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataArguments {
    /// Files of training rows.
    pub data: Vec<String>,
    /// Longest sequence in tokens.
    pub max_seq_length: usize,
}

impl Default for DataArguments {
    fn default() -> Self {
        DataArguments {
            data: Vec::new(),
            max_seq_length: 2048,
        }
    }
}

impl Options for DataArguments {}

/// Interim.
pub struct Loaded {
    /// Training.
    pub train: super::Dataset,
    /// Evaluation.
    pub eval: Option<super::Dataset>,
    /// Padding.
    pub pad_id: i64,
}

impl DataArguments {
    /// Interim.
    pub fn relative_to(&mut self, folder: &std::path::Path) {
        for d in &mut self.data {
            *d = folder.join(&*d).display().to_string();
        }
    }

    /// Interim.
    pub fn load(
        &self,
        tokenizer: Option<&crate::text::Tokenizer>,
        vocab: Option<i64>,
        _seed: u64,
        note: &mut dyn FnMut(String),
    ) -> crate::error::Result<Loaded> {
        let options = super::ReadOptions {
            tokenizer,
            max_length: self.max_seq_length,
            vocab,
        };
        let train = super::Dataset::read_jsonl(std::path::Path::new(&self.data[0]), &options)?;
        note(format!("{} rows", train.len()));
        Ok(Loaded {
            train,
            eval: None,
            pad_id: tokenizer
                .and_then(crate::text::Tokenizer::pad_id)
                .unwrap_or(0),
        })
    }
}
