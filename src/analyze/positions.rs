//! Where a graph counts the positions of a sequence, and where these numbers are used.
//!
//! Positions are an input, a `Range`, the running sum of a mask (`RoBERTa`), or a slice of a stored `0, 1, 2, …` (BERT). They are used by a
//! look-up in a table of floats, or as numbers that become angles. A mask that compares positions is no use: it sees differences alone.

use super::through::Through;
use super::view::{View, tensor};
use crate::diag::Diagnostic;
use crate::ir::{DType, Graph, NodeId, TensorData, Use, ValueId, contract};
use rustc_hash::FxHashSet;

/// How a node uses positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    /// It looks rows of a table up.
    Table,
    /// It makes floating-point numbers of them.
    Number,
}

/// How a node uses positions that it reads at a slot, if it does.
pub(crate) fn usage(view: View<'_>, n: NodeId, slot: u32) -> Option<Usage> {
    let float = |v: Option<ValueId>| v.is_some_and(|v| is_float(view, v));
    if view.is(n, "Gather") && slot == 1 && float(view.input(n, 0)) {
        return Some(Usage::Table);
    }
    (view.is(n, "Cast") && float(view.out(n))).then_some(Usage::Number)
}

/// Every value by which positions are looked up or become angles, with the readers that do so; nodes of `others` are no readers.
///
/// # Errors
/// When no positions are found, or they become something that is not known here (a bias by distance, for example).
pub(crate) fn uses(
    view: View<'_>,
    others: &FxHashSet<NodeId>,
) -> Result<Vec<(ValueId, Vec<Use>)>, Diagnostic> {
    let graph = view.graph;
    let reached = reach(view, &|_| true);
    // The difference of two positions is none.
    let apart = |n: NodeId| {
        if !Through::SUM.or(Through::FACTOR).takes(&view.node(n).op) {
            return true;
        }
        let mut inputs = graph.node_inputs(n).into_iter().flatten();
        let first = inputs.next().is_some_and(|v| reached.contains(&v));
        let second = inputs.next().is_some_and(|v| reached.contains(&v));
        !(first && second) && (first || !view.is(n, "Sub"))
    };
    let mut values: Vec<ValueId> = reach(view, &apart).into_iter().collect();
    values.sort_unstable();
    let mut used: Vec<(ValueId, Use, Usage)> = Vec::new();
    for v in values {
        for u in graph.uses(v) {
            let Use::Input(n, slot) = u else { continue };
            let usage = usage(view, n, slot).filter(|_| !others.contains(&n));
            let becomes = match usage {
                // A row of what the model computes is looked up to be shown: the last token of a text.
                Some(Usage::Table) => (!computed(view, n)).then_some(true),
                Some(Usage::Number) => becomes(view, n),
                None => None,
            };
            match (usage, becomes) {
                (Some(usage), Some(true)) => used.push((v, u, usage)),
                (_, Some(false)) => {
                    return Err(Diagnostic::error(
                        "positions",
                        "the graph makes something else of its positions than a look-up or angles",
                    )
                    .at(graph.node(n).name.to_string())
                    .help("a bias by distance would have to reach the prefix as well"));
                }
                _ => {}
            }
        }
    }
    let numbers = used.iter().filter(|(_, _, usage)| *usage == Usage::Number);
    let numbers: FxHashSet<NodeId> = numbers.map(|(_, u, _)| u.node()).collect();
    let mut out: Vec<(ValueId, Vec<Use>)> = Vec::new();
    for (v, u, usage) in used {
        // A table that is made of positions moves as they do: the rows are looked up as before.
        let table = view.input(u.node(), 0).filter(|_| usage == Usage::Table);
        let made = table.map(|t| makers(view, &[t])).unwrap_or_default();
        if made.iter().any(|n| numbers.contains(n)) {
            continue;
        }
        // Not the numbers that say how long it is.
        let counted = made.iter().filter(|n| view.is(**n, "Range"));
        let angles = counted
            .filter_map(|n| view.out(*n))
            .filter(|v| is_float(view, *v));
        if let Some(angles) = angles.min() {
            if !out.iter().any(|(known, _)| *known == angles) {
                out.push((angles, graph.uses(angles)));
            }
            continue;
        }
        let (v, u) = running(view, v, &reached).unwrap_or((v, u));
        match out.iter_mut().find(|(known, _)| *known == v) {
            Some((_, readers)) if readers.contains(&u) => {}
            Some((_, readers)) => readers.push(u),
            None => out.push((v, vec![u])),
        }
    }
    if out.is_empty() {
        return Err(Diagnostic::error(
            "positions",
            "it is not known where the graph counts its positions",
        )
        .help("export the model with the input `position_ids`"));
    }
    Ok(out)
}

