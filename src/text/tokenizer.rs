//! A tokenizer with what stands beside it: special tokens by role.

use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Turns text into token ids and back.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    pad: Option<i64>,
    eos: Option<i64>,
    bos: Option<i64>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// From a `tokenizer.json`, or the folder that holds one. A `tokenizer_config.json` beside it names the special tokens.
    pub fn open(path: &Path) -> Result<Self> {
        let path = if path.is_dir() {
            path.join("tokenizer.json")
        } else {
            path.to_path_buf()
        };
        let inner = tokenizers::Tokenizer::from_file(&path)
            .map_err(|e| failed(&path, format!("not a readable tokenizer.json: {e}")))?;
        let config = config(&path.with_file_name("tokenizer_config.json"))?;
        let special = |role: &str| {
            // Either the token itself or an AddedToken object.
            let token = match config.get(role)? {
                Value::Object(o) => o.get("content")?.as_str()?.to_owned(),
                other => other.as_str()?.to_owned(),
            };
            inner.token_to_id(&token).map(i64::from)
        };
        let pad = special("pad_token").or_else(|| inner.get_padding().map(|p| i64::from(p.pad_id)));
        let (eos, bos) = (special("eos_token"), special("bos_token"));
        Ok(Tokenizer {
            inner,
            path,
            pad,
            eos,
            bos,
        })
    }

    /// The ids of a text; `special` adds the special tokens of the tokenizer's post-processor.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<i64>> {
        let encoding = self
            .inner
            .encode(text, special)
            .map_err(|e| failed(&self.path, e.to_string()))?;
        let real = encoding
            .get_attention_mask()
            .iter()
            .zip(encoding.get_ids())
            .filter(|(m, _)| **m != 0);
        Ok(real.map(|(_, &i)| i64::from(i)).collect())
    }

    /// The text of ids.
    pub fn decode(&self, ids: &[i64], skip_special: bool) -> Result<String> {
        let ids: std::result::Result<Vec<u32>, _> = ids.iter().map(|&i| u32::try_from(i)).collect();
        let ids = ids.map_err(|_| failed(&self.path, "a negative token id".to_owned()))?;
        self.inner
            .decode(&ids, skip_special)
            .map_err(|e| failed(&self.path, e.to_string()))
    }

    /// The id of a token, if the vocabulary has it.
    pub fn token_id(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// The id of the padding token, if one is declared.
    pub fn pad_id(&self) -> Option<i64> {
        self.pad
    }

    /// The id that ends a sequence, if one is declared.
    pub fn eos_id(&self) -> Option<i64> {
        self.eos
    }

    /// The id that begins a sequence, if one is declared.
    pub fn bos_id(&self) -> Option<i64> {
        self.bos
    }
}

fn config(path: &Path) -> Result<Value> {
    if !path.exists() {
        return Ok(Value::Null);
    }
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::io(path, "cannot read the tokenizer's configuration", e))?;
    serde_json::from_str(&text).map_err(|e| failed(path, e.to_string()))
}

fn failed(path: &Path, message: String) -> Error {
    Error::new(
        ErrorKind::Train,
        Diagnostic::error("tokenizer", message).at(path.display().to_string()),
    )
}
