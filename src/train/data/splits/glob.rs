//! Patterns of file names as `fsspec` has them: `*` and `?` stay within a folder, `**` does not, `[…]` is a class of characters.

use crate::fence;
use fancy_regex::Regex;
use std::fmt::Write as _;

/// A pattern of paths.
pub(super) struct Glob {
    text: String,
    /// Nothing where the pattern has no special characters, or is none.
    regex: Option<Regex>,
}

impl Glob {
    pub(super) fn new(pattern: &str) -> Glob {
        let magic = pattern.contains(['*', '?', '[']);
        let made = || fence::guarded(|| Regex::new(&regex(pattern)));
        Glob {
            regex: magic.then(|| made().ok()?.ok()).flatten(),
            text: pattern.to_owned(),
        }
    }

    /// Whether it may match several files.
    pub(super) fn magic(&self) -> bool {
        self.text.contains(['*', '?', '['])
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        match &self.regex {
            Some(regex) => {
                fence::guarded(|| regex.is_match(path)).is_ok_and(|found| found.unwrap_or(false))
            }
            None => self.text == path,
        }
    }
}

fn regex(pattern: &str) -> String {
    let mut out = String::from("^");
    let parts: Vec<&str> = pattern.split('/').collect();
    for (i, part) in parts.iter().enumerate() {
        let last = i + 1 == parts.len();
        match (*part, last) {
            ("**", false) => out += "(?:.+/)?",
            ("**", true) => out += ".*",
            _ => {
                segment(part, &mut out);
                out += if last { "" } else { "/" };
            }
        }
    }
    out + "$"
}

/// One name of a path.
fn segment(part: &str, out: &mut String) {
    let mut rest = part;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '[' => match rest.get(1..).and_then(|r| r.find(']')) {
                Some(end) => {
                    let class = &rest[..=end];
                    let (not, class) = class
                        .strip_prefix(['!', '^'])
                        .map_or(("", class), |class| ("^", class));
                    let class = class.replace('\\', "\\\\").replace('[', "\\[");
                    let _ = write!(out, "[{not}{class}]");
                    rest = &rest[end + 2..];
                }
                None => out.push_str("\\["),
            },
            c => out.push_str(&fancy_regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stay_within_a_folder_and_two_do_not() {
        for (pattern, yes, no) in [
            ("data/*.jsonl", "data/a.jsonl", "data/x/a.jsonl"),
            ("**/*.jsonl", "x/y/a.jsonl", "a.json"),
            ("**/*.jsonl", "a.jsonl", "a.jsonl.gz"),
            (
                "main/train-*",
                "main/train-0.parquet",
                "xmain/train-0.parquet",
            ),
            ("a?[0-2].csv", "ab1.csv", "ab3.csv"),
            ("[!a].csv", "b.csv", "a.csv"),
            ("a.csv", "a.csv", "abcsv"),
            ("[x", "[x", "x"),
            ("**/train[-._ 0-9]*", "x/train1.csv", "x/trainer.csv"),
            ("**/train/**", "train/a", "trains/a"),
        ] {
            let glob = Glob::new(pattern);
            assert!(glob.matches(yes), "{pattern} {yes}");
            assert!(!glob.matches(no), "{pattern} {no}");
        }
    }
}
