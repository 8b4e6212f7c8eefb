//! What a method knows of a [`Place`](crate::adapters::place::Place) besides where it is: said when it names its places, and read by
//! the method alone when it is asked for parameters and nodes there.

use crate::ir::{Use, ValueId};
use std::sync::Arc;

/// The details of one place. Each kind belongs to one method, or to several that know the same.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Detail {
    /// The place says everything.
    #[default]
    None,
    /// Width of what flows, where the place does not say it.
    Width(usize),
    /// The hidden states of a layer.
    Hidden {
        /// Their width.
        width: usize,
        /// Whether their positions have a mask of their own.
        own_positions: bool,
    },
    /// A mask that is opened for a prompt.
    Shown {
        /// Width of what flows.
        width: usize,
        /// What the mask holds where nothing is hidden.
        value: f32,
    },
    /// Columns of a fused projection.
    Columns(Columns),
    /// Sizes of matrices that linears of several shapes share.
    Greatest(Greatest),
    /// A part of parameters that several places have together.
    Pool(Pool),
    /// Rank and scale of this place alone.
    Target(Target),
    /// Name of a stored parameter inside its module.
    Stored(Box<str>),
    /// Tokens whose rows of a table are replaced.
    Tokens(Tokens),
}

/// Tokens with rows of their own in a table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tokens {
    /// Their ids, each once.
    pub(crate) ids: Arc<[usize]>,
    /// Width of a row.
    pub(crate) width: usize,
    /// The initializer that holds the table.
    pub(crate) table: ValueId,
    /// Scopes of the parameter: the table's, and the head's where the file has it there as well.
    pub(crate) scopes: Arc<[String]>,
}

/// What PEFT's fields say of one module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Target {
    /// The rank.
    pub rank: usize,
    /// The scale.
    pub scale: f32,
    /// Sizes of matrices that all modules share.
    pub shared: Option<Greatest>,
}

/// The q, k and v columns of a fused projection.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Columns {
    /// Their widths.
    pub widths: [usize; 3],
    /// For each column, its place in `[q | k | v]`, where they lie in another order.
    pub order: Option<Arc<[usize]>>,
}

/// The greatest widths of an adapter's linears.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Greatest {
    /// Width of the output.
    pub d_out: usize,
    /// Width of the input.
    pub d_in: usize,
}

/// Parameters that several places have together, each place a part of them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pool {
    /// Which part is the place's.
    pub index: usize,
    /// Number of parts.
    pub parts: usize,
    /// Width of the residual stream, where it is known.
    pub width: Option<usize>,
    /// All scopes under which the library stores the parameters; the first one is their name.
    pub scopes: Arc<[String]>,
    /// Scope of the place's own parameters.
    pub own: String,
    /// How far back the attention sees, where the prefix can leave its window.
    pub(crate) window: Option<u64>,
    /// Positions that are counted behind the prefix, and who reads them.
    pub(crate) positions: Arc<[(ValueId, Vec<Use>)]>,
}

impl Detail {
    /// The width, where it was said.
    pub(crate) fn width(&self) -> Option<usize> {
        if let Detail::Width(width) | Detail::Shown { width, .. } = self {
            Some(*width)
        } else {
            None
        }
    }

    /// What an opened mask holds; 0 where nothing else was said.
    pub(crate) fn shown(&self) -> f32 {
        if let Detail::Shown { value, .. } = self {
            *value
        } else {
            0.0
        }
    }

    /// The width of a layer's hidden states, and whether their positions have a mask of their own.
    pub(crate) fn hidden(&self) -> Option<(usize, bool)> {
        let Detail::Hidden {
            width,
            own_positions,
        } = self
        else {
            return None;
        };
        Some((*width, *own_positions))
    }

    /// The columns of a fused projection, if it is one.
    pub(crate) fn columns(&self) -> Option<&Columns> {
        let Detail::Columns(c) = self else {
            return None;
        };
        Some(c)
    }

    /// The greatest widths, where matrices are shared.
    pub(crate) fn greatest(&self) -> Option<Greatest> {
        if let Detail::Greatest(g) = self {
            Some(*g)
        } else {
            self.target()?.shared
        }
    }

    /// The pool, if the place is a part of one.
    pub(crate) fn pool(&self) -> Option<&Pool> {
        let Detail::Pool(p) = self else { return None };
        Some(p)
    }

    /// Rank and scale, where the place has its own.
    pub(crate) fn target(&self) -> Option<Target> {
        let Detail::Target(t) = self else {
            return None;
        };
        Some(*t)
    }

    /// The tokens, where rows of a table are replaced.
    pub(crate) fn tokens(&self) -> Option<&Tokens> {
        let Detail::Tokens(t) = self else {
            return None;
        };
        Some(t)
    }
}
