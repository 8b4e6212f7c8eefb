//! The kit that all operator files speak: the constructor of [`OpDef`], domains, and the words for results. Rules of types and shapes
//! are in `infer`, expressions of gradients in `grad`, those of attention in `heads`. No operator of its own.

pub(super) mod grad;
pub(super) mod heads;
pub(super) mod infer;

use super::{Definition, GradCx, GradError, Gradient, InferCx, InferError, OpDef};
use crate::ir::{Node, Val};
use std::ops::RangeInclusive;

/// The domain of the operators that only our own runtime knows.
pub(crate) const DOMAIN: &str = "onnx_graft";
/// The domain of onnxruntime's own operators.
pub(crate) const MS: &str = "com.microsoft";
/// Any number of inputs or outputs.
pub(super) const MANY: usize = usize::MAX;

/// What an inference rule gives.
pub(super) type Inferred = Result<(), InferError>;
/// What a gradient rule gives.
pub(super) type Differentiated = Result<(), GradError>;
/// What a definition gives: the outputs by slot.
pub(super) type Defined = Result<Vec<Option<Val>>, GradError>;

/// A contradiction.
pub(super) fn wrong<T>(message: impl Into<String>) -> Result<T, InferError> {
    Err(InferError(message.into()))
}

/// A gradient, or a definition, that does not exist.
pub(super) fn no_gradient<T>(message: impl Into<String>) -> Result<T, GradError> {
    Err(GradError(message.into()))
}

impl From<InferError> for GradError {
    fn from(e: InferError) -> GradError {
        GradError(e.0)
    }
}

impl OpDef {
    /// An operator of `ai.onnx` with one output and no gradient; the methods below say where it differs.
    pub(super) const fn new(
        name: &'static str,
        inputs: RangeInclusive<usize>,
        infer: fn(&mut InferCx<'_>) -> Inferred,
    ) -> OpDef {
        OpDef {
            domain: "",
            name,
            inputs: (*inputs.start(), *inputs.end()),
            outputs: (1, 1),
            infer,
            gradient: Gradient::Missing,
            plain: None,
        }
    }

    /// The operator of this name in another domain.
    pub(super) const fn in_domain(self, domain: &'static str) -> OpDef {
        OpDef { domain, ..self }
    }

    /// The operator with so many outputs.
    pub(super) const fn outputs(self, outputs: RangeInclusive<usize>) -> OpDef {
        OpDef {
            outputs: (*outputs.start(), *outputs.end()),
            ..self
        }
    }

    /// The operator with a rule for its gradient.
    pub(super) const fn gradient(self, rule: fn(&mut GradCx<'_>) -> Differentiated) -> OpDef {
        OpDef {
            gradient: Gradient::Rule(rule),
            ..self
        }
    }

    /// The operator, of which some nodes can be written with simpler ones.
    pub(super) const fn plain(self, define: fn(&Node) -> Option<Definition>) -> OpDef {
        OpDef {
            plain: Some(define),
            ..self
        }
    }

    /// The operator with a gradient that is zero everywhere.
    pub(super) const fn zero(self) -> OpDef {
        OpDef {
            gradient: Gradient::Zero,
            ..self
        }
    }

    /// The operator with a definition by simpler ones, which has the gradient.
    pub(super) const fn defined_by(self, definition: Definition) -> OpDef {
        OpDef {
            gradient: Gradient::Expand(definition),
            ..self
        }
    }
}
