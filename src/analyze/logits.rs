//! Both ends of a language model's vocabulary: the table that tokens are looked up in, and the logits.

use super::through::Through;
use crate::diag::Diagnostic;
use crate::ir::contract;
use crate::ir::{DType, Graph, GraphPort, Use, ValueId};

/// The logits: the output of this name; without one `logits`, or else the first output.
///
/// # Errors
/// When the graph has no such output.
pub(crate) fn logits(g: &Graph, name: Option<&str>) -> Result<ValueId, Diagnostic> {
    let find = |name: &str| g.outputs().iter().find(|p| g.name_of(p.value) == name);
    let port = match name {
        Some(name) => find(name),
        None => find(contract::LOGITS)
            .or_else(|| of_heads(g).next())
            .or_else(|| g.outputs().first()),
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

/// The outputs of several heads, `logits.NAME`.
pub(crate) fn of_heads(g: &Graph) -> impl Iterator<Item = &GraphPort> {
    let named = |p: &&GraphPort| contract::head_output(g.name_of(p.value)).is_some();
    g.outputs().iter().filter(named)
}

/// The table that `input_ids` looks up, if the graph has one, with its number of rows.
pub(crate) fn word_table(g: &Graph) -> Option<(ValueId, i64)> {
    let passes = Through::ALIKE.or(Through::SHAPE);
    let mut open = vec![g.find(contract::INPUT_IDS)?];
    while let Some(ids) = open.pop() {
        for u in g.uses(ids) {
            let Use::Input(n, slot) = u else { continue };
            let node = g.node(n);
            if slot == 0 && passes.takes(&node.op) {
                open.extend(g.output(n, 0));
            }
            if slot != 1 || !node.op.is_onnx("Gather") {
                continue;
            }
            let table = g.input(n, 0)?;
            let stored = g.value(table).tensor.as_ref();
            let stored = stored.filter(|t| t.dtype.is_float() || t.dtype == DType::Uint8);
            if let Some(rows) = stored.and_then(|t| t.dims.first()) {
                return Some((table, *rows as i64));
            }
        }
    }
    None
}

/// Number of rows of that table.
pub(crate) fn vocabulary(g: &Graph) -> Option<i64> {
    word_table(g).map(|(_, rows)| rows)
}
