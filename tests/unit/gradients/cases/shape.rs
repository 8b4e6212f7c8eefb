//! Movement of elements, reductions, indexing.

use super::super::harness::{Case, op};
use onnx_graft::ir::TensorData;

pub(super) fn cases() -> Vec<Case> {
    [movement(), reductions(), indexing()]
        .into_iter()
        .flatten()
        .collect()
}

fn movement() -> Vec<Case> {
    vec![
        op("Reshape").x(&[2, 6]).ints(&[3, -1]),
        op("Reshape").x(&[2, 6]).ints(&[0, 2, 3]),
        op("Flatten").x(&[2, 2, 3]),
        op("Flatten").x(&[2, 2, 3]).set("axis", -1i64),
        op("Squeeze").x(&[2, 1, 3]).ints(&[1]),
        op("Unsqueeze").x(&[2, 3]).ints(&[0, -1]),
        op("Transpose").x(&[2, 3]),
        op("Transpose").x(&[2, 3, 2]).set("perm", vec![2, 0, 1]),
        op("Concat").x(&[2, 3]).x(&[2, 1]).set("axis", -1i64),
        op("Concat")
            .x(&[1, 3])
            .frozen(&[2, 3])
            .x(&[1, 3])
            .set("axis", 0i64),
        op("Split")
            .x(&[2, 5])
            .ints(&[2, 3])
            .set("axis", 1i64)
            .outs(2),
        op("Split").x(&[4, 2]).outs(2).set("num_outputs", 2i64),
        op("Split")
            .x(&[2, 5])
            .ints(&[2, 3])
            .set("axis", 1i64)
            .first_of(2),
        op("Slice")
            .x(&[4, 5])
            .ints(&[1])
            .ints(&[4])
            .ints(&[1])
            .ints(&[2]),
        op("Slice")
            .x(&[4, 5])
            .ints(&[-1])
            .ints(&[-5])
            .ints(&[0])
            .ints(&[-1]),
        op("Slice").x(&[4, 5]).ints(&[0, 1]).ints(&[i64::MAX, -1]),
        op("Expand").x(&[3, 1]).ints(&[2, 1, 4]),
        op("Tile").x(&[2, 3]).ints(&[2, 1]),
        op("Trilu").x(&[3, 4]),
        op("Trilu")
            .x(&[2, 3, 3])
            .is(TensorData::from_i64([], &[-1]))
            .set("upper", 0i64),
        op("CumSum").x(&[2, 4]).is(TensorData::from_i64([], &[1])),
        op("CumSum")
            .x(&[2, 4])
            .is(TensorData::from_i64([], &[1]))
            .set("exclusive", 1i64)
            .set("reverse", 1i64),
        op("Pad").x(&[2, 3]).ints(&[0, 1, 1, 2]),
        op("Pad").x(&[2, 3]).ints(&[0, -1, 1, 0]),
        op("Einsum")
            .x(&[2, 3])
            .x(&[3, 4])
            .set("equation", "ij,jk->ik"),
        op("Einsum")
            .x(&[2, 3, 4])
            .x(&[2, 5, 4])
            .set("equation", "bid,bjd->bij"),
        op("Einsum").x(&[2, 3, 3]).set("equation", "...ii->...i"),
        op("Einsum").x(&[3, 3]).x(&[3]).set("equation", "ii,j->j"),
        op("Einsum")
            .x(&[2, 2, 3])
            .x(&[3, 2])
            .set("equation", "...i,ij->...j"),
        op("Einsum")
            .x(&[2, 2, 3])
            .x(&[2, 3])
            .set("equation", "...ij,...j->i"),
        op("Einsum")
            .x(&[3, 4])
            .x(&[1, 4])
            .set("equation", "ij,ij->j")
            .fixed(),
    ]
}

fn reductions() -> Vec<Case> {
    let mut out = Vec::new();
    for name in [
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceLogSumExp",
    ] {
        out.push(op(name).x(&[2, 3, 2]).ints(&[1]));
        out.push(op(name).x(&[2, 3]));
        out.push(op(name).x(&[2, 3, 2]).ints(&[-1, 0]).set("keepdims", 0i64));
        if name != "ReduceSum" {
            out.push(
                op(name)
                    .x(&[2, 3])
                    .at(17)
                    .set("axes", vec![-1])
                    .set("keepdims", 0i64),
            );
        }
    }
    for name in ["ReduceProd", "ReduceLogSum"] {
        out.push(op(name).within(&[2, 3], 0.5, 1.5).ints(&[1]));
        out.push(op(name).within(&[2, 3], 0.5, 1.5).set("keepdims", 0i64));
    }
    // Over no axes, each element by itself.
    for name in [
        "ReduceSumSquare",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceMean",
    ] {
        let of = op(name).within(&[2, 3], 0.5, 1.5);
        out.push(of.set("noop_with_empty_axes", 1i64));
    }
    out
}

fn indexing() -> Vec<Case> {
    vec![
        op("Gather").x(&[4, 2]).grid(&[2, 2], &[0, 3, 3, -1]),
        op("Gather").x(&[2, 4]).grid(&[], &[1]).set("axis", 1i64),
        op("Gather")
            .x(&[2, 4, 2])
            .ints(&[1, 1, 0])
            .set("axis", -2i64),
        op("GatherElements")
            .x(&[3, 3])
            .grid(&[2, 3], &[0, 1, 2, 2, 1, 2]),
        op("GatherElements")
            .x(&[2, 4])
            .grid(&[2, 2], &[0, 3, 1, 1])
            .set("axis", 1i64),
        op("GatherND").x(&[2, 3, 2]).grid(&[2, 2], &[0, 1, 1, 2]),
        op("GatherND")
            .x(&[2, 3, 2])
            .grid(&[2, 1], &[2, 0])
            .set("batch_dims", 1i64),
        op("ScatterElements")
            .x(&[3, 3])
            .grid(&[2, 3], &[1, 0, 2, 0, 2, 1])
            .x(&[2, 3]),
        op("ScatterElements")
            .x(&[2, 4])
            .grid(&[2, 2], &[1, 1, 0, 3])
            .x(&[2, 2])
            .set("axis", 1i64)
            .set("reduction", "add"),
        op("ScatterND").x(&[4, 2]).grid(&[2, 1], &[3, 0]).x(&[2, 2]),
        op("ScatterND")
            .x(&[4, 2])
            .grid(&[2, 1], &[1, 1])
            .x(&[2, 2])
            .set("reduction", "add"),
        op("TopK").x(&[2, 5]).ints(&[3]).first_of(2),
    ]
}
