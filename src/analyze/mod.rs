//! Reading graphs: what a verified graph shows without any names.
//!
//! Selection, adapters, passes and jobs ask here, and nowhere else, what a graph is made of. [`View`](view::View) answers questions about
//! single values and nodes; [`Flow`](flow::Flow) knows which values carry hidden states; [`Through`](through::Through) is the one list of
//! operators that hand a value on. On these stand the recognisers: linears, norms, attention cores, layers along the residual stream, the
//! sequence behind the embeddings, logits. Nothing here changes a graph, and nothing knows of interfaces or adapters.

pub(crate) mod attention;
pub(crate) mod boundary;
pub(crate) mod columns;
pub(crate) mod finite;
pub(crate) mod flow;
pub(crate) mod linear;
pub(crate) mod logits;
pub(crate) mod norm;
pub(crate) mod parameters;
pub(crate) mod pattern;
pub(crate) mod positions;
pub(crate) mod residual;
pub(crate) mod sequence;
pub(crate) mod softmax;
pub(crate) mod structure;
pub(crate) mod through;
pub(crate) mod view;
