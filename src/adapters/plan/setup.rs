//! Composition: which adapters are active, and how they are put together. Resolved into the graph when adapters are attached.
//!
//! The notation is AdapterHub's: `a`, `Stack(a, b)`, `MultiTask(a, Stack(b, c))`; as JSON it is that of `adapter_setup.json`. Both are
//! read into the same tree of blocks, whose names and rules are checked in one place.

use crate::adapters::config::literal_at;
use crate::diag::{Diagnostic, nearest};
use serde_json::{Map, Value, json};

/// A composition of adapters, in AdapterHub's terms.
#[derive(Clone, Debug, PartialEq)]
pub enum Setup {
    /// One adapter.
    Single(String),
    /// One after the other.
    Stack(Vec<Setup>),
    /// Each sample has its own: the child whose index the graph input `task_ids` holds for it.
    MultiTask(Vec<Setup>),
}

/// The blocks that AdapterHub has.
const BLOCKS: [&str; 7] = [
    "Stack",
    "Fuse",
    "Split",
    "BatchSplit",
    "Parallel",
    "Average",
    "MultiTask",
];

/// Deepest nesting that is read; AdapterHub allows three levels.
const MAX_DEPTH: usize = 8;

/// A setup as it is written, before its blocks are known.
enum Node {
    Name(String),
    Block {
        name: String,
        children: Vec<Node>,
        kwargs: Map<String, Value>,
    },
}

impl Setup {
    /// Adapters one behind the other.
    pub fn stack(names: impl IntoIterator<Item = String>) -> Setup {
        let mut names: Vec<Setup> = names.into_iter().map(Setup::Single).collect();
        if names.len() == 1 {
            names.remove(0)
        } else {
            Setup::Stack(names)
        }
    }

    /// Reads AdapterHub's notation.
    ///
    /// ```
    /// use onnx_graft::adapters::Setup;
    /// let setup = Setup::parse("MultiTask(a, Stack(b, c))").unwrap();
    /// assert_eq!(setup.names(), ["a", "b", "c"]);
    /// assert_eq!(setup.to_string(), "MultiTask(a, Stack(b, c))");
    /// ```
    ///
    /// # Errors
    /// What is wrong, and where in the text.
    pub fn parse(text: &str) -> Result<Setup, Diagnostic> {
        let mut p = Parser { text, at: 0 };
        let node = p.node(0)?;
        p.blanks();
        if p.at < text.len() {
            return Err(p.error("expected the end").help(
                "several adapters need a block: Stack(a, b), or MultiTask(a, b) for one adapter a sample",
            ));
        }
        resolve(node)
    }

