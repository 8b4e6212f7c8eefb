//! JSON exactly as Python's `json.dumps(sort_keys=True)` writes it: AdapterHub's files and configuration hashes depend on every
//! byte.

use serde_json::{Map, Number, Value};
use std::fmt::Write;

/// `json.dumps(value, indent=2, sort_keys=True)`.
pub(crate) fn pretty(value: &Value) -> String {
    let mut out = String::new();
    emit(value, Some(0), &mut out);
    out
}

/// `json.dumps(value, sort_keys=True)`.
pub(crate) fn compact(value: &Value) -> String {
    let mut out = String::new();
    emit(value, None, &mut out);
    out
}

fn emit(value: &Value, indent: Option<usize>, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => out.push_str(&number(n)),
        Value::String(s) => string(s, out),
        Value::Array(items) => sequence('[', ']', items.len(), indent, out, |i, inner, out| {
            emit(&items[i], inner, out);
        }),
        Value::Object(map) => {
            let entries = sorted(map);
            sequence('{', '}', entries.len(), indent, out, |i, inner, out| {
                string(entries[i].0, out);
                out.push_str(": ");
                emit(entries[i].1, inner, out);
            });
        }
    }
}

fn sorted(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut entries: Vec<_> = map.iter().collect();
    // Python compares code points, Rust UTF-8 bytes: the same order.
    entries.sort_unstable_by_key(|e| e.0);
    entries
}

fn sequence(
    open: char,
    close: char,
    len: usize,
    indent: Option<usize>,
    out: &mut String,
    mut item: impl FnMut(usize, Option<usize>, &mut String),
) {
    out.push(open);
    let inner = indent.map(|i| i + 2);
    for i in 0..len {
        match inner {
            Some(depth) => {
                out.push_str(if i > 0 { ",\n" } else { "\n" });
                out.extend(std::iter::repeat_n(' ', depth));
            }
            None if i > 0 => out.push_str(", "),
            None => {}
        }
        item(i, inner, out);
    }
    if let Some(depth) = indent
        && len > 0
    {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', depth));
    }
    out.push(close);
}

fn string(s: &str, out: &mut String) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}

fn number(n: &Number) -> String {
    match n.as_f64() {
        Some(x) if n.is_f64() => float_repr(x),
        _ => n.to_string(),
    }
}

/// Python's `repr` of a float: the shortest digits that round-trip, with an exponent below 1e-4 and from 1e16 on.
fn float_repr(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "NaN"
        } else if x > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .to_owned();
    }
    let scientific = format!("{x:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    format!("{x:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (1.0, "1.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e16, "1e+16"),
            (123_456_789.25, "123456789.25"),
            (1e15, "1000000000000000.0"),
            (0.1, "0.1"),
            (-0.0, "-0.0"),
        ];
        for (x, text) in cases {
            assert_eq!(float_repr(x), text);
        }
    }

    #[test]
    fn keys_are_sorted_and_text_is_ascii() {
        let v = json!({"b": [1, 2.0], "a": {"k": null, "é": "ü\n😀"}, "c": [], "d": {}});
        assert_eq!(
            compact(&v),
            r#"{"a": {"k": null, "\u00e9": "\u00fc\n\ud83d\ude00"}, "b": [1, 2.0], "c": [], "d": {}}"#
        );
        assert_eq!(
            pretty(&json!({"a": [1], "b": {}})),
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}"
        );
    }
}
