//! Which columns of a fused projection become queries, which keys and which values, followed through reshapes and cuts.

use super::{QkvLayout, blocks, split_sizes};
use crate::analyze::flow::Flow;
use crate::ir::{NodeId, Use, ValueId};
use rustc_hash::FxHashSet;

/// Where a column goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Queries,
    Keys,
    Values,
}

/// A part of the projection: its value, its columns in the order of the elements, and the axes that they lie on, `(axis, size)` from the
/// slowest to the fastest.
#[derive(Clone, Debug)]
struct Piece {
    value: ValueId,
    columns: Vec<usize>,
    axes: Vec<(usize, usize)>,
}

/// The layout by where each column goes; `None` where one of them cannot be followed, or goes to more than one place.
pub(super) fn layout(view: &Flow<'_>, output: ValueId, width: usize) -> Option<QkvLayout> {
    let last = view.rank(output)?.checked_sub(1)?;
    let mut owners: Vec<Option<Owner>> = vec![None; width];
    let mut todo = vec![Piece {
        value: output,
        columns: (0..width).collect(),
        axes: vec![(last, width)],
    }];
    while let Some(piece) = todo.pop() {
        match *goals(view, piece.value) {
            [] => {}
            [owner] => {
                for c in piece.columns {
                    if owners[c].replace(owner).is_some_and(|o| o != owner) {
                        return None;
                    }
                }
            }
            _ => {
                for n in view.readers(piece.value) {
                    if !view.measures(n) {
                        todo.extend(cut(view, &piece, n)?);
                    }
                }
            }
        }
    }
    let owners: Vec<Owner> = owners.into_iter().collect::<Option<_>>()?;
    let of = |owner: Owner| owners.iter().filter(|o| **o == owner).count();
    let widths = [Owner::Queries, Owner::Keys, Owner::Values].map(of);
    if widths.contains(&0) {
        return None;
    }
    if owners.is_sorted_by_key(|o| *o as u8) {
        return blocks(&widths, width);
    }
    let mut next = [0, widths[0], widths[0] + widths[1]];
    let order = owners.iter().map(|o| {
        let at = &mut next[*o as usize];
        *at += 1;
        *at - 1
    });
    Some(QkvLayout::Interleaved {
        widths,
        order: order.collect(),
    })
}

/// What a value becomes inside its attention: the first products on its way say it.
fn goals(view: &Flow<'_>, value: ValueId) -> Vec<Owner> {
    let mut out: Vec<Owner> = Vec::new();
    let mut seen = FxHashSet::default();
    let mut todo = vec![value];
    while let Some(v) = todo.pop() {
        if !seen.insert(v) {
            continue;
        }
        for u in view.graph.uses(v) {
            let Use::Input(n, slot) = u else { continue };
            if view.measures(n) {
                continue;
            }
            // A product with what no token is part of, as with the embeddings of relative positions, says nothing.
            let product = matches!(view.op(n), "MatMul" | "FusedMatMul");
            let other = view.input(n, usize::from(slot == 0));
            if product && other.is_some_and(|o| !view.carries(o)) {
                continue;
            }
            let owner = match (view.op(n), slot) {
                ("MatMul" | "FusedMatMul", 0) => Some(Owner::Queries),
                ("MatMul" | "FusedMatMul", _) if weighed(view, n) => Some(Owner::Values),
                ("MatMul" | "FusedMatMul", _) => Some(Owner::Keys),
                ("Attention" | "MultiHeadAttention" | "GroupQueryAttention", 0) => {
                    Some(Owner::Queries)
                }
                ("Attention" | "MultiHeadAttention" | "GroupQueryAttention", 1) => {
                    Some(Owner::Keys)
                }
                ("Attention" | "MultiHeadAttention" | "GroupQueryAttention", 2) => {
                    Some(Owner::Values)
                }
                _ => None,
            };
            match owner {
                Some(owner) if out.contains(&owner) => {}
                Some(owner) => out.push(owner),
                None => todo.extend(view.graph.node_outputs(n).into_iter().flatten()),
            }
        }
    }
    out
}

