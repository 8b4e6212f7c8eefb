//! Both ends of a language model's vocabulary: the table that tokens are looked up in, and the logits.

use crate::diag::Diagnostic;
use crate::ir::contract;
use crate::ir::{DType, Graph, ValueId};

/// The logits: the output of this name; without one `logits`, or else the first output.
///
/// # Errors
/// When the graph has no such output.
pub(crate) fn logits(g: &Graph, name: Option<&str>) -> Result<ValueId, Diagnostic> {
    let find = |name: &str| g.outputs().iter().find(|p| g.name_of(p.value) == name);
    let port = match name {
        Some(name) => find(name),
        None => find(contract::LOGITS).or_else(|| g.outputs().first()),
    };
    port.map(|p| p.value).ok_or_else(|| {
        let names: Vec<&str> = g.outputs().iter().map(|p| g.name_of(p.value)).collect();
        Diagnostic::error(
            "logits",
            format!(
                "the graph has no output `{}`",
                name.unwrap_or(contract::LOGITS)
            ),
        )
        .help(format!("its outputs are: {}", names.join(", ")))
    })
}

/// Number of rows of the table that `input_ids` looks up, if the graph has one.
pub(crate) fn vocabulary(g: &Graph) -> Option<i64> {
    let ids = g.find(contract::INPUT_IDS)?;
    g.uses(ids).into_iter().find_map(|u| {
        let table = g.input(u.node(), 0)?;
        let tensor = g
            .value(table)
            .tensor
            .as_ref()
            .filter(|t| t.dtype.is_float() || t.dtype == DType::Uint8)?;
        let looked_up = g.node(u.node()).op.is_onnx("Gather");
        looked_up
            .then(|| tensor.dims.first().map(|&d| d as i64))
            .flatten()
    })
}
