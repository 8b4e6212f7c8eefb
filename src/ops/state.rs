//! Layers with a state: `CausalConvWithState`, `LinearAttention` (27), and the recurrent `RNN`, `GRU`, `LSTM` (7, 14, 22).

use super::kit::{Defined, Inferred, no_gradient, wrong};
use super::{ExpandCx, InferCx, OpDef};
use crate::ir::{Attr, OpId, Sym};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("CausalConvWithState", 2..=4, infer_conv)
        .outputs(1..=2)
        .defined_by(conv),
    OpDef::new("LinearAttention", 3..=6, infer_linear).outputs(1..=2),
    OpDef::new("RNN", 3..=6, infer_recurrent).outputs(0..=2),
    OpDef::new("GRU", 3..=6, infer_recurrent).outputs(0..=2),
    OpDef::new("LSTM", 3..=8, infer_recurrent).outputs(0..=3),
];

fn infer_conv(cx: &mut InferCx<'_>) -> Inferred {
    cx.set_like(0, 0);
    let state = match (cx.dims(0), cx.dims(1)) {
        (Some([n, c, _]), Some([.., k])) => {
            let k = k.sub(&Sym::from(1)).unwrap_or_else(|| cx.unknown());
            Some(vec![n.clone(), c.clone(), k])
        }
        _ => None,
    };
    cx.set(1, cx.dtype(0), state);
    Ok(())
}

/// A convolution by channel over the state and the input behind it; the new state is the end of both.
fn conv(cx: &ExpandCx<'_>) -> Defined {
    let b = cx.b;
    let weight = cx.fact(1);
    let (Some(channels), Some(kernel)) = (weight.size(0), weight.size(-1)) else {
        return no_gradient("the sizes of the weight are unknown");
    };
    let x = match cx.optional(3) {
        Some(past) => b.concat(&[past, cx.input(0)?], 2),
        None => b.op(
            "Pad",
            &[cx.input(0)?, b.ints(&[0, 0, kernel - 1, 0, 0, 0])],
            &[],
        ),
    };
    let group: [(&str, Attr); 1] = [("group", channels.into())];
    let ins = [Some(x), Some(cx.input(1)?), cx.optional(2)];
    let n = if ins[2].is_some() { 3 } else { 2 };
    let y = b.node_n(OpId::new("", "Conv"), &ins[..n], &group, 1)[0];
    let y = match cx.node().str("activation") {
        None | Some("none") => y,
        Some("silu" | "swish") => b.mul(y, b.unary("Sigmoid", y)),
        Some(other) => return no_gradient(format!("activation = {other:?}")),
    };
    let state = if kernel == 1 {
        b.slice(x, 2, i64::MAX, i64::MAX)
    } else {
        b.slice(x, 2, 1 - kernel, i64::MAX)
    };
    Ok(vec![Some(y), Some(state)])
}

fn infer_linear(cx: &mut InferCx<'_>) -> Inferred {
    let (q, kv) = (
        cx.node.int("q_num_heads", 0),
        cx.node.int("kv_num_heads", 0),
    );
    if q < 1 || kv < 1 || q % kv != 0 {
        return wrong(format!("{q} heads of queries for {kv} heads of keys"));
    }
    let (mut out, mut state) = (None, None);
    if let (Some([b, t, _]), Some([.., k]), Some([.., v])) = (cx.dims(0), cx.dims(1), cx.dims(2)) {
        let head = |s: &Sym| cx.floor_div(s, &Sym::from(kv));
        let wide = head(v).mul(&Sym::from(q)).unwrap_or_else(|| cx.unknown());
        out = Some(vec![b.clone(), t.clone(), wide]);
        state = Some(vec![b.clone(), Sym::from(kv), head(k), head(v)]);
    }
    cx.set(0, cx.dtype(0), out);
    let ty = cx.dtype(3).or(cx.dtype(0));
    cx.set(1, ty, state);
    Ok(())
}

fn infer_recurrent(cx: &mut InferCx<'_>) -> Inferred {
    let batch_first = cx.node.int("layout", 0) != 0;
    let both = cx.node.str("direction") == Some("bidirectional");
    let directions = Sym::from(if both { 2 } else { 1 });
    let hidden = cx.dims(2).and_then(|r| r.last().cloned());
    let ty = cx.dtype(0);
    let (mut all, mut last) = (None, None);
    if let (Some([a, b, _]), Some(h)) = (cx.dims(0), hidden) {
        if batch_first {
            all = Some(vec![a.clone(), b.clone(), directions.clone(), h.clone()]);
            last = Some(vec![a.clone(), directions, h]);
        } else {
            all = Some(vec![a.clone(), directions.clone(), b.clone(), h.clone()]);
            last = Some(vec![directions, b.clone(), h]);
        }
    }
    cx.set(0, ty, all);
    cx.set(1, ty, last.clone());
    cx.set(2, ty, last);
    Ok(())
}