/// Whether a product's left operand is made by a softmax: it mixes values.
fn weighed(view: &Flow<'_>, n: NodeId) -> bool {
    const WAY: [&str; 8] = [
        "Cast",
        "DequantizeLinear",
        "Dropout",
        "Identity",
        "Mul",
        "QuantizeLinear",
        "Reshape",
        "Where",
    ];
    const STEPS: usize = 16;
    let mut open: Vec<ValueId> = view.input(n, 0).into_iter().collect();
    for _ in 0..STEPS {
        let Some(v) = open.pop() else { break };
        match view.producer(v) {
            Some(n) if view.op(n) == "Softmax" => return true,
            // A guard against rows of NaN stands between with a constant.
            Some(n) if WAY.contains(&view.op(n)) => {
                let slot = usize::from(view.op(n) == "Where");
                open.extend(view.inputs(n).into_iter().skip(slot).flatten());
            }
            Some(_) | None => {}
        }
    }
    false
}

/// The pieces that a node makes of one.
fn cut(view: &Flow<'_>, piece: &Piece, n: NodeId) -> Option<Vec<Piece>> {
    let one = |axes: Vec<(usize, usize)>, columns: Vec<usize>| {
        let value = view.out(n)?;
        Some(vec![Piece {
            value,
            columns,
            axes,
        }])
    };
    let rank = view.rank(piece.value)?;
    let axis = |a: i64| usize::try_from(if a < 0 { a + rank as i64 } else { a }).ok();
    match view.op(n) {
        "Identity" | "Cast" | "Clip" | "QuantizeLinear" | "DequantizeLinear" => {
            one(piece.axes.clone(), piece.columns.clone())
        }
        "Reshape" => {
            let in_order = piece
                .axes
                .iter()
                .map(|a| a.0)
                .eq(rank - piece.axes.len()..rank);
            let out = view.out(n)?;
            let mut left = piece.columns.len();
            let mut axes = Vec::new();
            let mut at = view.rank(out)?;
            while in_order && left > 1 && at > 0 {
                at -= 1;
                let size = usize::try_from(view.size(out, at as i64)?).ok()?;
                if size == 0 || !left.is_multiple_of(size) {
                    return None;
                }
                left /= size;
                axes.push((at, size));
            }
            axes.reverse();
            if left == 1 && in_order {
                one(axes, piece.columns.clone())
            } else {
                None
            }
        }
        "Transpose" => {
            let perm = view.node(n).ints("perm")?.to_vec();
            let moved = |(a, size): &(usize, usize)| {
                let to = perm.iter().position(|p| *p == *a as i64)?;
                Some((to, *size))
            };
            let axes = piece.axes.iter().map(moved).collect::<Option<Vec<_>>>()?;
            // The elements are listed from the slowest axis to the fastest, where they lie now.
            if axes.is_sorted() {
                one(axes, piece.columns.clone())
            } else {
                one_sorted(view, n, piece, &axes)
            }
        }
        "Squeeze" | "Unsqueeze" => {
            let own = view.axes(n)?;
            let out = view.rank(view.out(n)?)?;
            let wide = rank.max(out) as i64;
            let gone: Vec<usize> = own
                .iter()
                .filter_map(|a| usize::try_from(if *a < 0 { a + wide } else { *a }).ok())
                .collect();
            let to = |a: usize| -> Option<usize> {
                if view.op(n) == "Squeeze" {
                    (!gone.contains(&a)).then(|| a - gone.iter().filter(|g| **g < a).count())
                } else {
                    (0..out).filter(|o| !gone.contains(o)).nth(a)
                }
            };
            let kept = piece
                .axes
                .iter()
                .filter(|(a, size)| !(*size == 1 && to(*a).is_none()));
            let axes = kept
                .map(|(a, size)| Some((to(*a)?, *size)))
                .collect::<Option<Vec<_>>>()?;
            one(axes, piece.columns.clone())
        }
        "Split" => {
            let along = axis(view.node(n).int("axis", 0))?;
            let outputs = view.graph.node_outputs(n);
            let Some(&(_, size)) = piece.axes.iter().find(|a| a.0 == along) else {
                let same = outputs.into_iter().flatten();
                return Some(
                    same.map(|value| Piece {
                        value,
                        ..piece.clone()
                    })
                    .collect(),
                );
            };
            let sizes = split_sizes(view, n, outputs.len(), size)?;
            let mut at = 0;
            let mut out = Vec::new();
            for (v, size) in outputs.into_iter().zip(sizes) {
                out.extend(
                    v.map(|v| picked(piece, v, along, &(at..at + size).collect::<Vec<_>>(), true)),
                );
                at += size;
            }
            Some(out)
        }
        "Slice" => {
            let ints = |slot: usize| -> Option<Vec<i64>> { view.ints(view.input(n, slot)?) };
            let along = match ints(3) {
                Some(axes) => axes,
                None => vec![0],
            };
            let concerned = along
                .iter()
                .any(|a| axis(*a).is_some_and(|a| piece.axes.iter().any(|p| p.0 == a)));
            if !concerned {
                return one(piece.axes.clone(), piece.columns.clone());
            }
            let ([start], [end], [along]) = (&*ints(1)?, &*ints(2)?, &*along) else {
                return None;
            };
            let step = match view.input(n, 4) {
                Some(_) => *ints(4)?.first()?,
                None => 1,
            };
            let along = axis(*along)?;
            let size = piece.axes.iter().find(|a| a.0 == along)?.1 as i64;
            let bound = |x: i64| (if x < 0 { x + size } else { x }).clamp(0, size);
            let picks = (bound(*start)..bound(*end))
                .step_by(usize::try_from(step).ok().filter(|s| *s > 0)?);
            let picks: Vec<usize> = picks.map(|i| i as usize).collect();
            Some(vec![picked(piece, view.out(n)?, along, &picks, true)])
        }
        "Gather" => {
            let along = axis(view.node(n).int("axis", 0))?;
            let index = view.input(n, 1)?;
            let scalar = view.rank(index)? == 0;
            let Some(&(_, size)) = piece.axes.iter().find(|a| a.0 == along) else {
                return (!scalar).then(|| one(piece.axes.clone(), piece.columns.clone()))?;
            };
            let wrap = |i: i64| usize::try_from(if i < 0 { i + size as i64 } else { i }).ok();
            let picks: Vec<usize> = view
                .ints(index)?
                .into_iter()
                .map(wrap)
                .collect::<Option<_>>()?;
            if picks.iter().any(|i| *i >= size) || view.rank(index)? > 1 {
                return None;
            }
            Some(vec![picked(piece, view.out(n)?, along, &picks, !scalar)])
        }
        "GatherND" => {
            // Rows of the first axis, by a list of single numbers.
            let index = view.input(n, 1)?;
            let listed = view.rank(index)? == 2 && view.size(index, 1)? == 1;
            let &(_, size) = piece.axes.iter().find(|a| a.0 == 0)?;
            let wrap = |i: i64| usize::try_from(if i < 0 { i + size as i64 } else { i }).ok();
            let picks = view.ints(index)?.into_iter().map(wrap);
            let picks: Vec<usize> = picks.collect::<Option<_>>()?;
            if !listed || view.node(n).int("batch_dims", 0) != 0 || picks.iter().any(|i| *i >= size)
            {
                return None;
            }
            Some(vec![picked(piece, view.out(n)?, 0, &picks, true)])
        }
        _ => None,
    }
}

