//! Datasets: JSON lines of token ids or text, tokenized, cut and collated to batches.

use crate::diag::{Diagnostic, nearest};
use crate::error::{Error, ErrorKind, Result};
use serde::Deserialize;
use std::io::BufRead;
use std::path::{Path, PathBuf};

/// The label that the loss ignores.
pub const IGNORE: i64 = -100;

/// One tokenized sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub input_ids: Vec<i64>,
    /// A label for each token, [`IGNORE`] where the loss ignores it. Not shifted: the loss shifts.
    pub labels: Vec<i64>,
}

/// A tokenized dataset.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    /// The sequences, in file order.
    pub examples: Vec<Example>,
    /// Sequences that were cut to the longest length allowed.
    pub truncated: usize,
}

/// A batch, row-major `[rows, width]`, padded on the right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Number of sequences.
    pub rows: usize,
    /// Tokens of the longest.
    pub width: usize,
    /// Token ids; the pad id behind the end.
    pub input_ids: Vec<i64>,
    /// 1 for tokens, 0 for padding.
    pub attention_mask: Vec<i64>,
    /// Labels; [`IGNORE`] for padding.
    pub labels: Vec<i64>,
}

impl Batch {
    /// Number of labels that count, after the shift.
    pub fn labelled(&self) -> usize {
        self.labels
            .chunks(self.width.max(1))
            .map(|row| row.iter().skip(1).filter(|&&l| l != IGNORE).count())
            .sum()
    }

    /// Number of tokens, padding not counted.
    pub fn tokens(&self) -> usize {
        self.attention_mask.iter().filter(|&&m| m == 1).count()
    }

    /// Pads sequences to a batch.
    pub fn collate(examples: &[&Example], pad: i64) -> Batch {
        let (rows, width) = (
            examples.len(),
            examples
                .iter()
                .map(|e| e.input_ids.len())
                .max()
                .unwrap_or(0),
        );
        let mut batch = Batch {
            rows,
            width,
            input_ids: vec![pad; rows * width],
            attention_mask: vec![0; rows * width],
            labels: vec![IGNORE; rows * width],
        };
        for (r, e) in examples.iter().enumerate() {
            let (at, n) = (r * width, e.input_ids.len());
            batch.input_ids[at..at + n].copy_from_slice(&e.input_ids);
            batch.attention_mask[at..at + n].fill(1);
            batch.labels[at..at + n].copy_from_slice(&e.labels);
        }
        batch
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

/// Turns text into token ids.
pub struct TextTokenizer(tokenizers::Tokenizer);

impl TextTokenizer {
    /// From a `tokenizer.json`.
    pub fn open(path: &Path) -> Result<Self> {
        match tokenizers::Tokenizer::from_file(path) {
            Ok(t) => Ok(TextTokenizer(t)),
            Err(e) => Err(Error::new(
                ErrorKind::Train,
                Diagnostic::error("tokenizer", format!("not a readable tokenizer.json: {e}"))
                    .at(path.display().to_string()),
            )),
        }
    }

    fn encode(&self, text: &str, special: bool) -> std::result::Result<Vec<i64>, String> {
        let encoding = self.0.encode(text, special).map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().iter().map(|&i| i64::from(i)).collect())
    }

    /// The id of the tokenizer's padding token, if it declares one.
    pub fn pad_id(&self) -> Option<i64> {
        self.0.get_padding().map(|p| i64::from(p.pad_id))
    }
}

/// How rows become examples.
#[derive(Default)]
pub struct ReadOptions<'a> {
    /// For rows of text.
    pub tokenizer: Option<&'a TextTokenizer>,
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
            let mut example = row.example(options).map_err(bad)?;
            if options.max_length > 0 && example.input_ids.len() > options.max_length {
                example.input_ids.truncate(options.max_length);
                example.labels.truncate(options.max_length);
                out.truncated += 1;
            }
            out.examples.push(example);
        }
        if out.examples.is_empty() {
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

impl Row {
    fn example(self, options: &ReadOptions<'_>) -> std::result::Result<Example, String> {
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
                            Example {
                                input_ids: kept(&ids),
                                labels,
                            },
                            options,
                        );
                    }
                }
                Example {
                    input_ids: ids,
                    labels,
                }
            }
            (None, Some(text), None, None) => {
                let ids = tokenize(options, &text, true)?;
                Example {
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
                Example {
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

fn checked(example: Example, options: &ReadOptions<'_>) -> std::result::Result<Example, String> {
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
        Some(t) => t.encode(text, special),
        None => Err("a row of text needs a tokenizer: give --tokenizer, or put tokenizer.json beside the model".into()),
    }
}

/// The order of `n` examples in an epoch: a seeded shuffle, the same on every machine.
pub fn epoch_order(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let mut state = seed ^ epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    for i in (1..n).rev() {
        let j = ((u128::from(next()) * (i as u128 + 1)) >> 64) as usize;
        order.swap(i, j);
    }
    order
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
    fn rows_become_examples_and_batches() {
        let d =
            read("{\"input_ids\": [1, 2, 3]}\n\n{\"input_ids\": [4, 5], \"labels\": [-100, 5]}\n")
                .unwrap();
        let batch = Batch::collate(&d.examples.iter().collect::<Vec<_>>(), 9);
        assert_eq!(batch.input_ids, [1, 2, 3, 4, 5, 9]);
        assert_eq!(batch.attention_mask, [1, 1, 1, 1, 1, 0]);
        assert_eq!(batch.labels, [1, 2, 3, -100, 5, -100]);
        assert_eq!((batch.labelled(), batch.tokens()), (3, 5));
    }

    #[test]
    fn long_rows_are_cut_and_counted() {
        let d = read("{\"input_ids\": [1, 2, 3, 4, 5, 6]}").unwrap();
        assert_eq!((d.examples[0].input_ids.len(), d.truncated), (4, 1));
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

    #[test]
    fn an_epoch_is_a_permutation_that_depends_on_seed_and_epoch() {
        let mut a = epoch_order(100, 1, 0);
        assert_ne!(a, epoch_order(100, 1, 1));
        assert_ne!(a, epoch_order(100, 2, 0));
        assert_eq!(a, epoch_order(100, 1, 0));
        a.sort_unstable();
        assert_eq!(a, (0..100).collect::<Vec<_>>());
    }
}
