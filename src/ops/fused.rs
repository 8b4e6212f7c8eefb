//! Operators of our own domain that the native pipeline fuses to: one kernel for what exporters write as five to thirty nodes.
//!
//! | operator | inputs → outputs | computes |
//! |---|---|---|
//! | `RMSNormalization{epsilon}` | `x[..., d]`, `w[d]` → `y`, `inv_rms[...]` | `y = x · inv_rms · w`, `inv_rms = 1/√(mean(x²) + ε)` over the last axis |
//! | `RMSNormalizationGrad` | `x`, `w`, `inv_rms`, `g` → `dx`, `dw` | gradients of the first output |
//! | `RotaryEmbedding{inverse}` | `x[b, h, s, d]`, `cos`, `sin` (`[b or 1, 1, s, d]`) → `y` | `x·cos + rot(x)·sin`, `rot([a, b]) = [-b, a]`; with `inverse = 1` the adjoint `x·cos − rot(x·sin)` |
//! | `Attention{scale}` | `q[b, h, s, e]`, `k[b, h', t, e]`, `v[b, h', t, e']`, `mask?`, `tokens?[1, n]` → `y[b, h, s, e']`, `lse[b, h, s]` | `softmax(scale·q·kᵀ + mask)·v`; query head `i` reads key head `i / (h/h')`; `lse` is the row log-sum-exp; with `tokens` ([`TokenIndices`](super)), queries elsewhere give zeros |
//! | `AttentionGrad{scale}` | `q`, `k`, `v`, `mask?`, `y`, `lse`, `g`, `tokens?` → `dq`, `dk`, `dv` | gradients of the first output |
//! | `LayerNormalization{epsilon}` | `x[..., d]`, `w[d]`, `b[d]?` → `y` | that of ONNX over the last axis |
//! | `LayerNormalizationGrad{epsilon}` | `x`, `w`, `g` → `dx` | its gradient by `x` |
//! | `Gelu{approximate}`, `GeluGrad` | `x` → `y`; `x`, `g` → `dx` | that of ONNX: `none` is `x·Φ(x)`, `tanh` its approximation |
//! | `Silu`, `SiluGrad` | `x` → `y`; `x`, `g` → `dx` | `x·σ(x)` |
//! | `SwiGLU`, `SwiGLUGrad` | `a`, `b` → `y`; `a`, `b`, `g` → `da`, `db` | `a·σ(a)·b`, equal shapes |
//! | `LinearCrossEntropy{ignore_index}` | `h[b, s, d]`, `w[d, v]`, `labels[b, s]`, `divisor?` → `loss`, `dh[b, s, d]` | mean (or sum / divisor) cross entropy of `h[:, :-1]·w` against `labels[:, 1:]`, and its gradient; logits are never kept and unlabelled rows are never multiplied |
//! | `MatMulAdd{alpha, transA, transB}` | `c`, `a`, `b` → `y` | `c + alpha·op(a)·op(b)`, `b` of rank 2 |

use super::kit::infer::same_as_input;
use super::kit::{DOMAIN, Differentiated, Inferred, no_gradient};
use super::{GradCx, InferCx, OpDef};
use crate::ir::{DType, OpId};
use std::ops::RangeInclusive;

pub(super) const OPS: &[OpDef] = &[
    own("RMSNormalization", 2..=2, 1..=2, infer_rms).gradient(grad_rms),
    own("RMSNormalizationGrad", 4..=4, 1..=2, |cx| like(cx, &[0, 1])),
    own("RotaryEmbedding", 3..=3, 1..=1, same_as_input).gradient(grad_rotary),
    own("Attention", 3..=5, 1..=2, infer_attention).gradient(grad_attention),
    own("AttentionGrad", 7..=8, 1..=3, |cx| like(cx, &[0, 1, 2])),
    own("LayerNormalization", 2..=3, 1..=1, same_as_input).gradient(grad_layer_norm),
    own("LayerNormalizationGrad", 3..=3, 1..=1, same_as_input),
    own("Gelu", 1..=1, 1..=1, same_as_input).gradient(grad_gelu),
    own("GeluGrad", 2..=2, 1..=1, same_as_input),
    own("Silu", 1..=1, 1..=1, same_as_input).gradient(grad_silu),
    own("SiluGrad", 2..=2, 1..=1, same_as_input),
    own("SwiGLU", 2..=2, 1..=1, same_as_input).gradient(grad_swiglu),
    own("SwiGLUGrad", 3..=3, 2..=2, |cx| like(cx, &[0, 1])),
    own("LinearCrossEntropy", 3..=4, 1..=2, infer_lce).gradient(grad_lce),
    own("MatMulAdd", 3..=3, 1..=1, same_as_input),
];

