//! Composition: which adapters are active, and how they are put together. Resolved into the graph when adapters are attached.

use crate::diag::Diagnostic;

/// A composition of adapters, in AdapterHub's terms.
#[derive(Clone, Debug, PartialEq)]
pub enum Setup {
    /// One adapter.
    Single(String),
    /// One after the other.
    Stack(Vec<Setup>),
}

impl Setup {
    /// The names in it, each once, in order.
    pub fn names(&self) -> Vec<&str> {
        let mut out: Vec<&str> = Vec::new();
        self.visit(&mut |name| {
            if !out.contains(&name) {
                out.push(name);
            }
        });
        out
    }

    fn visit<'a>(&'a self, f: &mut impl FnMut(&'a str)) {
        match self {
            Setup::Single(name) => f(name),
            Setup::Stack(children) => children.iter().for_each(|c| c.visit(f)),
        }
    }

    /// The first adapter: the one that methods without composition use.
    pub fn first(&self) -> Option<&str> {
        self.names().first().copied()
    }

    /// Checks that every name is known, and that the composition can be resolved.
    pub fn check(&self, known: &[&str]) -> Result<(), Diagnostic> {
        if let Some(missing) = self.names().into_iter().find(|n| !known.contains(n)) {
            return Err(Diagnostic::error(
                "setup",
                format!("the setup names the adapter `{missing}`, which is not there"),
            )
            .help(format!("known are: {}", known.join(", "))));
        }
        if self.first().is_none() {
            return Err(Diagnostic::error("setup", "the setup names no adapter"));
        }
        Ok(())
    }
}

impl From<&str> for Setup {
    fn from(name: &str) -> Self {
        Setup::Single(name.to_owned())
    }
}
