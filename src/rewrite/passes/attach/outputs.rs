//! Types of graph outputs whose length or batch an adapter changes.

use crate::analyze::sequence::Longer;
use crate::ir::contract::stamp;
use crate::ir::{DType, Dim, Graph, Type, TypeKind, ValueId};
use crate::rewrite::{PassCx, PassError, Patch};
use rustc_hash::FxHashSet;
use serde_json::{Map, Value, json};

/// Values whose declared shapes are no longer true.
pub(in crate::rewrite::passes) struct Grown(FxHashSet<ValueId>);

impl From<&Longer> for Grown {
    fn from(longer: &Longer) -> Self {
        Grown(longer.behind.iter().copied().collect())
    }
}

impl Grown {
    /// Everything that is computed from these values.
    pub(in crate::rewrite::passes) fn behind(graph: &Graph, from: &[ValueId]) -> Self {
        let mut found = FxHashSet::default();
        let mut open = from.to_vec();
        while let Some(value) = open.pop() {
            for reader in graph.uses(value) {
                let made = graph.node_outputs(reader.node()).into_iter().flatten();
                open.extend(made.filter(|v| found.insert(*v)));
            }
        }
        Grown(found)
    }

    /// The values, in order.
    pub(in crate::rewrite::passes) fn values(&self) -> Vec<ValueId> {
        let mut values: Vec<ValueId> = self.0.iter().copied().collect();
        values.sort_unstable();
        values
    }
}

/// What is declared of values whose shape changes is no longer true. The last node remembers the types of outputs.
pub(super) fn forget_shapes(grown: &Grown, graph: &Graph, patch: &mut Patch) {
    let mut outputs = Map::new();
    for port in graph.outputs() {
        let (Some(ty), true) = (&port.ty, grown.0.contains(&port.value)) else {
            continue;
        };
        let (Some(dtype), Some(dims)) = (ty.dtype(), ty.dims()) else {
            continue;
        };
        let dims: Vec<Value> = dims
            .iter()
            .map(|d| match d {
                Dim::Known(n) => json!(n),
                Dim::Symbol(s) => json!(s),
                Dim::Unknown => Value::Null,
            })
            .collect();
        let name = graph.name_of(port.value).to_owned();
        outputs.insert(name, json!([dtype.name(), dims]));
        let open = TypeKind::Tensor { dtype, dims: None };
        patch.output_type(
            port.value,
            Some(Type {
                kind: open,
                exact: None,
            }),
        );
    }
    if !outputs.is_empty() {
        let text = Value::Object(outputs).to_string();
        patch.builder().mark_last_node(stamp::OUTPUTS, &text);
    }
    patch.forget(grown.values());
}

/// The types of outputs whose length has changed, as [`stamp::OUTPUTS`] remembers them.
pub(in crate::rewrite::passes) fn remembered(text: &str) -> Vec<(String, Type)> {
    let Ok(Value::Object(outputs)) = serde_json::from_str(text) else {
        return Vec::new();
    };
    let dim = |d: &Value| match d {
        Value::String(s) => Dim::Symbol(s.as_str().into()),
        d => d.as_i64().map_or(Dim::Unknown, Dim::Known),
    };
    let typed = |(name, ty): (String, Value)| {
        let dtype = DType::from_name(ty[0].as_str()?)?;
        let dims: Vec<Dim> = ty[1].as_array()?.iter().map(dim).collect();
        Some((name, Type::tensor(dtype, dims)))
    };
    outputs.into_iter().filter_map(typed).collect()
}

/// Declares outputs whose shape has changed as they are inferred now.
pub(super) fn declare_outputs(grown: &Grown, cx: &mut PassCx<'_>) -> Result<(), PassError> {
    let verified = cx.verified()?;
    let graph = &verified.model().graph;
    let before = cx.before().model();
    let mut patch = cx.patch("outputs", None);
    for port in graph.outputs() {
        let name = graph.name_of(port.value);
        let old = before
            .graph
            .outputs()
            .iter()
            .find(|p| before.graph.name_of(p.value) == name && grown.0.contains(&p.value));
        let Some(old) = old.and_then(|p| p.ty.as_ref()) else {
            continue;
        };
        let fact = verified.fact(port.value).cloned().unwrap_or_default();
        let (Some(dtype), Some(declared), Some(dims)) = (fact.dtype, old.dims(), fact.dims) else {
            continue;
        };
        // A symbol may stay where it stands for the same size, or for one that nothing else declares.
        let dims: Vec<Dim> = dims
            .iter()
            .zip(declared)
            .map(|(now, old)| match (now.as_const(), now.as_symbol(), old) {
                (Some(n), _, _) => Dim::Known(n),
                (None, Some(name), Dim::Symbol(s)) if *name == **s => old.clone(),
                _ => Dim::Unknown,
            })
            .collect();
        patch.output_type(port.value, Some(Type::tensor(dtype, dims)));
    }
    if !patch.is_empty() {
        cx.commit(patch)?;
    }
    Ok(())
}
