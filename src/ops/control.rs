//! `If`, `Loop`, `Scan`: types through their subgraphs. Their gradients are graphs too, and made by the gradient pass.

use super::kit::infer::{fact, normal_axis};
use super::kit::{Inferred, MANY, wrong};
use super::{InferCx, InferError, OpDef};
use crate::ir::{DType, Fact, Sym};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("If", 1..=1, infer_if).outputs(0..=MANY),
    OpDef::new("Loop", 2..=MANY, infer_loop).outputs(0..=MANY),
    OpDef::new("Scan", 1..=MANY, infer_scan).outputs(0..=MANY),
];

/// What holds for both facts.
fn join(cx: &InferCx<'_>, a: &Fact, b: &Fact) -> Fact {
    let dims = match (&a.dims, &b.dims) {
        (Some(x), Some(y)) if x.len() == y.len() => Some(
            x.iter()
                .zip(y)
                .map(|(x, y)| if x == y { x.clone() } else { cx.unknown() })
                .collect(),
        ),
        _ => None,
    };
    Fact {
        dtype: a.dtype.filter(|d| b.dtype.is_none_or(|e| e == *d)),
        dims,
        ints: a.ints.clone().filter(|v| Some(v) == b.ints.as_ref()),
    }
}

fn infer_if(cx: &mut InferCx<'_>) -> Inferred {
    cx.expect_dtype(0, &[DType::Bool])?;
    let n = cx.outputs.len();
    let branch = |name: &str| {
        if cx.node.attr(name).is_none() {
            return wrong(format!("attribute `{name}` is missing"));
        }
        let facts = (cx.bodies)(name, &[], true);
        if let Some(f) = facts.as_ref().filter(|f| f.len() != n) {
            return wrong(format!("`{name}` has {} outputs, expected {n}", f.len()));
        }
        Ok(facts)
    };
    // With a known condition the other branch says nothing.
    let facts =
        match cx.const_ints(0).as_deref() {
            Some([0]) => branch("else_branch")?,
            Some([_]) => branch("then_branch")?,
            _ => match (branch("then_branch")?, branch("else_branch")?) {
                (Some(a), Some(b)) => {
                    if let Some((i, (x, y))) = a.iter().zip(&b).enumerate().find(
                        |(_, (x, y))| matches!((x.dtype, y.dtype), (Some(x), Some(y)) if x != y),
                    ) {
                        let name = |f: &Fact| f.dtype.map_or("?", DType::name);
                        return wrong(format!(
                            "output {i} is {} in one branch and {} in the other",
                            name(x),
                            name(y)
                        ));
                    }
                    Some(a.iter().zip(&b).map(|(a, b)| join(cx, a, b)).collect())
                }
                _ => None,
            },
        };
    if let Some(facts) = facts {
        cx.outputs = facts;
    }
    Ok(())
}

/// A fact without the elements, which change from one iteration to the next.
fn shape_only(f: Option<&Fact>) -> Fact {
    let mut f = f.cloned().unwrap_or_default();
    f.ints = None;
    f
}

fn forget_sizes(cx: &InferCx<'_>, f: &Fact) -> Fact {
    fact(f.dtype, f.dims.as_ref().map(|d| cx.unknown_dims(d.len())))
}

/// Facts of the carried values, and of all outputs of the body.
type Iterated = (Vec<Fact>, Vec<Fact>);

/// Facts of the carried values that hold in every iteration, and the body's outputs with them. The body's inputs are `before`, the
/// carried values, `after`; its first `skip` outputs are not carried.
fn iterate(
    cx: &InferCx<'_>,
    before: &[Fact],
    initial: &[Fact],
    after: &[Fact],
    skip: usize,
) -> Result<Option<Iterated>, InferError> {
    const ROUNDS: usize = 4;
    let mut carried = initial.to_vec();
    for round in 0..=ROUNDS {
        let given = [before, &carried, after].concat();
        let Some(out) = (cx.bodies)("body", &given, false) else {
            return Ok(None);
        };
        if out.len() < skip + carried.len() {
            return wrong(format!(
                "the body has {} outputs, expected at least {}",
                out.len(),
                skip + carried.len()
            ));
        }
        let same = |a: &Fact, b: &Fact| a.dtype == b.dtype && a.dims == b.dims;
        let next: Vec<Fact> = carried
            .iter()
            .zip(&out[skip..])
            .map(|(a, b)| {
                if same(a, b) {
                    a.clone()
                } else {
                    shape_only(Some(&join(cx, a, b)))
                }
            })
            .collect();
        // A size that is fresh in every round is unknown; it is stable once it is unknown on the way in.
        let settled = carried.iter().zip(&next).all(|(a, b)| same_known(a, b));
        if settled || round == ROUNDS {
            if !settled {
                carried = carried.iter().map(|f| forget_sizes(cx, f)).collect();
            }
            let given = [before, &carried, after].concat();
            let Some(out) = (cx.bodies)("body", &given, true) else {
                return Ok(None);
            };
            let last = carried
                .iter()
                .zip(&out[skip..])
                .map(|(a, b)| shape_only(Some(&join(cx, a, b))))
                .collect();
            return Ok(Some((last, out)));
        }
        carried = next;
    }
    Ok(None)
}