/// The running sum that a position is, and its reader on the way, where a mask is multiplied with it: what the mask hides is at no
/// position and stays there, however many come before.
fn running(view: View<'_>, v: ValueId, reached: &FxHashSet<ValueId>) -> Option<(ValueId, Use)> {
    let graph = view.graph;
    let (mut at, mut by, mut masked) = (v, None, false);
    loop {
        let n = view.producer(at)?;
        if view.is(n, "CumSum") {
            return by.filter(|_| masked).map(|u| (at, u));
        }
        let inputs = graph.node_inputs(n).into_iter().enumerate();
        let mut from = None;
        for (slot, input) in inputs.filter_map(|(i, v)| Some((i, v?))) {
            if reached.contains(&input) && from.is_none() {
                from = Some((input, Use::Input(n, slot as u32)));
            } else {
                masked |= view.is(n, "Mul") && view.constant(input).is_none();
            }
        }
        let (next, used) = from?;
        (at, by) = (next, Some(used));
    }
}

/// Whether a node looks up in something that is made of what the model is fed, and not in a table.
fn computed(view: View<'_>, n: NodeId) -> bool {
    let data: Vec<ValueId> = view.input(n, 0).into_iter().collect();
    let mut read = makers(view, &data)
        .into_iter()
        .flat_map(|n| view.graph.node_inputs(n));
    read.any(|v| v.is_some_and(|v| view.graph.is_input(v)))
}

/// Nodes that values are made of, without what gives them their shape alone.
pub(crate) fn makers(view: View<'_>, values: &[ValueId]) -> FxHashSet<NodeId> {
    let mut out = FxHashSet::default();
    let mut todo = values.to_vec();
    while let Some(v) = todo.pop() {
        let Some((n, _)) = view.graph.producer(v) else {
            continue;
        };
        if !view.measures(n) && out.insert(n) {
            todo.extend(view.graph.node_inputs(n).into_iter().flatten());
            todo.extend(view.graph.node_captures(n));
        }
    }
    out
}

/// All integers that are made of positions, through nodes that are let through.
fn reach(view: View<'_>, lets: &dyn Fn(NodeId) -> bool) -> FxHashSet<ValueId> {
    let passes = Through::LAID_OUT
        .or(Through::FACTOR)
        .or(Through::PART)
        .or(Through::SUM);
    let mut seen: FxHashSet<ValueId> = FxHashSet::default();
    let mut todo = sources(view);
    while let Some(v) = todo.pop() {
        if !seen.insert(v) {
            continue;
        }
        for u in view.graph.uses(v) {
            let Use::Input(n, _) = u else { continue };
            if passes.takes(&view.node(n).op) && lets(n) {
                todo.extend(view.out(n).filter(|o| is_int(view, *o)));
            }
        }
    }
    seen
}

fn is_int(view: View<'_>, v: ValueId) -> bool {
    let dtype = view.fact(v).and_then(|f| f.dtype);
    matches!(dtype, Some(DType::Int64 | DType::Int32))
}

/// Where positions come from.
fn sources(view: View<'_>) -> Vec<ValueId> {
    let graph = view.graph;
    let input = graph.find(contract::POSITION_IDS);
    let mut out: Vec<ValueId> = input.into_iter().filter(|v| graph.is_input(*v)).collect();
    for n in graph.nodes() {
        let counted = match view.op(n) {
            "Range" | "CumSum" => true,
            "Slice" | "Gather" => {
                let data = view.input(n, 0).and_then(|v| view.constant(v));
                data.is_some_and(counts_up)
            }
            _ => false,
        };
        out.extend(view.out(n).filter(|v| counted && is_int(view, *v)));
    }
    let stored = graph.initializers().iter().copied();
    let looked_up = |v: &ValueId| {
        let index = |u: &Use| matches!(u, Use::Input(n, slot) if usage(view, *n, *slot) == Some(Usage::Table));
        graph.uses(*v).iter().any(index)
    };
    out.extend(stored.filter(|v| view.constant(*v).is_some_and(counts_up) && looked_up(v)));
    out
}

