//! Graph inputs that hold a cache: by their names, or, whatever they are called, by what reads them.
//!
//! A cache has four axes, and new positions are put behind it along one that is open and is not the batch: by `Concat`, which reads it first, behind casts
//! and transpositions, or inside an attention operator, at the places that are called `past_key` and `past_value` there.

use crate::ir::{Dim, Graph, Type, Use, ValueId, contract};
use rustc_hash::FxHashMap;

/// Attention operators with a cache, its slots among their inputs, and the axis of its positions.
const ATTENTIONS: [(&str, &str, [usize; 2], usize); 3] = [
    ("", "Attention", [4, 5], 2),
    ("com.microsoft", "GroupQueryAttention", [3, 4], 2),
    ("com.microsoft", "MultiHeadAttention", [6, 7], 2),
];

/// The inputs of a graph that hold a cache, each with the axis of its positions where what reads it says that. Linear in what reads them.
pub(crate) fn caches(g: &Graph) -> FxHashMap<ValueId, Option<usize>> {
    let mut out = FxHashMap::default();
    for port in g.inputs() {
        let ty = port.ty.as_ref().or(g.value(port.value).ty.as_ref());
        let dims = ty.and_then(Type::dims);
        let float = ty
            .and_then(Type::dtype)
            .is_none_or(crate::ir::DType::is_float);
        let axis = dims
            .filter(|d| float && d.len() == 4)
            .and_then(|d| grown(g, port.value, d));
        if axis.is_some() || contract::is_cache(g.name_of(port.value), dims) {
            out.insert(port.value, axis);
        }
    }
    out
}

/// The axis of an input along which something is put behind it, where that is open and not the batch.
fn grown(g: &Graph, input: ValueId, dims: &[Dim]) -> Option<usize> {
    let open = |axis: usize| axis > 0 && !matches!(dims.get(axis), None | Some(Dim::Known(_)));
    // A value, and the axis of the input that each of its axes is.
    let mut ways = vec![(input, (0..dims.len()).collect::<Vec<usize>>())];
    while let Some((v, axes)) = ways.pop() {
        for used in g.uses(v) {
            let Use::Input(n, slot) = used else { continue };
            let (node, slot) = (g.node(n), slot as usize);
            let op = &node.op;
            let attention = ATTENTIONS
                .iter()
                .find(|(domain, name, ..)| *op.domain == **domain && *op.op_type == **name);
            let axis = if op.is_onnx("Concat") && slot == 0 {
                let axis = node.int("axis", 0);
                let axis = if axis < 0 {
                    axis + axes.len() as i64
                } else {
                    axis
                };
                usize::try_from(axis)
                    .ok()
                    .and_then(|a| axes.get(a).copied())
            } else if let Some((.., slots, axis)) = attention {
                slots.contains(&slot).then(|| axes[*axis])
            } else {
                let passes = op.is_onnx("Cast") || op.is_onnx("Identity");
                let moved = match node.ints("perm") {
                    Some(perm) if op.is_onnx("Transpose") => perm
                        .iter()
                        .map(|&p| axes.get(usize::try_from(p).ok()?).copied())
                        .collect(),
                    _ => passes.then(|| axes.clone()),
                };
                ways.extend(moved.and_then(|axes| Some((g.output(n, 0)?, axes))));
                None
            };
            if let Some(axis) = axis.filter(|a| open(*a)) {
                return Some(axis);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    fn found(kept: &str) -> Vec<(String, Option<usize>)> {
        let text = format!(
            "graph g(%x: f32[batch, 2, sequence, 4], {kept}) -> (%y, %z)
              %c = Identity(%held)
              %t = Transpose(%c) {{perm = [0, 2, 1, 3]}}
              %y = Concat(%t, %x) {{axis = -2}}
              %z = Relu(%image)"
        );
        let model = text::parse(&text).unwrap();
        let g = &model.graph;
        let mut out: Vec<(String, Option<usize>)> = caches(g)
            .into_iter()
            .map(|(v, axis)| (g.name_of(v).to_owned(), axis))
            .collect();
        out.sort();
        out
    }

    #[test]
    fn a_cache_is_what_new_positions_are_put_behind() {
        let image = "%image: f32[batch, 3, height, width]";
        let held = |dims: &str| found(&format!("%held: f32[{dims}], {image}"));
        assert_eq!(held("batch, past, 2, 4"), [("held".to_owned(), Some(1))]);
        assert_eq!(held("batch, 7, 2, 4"), []);
        assert_eq!(held("batch, past, 2"), []);
    }
}
