//! How setups are written: AdapterHub's notation, and the JSON of `adapter_setup.json`. Both become the same tree of names and blocks, whose
//! blocks are not known yet.

use crate::adapters::config::literal_at;
use crate::diag::Diagnostic;
use serde_json::{Map, Value};

/// Deepest nesting that is read; AdapterHub allows three levels.
const MAX_DEPTH: usize = 8;

/// A setup as it is written, before its blocks are known.
pub(super) enum Node {
    Name(String),
    Block {
        name: String,
        children: Vec<Node>,
        kwargs: Map<String, Value>,
    },
}

/// Reads a block of `adapter_setup.json`.
pub(super) fn node_of(value: &Value) -> Result<Node, Diagnostic> {
    node_at(value, 0)
}

fn node_at(value: &Value, depth: usize) -> Result<Node, Diagnostic> {
    let wrong = |what: &str| Err(Diagnostic::error("setup-json", what));
    if depth > MAX_DEPTH {
        return wrong("the setup is nested too deeply");
    }
    if let Some(name) = value.as_str() {
        return Ok(Node::Name(name.to_owned()));
    }
    let (Some(block), Some(children)) = (value["type"].as_str(), value["children"].as_array())
    else {
        return wrong("a block of a setup has a `type` and a list of `children`");
    };
    let mut children = children
        .iter()
        .map(|c| node_at(c, depth + 1))
        .collect::<Result<Vec<_>, _>>()?;
    let fields = value.as_object().into_iter().flat_map(Map::keys);
    let known = ["type", "children", "kwargs"];
    if let Some(other) = fields.into_iter().find(|k| !known.contains(&k.as_str())) {
        let found = format!("`{block}` has no field `{other}`");
        let help = "a block has `type`, `children` and `kwargs`, which holds its arguments: {\"type\": \"Average\", \"children\": [\"a\", \"b\"], \"kwargs\": {\"weights\": [1, 3]}}";
        return Err(Diagnostic::error("setup-json", found).help(help));
    }
    if !value["kwargs"].is_null() && !value["kwargs"].is_object() {
        return wrong("`kwargs` of a block is an object");
    }
    if block == "single" {
        return match (children.pop(), children.is_empty()) {
            (Some(only), true) => Ok(only),
            _ => wrong("`single` has one child"),
        };
    }
    Ok(Node::Block {
        name: block.to_owned(),
        children,
        kwargs: value["kwargs"].as_object().cloned().unwrap_or_default(),
    })
}

/// Reads AdapterHub's notation.
pub(super) struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Parser<'t> {
    /// Reads a text that is one setup.
    pub(super) fn whole(text: &'t str) -> Result<Node, Diagnostic> {
        let mut p = Parser { text, at: 0 };
        let node = p.node(0)?;
        p.blanks();
        if p.at < text.len() {
            return Err(p.error("expected the end").help(
                "several adapters need a block: Stack(a, b), or MultiTask(a, b) for one adapter a sample",
            ));
        }
        Ok(node)
    }

    fn error(&self, what: impl Into<String>) -> Diagnostic {
        // Of a long text, what is near.
        const NEAR: usize = 60;
        let before = self.text[..self.at].chars().count();
        let from = before.saturating_sub(NEAR);
        let shown: String = self.text.chars().skip(from).take(2 * NEAR).collect();
        Diagnostic::error("setup-string", what)
            .note(shown)
            .note(format!("{}^", " ".repeat(before - from)))
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    fn eat(&mut self, c: char) -> bool {
        self.blanks();
        let found = self.rest().starts_with(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    /// A bare or quoted name.
    fn word(&mut self) -> Result<&'t str, Diagnostic> {
        self.blanks();
        let rest = self.rest();
        if let Some(quote @ ('\'' | '"')) = rest.chars().next() {
            let Some(end) = rest[1..].find(quote) else {
                return Err(self.error("this name does not end"));
            };
            self.at += end + 2;
            return Ok(&rest[1..=end]);
        }
        let stops = |c: char| c.is_whitespace() || "()[],='\"".contains(c);
        let end = rest.find(stops).unwrap_or(rest.len());
        if end == 0 {
            return Err(self.error("expected the name of an adapter or a block"));
        }
        self.at += end;
        Ok(&rest[..end])
    }

    fn node(&mut self, depth: usize) -> Result<Node, Diagnostic> {
        if depth > MAX_DEPTH {
            return Err(self.error("nested too deeply"));
        }
        let name = self.word()?;
        if !self.eat('(') {
            return Ok(Node::Name(name.to_owned()));
        }
        // As in Python, where the module is imported as `ac`.
        let name = name.rsplit('.').next().unwrap_or(name).to_owned();
        let mut children = Vec::new();
        let mut kwargs = Map::new();
        while !self.eat(')') {
            self.argument(&mut children, &mut kwargs, depth)?;
            if !self.eat(',') && !self.rest().starts_with(')') {
                return Err(self.error("expected `,` or `)`"));
            }
        }
        Ok(Node::Block {
            name,
            children,
            kwargs,
        })
    }

    /// A child, or `key=value`.
    fn argument(
        &mut self,
        children: &mut Vec<Node>,
        kwargs: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), Diagnostic> {
        self.blanks();
        let start = self.at;
        let key = self.word()?;
        if !self.eat('=') {
            self.at = start;
            children.push(self.node(depth + 1)?);
            return Ok(());
        }
        let (value, end) = literal_at(self.text, self.at).map_err(|(at, what)| {
            self.at = at;
            self.error(what)
        })?;
        self.at = end;
        kwargs.insert(key.to_owned(), value);
        Ok(())
    }
}