const fn own(
    name: &'static str,
    inputs: RangeInclusive<usize>,
    outputs: RangeInclusive<usize>,
    infer: fn(&mut InferCx<'_>) -> Inferred,
) -> OpDef {
    OpDef::new(name, inputs, infer)
        .in_domain(DOMAIN)
        .outputs(outputs)
}

/// Each output has the type and shape of the input of the given slot.
fn like(cx: &mut InferCx<'_>, slots: &[usize]) -> Inferred {
    for (out, &slot) in slots.iter().enumerate() {
        cx.set_like(out, slot);
    }
    Ok(())
}

/// Notes the statistics of the rows of the first input: one `f32` for each.
fn set_rows(cx: &mut InferCx<'_>, slot: usize) {
    let rows = cx
        .dims(0)
        .and_then(|d| d.split_last())
        .map(|(_, rows)| rows.to_vec());
    cx.set(slot, Some(DType::Float), rows);
}

fn infer_rms(cx: &mut InferCx<'_>) -> Inferred {
    cx.set_like(0, 0);
    set_rows(cx, 1);
    Ok(())
}

fn infer_attention(cx: &mut InferCx<'_>) -> Inferred {
    cx.set_like(0, 0);
    let width = cx.dims(2).and_then(|d| d.last().cloned());
    if let (Some(dims), Some(width)) = (cx.outputs[0].dims.as_mut(), width)
        && let Some(last) = dims.last_mut()
    {
        *last = width;
    }
    set_rows(cx, 1);
    Ok(())
}

fn infer_lce(cx: &mut InferCx<'_>) -> Inferred {
    cx.set(0, Some(DType::Float), Some(Vec::new()));
    cx.set_like(1, 0);
    Ok(())
}

fn graft(name: &str) -> OpId {
    OpId::new(DOMAIN, name)
}

fn frozen(cx: &GradCx<'_>, slots: &[usize]) -> Differentiated {
    match slots.iter().find(|&&s| cx.wants(s)) {
        Some(s) => no_gradient(format!(
            "input {s} of this fused operator has no gradient; run the unfused graph"
        )),
        None => Ok(()),
    }
}

fn grad_rms(cx: &mut GradCx<'_>) -> Differentiated {
    let ins = [cx.input(0)?, cx.input(1)?, cx.output(1)?, cx.grad()?].map(Some);
    let outs = cx.b.node_n(
        graft("RMSNormalizationGrad"),
        &ins,
        &[],
        1 + usize::from(cx.wants(1)),
    );
    for (slot, out) in outs.into_iter().enumerate() {
        cx.set(slot, out);
    }
    Ok(())
}

fn grad_rotary(cx: &mut GradCx<'_>) -> Differentiated {
    frozen(cx, &[1, 2])?;
    let inverse = 1 - cx.node().int("inverse", 0);
    let ins = [cx.grad()?, cx.input(1)?, cx.input(2)?].map(Some);
    let out = cx.b.node_n(
        graft("RotaryEmbedding"),
        &ins,
        &[("inverse", inverse.into())],
        1,
    );
    cx.set(0, out[0]);
    Ok(())
}

fn grad_attention(cx: &mut GradCx<'_>) -> Differentiated {
    frozen(cx, &[3, 4])?;
    let scale = cx.node().float("scale", 1.0);
    let mask = cx.input(3).ok();
    let (q, k, v) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let mut ins = vec![
        Some(q),
        Some(k),
        Some(v),
        mask,
        Some(cx.output(0)?),
        Some(cx.output(1)?),
        Some(cx.grad()?),
    ];
    ins.extend(cx.input(4).ok().map(Some));
    let outs =
        cx.b.node_n(graft("AttentionGrad"), &ins, &[("scale", scale.into())], 3);
    for (slot, out) in outs
        .into_iter()
        .enumerate()
        .filter(|(slot, _)| cx.wants[*slot])
    {
        cx.result[slot] = Some(out);
    }
    Ok(())
}

/// A norm whose weight or bias is trained has the gradient in standard operators.
fn grad_layer_norm(cx: &mut GradCx<'_>) -> Differentiated {
    if cx.wants(1) || cx.wants(2) {
        return super::norm::layer_norm(cx);
    }
    let epsilon = cx.node().float("epsilon", 1e-5);
    let ins = [cx.input(0)?, cx.input(1)?, cx.grad()?];
    let attrs = [("epsilon", epsilon.into())];
    let dx = cx.b.op_in(DOMAIN, "LayerNormalizationGrad", &ins, &attrs);
    cx.set(0, dx);
    Ok(())
}

fn grad_gelu(cx: &mut GradCx<'_>) -> Differentiated {
    let form = cx.node().str("approximate").unwrap_or("none").to_owned();
    let ins = [cx.input(0)?, cx.grad()?];
    let attrs = [("approximate", (&*form).into())];
    let dx = cx.b.op_in(DOMAIN, "GeluGrad", &ins, &attrs);
    cx.set(0, dx);
    Ok(())
}

fn grad_silu(cx: &mut GradCx<'_>) -> Differentiated {
    let out =
        cx.b.op_in(DOMAIN, "SiluGrad", &[cx.input(0)?, cx.grad()?], &[]);
    cx.set(0, out);
    Ok(())
}

fn grad_swiglu(cx: &mut GradCx<'_>) -> Differentiated {
    let ins = [cx.input(0)?, cx.input(1)?, cx.grad()?].map(Some);
    let outs = cx.b.node_n(graft("SwiGLUGrad"), &ins, &[], 2);
    cx.set(0, outs[0]);
    cx.set(1, outs[1]);
    Ok(())
}

fn grad_lce(cx: &mut GradCx<'_>) -> Differentiated {
    frozen(cx, &[1])?;
    let dh = cx.output(1)?;
    let out = cx.b.mul(dh, cx.grad()?);
    cx.set(0, out);
    Ok(())
}
