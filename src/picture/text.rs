//! Words and numbers for people, and how wide they are. What comes from a file is a stranger's text: it is cut here and escaped here.

use crate::diag::grouped;
use crate::ir::{DType, Dim, Fact, Sym, Type};
use std::fmt::Write;

/// Longest name that is drawn, in characters.
pub(super) const NAME: usize = 40;
/// Longest symbol of a shape, and most axes of one.
const SYMBOL: usize = 20;
const AXES: usize = 6;

/// A stranger's text on one line, cut in the middle where it is longer.
pub(super) fn cut(text: &str, most: usize) -> String {
    let shown = |c: char| {
        let turns = matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}');
        if c.is_control() || turns {
            '\u{fffd}'
        } else {
            c
        }
    };
    // More than this is not looked at.
    if text.len() <= most || text.chars().take(most + 1).count() <= most {
        return text.chars().map(shown).collect();
    }
    let (front, back) = ((most - 1) * 2 / 3, (most - 1) - (most - 1) * 2 / 3);
    let head = text.chars().take(front);
    let tail: Vec<char> = text.chars().rev().take(back).collect();
    let whole = head
        .chain(std::iter::once('…'))
        .chain(tail.into_iter().rev());
    whole.map(shown).collect()
}

/// A text inside XML, HTML or an attribute of them.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A count in a few digits: `9,216`, `24.6 k`, `596.0 M`.
pub(super) fn short(n: u64) -> String {
    let scaled = |unit: u64, word: &str| {
        let tenths = (u128::from(n) * 10 + u128::from(unit) / 2) / u128::from(unit);
        format!("{}.{} {word}", tenths / 10, tenths % 10)
    };
    match n {
        0..10_000 => grouped(n),
        10_000..999_950 => scaled(1_000, "k"),
        999_950..999_950_000 => scaled(1_000_000, "M"),
        _ => scaled(1_000_000_000, "B"),
    }
}

/// A share in percent.
pub(super) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "–".to_owned();
    }
    let hundredths = u128::from(part) * 10_000 / u128::from(whole);
    if hundredths == 0 && part > 0 {
        return "< 0.01 %".to_owned();
    }
    format!("{}.{:02} %", hundredths / 100, hundredths % 100)
}

/// A shape, with symbols by name.
pub(super) fn shape(fact: &Fact) -> Option<String> {
    let dims = fact.dims.as_ref()?;
    let sizes = dims.iter().map(size);
    Some(listed(sizes, dims.len()))
}

fn size(s: &Sym) -> String {
    match s.as_const() {
        Some(n) => n.to_string(),
        None if s.symbols().any(|n| n.starts_with(['?', '#'])) => "?".to_owned(),
        None => cut(&s.to_string(), SYMBOL),
    }
}

/// The shape of a stored tensor.
pub(super) fn stored(dims: &[u64]) -> String {
    listed(dims.iter().map(ToString::to_string), dims.len())
}

fn listed(sizes: impl Iterator<Item = String>, axes: usize) -> String {
    let mut out = String::from("[");
    for (i, size) in sizes.take(AXES).enumerate() {
        let _ = write!(out, "{}{size}", if i > 0 { ", " } else { "" });
    }
    out + if axes > AXES { ", …]" } else { "]" }
}

/// A declared type.
pub(super) fn declared(ty: &Type) -> String {
    let dtype = ty.dtype().map_or("other", DType::name);
    let Some(dims) = ty.dims() else {
        return dtype.to_owned();
    };
    let size = |d: &Dim| match d {
        Dim::Known(n) => n.to_string(),
        Dim::Symbol(s) => cut(s, SYMBOL),
        Dim::Unknown => "?".to_owned(),
    };
    format!("{dtype}{}", listed(dims.iter().map(size), dims.len()))
}

/// Widths of the characters from space to tilde in a sans-serif face, in thousandths of its size (Helvetica's metrics).
const WIDTHS: [u16; 95] = [
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556,
    556, 556, 556, 556, 556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667,
    611, 778, 722, 278, 500, 667, 556, 833, 722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667,
    667, 611, 278, 278, 278, 469, 556, 333, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500,
    222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334, 260, 334, 584,
];

/// How wide a text is drawn at most, in pixels: faces differ, so there is room.
pub(super) fn width(text: &str, size: i32, bold: bool) -> i32 {
    let of = |c: char| {
        let at = (c as usize).checked_sub(0x20);
        match at.and_then(|at| WIDTHS.get(at)) {
            Some(w) => i64::from(*w),
            None if (c as u32) < 0x2000 || matches!(c, '–' | '…' | '→' | '·' | '×' | '●') => {
                640
            }
            None => 1050,
        }
    };
    let sum: i64 = text.chars().map(of).sum();
    let sum = sum * i64::from(size) * if bold { 136 } else { 120 };
    i32::try_from(sum / 100_000 + 1).unwrap_or(i32::MAX / 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_short() {
        let shown = [
            0,
            1536,
            10_000,
            24_576,
            999_949,
            999_950,
            596_049_920,
            1_200_000_000,
        ];
        let expected = [
            "0", "1,536", "10.0 k", "24.6 k", "999.9 k", "1.0 M", "596.0 M", "1.2 B",
        ];
        assert_eq!(shown.map(short), expected);
        assert_eq!(short(u64::MAX), "18446744073.7 B");
        assert_eq!(percent(1, 3), "33.33 %");
        assert_eq!(percent(1, u64::MAX), "< 0.01 %");
        assert_eq!(percent(1, 0), "–");
    }

    #[test]
    fn strangers_words_are_cut_and_written_out() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcdefghij", 7), "abcd…ij");
        assert_eq!(cut("a\u{202e}b\nc\u{0}", 9), "a\u{fffd}b\u{fffd}c\u{fffd}");
        assert_eq!(cut(&"ü".repeat(1 << 20), 5), "üü…üü");
        assert_eq!(
            escaped("<a href=\"x\">'&"),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;"
        );
    }

    #[test]
    fn longer_texts_are_wider() {
        assert!(width("mmm", 12, false) > width("iii", 12, false));
        assert!(width("q_proj", 12, true) > width("q_proj", 12, false));
        assert_eq!(width("", 12, false), 1);
    }
}