    /// Reads a block of `adapter_setup.json`: `{"type": "Stack", "children": […]}`, with `single` for a name.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn from_json(value: &Value) -> Result<Setup, Diagnostic> {
        resolve(node_of(value, 0)?)
    }

    /// The block of `adapter_setup.json`.
    pub(crate) fn to_json(&self) -> Value {
        let block = |name: &str, children: &[Setup]| {
            let children: Vec<Value> = children.iter().map(Setup::to_json).collect();
            json!({ "type": name, "children": children })
        };
        match self {
            Setup::Single(name) => json!({ "type": "single", "children": [name] }),
            Setup::Stack(children) => block("Stack", children),
            Setup::MultiTask(children) => block("MultiTask", children),
        }
    }

    /// The names in it, each once, in order.
    pub fn names(&self) -> Vec<&str> {
        let mut out: Vec<&str> = Vec::new();
        self.visit(&mut |setup| {
            if let Setup::Single(name) = setup
                && !out.contains(&&**name)
            {
                out.push(name);
            }
        });
        out
    }

    /// The children of each `MultiTask` in it.
    pub(crate) fn multi_tasks(&self) -> Vec<&[Setup]> {
        let mut out: Vec<&[Setup]> = Vec::new();
        self.visit(&mut |setup| {
            if let Setup::MultiTask(tasks) = setup {
                out.push(tasks);
            }
        });
        out
    }

    fn visit<'a>(&'a self, f: &mut impl FnMut(&'a Setup)) {
        f(self);
        match self {
            Setup::Single(_) => {}
            Setup::Stack(children) | Setup::MultiTask(children) => {
                for child in children {
                    child.visit(f);
                }
            }
        }
    }

    /// Whether one of these adapters stands behind another one in a stack.
    pub(crate) fn stacks(&self, names: &[&str]) -> bool {
        let mut found = false;
        self.visit(&mut |setup| {
            if let Setup::Stack(children) = setup {
                let holds = |c: &&Setup| c.names().iter().any(|n| names.contains(n));
                found |= children.iter().filter(holds).count() > 1;
            }
        });
        found
    }

    /// The first adapter: the one that methods without composition use.
    pub(crate) fn first(&self) -> Option<&str> {
        self.names().first().copied()
    }

    /// The setup for methods that do not stack: the first adapter, for each task its own.
    #[must_use]
    pub(crate) fn alone(&self) -> Setup {
        match self {
            Setup::Single(_) => self.clone(),
            Setup::Stack(children) => children.first().map_or_else(|| self.clone(), Setup::alone),
            Setup::MultiTask(tasks) => Setup::MultiTask(tasks.iter().map(Setup::alone).collect()),
        }
    }

    /// Checks that every name is known, and that the composition can be resolved.
    ///
    /// # Errors
    /// Unknown names, empty blocks, and blocks where they cannot stand.
    pub(crate) fn check(&self, known: &[&str]) -> Result<(), Diagnostic> {
        if let Some(missing) = self.names().into_iter().find(|n| !known.contains(n)) {
            let mut finding = Diagnostic::error(
                "setup",
                format!("the setup names the adapter `{missing}`, which is not there"),
            );
            // A name of a letter or two is near to every other.
            let near = nearest(missing, known.iter().copied());
            if let Some(near) = near.filter(|_| missing.chars().count() > 2) {
                finding = finding.note(format!("the nearest one is `{near}`"));
            }
            return Err(finding.help(format!("known are: {}", known.join(", "))));
        }
        if self.first().is_none() {
            return Err(Diagnostic::error("setup", "the setup names no adapter"));
        }
        self.nesting(None)
    }

    /// Which block may stand in which. A `MultiTask` in a `Stack` ends it: what it makes is no state that could flow on.
    fn nesting(&self, parent: Option<&Setup>) -> Result<(), Diagnostic> {
        let bad = |message: String, help: &str| {
            Err(Diagnostic::error("setup-nesting", message)
                .at(self.to_string())
                .help(help))
        };
        let children = match self {
            Setup::Single(_) => return Ok(()),
            Setup::Stack(children) | Setup::MultiTask(children) => children,
        };
        if children.is_empty() {
            return bad(
                format!("`{}` has no children", self.block()),
                "a block names adapters: Stack(a, b)",
            );
        }
        match (parent, self) {
            (Some(Setup::Stack(_)), Setup::Stack(_))
            | (Some(Setup::MultiTask(_)), Setup::MultiTask(_)) => {
                return bad(
                    format!("`{0}` cannot stand in `{0}`", self.block()),
                    "write the adapters of both into one",
                );
            }
            (Some(Setup::Stack(siblings)), Setup::MultiTask(_))
                if siblings.last() != Some(self) =>
            {
                return bad(
                    "`MultiTask` is not the last of its `Stack`".into(),
                    "put what follows into the tasks: MultiTask(Stack(a, c), Stack(b, c))",
                );
            }
            _ => {}
        }
        if let (Some(_), Setup::Stack(inner)) = (parent, self)
            && inner.iter().any(|c| !matches!(c, Setup::Single(_)))
        {
            return bad(
                "a `Stack` inside another block holds adapters only".into(),
                "write the blocks one level higher",
            );
        }
        children.iter().try_for_each(|c| c.nesting(Some(self)))
    }

    fn block(&self) -> &'static str {
        match self {
            Setup::Single(_) => "single",
            Setup::Stack(_) => "Stack",
            Setup::MultiTask(_) => "MultiTask",
        }
    }
}

impl From<&str> for Setup {
    fn from(name: &str) -> Self {
        Setup::Single(name.to_owned())
    }
}

impl std::fmt::Display for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Setup::Single(name) => f.write_str(name),
            Setup::Stack(children) | Setup::MultiTask(children) => {
                write!(f, "{}(", self.block())?;
                for (i, child) in children.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{child}")?;
                }
                f.write_str(")")
            }
        }
    }
}

