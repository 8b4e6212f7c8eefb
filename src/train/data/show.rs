//! Examples as they are learned, for whoever wants to look at them before a training.

use super::{Example, IGNORE, Labels};
use crate::text::Tokenizer;
use std::fmt::Write as _;

impl Example {
    /// The example in lines: runs of tokens that are read or learned, each with its text and its ids.
    pub(crate) fn shown(&self, tokenizer: Option<&Tokenizer>, names: &[String]) -> String {
        let mut out = String::new();
        let ids = &self.input_ids;
        match &self.labels {
            Labels::Tokens(labels) => {
                // Nothing stands before the first token that could say it.
                let learned = |i: usize| i > 0 && labels.get(i).is_some_and(|&l| l != IGNORE);
                let mut start = 0;
                for end in 1..=ids.len() {
                    if end == ids.len() || learned(end) != learned(start) {
                        let word = if learned(start) { "learned" } else { "read" };
                        // What is learned is the label, which need not be the token itself.
                        let source = if learned(start) { labels } else { ids };
                        run(
                            word,
                            source.get(start..end).unwrap_or_default(),
                            tokenizer,
                            &mut out,
                        );
                        start = end;
                    }
                }
            }
            Labels::Sequence(labels) => {
                run("read", ids, tokenizer, &mut out);
                let kept: Vec<i64> = labels.iter().copied().filter(|&l| l != IGNORE).collect();
                run("learned", &kept, tokenizer, &mut out);
            }
            Labels::Each(labels) => {
                run("read", ids, tokenizer, &mut out);
                for (at, label) in labels.iter().enumerate().filter(|(_, l)| **l != IGNORE) {
                    let id = ids.get(at).copied().unwrap_or(IGNORE);
                    let text = tokenizer.and_then(|t| t.decode(&[id], false).ok());
                    let text = text.unwrap_or_else(|| id.to_string());
                    let name = usize::try_from(*label).ok().and_then(|l| names.get(l));
                    let name = name.map_or_else(|| label.to_string(), Clone::clone);
                    let _ = writeln!(out, "  learned  {text:?} is {name}");
                }
            }
            Labels::Span(from, until) => {
                run("read", ids, tokenizer, &mut out);
                let span = usize::try_from(*from)
                    .ok()
                    .zip(usize::try_from(*until).ok());
                let answer = span.and_then(|(a, b)| ids.get(a..=b)).unwrap_or_default();
                run("learned", answer, tokenizer, &mut out);
            }
            Labels::Class(class) => {
                run("read", ids, tokenizer, &mut out);
                let name = usize::try_from(*class).ok().and_then(|c| names.get(c));
                let name = name.map_or_else(String::new, |n| format!(" ({n})"));
                let _ = writeln!(out, "  learned  class {class}{name}");
            }
            Labels::Values(values) => {
                run("read", ids, tokenizer, &mut out);
                let _ = writeln!(out, "  learned  {values:?}");
            }
        }
        out.truncate(out.trim_end().len());
        out
    }
}

fn run(word: &str, ids: &[i64], tokenizer: Option<&Tokenizer>, out: &mut String) {
    if ids.is_empty() {
        return;
    }
    let text = tokenizer.and_then(|t| t.decode(ids, false).ok());
    let text = text.map_or_else(String::new, |t| format!("{t:?} "));
    let _ = writeln!(out, "  {word:<8} {text}{ids:?}");
}
