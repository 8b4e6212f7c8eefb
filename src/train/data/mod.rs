//! Datasets: JSON lines of token ids or text, tokenized, cut and collated to batches.

mod args;

pub use args::DataArguments;

use crate::diag::{Diagnostic, nearest};
use crate::error::{Error, ErrorKind, Result};
use crate::text::Tokenizer;
use serde::Deserialize;
use std::io::BufRead;
use std::path::{Path, PathBuf};

/// The label that the loss ignores.
pub const IGNORE: i64 = -100;

/// What an example is to be trained towards.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// A label for each input token, [`IGNORE`] where the loss ignores it. Not shifted: the loss shifts.
    Tokens(Vec<i64>),
    /// The decoder's tokens of an encoder-decoder.
    Sequence(Vec<i64>),
    /// A class of the sequence.
    Class(i64),
    /// Numbers for the sequence: a regression target, or one 0 or 1 for each label of a multi-label task.
    Values(Vec<f32>),
}

/// One tokenized sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Token ids.
    pub input_ids: Vec<i64>,
    /// What it is trained towards.
    pub labels: Labels,
    /// Segment ids of a text pair, one for each token.
    pub token_type_ids: Option<Vec<i64>>,
    /// Which task of a `MultiTask` setup it belongs to.
    pub task_id: Option<i64>,
}

impl Example {
    /// A sequence with a label for each token.
    pub fn tokens(input_ids: Vec<i64>, labels: Vec<i64>) -> Self {
        Example {
            input_ids,
            labels: Labels::Tokens(labels),
            token_type_ids: None,
            task_id: None,
        }
    }
}

/// A tokenized dataset.
#[derive(Debug, Default)]
pub struct Dataset {
    examples: Vec<Example>,
    lengths: Vec<u32>,
    truncated: usize,
}

impl Dataset {
    /// A dataset of examples in memory.
    pub fn from_examples(examples: Vec<Example>) -> Self {
        let mut out = Dataset::default();
        for e in examples {
            out.push(e);
        }
        out
    }

    fn push(&mut self, example: Example) {
        self.lengths
            .push(u32::try_from(example.input_ids.len()).unwrap_or(u32::MAX));
        self.examples.push(example);
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Tokens of each example.
    pub fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// A number that tells datasets apart: over all tokens and labels of a dataset in memory.
    pub fn fingerprint(&self) -> String {
        let mut hash = blake3::Hasher::new();
        for (i, n) in self.lengths.iter().enumerate() {
            hash.update(&n.to_le_bytes());
            // The first examples stand for the rest: a dataset is not read twice for its name.
            if i < 64
                && let Some(e) = self.examples.get(i)
            {
                hash.update(format!("{e:?}").as_bytes());
            }
        }
        hash.finalize().to_hex()[..16].to_owned()
    }

    /// The example of an index below [`len`](Self::len).
    pub fn get(&self, index: usize) -> Result<Example> {
        match self.examples.get(index) {
            Some(e) => Ok(e.clone()),
            None => Err(Error::new(
                ErrorKind::Train,
                Diagnostic::error(
                    "dataset-index",
                    format!("no example {index} among {}", self.len()),
                ),
            )),
        }
    }

    /// Number of examples that were cut to the longest length allowed.
    pub fn truncated(&self) -> usize {
        self.truncated
    }
}

/// A row as it may stand in a JSON-lines file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    input_ids: Option<Vec<i64>>,
    labels: Option<Vec<i64>>,
    attention_mask: Option<Vec<i64>>,
    text: Option<String>,
    prompt: Option<String>,
    completion: Option<String>,
}

const COLUMNS: [&str; 6] = [
    "input_ids",
    "labels",
    "attention_mask",
    "text",
    "prompt",
    "completion",
];

/// How rows become examples.
#[derive(Default)]
pub struct ReadOptions<'a> {
    /// For rows of text.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Longest sequence in tokens.
    pub max_length: usize,
    /// Size of the vocabulary, when it is known: ids are checked against it.
    pub vocab: Option<i64>,
}

impl Dataset {
    /// Reads JSON lines: `{"input_ids": […], "labels": […]}`, `{"text": "…"}`, or `{"prompt": "…", "completion": "…"}` (the prompt's
    /// labels are ignored). Labels default to the ids. A bad row is an error with its line number.
    pub fn read_jsonl(path: &Path, options: &ReadOptions<'_>) -> Result<Dataset> {
        let file =
            std::fs::File::open(path).map_err(|e| Error::io(path, "cannot open the dataset", e))?;
        let mut out = Dataset::default();
        for (i, line) in std::io::BufReader::new(file).lines().enumerate() {
            let line =
                line.map_err(|e| Error::io(path, "cannot read the dataset as UTF-8 text", e))?;
            if line.trim().is_empty() {
                continue;
            }
            let bad = |message: String| {
                let at = PathBuf::from(path).display().to_string();
                Error::new(
                    ErrorKind::Train,
                    Diagnostic::error("dataset-row", message).at(format!("{at}, line {}", i + 1)),
                )
            };
            let row: Row = serde_json::from_str(&line).map_err(|e| bad(row_error(&e)))?;
            let Encoded {
                input_ids: mut ids,
                mut labels,
            } = row.example(options).map_err(bad)?;
            if options.max_length > 0 && ids.len() > options.max_length {
                ids.truncate(options.max_length);
                labels.truncate(options.max_length);
                out.truncated += 1;
            }
            out.push(Example::tokens(ids, labels));
        }
        if out.is_empty() {
            return Err(Error::new(
                ErrorKind::Train,
                Diagnostic::error("dataset-empty", "the dataset has no rows")
                    .at(path.display().to_string())
                    .help(
                        "one JSON object a line: {\"input_ids\": [1, 2, 3]} or {\"text\": \"…\"}",
                    ),
            ));
        }
        Ok(out)
    }
}

