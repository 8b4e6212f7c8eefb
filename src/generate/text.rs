//! Text as its tokens come: complete characters only, and nothing that may turn out to be a stop string.

use crate::error::Result;
use crate::text::Tokenizer;

/// Collects the text of tokens.
#[derive(Debug)]
pub(crate) struct Pieces<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
    skip_special: bool,
    ids: Vec<i64>,
    /// Tokens from here on are decoded together, so that a token sees its neighbours.
    from: usize,
    /// Tokens before this one are in the text.
    read: usize,
    text: String,
    /// Bytes of the text that were handed out.
    given: usize,
    stopped: bool,
}

impl<'a> Pieces<'a> {
    /// No text yet.
    pub(crate) fn new(tokenizer: &'a Tokenizer, stops: &'a [String], skip_special: bool) -> Self {
        Pieces {
            tokenizer,
            stops,
            skip_special,
            ids: Vec::new(),
            from: 0,
            read: 0,
            text: String::new(),
            given: 0,
            stopped: false,
        }
    }

    /// Adds a token; true when the text has reached a stop string, which is cut off.
    pub(crate) fn push(&mut self, id: i64) -> Result<bool> {
        self.ids.push(id);
        self.decode(false)?;
        Ok(self.stopped)
    }

    /// What can be shown by now and was not yet.
    pub(crate) fn ready(&mut self) -> &str {
        let end = if self.stopped {
            self.text.len()
        } else {
            self.text.len() - self.held()
        };
        let start = self.given.min(end);
        self.given = end.max(self.given);
        &self.text[start..end]
    }

    /// The rest, whatever it may be the beginning of.
    pub(crate) fn finish(&mut self) -> Result<&str> {
        self.decode(true)?;
        let start = self.given.min(self.text.len());
        self.given = self.text.len();
        Ok(&self.text[start..])
    }

    /// The text so far.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    fn decode(&mut self, end: bool) -> Result<()> {
        if self.stopped || self.read == self.ids.len() {
            return Ok(());
        }
        let before = self
            .tokenizer
            .decode(&self.ids[self.from..self.read], self.skip_special)?;
        let all = self
            .tokenizer
            .decode(&self.ids[self.from..], self.skip_special)?;
        // A character whose bytes have not all come is decoded as U+FFFD.
        if all.ends_with('\u{fffd}') && !end {
            return Ok(());
        }
        let same = all.chars().zip(before.chars()).take_while(|(a, b)| a == b);
        let same: usize = same.map(|(c, _)| c.len_utf8()).sum();
        self.text.push_str(&all[same..]);
        self.from = self.read;
        self.read = self.ids.len();
        let found = self
            .stops
            .iter()
            .filter_map(|s| self.text.find(s.as_str()))
            .min();
        if let Some(at) = found {
            self.text.truncate(at);
            self.stopped = true;
        }
        Ok(())
    }

    /// Length of the longest end of the text that a stop string begins with.
    fn held(&self) -> usize {
        let ends = |s: &String| {
            let lengths = s.char_indices().map(|(i, _)| i).filter(|i| *i > 0);
            lengths.filter(|&n| self.text.ends_with(&s[..n])).max()
        };
        self.stops.iter().filter_map(ends).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::open("fixtures/tokenizer".as_ref()).unwrap()
    }

    /// A tokenizer of bytes, as byte-level vocabularies are in the last resort.
    fn bytes() -> (tempfile::TempDir, Tokenizer) {
        let dir = tempfile::tempdir().unwrap();
        let vocab: serde_json::Map<String, serde_json::Value> = (0..=255u32)
            .map(|b| (format!("<0x{b:02X}>"), b.into()))
            .collect();
        let json = serde_json::json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true}
        });
        std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
        let t = Tokenizer::open(dir.path()).unwrap();
        (dir, t)
    }

    #[test]
    fn characters_come_whole() {
        let (_dir, t) = bytes();
        let mut p = Pieces::new(&t, &[], true);
        let mut shown = Vec::new();
        for b in "aé€".bytes() {
            p.push(i64::from(b)).unwrap();
            shown.push(p.ready().to_owned());
        }
        assert_eq!(shown, ["a", "", "é", "", "", "€"]);
        assert_eq!(p.text(), "aé€");
    }

    #[test]
    fn a_stop_string_is_found_across_tokens_and_never_shown() {
        let t = tokenizer();
        let stops = ["cat sat".to_owned()];
        let mut p = Pieces::new(&t, &stops, true);
        let ids = t.encode("the cat met the cat sat on", false).unwrap();
        let mut shown = String::new();
        let mut used = 0;
        for id in ids {
            used += 1;
            let done = p.push(id).unwrap();
            shown += p.ready();
            if done {
                break;
            }
        }
        assert_eq!((shown.as_str(), used), ("the cat met the ", 6));
        assert_eq!(p.text(), "the cat met the ");
    }

    #[test]
    fn the_beginning_of_a_stop_string_is_shown_in_the_end() {
        let t = tokenizer();
        let stops = ["cat sat".to_owned()];
        let mut p = Pieces::new(&t, &stops, true);
        for id in t.encode("the cat", false).unwrap() {
            p.push(id).unwrap();
        }
        assert_eq!(p.ready(), "the ");
        assert_eq!(p.finish().unwrap(), "cat");
    }
}