fn resolve(node: Node) -> Result<Setup, Diagnostic> {
    let (name, children, kwargs) = match node {
        Node::Name(name) => return Ok(Setup::Single(name)),
        Node::Block {
            name,
            children,
            kwargs,
        } => (name, children, kwargs),
    };
    let children = children
        .into_iter()
        .map(resolve)
        .collect::<Result<Vec<_>, _>>()?;
    let setup = match &*name {
        "Stack" => Setup::Stack(children),
        "MultiTask" => Setup::MultiTask(children),
        other => return Err(unavailable(other)),
    };
    if let Some(key) = kwargs.keys().next() {
        return Err(Diagnostic::error(
            "setup-argument",
            format!("`{name}` takes no argument `{key}`"),
        )
        .help(format!("write {name}(a, b)")));
    }
    setup.nesting(None)?;
    Ok(setup)
}

fn unavailable(name: &str) -> Diagnostic {
    if BLOCKS.contains(&name) {
        return Diagnostic::error(
            "setup-block",
            format!("this version cannot compose with `{name}`"),
        )
        .help("it composes with Stack and MultiTask");
    }
    let finding = Diagnostic::error("setup-block", format!("there is no block `{name}`"));
    match nearest(name, BLOCKS) {
        Some(near) => finding.note(format!("the nearest one is `{near}`")),
        None => finding,
    }
    .help(format!("AdapterHub's blocks are {}", BLOCKS.join(", ")))
}

fn node_of(value: &Value, depth: usize) -> Result<Node, Diagnostic> {
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
        .map(|c| node_of(c, depth + 1))
        .collect::<Result<Vec<_>, _>>()?;
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

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Parser<'t> {
    fn error(&self, what: impl Into<String>) -> Diagnostic {
        let before = self.text[..self.at].chars().count();
        Diagnostic::error("setup-string", what)
            .note(self.text.to_owned())
            .note(format!("{}^", " ".repeat(before)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notation_is_read() {
        for (text, same) in [
            ("a", "a"),
            (" a ", "a"),
            ("'a b'", "a b"),
            ("Stack(a,b)", "Stack(a, b)"),
            ("ac.Stack('a', \"b\",)", "Stack(a, b)"),
            ("MultiTask( i , Stack(k, l) )", "MultiTask(i, Stack(k, l))"),
            ("Stack(a, MultiTask(b, c))", "Stack(a, MultiTask(b, c))"),
        ] {
            let setup = Setup::parse(text).unwrap();
            assert_eq!(setup.to_string(), same, "{text}");
            assert_eq!(Setup::from_json(&setup.to_json()).unwrap(), setup, "{text}");
        }
    }

    #[test]
    fn mistakes_say_where_and_what() {
        for (text, want) in [
            ("", "expected the name of an adapter or a block"),
            ("a, b", "several adapters need a block"),
            (
                "Stack(a b)",
                "expected `,` or `)`\n  Stack(a b)\n          ^",
            ),
            ("Stack(a", "expected `,` or `)`"),
            ("Stack('a", "this name does not end"),
            ("Stack()", "`Stack` has no children"),
            ("Stak(a)", "the nearest one is `Stack`"),
            ("Fuse(a, b)", "cannot compose with `Fuse`"),
            (
                "Stack(a, Average(b, c, weights=[0.1, 0.9]))",
                "cannot compose with `Average`",
            ),
            ("BatchSplit(a, batch_sizes=[2, x y])", "expected `,` or `]`"),
            (
                "MultiTask(a, names=['x'])",
                "`MultiTask` takes no argument `names`",
            ),
            ("Stack(a, Stack(b, c))", "`Stack` cannot stand in `Stack`"),
            ("Stack(MultiTask(a, b), c)", "not the last of its `Stack`"),
            (
                "MultiTask(a, Stack(b, MultiTask(c, d)))",
                "holds adapters only",
            ),
        ] {
            let found = Setup::parse(text).unwrap_err().to_string();
            assert!(found.contains(want), "{text}: {found}");
        }
        let deep = "Stack(".repeat(100_000);
        assert!(Setup::parse(&deep).is_err());
    }

    #[test]
    fn methods_without_composition_take_the_first() {
        let setup = Setup::parse("MultiTask(a, Stack(b, c))").unwrap();
        assert_eq!(setup.alone().to_string(), "MultiTask(a, b)");
        assert_eq!(setup.first(), Some("a"));
        assert!(setup.check(&["c", "b", "a"]).is_ok());
        let setup = Setup::parse("Stack(a, task_x)").unwrap();
        let found = setup.check(&["a", "task_y"]).unwrap_err().to_string();
        assert!(found.contains("`task_x`, which is not there"), "{found}");
        assert!(found.contains("nearest one is `task_y`"), "{found}");
    }
}
