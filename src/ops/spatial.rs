//! Operators that move blocks of channels and places: `DepthToSpace` (1, 11, 13, 28), `SpaceToDepth` (1, 13, 28) and `CenterCropPad` (18).

use super::kit::infer::normal_axes;
use super::kit::{Defined, Inferred, no_gradient, wrong};
use super::{ExpandCx, InferCx, OpDef};
use crate::ir::{Builder, Sym, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("DepthToSpace", 1..=1, |cx| infer(cx, true)).defined_by(to_space),
    OpDef::new("SpaceToDepth", 1..=1, |cx| infer(cx, false)).defined_by(to_depth),
    OpDef::new("CenterCropPad", 2..=2, infer_center).defined_by(center),
];

fn infer(cx: &mut InferCx<'_>, to_space: bool) -> Inferred {
    let block = cx.node.int("blocksize", 1);
    if block < 1 {
        return wrong(format!("blocksize = {block}"));
    }
    let dims = match cx.dims(0) {
        Some([n, c, h, w]) => {
            let times = |d: &Sym, by: i64| d.mul(&Sym::from(by)).unwrap_or_else(|| cx.unknown());
            let part = |d: &Sym, by: i64| cx.floor_div(d, &Sym::from(by));
            Some(if to_space {
                let c = part(c, block * block);
                vec![n.clone(), c, times(h, block), times(w, block)]
            } else {
                let c = times(c, block * block);
                vec![n.clone(), c, part(h, block), part(w, block)]
            })
        }
        Some(d) => return wrong(format!("a tensor of rank {}, expected 4", d.len())),
        None => None,
    };
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}

/// The four sizes of the input, as vectors of one element.
fn sizes(b: &Builder, x: Val) -> [Val; 4] {
    let shape = b.shape(x);
    [0, 1, 2, 3].map(|i| b.slice(shape, 0, i, i + 1))
}

/// Whether the blocks come before the channels.
fn blocks_first(cx: &ExpandCx<'_>) -> Result<bool, super::GradError> {
    match cx.node().str("mode") {
        None | Some("DCR") => Ok(true),
        Some("CRD") => Ok(false),
        Some(other) => no_gradient(format!("mode = {other:?}, expected DCR or CRD")),
    }
}

fn to_space(cx: &ExpandCx<'_>) -> Defined {
    let (b, block) = (cx.b, cx.node().int("blocksize", 1));
    let x = cx.input(0)?;
    let [n, c, h, w] = sizes(b, x);
    let (k, c) = (b.ints(&[block]), b.div(c, b.ints(&[block * block])));
    let (parts, perm): ([Val; 6], [i64; 6]) = if blocks_first(cx)? {
        ([n, k, k, c, h, w], [0, 3, 4, 1, 5, 2])
    } else {
        ([n, c, k, k, h, w], [0, 1, 4, 2, 5, 3])
    };
    let y = b.transpose(b.reshape(x, b.concat(&parts, 0)), &perm);
    let shape = b.concat(&[n, c, b.mul(h, k), b.mul(w, k)], 0);
    Ok(vec![Some(b.reshape(y, shape))])
}

fn to_depth(cx: &ExpandCx<'_>) -> Defined {
    let (b, block) = (cx.b, cx.node().int("blocksize", 1));
    let x = cx.input(0)?;
    let [n, c, h, w] = sizes(b, x);
    let k = b.ints(&[block]);
    let (h, w) = (b.div(h, k), b.div(w, k));
    let perm = if blocks_first(cx)? {
        [0, 3, 5, 1, 2, 4]
    } else {
        [0, 1, 3, 5, 2, 4]
    };
    let parts = b.reshape(x, b.concat(&[n, c, h, k, w, k], 0));
    let c = b.mul(c, b.ints(&[block * block]));
    let y = b.reshape(b.transpose(parts, &perm), b.concat(&[n, c, h, w], 0));
    Ok(vec![Some(y)])
}

fn infer_center(cx: &mut InferCx<'_>) -> Inferred {
    let dims = match cx.dims_vec(0) {
        Some(mut d) => {
            let all: Vec<i64> = (0..d.len() as i64).collect();
            let axes = normal_axes(cx.node.ints("axes").unwrap_or(&all), d.len())?;
            let sizes = cx.ints(1);
            for (i, a) in axes.into_iter().enumerate() {
                let size = sizes.as_ref().and_then(|s| s.get(i));
                d[a] = size.map_or_else(|| cx.unknown(), |s| cx.as_size(s));
            }
            Some(d)
        }
        None => None,
    };
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}

/// Pads of both signs: half of what is missing, or too much, on either side; the odd one behind.
fn center(cx: &ExpandCx<'_>) -> Defined {
    let (b, rank) = (cx.b, cx.rank(0)?);
    let all: Vec<i64> = (0..rank as i64).collect();
    let axes: Vec<i64> = normal_axes(cx.node().ints("axes").unwrap_or(&all), rank)?
        .into_iter()
        .map(|a| a as i64)
        .collect();
    let x = cx.input(0)?;
    let at = b.ints(&axes);
    let have = b.op("Gather", &[b.shape(x), at], &[("axis", 0i64.into())]);
    let want = b.cast(cx.input(1)?, crate::ir::DType::Int64);
    let (two, none) = (b.ints(&[2]), b.ints(&vec![0; axes.len()]));
    // What is cut off: begins at half of it, rounded down.
    let least = b.op("Min", &[have, want], &[]);
    let begin = b.div(b.sub(have, least), two);
    let cut = b.op("Slice", &[x, begin, b.add(begin, least), at], &[]);
    let missing = b.op("Max", &[b.sub(want, have), none], &[]);
    let before = b.div(missing, two);
    let pads = b.concat(&[before, b.sub(missing, before)], 0);
    let op = crate::ir::OpId::new("", "Pad");
    let y = b.node_n(op, &[Some(cut), Some(pads), None, Some(at)], &[], 1)[0];
    Ok(vec![Some(y)])
}
