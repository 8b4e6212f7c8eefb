//! Layers that are skipped at run time: a graph input says for each layer whether its adapters act (Rücklé et al. 2021, `AdapterDrop`).
//!
//! Where a layer is skipped, the place keeps the value that it had. The nodes are there and compute; a graph that is to be faster leaves
//! layers out when it is made.

use crate::adapters::place::{At, Place};
use crate::diag::Diagnostic;
use crate::ir::DType;
use crate::ir::{Builder, Dim, Graph, Metadata, Model, TensorData, Type, Val, contract};

/// Refuses models that cannot have the input.
pub(super) fn check(model: &Model) -> Result<(), Diagnostic> {
    let name = contract::SKIP_LAYERS;
    if model.graph.find(name).is_some() {
        let found = format!("the model has a value `{name}` already");
        return Err(Diagnostic::error("skip-layers", found)
            .help("take the adapters out that it came with: `rewrite strip`; or rename it"));
    }
    super::manifest::check_optional(model)
}

/// The place's new value, or the one it had where its layer is skipped.
pub(super) fn kept(
    b: &Builder,
    graph: &Graph,
    place: &Place<'_>,
    layers: usize,
    (old, new): (Val, Val),
) -> Result<Val, Diagnostic> {
    let Some(layer) = place.layer else {
        return Ok(new);
    };
    if matches!(
        place.at,
        At::Attention(_) | At::Sequence(_) | At::Mask(_) | At::Parameter(_)
    ) {
        let found = "what an adapter makes here has another shape than what was there, so it cannot be skipped by an input";
        return Err(Diagnostic::error("skip-layers", found)
            .at(place.scope.clone())
            .help("name the layers when attaching: --skip-layers"));
    }
    let name = contract::SKIP_LAYERS;
    let input = if let Some(there) = graph.find(name) {
        there.into()
    } else {
        let ty = Type::tensor(DType::Bool, [Dim::Known(layers as i64)]);
        let none = TensorData::raw(DType::Bool, [layers as u64], vec![0; layers].into());
        b.optional_input(name, ty, none, Metadata::default())
    };
    let skipped = b.op(
        "Gather",
        &[input, b.int(layer as i64)],
        &[("axis", 0i64.into())],
    );
    Ok(b.op("Where", &[skipped, old, new], &[]))
}