fn row_error(e: &serde_json::Error) -> String {
    let text = e.to_string();
    let unknown = text
        .strip_prefix("unknown field `")
        .and_then(|t| t.split('`').next());
    match unknown.and_then(|name| nearest(name, COLUMNS)) {
        Some(near) => format!("{text}; did you mean `{near}`?"),
        None => text,
    }
}

struct Encoded {
    input_ids: Vec<i64>,
    labels: Vec<i64>,
}

impl Row {
    fn example(self, options: &ReadOptions<'_>) -> std::result::Result<Encoded, String> {
        let example = match (self.input_ids, self.text, self.prompt, self.completion) {
            (Some(ids), None, None, None) => {
                let mut labels = self.labels.unwrap_or_else(|| ids.clone());
                if labels.len() != ids.len() {
                    return Err(format!(
                        "{} labels for {} input_ids",
                        labels.len(),
                        ids.len()
                    ));
                }
                if let Some(mask) = self.attention_mask {
                    if mask.len() != ids.len() {
                        return Err(format!(
                            "attention_mask of {} for {} input_ids",
                            mask.len(),
                            ids.len()
                        ));
                    }
                    if mask.contains(&0) {
                        let kept = |v: &[i64]| {
                            v.iter()
                                .zip(&mask)
                                .filter(|(_, m)| **m != 0)
                                .map(|(x, _)| *x)
                                .collect()
                        };
                        labels = kept(&labels);
                        return checked(
                            Encoded {
                                input_ids: kept(&ids),
                                labels,
                            },
                            options,
                        );
                    }
                }
                Encoded {
                    input_ids: ids,
                    labels,
                }
            }
            (None, Some(text), None, None) => {
                let ids = tokenize(options, &text, true)?;
                Encoded {
                    labels: ids.clone(),
                    input_ids: ids,
                }
            }
            (None, None, Some(prompt), Some(completion)) => {
                let mut ids = tokenize(options, &prompt, true)?;
                let mut labels = vec![IGNORE; ids.len()];
                let rest = tokenize(options, &completion, false)?;
                labels.extend(&rest);
                ids.extend(rest);
                Encoded {
                    input_ids: ids,
                    labels,
                }
            }
            _ => {
                return Err(
                    "a row has either `input_ids`, or `text`, or `prompt` and `completion`".into(),
                );
            }
        };
        checked(example, options)
    }
}

fn checked(example: Encoded, options: &ReadOptions<'_>) -> std::result::Result<Encoded, String> {
    if example.input_ids.is_empty() {
        return Err("the row has no tokens".into());
    }
    let outside = |id: i64| id < 0 || options.vocab.is_some_and(|v| id >= v);
    let vocab = options
        .vocab
        .map_or_else(|| "the vocabulary".to_owned(), |v| format!("0..{v}"));
    if let Some(id) = example.input_ids.iter().find(|&&id| outside(id)) {
        return Err(format!("token id {id} is outside {vocab}"));
    }
    if let Some(id) = example
        .labels
        .iter()
        .find(|&&id| id != IGNORE && outside(id))
    {
        return Err(format!("label {id} is outside {vocab} (and not {IGNORE})"));
    }
    Ok(example)
}

fn tokenize(
    options: &ReadOptions<'_>,
    text: &str,
    special: bool,
) -> std::result::Result<Vec<i64>, String> {
    match options.tokenizer {
        Some(t) => t.encode(text, special).map_err(|e| e.to_string()),
        None => Err("a row of text needs a tokenizer: give --tokenizer, or put tokenizer.json beside the model".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Dataset> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Dataset::read_jsonl(
            file.path(),
            &ReadOptions {
                max_length: 4,
                vocab: Some(10),
                ..ReadOptions::default()
            },
        )
    }

    #[test]
    fn long_rows_are_cut_and_counted() {
        let d = read("{\"input_ids\": [1, 2, 3, 4, 5, 6]}").unwrap();
        assert_eq!((d.lengths(), d.truncated()), (&[4][..], 1));
    }

    #[test]
    fn bad_rows_say_where_and_what() {
        for (row, want) in [
            ("{\"input_idz\": [1]}", "did you mean `input_ids`"),
            ("{\"input_ids\": [11]}", "token id 11 is outside 0..10"),
            (
                "{\"input_ids\": [1, 2], \"labels\": [1]}",
                "1 labels for 2 input_ids",
            ),
            ("{\"text\": \"a\"}", "needs a tokenizer"),
            ("not json", "line 2"),
        ] {
            let e = read(&format!("{{\"input_ids\": [1]}}\n{row}\n"))
                .unwrap_err()
                .to_string();
            assert!(e.contains(want) && e.contains("line 2"), "{e}");
        }
    }
}
