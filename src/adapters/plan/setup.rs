//! Composition: which adapters are active, and how they are put together. Resolved into the graph when adapters are attached.
//!
//! The notation is AdapterHub's: `a`, `Stack(a, Fuse(b, c))`, `MultiTask(a, Stack(b, c))`; as JSON it is that of `adapter_setup.json`. Both are
//! read into the same tree of blocks, whose names and rules are checked in one place.

mod notation;

use crate::diag::{Diagnostic, nearest};
use notation::{Node, Parser, node_of};
use serde_json::{Map, Value, json};

/// A composition of adapters, in AdapterHub's terms.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Setup {
    /// One adapter.
    Single(String),
    /// One after the other.
    Stack(Vec<Setup>),
    /// Each position mixes what the children make of it, with weights that an `AdapterFusion` computes.
    Fuse {
        /// What is mixed.
        children: Vec<Setup>,
        /// Name of the fusion (default: the last adapter of each child, joined by commas).
        name: Option<String>,
    },
    /// Each child has a part of the sequence's positions.
    Split {
        /// What has a part each, in order.
        children: Vec<Setup>,
        /// Number of positions of each child. They add up to the length of every text.
        splits: Vec<usize>,
    },
    /// Each child has a part of the batch's samples.
    BatchSplit {
        /// What has a part each, in order.
        children: Vec<Setup>,
        /// Number of samples of each child. They add up to every batch.
        batch_sizes: Vec<usize>,
    },
    /// Each child has the whole batch: a result has the samples of the first child, then those of the next.
    Parallel(Vec<Setup>),
    /// The mean of what the children make.
    Average {
        /// What is averaged.
        children: Vec<Setup>,
        /// Weight of each child; they are divided by their sum unless `normalize_weights` is false. (default: equal ones)
        weights: Option<Vec<f64>>,
        /// Whether the weights are divided by their sum.
        normalize_weights: bool,
    },
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
        resolve(Parser::whole(text)?)
    }

    /// Reads a block of `adapter_setup.json`: `{"type": "Stack", "children": […]}`, with `single` for a name.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn from_json(value: &Value) -> Result<Setup, Diagnostic> {
        resolve(node_of(value)?)
    }

    /// The block of `adapter_setup.json`.
    pub(crate) fn to_json(&self) -> Value {
        if let Setup::Single(name) = self {
            return json!({ "type": "single", "children": [name] });
        }
        let children: Vec<Value> = self.children().iter().map(Setup::to_json).collect();
        let mut out = json!({ "type": self.block(), "children": children });
        let kwargs: Map<String, Value> = self.arguments().into_iter().map(owned).collect();
        if !kwargs.is_empty() {
            out["kwargs"] = kwargs.into();
        }
        out
    }

    /// The blocks that this one is made of.
    pub(crate) fn children(&self) -> &[Setup] {
        match self {
            Setup::Single(_) => &[],
            Setup::Stack(children)
            | Setup::Parallel(children)
            | Setup::Fuse { children, .. }
            | Setup::Split { children, .. }
            | Setup::BatchSplit { children, .. }
            | Setup::Average { children, .. }
            | Setup::MultiTask(children) => children,
        }
    }

    /// The arguments that are not as usual, by the names that the library has for them.
    fn arguments(&self) -> Vec<(&'static str, Value)> {
        match self {
            Setup::Single(_) | Setup::Stack(_) | Setup::Parallel(_) | Setup::MultiTask(_) => {
                Vec::new()
            }
            Setup::Fuse { name, .. } => name.iter().map(|n| ("name", json!(n))).collect(),
            Setup::Split { splits, .. } => vec![("splits", json!(splits))],
            Setup::BatchSplit { batch_sizes, .. } => vec![("batch_sizes", json!(batch_sizes))],
            Setup::Average {
                weights,
                normalize_weights,
                ..
            } => {
                let weights = weights.as_ref().map(|w| ("weights", json!(w)));
                let raw = (!normalize_weights).then_some(("normalize_weights", json!(false)));
                weights.into_iter().chain(raw).collect()
            }
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

    /// The last adapter: the one that a fusion names its child by.
    pub(crate) fn last(&self) -> &str {
        match self {
            Setup::Single(name) => name,
            other => other.children().last().map_or("", Setup::last),
        }
    }

    /// The fusions in it, each once: its name, and the names that it mixes.
    pub(crate) fn fusions(&self) -> Vec<(String, Vec<String>)> {
        let mut out: Vec<(String, Vec<String>)> = Vec::new();
        self.visit(&mut |setup| {
            if let Some(name) = setup.fusion()
                && out.iter().all(|(n, _)| *n != name)
            {
                let last = |c: &Setup| c.last().to_owned();
                out.push((name, setup.children().iter().map(last).collect()));
            }
        });
        out
    }

    /// The name of the fusion that a `Fuse` asks for.
    pub(crate) fn fusion(&self) -> Option<String> {
        match self {
            Setup::Fuse {
                name: Some(name), ..
            } => Some(name.clone()),
            Setup::Fuse { children, .. } => {
                let last: Vec<&str> = children.iter().map(Setup::last).collect();
                Some(last.join(","))
            }
            Setup::Single(_)
            | Setup::Stack(_)
            | Setup::Split { .. }
            | Setup::BatchSplit { .. }
            | Setup::Parallel(_)
            | Setup::Average { .. }
            | Setup::MultiTask(_) => None,
        }
    }

    /// The adapters and fusions that are active.
    pub(crate) fn active(&self) -> Vec<String> {
        let adapters = self.names().into_iter().map(str::to_owned);
        let fusions = self.fusions().into_iter().map(|(name, _)| name);
        adapters.chain(fusions).collect()
    }

    /// The children of an `Average` that is all of it, and their weights.
    pub(crate) fn averaged(&self) -> Option<(&[Setup], Vec<f64>)> {
        match self {
            Setup::Average {
                children,
                weights,
                normalize_weights,
            } => {
                let count = children.len();
                Some((
                    children,
                    shares(weights.as_deref(), *normalize_weights, count),
                ))
            }
            Setup::Stack(only) if only.len() == 1 => only[0].averaged(),
            _ => None,
        }
    }

    /// Whether it is one adapter, or several one behind the other.
    pub(crate) fn is_chain(&self) -> bool {
        matches!(self, Setup::Single(_)) || (matches!(self, Setup::Stack(_)) && self.names_only())
    }

    /// Whether its adapters are one piece of the graph, of which none can go alone.
    pub(crate) fn is_bound(&self) -> bool {
        let mut bound = false;
        self.visit(&mut |s| bound |= !matches!(s, Setup::Single(_) | Setup::Stack(_)));
        bound
    }

    /// How often a batch stands in what flows: the number of children of a `Parallel`, or 1.
    pub(crate) fn channels(&self) -> usize {
        self.parallel().map_or(1, <[Setup]>::len)
    }

    /// The children of the `Parallel` in it.
    pub(crate) fn parallel(&self) -> Option<&[Setup]> {
        let mut found = None;
        self.visit(&mut |setup| {
            if let Setup::Parallel(children) = setup {
                found = Some(&**children);
            }
        });
        found
    }

    /// The block whose children each have a part of the batch when a head reads it, and so a head of their own: the last one of the setup.
    /// The heads are named by the last adapter of each child, as the library takes them.
    pub(crate) fn headed(&self) -> Option<&Setup> {
        match self {
            Setup::Parallel(_) | Setup::BatchSplit { .. } => Some(self),
            Setup::Stack(children) => children.last().and_then(Setup::headed),
            Setup::Single(_)
            | Setup::Fuse { .. }
            | Setup::Split { .. }
            | Setup::Average { .. }
            | Setup::MultiTask(_) => None,
        }
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
        for child in self.children() {
            child.visit(f);
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

    /// The setup for methods that do not stack: the first adapter of each stack.
    #[must_use]
    pub(crate) fn alone(&self) -> Setup {
        let all = |children: &[Setup]| children.iter().map(Setup::alone).collect();
        match self {
            Setup::Single(_) => self.clone(),
            Setup::Stack(children) | Setup::Fuse { children, .. } => {
                children.first().map_or_else(|| self.clone(), Setup::alone)
            }
            Setup::Parallel(children) => Setup::Parallel(all(children)),
            Setup::Split { children, splits } => Setup::Split {
                children: all(children),
                splits: splits.clone(),
            },
            Setup::BatchSplit {
                children,
                batch_sizes,
            } => Setup::BatchSplit {
                children: all(children),
                batch_sizes: batch_sizes.clone(),
            },
            Setup::Average {
                children,
                weights,
                normalize_weights,
            } => Setup::Average {
                children: all(children),
                weights: weights.clone(),
                normalize_weights: *normalize_weights,
            },
            Setup::MultiTask(tasks) => Setup::MultiTask(all(tasks)),
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

    /// Which block may stand in which, as in the library.
    fn nesting(&self, parent: Option<&Setup>) -> Result<(), Diagnostic> {
        let bad = |message: String, help: &str| {
            Err(Diagnostic::error("setup-nesting", message)
                .at(self.to_string())
                .help(help))
        };
        let (children, block) = (self.children(), self.block());
        if matches!(self, Setup::Single(_)) {
            return Ok(());
        }
        if children.is_empty() {
            return bad(
                format!("`{block}` has no children"),
                "a block names adapters: Stack(a, b)",
            );
        }
        if let Some(parent) = parent {
            let outer = parent.block();
            if !holds(outer).contains(&block) {
                let help = if outer == block {
                    "write the adapters of both into one".to_owned()
                } else {
                    format!(
                        "it holds adapters, and of blocks {}",
                        holds(outer).join(", ")
                    )
                };
                return bad(format!("`{block}` cannot stand in `{outer}`"), &help);
            }
            if matches!(self, Setup::Stack(_)) && !self.names_only() {
                return bad(
                    "a `Stack` inside another block holds adapters only".into(),
                    "write the blocks one level higher",
                );
            }
        }
        if let Setup::Average {
            weights: Some(weights),
            normalize_weights: true,
            ..
        } = self
            && weights.iter().sum::<f64>() == 0.0
        {
            return bad(
                "the weights of `Average` add up to 0".into(),
                "weights are divided by their sum; `normalize_weights=False` takes them as they are",
            );
        }
        children.iter().try_for_each(|c| c.nesting(Some(self)))
    }

    fn names_only(&self) -> bool {
        let single = |c: &Setup| matches!(c, Setup::Single(_));
        self.children().iter().all(single)
    }

    fn block(&self) -> &'static str {
        match self {
            Setup::Single(_) => "single",
            Setup::Stack(_) => "Stack",
            Setup::Fuse { .. } => "Fuse",
            Setup::Parallel(_) => "Parallel",
            Setup::Split { .. } => "Split",
            Setup::BatchSplit { .. } => "BatchSplit",
            Setup::Average { .. } => "Average",
            Setup::MultiTask(_) => "MultiTask",
        }
    }
}

/// The weight of each child of an `Average`.
pub(crate) fn shares(given: Option<&[f64]>, normalize: bool, children: usize) -> Vec<f64> {
    match given {
        None => vec![1.0 / children as f64; children],
        Some(given) if normalize => {
            let sum: f64 = given.iter().sum();
            given.iter().map(|w| w / sum).collect()
        }
        Some(given) => given.to_vec(),
    }
}

/// The blocks that may stand in a block.
fn holds(block: &str) -> &'static [&'static str] {
    match block {
        "Stack" => &[
            "Fuse",
            "Split",
            "Parallel",
            "BatchSplit",
            "Average",
            "MultiTask",
        ],
        "Fuse" => &["Stack"],
        "Split" | "BatchSplit" => &["Stack", "Split", "BatchSplit", "Average"],
        "Parallel" => &["Stack", "BatchSplit", "Average"],
        "MultiTask" => &["Stack", "Average", "Fuse"],
        "Average" => &["Stack", "Split", "BatchSplit"],
        _ => &[],
    }
}

fn owned((key, value): (&'static str, Value)) -> (String, Value) {
    (key.to_owned(), value)
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
            Setup::Stack(_)
            | Setup::Fuse { .. }
            | Setup::Split { .. }
            | Setup::BatchSplit { .. }
            | Setup::Parallel(_)
            | Setup::Average { .. }
            | Setup::MultiTask(_) => {
                write!(f, "{}(", self.block())?;
                for (i, child) in self.children().iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{child}")?;
                }
                for (key, value) in self.arguments() {
                    let value = match &value {
                        Value::Bool(false) => "False".to_owned(),
                        Value::Array(_) => value.to_string().replace(',', ", "),
                        other => other.to_string(),
                    };
                    write!(f, ", {key}={value}")?;
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
    let mut given = Arguments {
        block: &name,
        kwargs,
    };
    let setup = match &*name {
        "Stack" => Setup::Stack(children),
        "Fuse" => Setup::Fuse {
            name: given.text("name")?,
            children,
        },
        "Parallel" => Setup::Parallel(children),
        "Split" => Setup::Split {
            splits: given.sizes("splits", children.len())?,
            children,
        },
        "BatchSplit" => Setup::BatchSplit {
            batch_sizes: given.sizes("batch_sizes", children.len())?,
            children,
        },
        "Average" => Setup::Average {
            weights: given.weights(children.len())?,
            normalize_weights: given.flag("normalize_weights", true)?,
            children,
        },
        "MultiTask" => Setup::MultiTask(children),
        other => return Err(unknown_block(other)),
    };
    given.end()?;
    setup.nesting(None)?;
    Ok(setup)
}

/// The arguments of a block that were not read yet.
struct Arguments<'n> {
    block: &'n str,
    kwargs: Map<String, Value>,
}

impl Arguments<'_> {
    fn wrong(&self, key: &str, value: &Value, wants: &str) -> Diagnostic {
        Diagnostic::error(
            "setup-argument",
            format!("`{key}` of `{}` is {value}", self.block),
        )
        .help(format!("it is {wants}"))
    }

    /// Sizes of the children's parts; one number is the size of each.
    fn sizes(&mut self, key: &str, children: usize) -> Result<Vec<usize>, Diagnostic> {
        let Some(value) = self.kwargs.remove(key).filter(|v| !v.is_null()) else {
            let message = format!("`{}` has no `{key}`", self.block);
            return Err(Diagnostic::error("setup-argument", message).help(format!(
                "say how much each child has: {}(a, b, {key}=[2, 2])",
                self.block
            )));
        };
        let size = |v: &Value| {
            v.as_u64()
                .filter(|n| *n > 0)
                .and_then(|n| n.try_into().ok())
        };
        let sizes: Option<Vec<usize>> = match &value {
            Value::Array(all) => all.iter().map(size).collect(),
            one => size(one).map(|n| vec![n; children]),
        };
        sizes.filter(|s| s.len() == children).ok_or_else(|| {
            self.wrong(
                key,
                &value,
                "a size of at least 1 for each child, in order, or one for all",
            )
        })
    }

    fn weights(&mut self, children: usize) -> Result<Option<Vec<f64>>, Diagnostic> {
        let key = "weights";
        let Some(value) = self.kwargs.remove(key).filter(|v| !v.is_null()) else {
            return Ok(None);
        };
        let all: Option<Vec<f64>> = value
            .as_array()
            .and_then(|all| all.iter().map(Value::as_f64).collect());
        let right = |w: &Vec<f64>| w.len() == children && w.iter().all(|w| w.is_finite());
        match all.filter(right) {
            Some(all) => Ok(Some(all)),
            None => Err(self.wrong(key, &value, "a list with a number for each child")),
        }
    }

    fn flag(&mut self, key: &str, usual: bool) -> Result<bool, Diagnostic> {
        match self.kwargs.remove(key) {
            None => Ok(usual),
            Some(Value::Bool(set)) => Ok(set),
            Some(other) => Err(self.wrong(key, &other, "true or false")),
        }
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, Diagnostic> {
        match self.kwargs.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, &other, "a text in quotes")),
        }
    }

    fn end(self) -> Result<(), Diagnostic> {
        let Some(key) = self.kwargs.keys().next() else {
            return Ok(());
        };
        Err(Diagnostic::error(
            "setup-argument",
            format!("`{}` takes no argument `{key}`", self.block),
        )
        .help(format!("write {}(a, b)", self.block)))
    }
}

fn unknown_block(name: &str) -> Diagnostic {
    let finding = Diagnostic::error("setup-block", format!("there is no block `{name}`"));
    match nearest(name, BLOCKS) {
        Some(near) => finding.note(format!("the nearest one is `{near}`")),
        None => finding,
    }
    .help(format!("AdapterHub's blocks are {}", BLOCKS.join(", ")))
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
            ("Split(a, b, splits=3)", "Split(a, b, splits=[3, 3])"),
            (
                "BatchSplit(a, Stack(b, c), batch_sizes=[1, 2])",
                "BatchSplit(a, Stack(b, c), batch_sizes=[1, 2])",
            ),
            ("Average(a, b)", "Average(a, b)"),
            (
                "Stack(a, Fuse(b, Stack(c, d)))",
                "Stack(a, Fuse(b, Stack(c, d)))",
            ),
            ("Fuse(a, b, name='x,y')", "Fuse(a, b, name=\"x,y\")"),
            ("Parallel(a, Stack(b, c))", "Parallel(a, Stack(b, c))"),
            ("Stack(Average(a, b), c)", "Stack(Average(a, b), c)"),
            (
                "Average(a, b, weights=[0.5, 2], normalize_weights=False)",
                "Average(a, b, weights=[0.5, 2.0], normalize_weights=False)",
            ),
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
            ("Fuse(a, b, name=3)", "`name` of `Fuse` is 3"),
            ("Fuse(a, Fuse(b, c))", "`Fuse` cannot stand in `Fuse`"),
            (
                "Parallel(a, Split(b, c, splits=2))",
                "`Split` cannot stand in `Parallel`",
            ),
            ("BatchSplit(a, batch_sizes=[2, x y])", "expected `,` or `]`"),
            ("BatchSplit(a, b)", "`BatchSplit` has no `batch_sizes`"),
            ("Split(a, b, splits=[3])", "`splits` of `Split` is [3]"),
            (
                "Split(a, b, splits=[0, 3])",
                "a size of at least 1 for each",
            ),
            ("Average(a, b, weights=[1, -1])", "add up to 0"),
            (
                "Average(a, b, weights=[1])",
                "`weights` of `Average` is [1]",
            ),
            ("Average(a, b, normalize_weights=1)", "it is true or false"),
            (
                "MultiTask(Split(a, b, splits=2), c)",
                "`Split` cannot stand in `MultiTask`",
            ),
            (
                "MultiTask(a, names=['x'])",
                "`MultiTask` takes no argument `names`",
            ),
            ("Stack(a, Stack(b, c))", "`Stack` cannot stand in `Stack`"),
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