/// Whether two facts know the same, fresh sizes aside.
fn same_known(a: &Fact, b: &Fact) -> bool {
    let fresh = |s: &Sym| s.as_symbol().is_some_and(|s| s.starts_with('?'));
    a.dtype == b.dtype
        && match (&a.dims, &b.dims) {
            (Some(x), Some(y)) => {
                x.len() == y.len()
                    && x.iter()
                        .zip(y)
                        .all(|(x, y)| x == y || (fresh(x) && fresh(y)))
            }
            (None, None) => true,
            _ => false,
        }
}

fn infer_loop(cx: &mut InferCx<'_>) -> Inferred {
    let carried = cx.inputs.len() - 2;
    if cx.outputs.len() < carried {
        return wrong(format!(
            "{} outputs for {carried} carried values",
            cx.outputs.len()
        ));
    }
    let initial: Vec<Fact> = (0..carried).map(|i| shape_only(cx.input(i + 2))).collect();
    let before = [DType::Int64, DType::Bool].map(|ty| fact(Some(ty), Some(Vec::new())));
    let Some((mut facts, body)) = iterate(cx, &before, &initial, &[], 1)? else {
        return Ok(());
    };
    let steps = cx.unknown();
    for out in body.iter().skip(1 + carried) {
        let dims = out.dims.as_ref();
        let dims = dims.map(|d| [std::slice::from_ref(&steps), d].concat());
        facts.push(fact(out.dtype, dims));
    }
    set_all(cx, facts)
}

fn infer_scan(cx: &mut InferCx<'_>) -> Inferred {
    let total = cx.inputs.len();
    let count = cx.node.int("num_scan_inputs", 0);
    let Some(states) = usize::try_from(count)
        .ok()
        .filter(|n| *n > 0)
        .and_then(|n| total.checked_sub(n))
    else {
        return wrong(format!("num_scan_inputs is {count}, with {total} inputs"));
    };
    let axis_of = |name: &str, i: usize| {
        let list = cx.node.ints(name).unwrap_or(&[]);
        list.get(i).copied().unwrap_or(0)
    };
    let mut steps = None;
    let mut slices = Vec::with_capacity(total - states);
    for i in 0..total - states {
        let mut f = shape_only(cx.input(states + i));
        if let Some(d) = &mut f.dims {
            let axis = normal_axis(axis_of("scan_input_axes", i), d.len())?;
            let n = d.remove(axis);
            steps.get_or_insert(n);
        }
        slices.push(f);
    }
    let initial: Vec<Fact> = (0..states).map(|i| shape_only(cx.input(i))).collect();
    let Some((mut facts, body)) = iterate(cx, &[], &initial, &slices, 0)? else {
        return Ok(());
    };
    let steps = steps.unwrap_or_else(|| cx.unknown());
    for (i, out) in body.iter().skip(states).enumerate() {
        let mut f = shape_only(Some(out));
        if let Some(d) = &mut f.dims {
            let axis = normal_axis(axis_of("scan_output_axes", i), d.len() + 1)?;
            d.insert(axis, steps.clone());
        }
        facts.push(f);
    }
    set_all(cx, facts)
}

/// The outputs; trailing ones may be left out by the node.
fn set_all(cx: &mut InferCx<'_>, facts: Vec<Fact>) -> Inferred {
    if cx.outputs.len() > facts.len() {
        return wrong(format!(
            "{} outputs, the body gives {}",
            cx.outputs.len(),
            facts.len()
        ));
    }
    for (o, f) in cx.outputs.iter_mut().zip(facts) {
        *o = f;
    }
    Ok(())
}
