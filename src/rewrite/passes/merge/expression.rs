//! What adapters make of a weight, as a small model that computes it.

use crate::adapters::AdapterStore;
use crate::adapters::methods::{Fold, Merged};
use crate::adapters::place::{BuildCx, Params, wider};
use crate::adapters::plan::Part;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind};
use crate::infer::Verified;
use crate::ir::{
    Builder, DType, Fragment, Graph, GraphPort, Model, OrderKey, TensorData, Val, ValueId,
};
use crate::rewrite::passes::attach::blocks::weighted_sum;
use bytes::Bytes;
use rustc_hash::FxHashMap;
use std::cell::RefCell;

/// A model without inputs that computes the merged weight, and the merged bias where it changes, of one linear: the weighted sum of what
/// each stack makes of it, of which the weight itself has the rest.
///
/// # Errors
/// When the method has no such form here.
pub(super) fn merge_expression(
    terms: &[(f64, Vec<&Part<'_>>)],
    (weight, bias): (ValueId, Option<ValueId>),
    store: &AdapterStore,
    (graph, opset): (&Graph, i64),
    fold: Fold,
    opened: &FxHashMap<ValueId, TensorData>,
) -> Result<Verified, Error> {
    let wrong = |d: Diagnostic| Error::new(ErrorKind::Method, d);
    let b = Builder::new(opset);
    let stored = opened.get(&weight).map_or(DType::Float, |t| t.dtype);
    let mut computed = stored;
    for part in terms.iter().flat_map(|(_, stack)| stack) {
        computed = wider(part.method.dtype().map_err(wrong)?, computed);
    }
    b.set_float(computed);
    let (current, once) = (FxHashMap::default(), RefCell::default());
    let mut build = BuildCx::new(&b, graph, stored, false, &current, &once);
    let shapes = opened.iter().map(|(v, t)| (*v, t.dims.clone()));
    build.opened = Some(shapes.collect());
    let mut each = Vec::with_capacity(terms.len());
    // A setup may name an adapter more than once.
    let mut made = FxHashMap::default();
    for (share, stack) in terms {
        let values = (store, &mut made);
        let merged = merge_stack(stack, values, &build, computed, fold).map_err(wrong)?;
        each.extend(merged.map(|m| (*share, m)));
    }
    let outputs: Vec<Val> = match &*each {
        [(share, only)] if (share - 1.0).abs() < 1e-9 => {
            std::iter::once(only.weight).chain(only.bias).collect()
        }
        _ => {
            let mixed = |of: &dyn Fn(&Merged) -> Val, old: ValueId| {
                let old = build.up(Val::Old(old));
                let terms: Vec<(f64, Val)> = each
                    .iter()
                    .map(|(share, m)| (*share, build.up(of(m))))
                    .collect();
                build.down(weighted_sum(&b, &terms, old))
            };
            let new_bias = bias.filter(|_| each.iter().any(|(_, m)| m.bias.is_some()));
            let own = new_bias.map(|old| mixed(&|m: &Merged| m.bias.unwrap_or(Val::Old(old)), old));
            std::iter::once(mixed(&|m: &Merged| m.weight, weight))
                .chain(own)
                .collect()
        }
    };
    drop(build);
    standalone(b.finish(), (graph, opened), &outputs, opset)
}

/// What a stack of adapters makes of the weight.
fn merge_stack(
    stack: &[&Part<'_>],
    (store, made): (&AdapterStore, &mut FxHashMap<String, Val>),
    build: &BuildCx<'_>,
    computed: DType,
    fold: Fold,
) -> Result<Option<Merged>, Diagnostic> {
    let b = build.b;
    let mut merged: Option<Merged> = None;
    for (at, part) in stack.iter().enumerate() {
        let kept = part.method.dtype()?;
        let mut parameter = |(suffix, name): &(String, String)| {
            let tensor = store.get(name).map(|p| p.tensor.clone())?;
            let value = made.entry(name.clone());
            let stored = *value.or_insert_with(|| b.initializer(name, tensor));
            let value = if kept == computed {
                stored
            } else {
                b.cast(stored, computed)
            };
            Some((suffix.clone(), value))
        };
        let own: Vec<(String, Val)> = part.own.iter().filter_map(&mut parameter).collect();
        let shared: Vec<(String, Val)> = part.shared.iter().filter_map(&mut parameter).collect();
        let params = Params {
            own: &own,
            shared: &shared,
        };
        let below = merged.and_then(|m| m.change);
        if at > 0 && below.is_none() {
            return Err(Diagnostic::error(
                "merge-stack",
                "an adapter in front of this one does more than add to the weight, so both together are no weight",
            )
            .at(part.place.scope.clone())
            .help("keep both attached: `--active \"Stack(a, b)\"`"));
        }
        merged = Some(
            part.method
                .merge(&part.place, &params, build, fold, below)?,
        );
    }
    Ok(merged)
}

/// A model of a fragment: what it reads of the graph are constants, which become its own.
pub(in crate::rewrite::passes) fn standalone(
    mut fragment: Fragment,
    (graph, opened): (&Graph, &FxHashMap<ValueId, TensorData>),
    outputs: &[Val],
    opset: i64,
) -> Result<Verified, Error> {
    let mut own: FxHashMap<ValueId, u32> = FxHashMap::default();
    for node in &mut fragment.nodes {
        for input in node.inputs.iter_mut().flatten() {
            let Val::Old(id) = *input else { continue };
            let ix = *own.entry(id).or_insert_with(|| {
                let value = graph.value(id);
                fragment.values.push(crate::ir::NewValue {
                    name: format!("base/{}", value.name).into(),
                    ty: None,
                    tensor: opened.get(&id).or(value.tensor.as_ref()).cloned(),
                    metadata: crate::ir::Metadata::default(),
                    input: false,
                });
                fragment.values.len() as u32 - 1
            });
            *input = Val::New(ix);
        }
    }
    let mut model = Model {
        opset_imports: vec![("".into(), opset)],
        ir_version: 8,
        ..Model::default()
    };
    let g = &mut model.graph;
    g.name = "merge".into();
    let place = |_: &crate::ir::NewNode, i: u32| OrderKey { anchor: i, seq: 0 };
    let ids = g
        .insert_fragment(fragment, place)
        .map_err(|e| Error::new(ErrorKind::Patch, Diagnostic::error("merge", e.to_string())))?;
    for v in outputs {
        if let Val::New(ix) = v {
            g.outputs.push(GraphPort {
                value: ids[*ix as usize],
                ty: None,
                residue: Bytes::new(),
            });
        }
    }
    Verified::check(model).map_err(Error::from)
}
