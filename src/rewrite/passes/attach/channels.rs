//! `Parallel`: the batch stands in what flows once for each child. It is replicated where it enters the graph, so that everything behind it
//! (masks, positions, caches) grows alike, and a result has the samples of the first child, then those of the next.

use super::compose::stamped;
use super::outputs::{self, Grown};
use crate::adapters::place::Kind;
use crate::diag::Diagnostic;
use crate::ir::contract::{self, stamp};
use crate::ir::{Builder, Dim, Graph, GraphPort, Spot, ValueId};
use crate::rewrite::{PassCx, PassError, Uses};
use rustc_hash::{FxHashMap, FxHashSet};

/// Replicates the inputs that have the batch's axis; what stands for them now goes into `current`.
pub(super) fn replicate(
    channels: usize,
    owner: &str,
    tell: &dyn Fn(&Builder),
    current: &mut FxHashMap<ValueId, ValueId>,
    cx: &mut PassCx<'_>,
) -> Result<Grown, PassError> {
    let graph = &cx.model().graph;
    let rows = rows(graph)?;
    let grown = Grown::behind(graph, &rows);
    let mut patch = cx.patch("Parallel", None);
    let b = patch.builder();
    b.set_scope("Parallel");
    b.set_stamp(stamped(owner));
    b.set_spot(Some(Spot::Front));
    let mut made = Vec::with_capacity(rows.len());
    for &input in &rows {
        let copies = vec![input.into(); channels];
        let replicated = b.concat(&copies, 0);
        b.mark_last_node(stamp::REPLACES, graph.name_of(input));
        b.mark_last_node(stamp::PLACE, Kind::BATCH.name);
        made.push((input, replicated));
    }
    b.set_spot(None);
    outputs::forget_shapes(&grown, graph, &mut patch);
    tell(patch.builder());
    for &(input, replicated) in &made {
        patch.redirect(input, replicated, Uses::All);
    }
    let applied = cx.commit(patch)?;
    current.extend(made.into_iter().map(|(input, v)| (input, applied.value(v))));
    Ok(grown)
}

/// The graph inputs whose first axis is the batch's: those that exporters name as Hugging Face does, and others whose first size has the
/// same name. Exporters may give every input a name of its own for it.
fn rows(graph: &Graph) -> Result<Vec<ValueId>, Diagnostic> {
    let stored: FxHashSet<ValueId> = graph.initializers().iter().copied().collect();
    let fed = |p: &&GraphPort| !stored.contains(&p.value);
    let inputs: Vec<&GraphPort> = graph.inputs().iter().filter(fed).collect();
    let first = |p: &GraphPort| p.ty.as_ref()?.dims()?.first().cloned();
    let known = |p: &GraphPort| {
        let name = graph.name_of(p.value);
        contract::ROWS.contains(&name) || contract::is_past(name)
    };
    let main = inputs.iter().find(|p| known(p)).or(inputs.first());
    let Some(main) = main else {
        let found = "the graph has no input that could be replicated";
        return Err(Diagnostic::error("parallel-batch", found));
    };
    if let Some(Dim::Known(n)) = first(main) {
        let found = format!(
            "`{}` was exported for batches of {n}, and `Parallel` makes them larger",
            graph.name_of(main.value)
        );
        return Err(Diagnostic::error("parallel-batch", found)
            .help("export the model with a dynamic batch axis"));
    }
    let open = |p: &GraphPort| !matches!(first(p), Some(Dim::Known(_)));
    let named = |p: &GraphPort| p.value == main.value || (known(p) && open(p));
    let batch: Vec<Dim> = inputs
        .iter()
        .filter(|p| named(p))
        .filter_map(|p| first(p))
        .filter(|d| matches!(d, Dim::Symbol(_)))
        .collect();
    let of_batch = |p: &&GraphPort| named(p) || first(p).is_some_and(|d| batch.contains(&d));
    let rows = inputs.into_iter().filter(of_batch);
    Ok(rows.map(|p| p.value).collect())
}