/// The columns at some places of an axis; the axis stays or goes.
fn picked(piece: &Piece, value: ValueId, along: usize, picks: &[usize], stays: bool) -> Piece {
    let at = piece.axes.iter().position(|a| a.0 == along).unwrap_or(0);
    let inner: usize = piece.axes[at + 1..].iter().map(|a| a.1).product();
    let size = piece.axes[at].1;
    let outer = piece.columns.len() / (inner * size).max(1);
    let mut columns = Vec::with_capacity(outer * picks.len() * inner);
    for o in 0..outer {
        for p in picks {
            let from = (o * size + p) * inner;
            columns.extend_from_slice(&piece.columns[from..from + inner]);
        }
    }
    let mut axes = piece.axes.clone();
    if stays {
        axes[at].1 = picks.len();
    } else {
        axes.remove(at);
        for a in &mut axes {
            a.0 -= usize::from(a.0 > along);
        }
    }
    Piece {
        value,
        columns,
        axes,
    }
}

/// A piece whose axes were put in another order.
fn one_sorted(
    view: &Flow<'_>,
    n: NodeId,
    piece: &Piece,
    axes: &[(usize, usize)],
) -> Option<Vec<Piece>> {
    let mut by: Vec<usize> = (0..axes.len()).collect();
    by.sort_by_key(|i| axes[*i].0);
    let stride = |i: usize| axes[i + 1..].iter().map(|a| a.1).product::<usize>();
    let mut at = vec![0];
    for &i in &by {
        let steps = 0..axes[i].1;
        at = at
            .iter()
            .flat_map(|base| steps.clone().map(move |s| base + s * stride(i)))
            .collect();
    }
    Some(vec![Piece {
        value: view.out(n)?,
        columns: at.into_iter().map(|i| piece.columns[i]).collect(),
        axes: by.into_iter().map(|i| axes[i]).collect(),
    }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::columns;
    use crate::infer::Verified;
    use crate::ir::text;

    /// Two heads of width 2; what cuts the projection stands between `%wide` and the products.
    fn found(cut: &str) -> QkvLayout {
        let graph = format!(
            r#"
            graph-text 1
            ir_version 8
            opset "" 17
            graph main(%x: f32[b, s, 4]) -> (%mixed)
              init %w: f32[4, 12] = fill(0.5)
              init %by_head: i64[4] = {{0, 0, 2, 6}}
              init %by_part: i64[5] = {{0, 0, 2, 3, 2}}
              init %first: i64[] = {{0}}
              init %second: i64[] = {{1}}
              init %third: i64[] = {{2}}
              init %scale: f32[] = {{0.1}}
              init %zero: u8[] = {{128}}
              %wide = MatMul(%x, %w)  // qkv
              {cut}
              %qt = Transpose(%q) {{perm = [0, 2, 1, 3]}}
              %kt = Transpose(%k) {{perm = [0, 2, 3, 1]}}
              %vt = Transpose(%v) {{perm = [0, 2, 1, 3]}}
              %scores = MatMul(%qt, %kt)
              %weights = Softmax(%scores) {{axis = -1}}
              %mixed = MatMul(%weights, %vt)
            "#
        );
        let model = Verified::check(text::parse(&graph).unwrap()).unwrap();
        let graph = &model.model().graph;
        let wide = graph.find("wide").unwrap();
        columns::layout(&Flow::new(&model), wide, 12)
    }

    /// GPT-NeoX cuts each head's columns in three, BLOOM has an axis of three.
    #[test]
    fn columns_head_by_head_are_told() {
        let split = "%heads = Reshape(%wide, %by_head)\n %q, %k, %v = Split(%heads) {axis = -1}";
        let picked = "%heads = Reshape(%wide, %by_part)\n %q = Gather(%heads, %first) {axis = 3}
            %k = Gather(%heads, %second) {axis = 3}\n %v = Gather(%heads, %third) {axis = 3}";
        let coded = "%codes = QuantizeLinear(%wide, %scale, %zero)
            %known = DequantizeLinear(%codes, %scale, %zero)
            %rows = Reshape(%known, %by_head)
            %row_codes = QuantizeLinear(%rows, %scale, %zero)
            %heads = DequantizeLinear(%row_codes, %scale, %zero)
            %q, %k, %v = Split(%heads) {axis = -1}";
        for cut in [split, picked, coded] {
            let QkvLayout::Interleaved { widths, order } = found(cut) else {
                panic!("{:?}", found(cut));
            };
            assert_eq!(widths, [4, 4, 4]);
            assert_eq!(*order, [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]);
        }
    }

    #[test]
    fn what_cannot_be_followed_is_not_told() {
        let cut = "%r = Relu(%wide)\n %heads = Reshape(%r, %by_head)\n %q, %k, %v = Split(%heads) {axis = -1}";
        assert_eq!(found(cut), QkvLayout::Unknown);
    }
}
