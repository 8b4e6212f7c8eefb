//! Whether a model's weights are numbers: nothing can be computed with NaN or infinite ones.
//!
//! All weights are read, once, at the speed of memory. What is no weight, such as a mask, may hold infinities.

use super::through::Through;
use super::view::tensor;
use crate::diag::Diagnostic;
use crate::infer::Verified;
use crate::ir::{Graph, NodeId, TensorData, Use, ValueId};
use rustc_hash::FxHashMap;

/// Operators whose operands are weights, whatever their rank.
const PRODUCTS: [&str; 12] = [
    "MatMul",
    "Gemm",
    "Conv",
    "ConvTranspose",
    "Einsum",
    "MatMulNBits",
    "DequantizeLinear",
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
];

/// Refuses a model with weights that are not finite. `name` is what a weight is called: its module, where that is known.
///
/// # Errors
/// What was found, with its number.
pub(crate) fn check_finite(
    model: &Verified,
    name: &FxHashMap<ValueId, &str>,
) -> Result<(), Diagnostic> {
    let graph = &model.model().graph;
    let stored = graph.initializers().iter();
    let broken: Vec<(ValueId, usize)> = stored
        .filter_map(|v| {
            let found = tensor(graph, *v)?.not_finite();
            (found > 0 && means_harm(graph, *v)).then_some((*v, found))
        })
        .collect();
    let Some((first, count)) = broken.first() else {
        return Ok(());
    };
    let others = match broken.len() {
        1 => String::new(),
        n => format!(", and those of {} other modules", n - 1),
    };
    let first = name.get(first).copied().unwrap_or(graph.name_of(*first));
    let message =
        format!("the model holds weights that are not finite: {count} of `{first}`{others}");
    Err(Diagnostic::error("base-finite", message)
        .help("nothing can be computed with NaN or infinite weights: export the model again, in `f32` if it was converted to `f16`"))
}

/// Whether elements that are not finite spoil what is computed: those of a weight. NaN is wrong everywhere but in a single number.
fn means_harm(graph: &Graph, value: ValueId) -> bool {
    let Some(stored) = tensor(graph, value) else {
        return false;
    };
    if stored.count().is_none_or(|n| n < 2) {
        return false;
    }
    let read = !graph.uses(value).is_empty();
    read && (has_nan(stored) || weighs(graph, value, stored.dims.len()))
}

fn has_nan(stored: &TensorData) -> bool {
    let values = stored.to_f32();
    values.is_some_and(|v| v.iter().any(|x| x.is_nan()))
}

/// Whether a value is read as a weight.
fn weighs(graph: &Graph, value: ValueId, rank: usize) -> bool {
    let named = graph.name_of(value).ends_with(".weight");
    let op = |n: NodeId| &*graph.node(n).op.op_type;
    let mut open = vec![value];
    let mut seen = vec![value];
    while let Some(v) = open.pop() {
        for used in graph.uses(v) {
            let Use::Input(n, slot) = used else { continue };
            let weight = PRODUCTS.contains(&op(n))
                || (rank == 1 && matches!(op(n), "Add" | "Mul"))
                || (op(n) == "Gather" && slot == 0 && named);
            if weight {
                return true;
            }
            let next = Through::LAID_OUT.after(graph, n).filter(|_| slot == 0);
            if let Some(next) = next.filter(|o| !seen.contains(o)) {
                seen.push(next);
                open.push(next);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::parse;

    /// What is said of a graph whose stored values hold this number.
    fn found(bad: f32, body: &str) -> Option<String> {
        let text = format!("opset \"\" 17\ngraph main(%x: f32[b, 2]) -> (%y: f32[b, 2])\n{body}");
        let mut model = parse(&text).unwrap();
        for v in model.graph.initializers().to_vec() {
            let stored = model.graph.value(v).tensor.clone().unwrap();
            let count = stored.count().unwrap() as usize;
            let mut values = vec![0.5; count];
            values[count - 1] = bad;
            let spoilt = TensorData::from_f32(stored.dims, &values);
            model.graph.value_mut(v).unwrap().tensor = Some(spoilt);
        }
        let model = Verified::check(model).unwrap();
        let names = FxHashMap::default();
        check_finite(&model, &names).err().map(|d| d.message)
    }

    const PRODUCT: &str =
        "init %w: f32[2, 2] = fill(0.5)\n%t = Transpose(%w) {perm = [1, 0]}\n%y = MatMul(%x, %t)";
    const MASK: &str = "init %m: f32[1, 2] = fill(0.5)\n%y = Add(%x, %m)";
    const BIAS: &str = "init %m: f32[2] = fill(0.5)\n%y = Add(%x, %m)";
    const NUMBER: &str = "init %m: f32[] = {0.5}\n%y = Add(%x, %m)";

    #[test]
    fn weights_are_numbers_and_masks_may_be_infinite() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(found(bad, PRODUCT).unwrap().contains("1 of `w`"));
            assert!(found(bad, BIAS).is_some());
            assert_eq!(found(bad, NUMBER), None);
        }
        assert_eq!(found(f32::NEG_INFINITY, MASK), None);
        assert!(found(f32::NAN, MASK).is_some());
        assert_eq!(found(0.5, PRODUCT), None);
    }
}
