//! The bracket part of a configuration string: `key=value` pairs whose values are Python literals.

use serde_json::{Map, Number, Value};

/// What is wrong with the text, and where (byte offset).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LiteralError {
    /// Byte offset into the text between the brackets.
    pub at: usize,
    /// What was found or expected.
    pub what: String,
}

/// Deepest nesting of lists and dictionaries.
const MAX_DEPTH: usize = 32;

/// Parses `r=8, alpha=16, attn_matrices=['q', 'v'], reduction_factor={'1': 4, 'default': 8}`. Blanks are allowed anywhere, a
/// trailing comma too; a bare word is taken as a string only where no Python literal is meant (`scaling=learned`).
pub(super) fn pairs(text: &str) -> Result<Map<String, Value>, LiteralError> {
    let mut p = Parser { text, at: 0 };
    let mut out = Map::new();
    loop {
        p.blanks();
        if p.at == text.len() {
            return Ok(out);
        }
        let start = p.at;
        let key = p.word();
        if key.is_empty() {
            return Err(p.error("expected the name of a field"));
        }
        p.blanks();
        if !p.eat('=') && !p.eat(':') {
            return Err(p.error(format!("expected `=` behind `{key}`")));
        }
        let value = p.value(0)?;
        if out.insert(key.to_owned(), value).is_some() {
            return Err(LiteralError {
                at: start,
                what: format!("`{key}` is given twice"),
            });
        }
        p.blanks();
        if !p.eat(',') && p.at < text.len() {
            return Err(p.error("expected `,` or the end"));
        }
    }
}

/// The value that begins at a byte of a text, and where it ends.
pub(super) fn value_at(text: &str, at: usize) -> Result<(Value, usize), LiteralError> {
    let mut p = Parser { text, at };
    let value = p.value(0)?;
    Ok((value, p.at))
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn error(&self, what: impl Into<String>) -> LiteralError {
        LiteralError {
            at: self.at,
            what: what.into(),
        }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    fn take(&mut self, keep: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !keep(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn blanks(&mut self) {
        self.take(char::is_whitespace);
    }

    fn word(&mut self) -> &'a str {
        self.take(|c| c.is_alphanumeric() || c == '_')
    }

    fn value(&mut self, depth: usize) -> Result<Value, LiteralError> {
        self.blanks();
        if depth > MAX_DEPTH {
            return Err(self.error("nested too deeply"));
        }
        match self.peek() {
            Some('[') => self.list(']', depth),
            Some('(') => self.list(')', depth),
            Some('{') => self.dict(depth),
            Some(quote @ ('\'' | '"')) => self.quoted(quote).map(Value::String),
            Some(c) if c.is_ascii_digit() || matches!(c, '+' | '-' | '.') => self.number(),
            Some(c) if c.is_alphabetic() || c == '_' => Ok(match self.word() {
                "True" | "true" => Value::Bool(true),
                "False" | "false" => Value::Bool(false),
                "None" | "null" => Value::Null,
                word => Value::String(word.to_owned()),
            }),
            Some(c) => Err(self.error(format!("expected a value, found `{c}`"))),
            None => Err(self.error("expected a value, found the end")),
        }
    }

    fn list(&mut self, close: char, depth: usize) -> Result<Value, LiteralError> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            self.blanks();
            if self.eat(close) {
                return Ok(Value::Array(items));
            }
            items.push(self.value(depth + 1)?);
            self.blanks();
            if !self.eat(',') && self.peek() != Some(close) {
                return Err(self.error(format!("expected `,` or `{close}`")));
            }
        }
    }

    fn dict(&mut self, depth: usize) -> Result<Value, LiteralError> {
        self.at += 1;
        let mut map = Map::new();
        loop {
            self.blanks();
            if self.eat('}') {
                return Ok(Value::Object(map));
            }
            // Layer numbers may be written bare; AdapterHub looks them up as text.
            let key = match self.value(depth + 1)? {
                Value::String(s) => s,
                Value::Number(n) => n.to_string(),
                _ => return Err(self.error("a key is a string or a number")),
            };
            self.blanks();
            if !self.eat(':') && !self.eat('=') {
                return Err(self.error(format!("expected `:` behind `{key}`")));
            }
            let value = self.value(depth + 1)?;
            map.insert(key, value);
            self.blanks();
            if !self.eat(',') && self.peek() != Some('}') {
                return Err(self.error("expected `,` or `}`"));
            }
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, LiteralError> {
        let start = self.at;
        self.at += 1;
        let mut out = String::new();
        while let Some(c) = self.peek() {
            self.at += c.len_utf8();
            match c {
                c if c == quote => return Ok(out),
                '\\' => {
                    let Some(e) = self.peek() else { break };
                    self.at += e.len_utf8();
                    out.push(match e {
                        'n' => '\n',
                        't' => '\t',
                        e => e,
                    });
                }
                c => out.push(c),
            }
        }
        Err(LiteralError {
            at: start,
            what: "this string does not end".to_owned(),
        })
    }

    fn number(&mut self) -> Result<Value, LiteralError> {
        let start = self.at;
        let text = self.take(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_'));
        let plain = text.replace('_', "");
        let digits = plain.strip_prefix('+').unwrap_or(&plain);
        if let Ok(i) = digits.parse::<i64>() {
            return Ok(Value::Number(i.into()));
        }
        digits
            .parse::<f64>()
            .ok()
            .and_then(Number::from_f64)
            .map(Value::Number)
            .ok_or_else(|| LiteralError {
                at: start,
                what: format!("`{text}` is not a number"),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn python_literals() {
        let text = "r=8, alpha = 16.0,attn_matrices=['q', \"v\",], leave_out=[0,1], dtype=None, use_gating=True, \
                    reduction_factor={'1': 4, 'default': 8}, x=-1e-4,";
        let found = Value::Object(pairs(text).unwrap());
        assert_eq!(
            found,
            json!({"r": 8, "alpha": 16.0, "attn_matrices": ["q", "v"], "leave_out": [0, 1], "dtype": null, "use_gating": true,
                   "reduction_factor": {"1": 4, "default": 8}, "x": -1e-4})
        );
        assert_eq!(
            Value::Object(pairs("scaling=learned, k={1: 2}").unwrap()),
            json!({"scaling": "learned", "k": {"1": 2}})
        );
    }

    #[test]
    fn errors_say_where() {
        let at = |t: &str| pairs(t).unwrap_err();
        assert_eq!(at("r 8").what, "expected `=` behind `r`");
        assert_eq!(at("r=8 alpha=1").at, 4);
        assert_eq!(at("r=8, r=9").what, "`r` is given twice");
        assert_eq!(at("a='x").what, "this string does not end");
        assert_eq!(at("a=").what, "expected a value, found the end");
        assert_eq!(at("a=1x").what, "`1x` is not a number");
        assert_eq!(
            at(&format!("a={}", "[".repeat(100))).what,
            "nested too deeply"
        );
    }
}
