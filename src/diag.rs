//! Diagnostics: findings that are collected and shown together.

use std::fmt;

/// One finding: a stable code, what is wrong, where, and what to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Stable kebab-case code.
    pub code: &'static str,
    /// Whether the work must stop.
    pub severity: Severity,
    /// What was found and what was expected, in the user's terms.
    pub message: String,
    /// Where: file and field, node path, layer.
    pub path: String,
    /// Further lines: near misses, layers concerned.
    pub notes: Vec<String>,
    /// The way out.
    pub help: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The work stops.
    Error,
    /// The work goes on.
    Warning,
}

impl Diagnostic {
    /// An error.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, message.into())
    }

    /// A warning.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, code, message.into())
    }

    fn new(severity: Severity, code: &'static str, message: String) -> Self {
        Diagnostic {
            code,
            severity,
            message,
            path: String::new(),
            notes: Vec::new(),
            help: None,
        }
    }

    /// Adds where.
    #[must_use]
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Adds a further line.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Adds the way out.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl Diagnostic {
    /// Whether only the message differs.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.code == other.code
            && self.severity == other.severity
            && self.path == other.path
            && self.help == other.help
            && self.notes.is_empty()
            && other.notes.is_empty()
    }

    /// This finding, with the messages of others like it.
    pub(crate) fn with_more(&self, others: &[Self]) -> Self {
        let mut out = self.clone();
        let more = others.iter().map(|d| format!("also: {}", d.message));
        out.notes.extend(more);
        out
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{kind}[{}]: {}", self.code, self.message)?;
        if !self.path.is_empty() {
            write!(f, "\n  in {}", self.path)?;
        }
        for note in &self.notes {
            write!(f, "\n  {note}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

/// Digits in groups of three.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A number and the word for it: `1 step`, `2,000 steps`.
pub(crate) fn count(n: usize, one: &str, many: &str) -> String {
    format!("{} {}", grouped(n as u64), if n == 1 { one } else { many })
}

/// The candidate nearest to a mistyped name by edit distance, if one is near enough to be meant.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let best = candidates
        .into_iter()
        .map(|c| (distance(name, c), c))
        .min()?;
    (best.0 <= name.chars().count().max(3) / 2).then_some(best.1)
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let cost = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
