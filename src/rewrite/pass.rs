//! Passes and pipelines.

use super::patch::{Applied, Patch, PatchError};
use crate::analyze::view::Known;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind};
use crate::infer::{Facts, Verified};
use crate::ir::contract::stamp;
use crate::ir::{Fact, Model, NodeId, ValueId};
use std::fmt;

/// A rewrite of a model.
///
/// ```
/// use onnx_graft::rewrite::{Pass, PassCx, PassError, Uses};
///
/// /// Removes `Identity` nodes.
/// struct NoIdentity;
///
/// impl Pass for NoIdentity {
///     fn name(&self) -> &str {
///         "no-identity"
///     }
///
///     fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
///         let g = &cx.model().graph;
///         let found: Vec<_> = g.nodes().filter(|&n| g.node(n).op.is_onnx("Identity")).collect();
///         for n in found {
///             let g = &cx.model().graph;
///             let (Some(x), Some(y)) = (g.input(n, 0), g.output(n, 0)) else { continue };
///             if g.is_output(y) {
///                 continue;
///             }
///             let mut patch = cx.patch("identity", None);
///             patch.redirect(y, x.into(), Uses::All);
///             patch.remove_node(n);
///             cx.commit(patch)?;
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait Pass {
    /// Name, for reports and errors.
    fn name(&self) -> &str;

    /// Reads the model and commits patches.
    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError>;
}

/// Why a pass stopped.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// A patch could not be applied.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// The pass found something wrong with what it was given.
    #[error("{0}")]
    Failed(Box<Diagnostic>),
    /// Another part of the library failed.
    #[error(transparent)]
    Other(#[from] Error),
}

impl From<Diagnostic> for PassError {
    fn from(d: Diagnostic) -> Self {
        PassError::Failed(Box::new(d))
    }
}

impl From<PassError> for Error {
    fn from(e: PassError) -> Error {
        match e {
            PassError::Patch(e) => {
                Error::new(ErrorKind::Patch, Diagnostic::error("patch", e.to_string()))
                    .with_source(e)
            }
            PassError::Failed(d) => Error::new(ErrorKind::Patch, *d),
            PassError::Other(e) => e,
        }
    }
}

/// What a pass works on: a copy of the model, read-only but for [`commit`](Self::commit).
#[derive(Debug)]
pub struct PassCx<'a> {
    model: Model,
    before: &'a Verified,
    adopted: Facts,
    report: PassReport,
    declares: bool,
}

/// What a pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassReport {
    /// Name of the pass.
    pub pass: String,
    /// Number of patches committed.
    pub patches: usize,
    /// Number of nodes added.
    pub added: usize,
    /// Number of nodes removed.
    pub removed: usize,
    /// Findings that did not stop it.
    pub warnings: Vec<Diagnostic>,
}

impl<'a> PassCx<'a> {
    /// The model as it is now, with all patches committed so far.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What is known of a value: as it was before the pass began, and for a value of the pass that replaced one, what was known of
    /// that one.
    pub fn fact(&self, value: ValueId) -> Option<&Fact> {
        self.adopted.get(value).or_else(|| self.before.fact(value))
    }

    /// The model as it was before the pass began.
    pub fn before(&self) -> &'a Verified {
        self.before
    }

    /// The model as it is now, verified: facts also of values that the pass itself made. Costs an inference of the whole model, unless
    /// nothing was committed yet.
    pub(crate) fn verified(&self) -> Result<Verified, Error> {
        if self.report.patches == 0 {
            return Ok(self.before.clone());
        }
        Verified::check(self.model.clone()).map_err(Error::from)
    }

    /// An empty patch whose nodes are placed behind `anchor`, or at the end without one.
    pub fn patch(&self, why: impl Into<String>, anchor: Option<NodeId>) -> Patch {
        Patch::new(&self.model, why, anchor)
    }

    /// Applies a patch, as a whole or not at all.
    pub fn commit(&mut self, patch: Patch) -> Result<Applied, PatchError> {
        let redirects = patch.redirects();
        let applied = patch.apply(&mut self.model)?;
        for (old, new) in redirects {
            let new = applied.value(new);
            if let (None, Some(fact)) = (self.fact(new), self.fact(old)) {
                let fact = fact.clone();
                self.adopted.set(new, fact);
            }
        }
        self.report.patches += 1;
        self.report.added += applied.added;
        self.report.removed += applied.removed;
        Ok(applied)
    }

    /// Has the types of all nodes that this library added written down (`value_info`), as they are inferred when the pass is done.
    pub(crate) fn declare_types(&mut self) {
        self.declares = true;
    }

    /// Reports a finding that does not stop the pass.
    pub fn warn(&mut self, finding: Diagnostic) {
        self.report.warnings.push(finding);
    }
}