/// Whether a stored tensor is `0, 1, 2, …`.
fn counts_up(t: &TensorData) -> bool {
    let int = matches!(t.dtype, DType::Int64 | DType::Int32);
    let long = t.dims.iter().filter(|d| **d > 1).count() == 1;
    int && long
        && t.to_i64()
            .is_some_and(|v| v.iter().enumerate().all(|(i, x)| *x == i as i64))
}

/// Whether numbers become angles; `None` where they become no part of what the model computes with them (a mask).
fn becomes(view: View<'_>, cast: NodeId) -> Option<bool> {
    /// Nodes between a position and its angle.
    const FAR: usize = 24;
    let mut todo: Vec<ValueId> = view.out(cast).into_iter().collect();
    let mut seen: FxHashSet<ValueId> = FxHashSet::default();
    let mut other = false;
    while let Some(v) = todo.pop() {
        if seen.len() > FAR || !seen.insert(v) {
            continue;
        }
        for u in view.graph.uses(v) {
            let Use::Input(n, _) = u else { continue };
            match view.op(n) {
                "Cos" | "Sin" => return Some(true),
                "Shape" | "Size" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual"
                | "Equal" => {}
                "Cast" if view.out(n).is_some_and(|o| !is_float(view, o)) => {}
                "Mul" | "MatMul" | "Einsum" | "Gemm" | "Div" | "Cast" | "Concat" | "Expand"
                | "Identity" | "Reshape" | "Squeeze" | "Transpose" | "Unsqueeze" | "Slice" => {
                    todo.extend(view.out(n));
                }
                _ => other = true,
            }
        }
    }
    other.then_some(false)
}

fn is_float(view: View<'_>, v: ValueId) -> bool {
    view.fact(v)
        .and_then(|f| f.dtype)
        .is_some_and(DType::is_float)
}

/// Operators that compare positions.
const COMPARES: [&str; 4] = ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"];

/// How far below the diagonal a triangle begins: `tril(…, -window)` marks what is further away.
fn below(g: &Graph, n: NodeId) -> Option<u64> {
    let node = g.node(n);
    let lower = node.op.is_onnx("Trilu") && node.int("upper", 1) == 0;
    let diagonal = lower.then(|| g.input(n, 1)).flatten()?;
    let diagonal = number(g, diagonal).filter(|k| *k < 0);
    diagonal.map(i64::unsigned_abs)
}

/// Fewest positions that a query sees where a graph masks those further away; `None` where it sees all.
pub(crate) fn attention_window(g: &Graph) -> Option<u64> {
    let nodes = g
        .nodes()
        .filter(|n| COMPARES.iter().any(|op| g.node(*n).op.is_onnx(op)));
    let sides = nodes.flat_map(|n| g.node_inputs(n)).flatten();
    let below = g.nodes().filter_map(|n| below(g, n));
    sides
        .filter_map(|v| distance(g, v))
        .chain(below)
        .filter(|d| *d > 1)
        .min()
}

/// The node that adds to positions, or takes from them.
fn moves(g: &Graph, side: ValueId) -> Option<NodeId> {
    let passes = Through::ALIKE.or(Through::SHAPE).or(Through::REPEAT);
    let (n, _) = g.producer(passes.source(g, side))?;
    Through::SUM.takes(&g.node(n).op).then_some(n)
}

/// The number that is added to or taken from positions.
fn distance(g: &Graph, side: ValueId) -> Option<u64> {
    let n = moves(g, side)?;
    let mut inputs = g.node_inputs(n).into_iter().flatten();
    inputs.find_map(|v| number(g, v)).map(i64::unsigned_abs)
}

/// A constant of one element.
fn number(g: &Graph, v: ValueId) -> Option<i64> {
    let tensor = tensor(g, v)?;
    let single = tensor.count() == Some(1) && tensor.dtype == DType::Int64;
    single.then(|| tensor.to_i64()?.first().copied()).flatten()
}

