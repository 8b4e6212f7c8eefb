//! The one error that leaves the library.

use crate::diag::Diagnostic;
use std::fmt;

/// What kind of work failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Reading or writing a file.
    Io,
    /// The bytes are not what they should be.
    Decode,
    /// Valid, but not something this library does.
    Unsupported,
    /// A graph that breaks ONNX's rules or its own.
    Invalid,
    /// The interface or what it selects.
    Interface,
    /// An adapter configuration, its parameters or its files.
    Method,
    /// A rewrite.
    Patch,
    /// Preparing a graph for execution.
    Compile,
    /// Executing it.
    Run,
    /// Training data or a training job.
    Train,
    /// The Hub, or what it sent.
    Hub,
    /// How something was called: a setting that is missing, or that does not fit the others.
    Usage,
}

/// An error of this library: what, where, and what to try.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    findings: Vec<Diagnostic>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// `Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with one finding.
    pub fn new(kind: ErrorKind, finding: Diagnostic) -> Self {
        Self::many(kind, vec![finding])
    }

    /// An error with several findings, shown together.
    pub fn many(kind: ErrorKind, findings: Vec<Diagnostic>) -> Self {
        Error(Box::new(Inner {
            kind,
            findings,
            source: None,
        }))
    }

    /// Keeps what caused it.
    #[must_use]
    pub(crate) fn with_source(
        mut self,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// Adds where, in front of what is already said; to findings that have no place yet, or as the outer part of a path.
    #[must_use]
    pub(crate) fn within(mut self, path: impl AsRef<str>) -> Self {
        for f in &mut self.0.findings {
            f.path = if f.path.is_empty() {
                path.as_ref().to_owned()
            } else {
                format!("{}, {}", path.as_ref(), f.path)
            };
        }
        self
    }

    /// Failing I/O on a file.
    pub fn io(path: &std::path::Path, what: &str, e: std::io::Error) -> Self {
        Self::new(
            ErrorKind::Io,
            Diagnostic::error("io", format!("{what}: {e}")).at(path.display().to_string()),
        )
        .with_source(e)
    }

    /// What kind of work failed.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Everything that was found.
    pub fn findings(&self) -> &[Diagnostic] {
        &self.0.findings
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A file of another model lacks every name: such findings are one.
        let alike = self.0.findings.chunk_by(Diagnostic::is_like);
        for (i, run) in alike.enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            match run {
                [first, rest @ ..] if rest.len() >= 2 => write!(f, "{}", first.with_more(rest))?,
                few => {
                    let lines: Vec<String> = few.iter().map(ToString::to_string).collect();
                    f.write_str(&lines.join("\n"))?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|s| &**s as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_that_differ_in_a_name_only_are_one() {
        let missing = |i: usize| {
            Diagnostic::error("weights-missing", format!("`w{i}` is not in the file"))
                .at("adapter `a`")
                .help("another model's file")
        };
        let other = Diagnostic::error("weights-shape", "`b` is f32 [2]");
        let many = |n: usize| {
            let findings = (0..n).map(missing).chain([other.clone()]).collect();
            Error::many(ErrorKind::Train, findings).to_string()
        };
        let seven = many(7);
        assert_eq!(seven.matches("error[").count(), 2, "{seven}");
        assert_eq!(seven.matches("another model's file").count(), 1, "{seven}");
        assert_eq!(seven.matches("also: `w").count(), 6, "{seven}");
        assert_eq!(many(2).matches("error[").count(), 3);
    }
}
