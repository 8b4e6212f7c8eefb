//! How much longer a tokenizer may make a text. A chain of replacements can double it at each step, so a small file asks for any amount of
//! memory.
//!
//! Each step of a normalizer or decoder has a factor that bounds what becomes of a byte. Where the product of the factors keeps a text below
//! its [limit](longest), nothing is done. Where it does not, the steps are taken one by one over pieces of the text, and the lengths are
//! looked at.

use base64::Engine;
use serde_json::Value;
use std::borrow::Cow;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, Tokenizer};

/// The most bytes that tokens may become: as many as a row of data may have.
const LONGEST: u64 = 64 << 20;
/// A piece of a text is cut so that it becomes no more than this.
const PIECE: u64 = 1 << 20;

/// The most bytes that a text of so many may become: 16 times as many, and of a long text twice as many.
fn longest(bytes: usize) -> u64 {
    let bytes = bytes as u64;
    let usual = bytes.saturating_mul(16).clamp(1 << 20, LONGEST);
    usual.max(bytes.saturating_mul(2))
}

/// What the steps of a tokenizer may do to a text.
pub(super) struct Growth {
    steps: Vec<(NormalizerWrapper, u64)>,
    normalized: u64,
    decoded: u64,
}

impl Growth {
    /// Of a tokenizer that was read.
    pub(super) fn of(tokenizer: &Tokenizer) -> Growth {
        let json =
            |step: Option<serde_json::Result<Value>>| step.and_then(Result::ok).unwrap_or_default();
        let normalizer = json(tokenizer.get_normalizer().map(serde_json::to_value));
        let decoder = json(tokenizer.get_decoder().map(serde_json::to_value));
        let mut flat = Vec::new();
        flatten(&normalizer, "normalizers", &mut flat);
        let steps = flat.iter().filter_map(|step| {
            let made = serde_json::from_value((*step).clone()).ok()?;
            Some((made, factor(step)))
        });
        let product = |all: &[&Value]| all.iter().fold(1, |p: u64, s| p.saturating_mul(factor(s)));
        let mut decoders = Vec::new();
        flatten(&decoder, "decoders", &mut decoders);
        Growth {
            normalized: product(&flat),
            decoded: product(&decoders),
            steps: steps.collect(),
        }
    }

    /// Refuses a text that the normalizer makes too long.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        let limit = longest(text.len());
        if (text.len() as u64).saturating_mul(self.normalized) <= limit {
            return Ok(());
        }
        let mut now = Cow::Borrowed(text);
        for (step, factor) in &self.steps {
            let mut next = String::new();
            for piece in pieces(&now, (PIECE / factor).max(1) as usize) {
                let mut normalized = NormalizedString::from(piece);
                step.normalize(&mut normalized).map_err(|e| e.to_string())?;
                next.push_str(normalized.get());
                if next.len() as u64 > limit {
                    return Err(format!(
                        "the normalizer makes more than {} MiB of a text of {} bytes",
                        limit >> 20,
                        text.len()
                    ));
                }
            }
            now = Cow::Owned(next);
        }
        Ok(())
    }

    /// Refuses tokens that the decoder may make too long; `bytes` is the length of all of them, asked for only where it matters.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn check_decoded(&self, bytes: impl FnOnce() -> usize) -> Result<(), String> {
        const HARMLESS: u64 = 256;
        if self.decoded <= HARMLESS || (bytes() as u64).saturating_mul(self.decoded) <= LONGEST {
            return Ok(());
        }
        Err(format!(
            "the decoder may make more than {} MiB of these tokens",
            LONGEST >> 20
        ))
    }
}

/// The steps of a sequence, of sequences in it too.
fn flatten<'a>(step: &'a Value, key: &str, out: &mut Vec<&'a Value>) {
    match (step["type"].as_str(), step[key].as_array()) {
        (Some("Sequence"), Some(steps)) => steps.iter().for_each(|s| flatten(s, key, out)),
        (None, _) => {}
        (Some(_), _) => out.push(step),
    }
}

/// The most bytes that a step makes of one.
fn factor(step: &Value) -> u64 {
    let added = |key: &str| 1 + step[key].as_str().map_or(0, str::len) as u64;
    match step["type"].as_str().unwrap_or_default() {
        "Replace" => added("content"),
        "Prepend" => added("prepend"),
        "Precompiled" => longest_entry(step["precompiled_charsmap"].as_str().unwrap_or_default()),
        // Unicode Standard Annex 15, of UTF-8.
        "NFKC" | "NFKD" => 11,
        "NFC" | "NFD" | "Lowercase" => 3,
        "BertNormalizer" => 18,
        "StripAccents" | "Strip" | "Nmt" | "Fuse" | "ByteFallback" => 1,
        _ => 4,
    }
}

/// The longest entry of a table of sentencepiece: entries end with a zero byte, and the tree in front of them is no longer without one.
fn longest_entry(table: &str) -> u64 {
    let bytes = base64::engine::general_purpose::STANDARD.decode(table);
    let bytes = bytes.unwrap_or_default();
    let longest = bytes.split(|b| *b == 0).map(<[u8]>::len).max();
    longest.unwrap_or(0).max(1) as u64
}

/// A text in pieces of at most so many bytes, or one character.
fn pieces(text: &str, most: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?.len_utf8();
        let mut end = most.max(first).min(rest.len());
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (piece, more) = rest.split_at(end);
        rest = more;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn growth(normalizer: &Value, decoder: &Value) -> Growth {
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "pre_tokenizer": null, "post_processor": null,
            "normalizer": normalizer, "decoder": decoder,
            "model": {"type": "WordLevel", "vocab": {"a": 0, "u": 1}, "unk_token": "u"},
        });
        Growth::of(&file.to_string().parse().unwrap())
    }

    fn replaces(times: usize) -> Vec<Value> {
        let step = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        vec![step; times]
    }

    #[test]
    fn a_chain_of_replacements_has_an_end() {
        let steps = json!({"type": "Sequence", "normalizers": replaces(40)});
        let e = growth(&steps, &Value::Null).check("a").unwrap_err();
        assert!(e.contains("more than 1 MiB"), "{e}");
        // The same steps where nothing is replaced, and fewer of them, are no harm.
        growth(&steps, &Value::Null).check("b").unwrap();
        let few = json!({"type": "Sequence", "normalizers": replaces(10)});
        growth(&few, &Value::Null).check("aaaa").unwrap();
    }

    #[test]
    fn one_replacement_by_much_is_looked_at_in_pieces() {
        let content = "x".repeat(1 << 20);
        let step = json!({"type": "Replace", "pattern": {"String": "a"}, "content": content});
        let growth = growth(&step, &Value::Null);
        growth.check(&"b".repeat(1000)).unwrap();
        assert!(growth.check(&"a".repeat(1000)).is_err());
    }

    #[test]
    fn decoders_have_the_same_limit() {
        let steps = json!({"type": "Sequence", "decoders": replaces(40)});
        let growth = growth(&Value::Null, &steps);
        assert!(growth.check_decoded(|| 1).is_err());
        growth.check("a").unwrap();
    }

    #[test]
    fn pieces_are_the_whole_text() {
        for most in [1, 2, 3, 100] {
            assert_eq!(pieces("aé☃b", most).collect::<String>(), "aé☃b");
        }
    }
}