/// How far back an attention sees, by the masks on its scores: `None` where it sees all.
///
/// # Errors
/// A mask that bounds the distance in a form that is not followed here.
pub(crate) fn seen(view: View<'_>, masks: &[ValueId]) -> Result<Option<u64>, Diagnostic> {
    let g = view.graph;
    let unknown = || {
        Diagnostic::error(
            "prefix-window",
            "a mask hides what is far away in a form that is not followed here, and PEFT's prefix moves out of that window",
        )
        .help("export the model without a sliding window")
    };
    let mut found: Option<u64> = None;
    let mut seen: FxHashSet<ValueId> = FxHashSet::default();
    let mut todo = masks.to_vec();
    while let Some(v) = todo.pop() {
        let Some((n, _)) = g.producer(v).filter(|_| seen.insert(v)) else {
            continue;
        };
        // How long something is says nothing of how far it sees.
        if view.measures(n) {
            continue;
        }
        todo.extend(g.node_inputs(n).into_iter().flatten());
        let stored = g.node_inputs(n).into_iter().flatten();
        let stored = stored.filter_map(|v| Some(stored_band(view.constant(v)?)));
        if below(g, n).is_some_and(|d| d > 1) {
            return Err(unknown());
        }
        for bound in stored.chain([compared(view, n)]) {
            match (bound, found) {
                (Bound::None, _) => {}
                (Bound::At(w), None) => found = Some(w),
                (Bound::At(w), Some(other)) if w == other => {}
                (Bound::At(_) | Bound::Unknown, _) => return Err(unknown()),
            }
        }
    }
    Ok(found)
}

/// How a node bounds the distance of keys and queries.
enum Bound {
    /// Not at all.
    None,
    /// So many positions are seen.
    At(u64),
    /// In a form that is not followed.
    Unknown,
}

/// How a stored mask bounds the distance: GPT-Neo's local attention has a band below the diagonal, which is not followed.
fn stored_band(t: &TensorData) -> Bound {
    let [front @ .., rows, columns] = &*t.dims else {
        return Bound::None;
    };
    if rows != columns || *rows < 2 || front.iter().any(|d| *d != 1) {
        return Bound::None;
    }
    let n = *rows as usize;
    let whole = || Some(t.to_i64()?.into_iter().map(|x| x as f32).collect());
    let values: Vec<f32> = match t.to_f32().or_else(whole) {
        Some(values) if values.len() == n * n => values,
        _ => return Bound::None,
    };
    let bits = |x: &f32| x.to_bits();
    let other = values
        .iter()
        .find(|x| bits(x) != bits(&values[0]))
        .map(bits);
    if values
        .iter()
        .any(|x| bits(x) != bits(&values[0]) && Some(bits(x)) != other)
    {
        return Bound::None;
    }
    // What the first position is told of itself says that a key is seen.
    let seen = |i: usize, j: usize| values[i * n + j].to_bits() == values[0].to_bits();
    // The last position sees all that came before, or some of it is too far away.
    if (0..n).all(|j| seen(n - 1, j)) {
        Bound::None
    } else {
        Bound::Unknown
    }
}