impl Known for PassCx<'_> {
    fn fact(&self, value: ValueId) -> Option<&Fact> {
        PassCx::fact(self, value)
    }
}

/// A list of passes, each with the reason why it stands there.
#[derive(Default)]
pub struct Pipeline {
    name: &'static str,
    steps: Vec<Step>,
}

/// A pass in its place.
struct Step {
    pass: Box<dyn Pass>,
    reason: &'static str,
}

/// The outcome of a pipeline.
#[derive(Debug)]
pub struct Rewritten {
    /// The rewritten model.
    pub model: Verified,
    /// What each pass did.
    pub reports: Vec<PassReport>,
}

/// A pipeline that stopped: the error, and the model as it was before the failing pass.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: Error,
    /// The model before the failing pass.
    pub model: Box<Verified>,
}

impl From<Failed> for Error {
    fn from(f: Failed) -> Error {
        f.error
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline")
            .field("name", &self.name)
            .field("passes", &self.names().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl Pipeline {
    /// An empty pipeline.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty pipeline of this name.
    pub(crate) fn named(name: &'static str) -> Self {
        Pipeline {
            name,
            steps: Vec::new(),
        }
    }

    /// Appends a pass.
    #[must_use]
    pub fn with(self, pass: impl Pass + 'static) -> Self {
        self.step(pass, "")
    }

    /// Appends a pass, with the reason why it stands here.
    #[must_use]
    pub(crate) fn step(mut self, pass: impl Pass + 'static, reason: &'static str) -> Self {
        let pass = Box::new(pass);
        self.steps.push(Step { pass, reason });
        self
    }

    /// Appends a pass where it is wanted, with the reason why it stands here.
    #[must_use]
    pub(crate) fn when(
        self,
        wanted: bool,
        pass: impl Pass + 'static,
        reason: &'static str,
    ) -> Self {
        if wanted {
            self.step(pass, reason)
        } else {
            self
        }
    }

    /// Appends the passes of another pipeline.
    #[must_use]
    pub(crate) fn then(mut self, other: Pipeline) -> Self {
        self.steps.extend(other.steps);
        self
    }

    /// Name of the pipeline; empty for one that has none.
    pub(crate) fn name(&self) -> &str {
        self.name
    }

    /// Names of the passes, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.reasons().map(|(name, _)| name)
    }

    /// Names of the passes, in order, each with the reason why it stands there.
    pub(crate) fn reasons(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.steps.iter().map(|s| (s.pass.name(), s.reason))
    }

    /// The pipeline up to the pass of this name, which is the last one then.
    #[must_use]
    pub(crate) fn through(mut self, pass: &str) -> Self {
        let last = self.names().position(|name| name == pass);
        self.steps
            .truncate(last.map_or(self.steps.len(), |i| i + 1));
        self
    }

    /// Runs the passes in order. Each runs on a copy, which replaces the model only if it verifies.
    pub fn run(&self, model: Verified) -> Result<Rewritten, Failed> {
        let mut model = model;
        let mut reports = Vec::with_capacity(self.steps.len());
        for Step { pass, .. } in &self.steps {
            match run_one(pass.as_ref(), &model) {
                Ok((next, report)) => {
                    model = next.unwrap_or(model);
                    reports.push(report);
                }
                Err(error) => {
                    return Err(Failed {
                        error: error.within(format!("pass {}", pass.name())),
                        model: Box::new(model),
                    });
                }
            }
        }
        Ok(Rewritten { model, reports })
    }
}

/// The model that a pass makes, `None` where it committed nothing, and what it did.
fn run_one(pass: &dyn Pass, before: &Verified) -> Result<(Option<Verified>, PassReport), Error> {
    let report = PassReport {
        pass: pass.name().to_owned(),
        ..PassReport::default()
    };
    let mut cx = PassCx {
        model: before.model().clone(),
        before,
        adopted: Facts::default(),
        report,
        declares: false,
    };
    pass.run(&mut cx)?;
    if cx.report.patches == 0 {
        return Ok((None, cx.report));
    }
    let mut verified = Verified::check(cx.model).map_err(Error::from)?;
    if cx.declares {
        verified.declare_types(|metadata| metadata.keys().any(|k| k.starts_with(stamp::PREFIX)));
    }
    Ok((Some(verified), cx.report))
}
