//! What a method knows of a [`Place`](crate::adapters::place::Place) besides where it is: said when it names its places, and read by
//! the method alone when it is asked for parameters and nodes there.

use std::sync::Arc;

/// The details of one place. Each kind belongs to one method, or to several that know the same.
#[derive(Clone, Debug, Default)]
pub enum Detail {
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
}

/// What PEFT's fields say of one module.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The rank.
    pub rank: usize,
    /// The scale.
    pub scale: f32,
    /// Sizes of matrices that all modules share.
    pub shared: Option<Greatest>,
}

/// Widths of the q, k and v columns of a fused projection.
#[derive(Clone, Copy, Debug)]
pub struct Columns(pub [usize; 3]);

/// The greatest widths of an adapter's linears.
#[derive(Clone, Copy, Debug)]
pub struct Greatest {
    /// Width of the output.
    pub d_out: usize,
    /// Width of the input.
    pub d_in: usize,
}

/// Parameters that several places have together, each place a part of them.
#[derive(Clone, Debug)]
pub struct Pool {
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
}

impl Detail {
    /// The width, where it was said.
    pub fn width(&self) -> Option<usize> {
        match self {
            Detail::Width(n) => Some(*n),
            Detail::Shown { width, .. } => Some(*width),
            Detail::None
            | Detail::Hidden { .. }
            | Detail::Columns(_)
            | Detail::Greatest(_)
            | Detail::Pool(_)
            | Detail::Target(_)
            | Detail::Stored(_) => None,
        }
    }

    /// What an opened mask holds; 0 where nothing else was said.
    pub(crate) fn shown(&self) -> f32 {
        match self {
            Detail::Shown { value, .. } => *value,
            Detail::None
            | Detail::Hidden { .. }
            | Detail::Width(_)
            | Detail::Columns(_)
            | Detail::Greatest(_)
            | Detail::Pool(_)
            | Detail::Target(_)
            | Detail::Stored(_) => 0.0,
        }
    }

    /// The width of a layer's hidden states, and whether their positions have a mask of their own.
    pub(crate) fn hidden(&self) -> Option<(usize, bool)> {
        match self {
            Detail::Hidden {
                width,
                own_positions,
            } => Some((*width, *own_positions)),
            Detail::None
            | Detail::Width(_)
            | Detail::Shown { .. }
            | Detail::Columns(_)
            | Detail::Greatest(_)
            | Detail::Pool(_)
            | Detail::Target(_)
            | Detail::Stored(_) => None,
        }
    }

    /// The columns of a fused projection, if it is one.
    pub fn columns(&self) -> Option<[usize; 3]> {
        match self {
            Detail::Columns(c) => Some(c.0),
            Detail::None
            | Detail::Hidden { .. }
            | Detail::Shown { .. }
            | Detail::Width(_)
            | Detail::Greatest(_)
            | Detail::Pool(_)
            | Detail::Target(_)
            | Detail::Stored(_) => None,
        }
    }

    /// The greatest widths, where matrices are shared.
    pub(crate) fn greatest(&self) -> Option<Greatest> {
        match self {
            Detail::Greatest(g) => Some(*g),
            Detail::Target(t) => t.shared,
            Detail::None
            | Detail::Hidden { .. }
            | Detail::Shown { .. }
            | Detail::Width(_)
            | Detail::Columns(_)
            | Detail::Pool(_)
            | Detail::Stored(_) => None,
        }
    }

    /// The pool, if the place is a part of one.
    pub fn pool(&self) -> Option<&Pool> {
        match self {
            Detail::Pool(p) => Some(p),
            Detail::None
            | Detail::Hidden { .. }
            | Detail::Shown { .. }
            | Detail::Width(_)
            | Detail::Columns(_)
            | Detail::Greatest(_)
            | Detail::Target(_)
            | Detail::Stored(_) => None,
        }
    }

    /// Rank and scale, where the place has its own.
    pub(crate) fn target(&self) -> Option<Target> {
        match self {
            Detail::Target(t) => Some(*t),
            Detail::None
            | Detail::Hidden { .. }
            | Detail::Shown { .. }
            | Detail::Width(_)
            | Detail::Columns(_)
            | Detail::Greatest(_)
            | Detail::Pool(_)
            | Detail::Stored(_) => None,
        }
    }
}