/// How a node bounds the distance of keys and queries, where it compares them.
fn compared(view: View<'_>, n: NodeId) -> Bound {
    let g = view.graph;
    let op = view.op(n);
    let compares = COMPARES.contains(&op);
    let Some((left, right)) = view.pair(n).filter(|_| compares) else {
        return Bound::None;
    };
    let moved = |v: ValueId| distance(g, v).filter(|d| *d > 1);
    let (d, side, on_left) = match (moved(left), moved(right)) {
        (None, Some(d)) => (d, right, false),
        (Some(d), None) => (d, left, true),
        (None, None) => return Bound::None,
        (Some(_), Some(_)) => return Bound::Unknown,
    };
    // Only `queries - d` is followed.
    let subtracts = moves(g, side).is_some_and(|m| {
        let constant = |slot: usize| g.input(m, slot).and_then(|v| number(g, v));
        match view.op(m) {
            "Sub" => constant(1).is_some_and(|k| k > 0),
            "Add" => [0, 1]
                .into_iter()
                .any(|s| constant(s).is_some_and(|k| k < 0)),
            _ => false,
        }
    });
    if !subtracts {
        return Bound::Unknown;
    }
    let strict = matches!(
        (op, on_left),
        ("Greater" | "LessOrEqual", false) | ("GreaterOrEqual" | "Less", true)
    );
    Bound::At(if strict { d } else { d + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::Verified;
    use crate::ir::text::parse;

    /// A triangle hides what comes later; a band hides what is far away, and is not followed, nor is another square.
    #[test]
    fn a_stored_mask_may_be_a_band() {
        let mask = |seen: &dyn Fn(usize, usize) -> bool| {
            let bytes: Vec<u8> = (0..36).map(|i| u8::from(seen(i / 6, i % 6))).collect();
            TensorData::raw(DType::Bool, [1, 1, 6, 6], bytes.into())
        };
        let causal = stored_band(&mask(&|i, j| j <= i));
        assert!(matches!(causal, Bound::None));
        let local = stored_band(&mask(&|i, j| j <= i && i - j < 3));
        assert!(matches!(local, Bound::Unknown));
        let other = stored_band(&mask(&|i, j| (i + j) % 2 == 0));
        assert!(matches!(other, Bound::Unknown));
        let numbers: Vec<f32> = (0..9u8).map(f32::from).collect();
        let weight = stored_band(&TensorData::from_f32([3, 3], &numbers));
        assert!(
            matches!(weight, Bound::None),
            "a matrix of numbers is no mask"
        );
    }

    /// Phi-MoE makes as many rows as the sequence is long, and looks them up: the numbers that the rows are made of move.
    #[test]
    fn a_table_of_angles_moves_and_not_its_look_up() {
        let graph = "opset \"\" 17\n\
            graph main(%position_ids: i64[b, s]) -> (%y: f32[b, s])\n\
            init %zero: f32[] = 0.0\n\
            init %one: f32[] = 1.0\n\
            init %none: i64[] = 0\n\
            init %more: i64[] = 1\n\
            %size = Size(%position_ids)\n\
            %places = Range(%none, %size, %more)\n\
            %longest = ReduceMax(%places) {keepdims = 0}\n\
            %n = Cast(%longest) {to = 1}\n\
            %steps = Range(%zero, %n, %one)\n\
            %table = Cos(%steps)\n\
            %y = Gather(%table, %position_ids)";
        let model = Verified::check(parse(graph).unwrap()).unwrap();
        let g = &model.model().graph;
        let found = uses(View::new(g, &model), &FxHashSet::default()).unwrap();
        let [(value, readers)] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!((g.name_of(*value), readers.len()), ("steps", 1));
    }

    /// What a mask hides is at no position: a prefix moves the running sum, not what the mask makes of it.
    #[test]
    fn a_hidden_token_is_at_no_position() {
        let graph = "opset \"\" 17\n\
            graph main(%mask: i64[b, s]) -> (%y: f32[b, s, 4])\n\
            init %table: f32[9, 4] = fill(0.5)\n\
            init %one: i64[] = 1\n\
            %sum = CumSum(%mask, %one)\n\
            %shown = Mul(%sum, %mask)\n\
            %p = Add(%shown, %one)\n\
            %y = Gather(%table, %p)";
        let model = Verified::check(parse(graph).unwrap()).unwrap();
        let g = &model.model().graph;
        let found = uses(View::new(g, &model), &FxHashSet::default()).unwrap();
        let [(value, readers)] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!(g.name_of(*value), "sum");
        let [Use::Input(n, 0)] = readers[..] else {
            panic!("{readers:?}")
        };
        assert_eq!(&*g.node(n).op.op_type, "Mul");
    }

    /// Rows of a table are looked up by positions, and so are rows of what the model computes: the last token of a text.
    #[test]
    fn a_row_of_what_is_computed_is_no_use_of_a_position() {
        let graph = "opset \"\" 17\n\
            graph main(%x: f32[b, s, 4], %position_ids: i64[b, s]) -> (%y: f32[b, s, s, 4])\n\
            init %table: f32[9, 4] = fill(0.5)\n\
            %p = Gather(%table, %position_ids)\n\
            %h = Add(%x, %p)\n\
            %y = Gather(%h, %position_ids)";
        let model = Verified::check(parse(graph).unwrap()).unwrap();
        let g = &model.model().graph;
        let found = uses(View::new(g, &model), &FxHashSet::default()).unwrap();
        let [(value, readers)] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!(g.name_of(*value), "position_ids");
        let read: Vec<&str> = readers
            .iter()
            .filter_map(|u| Some(g.name_of(g.output(u.node(), 0)?)))
            .collect();
        assert_eq!(read, ["p"]);
    }
}
