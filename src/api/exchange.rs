//! Adapters whose parameters are inputs of the graph: what each of them gives.

use crate::adapters::Adapter;
use crate::adapters::manifest::Exchangeable;
use crate::adapters::plan::plan;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::rewrite::passes::{Exchange, Exchanging, Tensors};
use crate::select::Selection;

/// Names of the adapters, and the values of the inputs that each gives.
pub(super) fn tensors(
    (adapters, selection, model): (&[Adapter], &Selection, &Verified),
    seed: u64,
    skip: &[usize],
    (how, known): &(Exchanging, Vec<Exchangeable>),
) -> Result<Vec<(String, Tensors)>> {
    let mut planned = plan(adapters, selection, model, seed)?;
    let wrong = |d: Diagnostic| Error::new(ErrorKind::Method, d);
    planned.skip(skip, selection).map_err(wrong)?;
    let exchange = Exchange::of(&planned, adapters, model, how, known)?;
    let names = adapters.iter().map(|a| a.name.clone());
    Ok(names.zip(exchange.files).collect())
}
