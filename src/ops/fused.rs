//! Operators of our own domain that the native pipeline fuses to: one kernel for what exporters write as five to thirty nodes.
//!
//! | operator | inputs → outputs | computes |
//! |---|---|---|
//! | `RMSNormalization{epsilon}` | `x[..., d]`, `w[d]` → `y`, `inv_rms[...]` | `y = x · inv_rms · w`, `inv_rms = 1/√(mean(x²) + ε)` over the last axis |
//! | `RMSNormalizationGrad` | `x`, `w`, `inv_rms`, `g` → `dx`, `dw` | gradients of the first output |
//! | `RotaryEmbedding{inverse}` | `x[b, h, s, d]`, `cos`, `sin` (`[b or 1, 1, s, d]`) → `y` | `x·cos + rot(x)·sin`, `rot([a, b]) = [-b, a]`; with `inverse = 1` the adjoint `x·cos − rot(x·sin)` |
//! | `Attention{scale}` | `q[b, h, s, e]`, `k[b, h', t, e]`, `v[b, h', t, e']`, `mask?` → `y[b, h, s, e']`, `lse[b, h, s]` | `softmax(scale·q·kᵀ + mask)·v`; query head `i` reads key head `i / (h/h')`; `lse` is the row log-sum-exp |
//! | `AttentionGrad{scale}` | `q`, `k`, `v`, `mask?`, `y`, `lse`, `g` → `dq`, `dk`, `dv` | gradients of the first output |
//! | `Silu`, `SiluGrad` | `x` → `y`; `x`, `g` → `dx` | `x·σ(x)` |
//! | `SwiGLU`, `SwiGLUGrad` | `a`, `b` → `y`; `a`, `b`, `g` → `da`, `db` | `a·σ(a)·b`, equal shapes |
//! | `LinearCrossEntropy{ignore_index}` | `h[b, s, d]`, `w[d, v]`, `labels[b, s]`, `divisor?` → `loss`, `dh[b, s, d]` | mean (or sum / divisor) cross entropy of `h[:, :-1]·w` against `labels[:, 1:]`, and its gradient; logits are never kept and unlabelled rows are never multiplied |
//! | `MatMulAdd{alpha, transA, transB}` | `c`, `a`, `b` → `y` | `c + alpha·op(a)·op(b)`, `b` of rank 2 |

use super::{GradCx, GradError, Gradient, InferCx, InferError, OpDef};
use crate::ir::{DType, Fact, OpId};

/// The domain of the operators that only our own runtime knows.
pub const DOMAIN: &str = "onnx_graft";

const fn op(
    name: &'static str,
    inputs: (usize, usize),
    outputs: (usize, usize),
    infer: fn(&mut InferCx<'_>) -> Result<(), InferError>,
    gradient: Gradient,
) -> OpDef {
    OpDef {
        domain: DOMAIN,
        name,
        inputs,
        outputs,
        infer,
        gradient,
    }
}

pub(super) const OPS: &[OpDef] = &[
    op(
        "RMSNormalization",
        (2, 2),
        (1, 2),
        infer_rms,
        Gradient::Rule(grad_rms),
    ),
    op(
        "RMSNormalizationGrad",
        (4, 4),
        (1, 2),
        |cx| like(cx, &[0, 1]),
        Gradient::Missing,
    ),
    op(
        "RotaryEmbedding",
        (3, 3),
        (1, 1),
        |cx| like(cx, &[0]),
        Gradient::Rule(grad_rotary),
    ),
    op(
        "Attention",
        (3, 4),
        (1, 2),
        infer_attention,
        Gradient::Rule(grad_attention),
    ),
    op(
        "AttentionGrad",
        (7, 7),
        (1, 3),
        |cx| like(cx, &[0, 1, 2]),
        Gradient::Missing,
    ),
    op(
        "Silu",
        (1, 1),
        (1, 1),
        |cx| like(cx, &[0]),
        Gradient::Rule(grad_silu),
    ),
    op(
        "SiluGrad",
        (2, 2),
        (1, 1),
        |cx| like(cx, &[0]),
        Gradient::Missing,
    ),
    op(
        "SwiGLU",
        (2, 2),
        (1, 1),
        |cx| like(cx, &[0]),
        Gradient::Rule(grad_swiglu),
    ),
    op(
        "SwiGLUGrad",
        (3, 3),
        (2, 2),
        |cx| like(cx, &[0, 1]),
        Gradient::Missing,
    ),
    op(
        "LinearCrossEntropy",
        (3, 4),
        (1, 2),
        infer_lce,
        Gradient::Rule(grad_lce),
    ),
    op(
        "MatMulAdd",
        (3, 3),
        (1, 1),
        |cx| like(cx, &[0]),
        Gradient::Missing,
    ),
];

/// Each output has the type and shape of the input of the given slot.
fn like(cx: &mut InferCx<'_>, slots: &[usize]) -> Result<(), InferError> {
    for (out, &slot) in slots.iter().enumerate() {
        let fact = cx.input(slot).map(|f| Fact {
            dtype: f.dtype,
            dims: f.dims.clone(),
            ints: None,
        });
        if let (Some(o), Some(f)) = (cx.outputs.get_mut(out), fact) {
            *o = f;
        }
    }
    Ok(())
}

fn infer_rms(cx: &mut InferCx<'_>) -> Result<(), InferError> {
    like(cx, &[0])?;
    let rows = cx
        .dims(0)
        .and_then(|d| d.split_last())
        .map(|(_, rows)| rows.to_vec());
    if let Some(o) = cx.outputs.get_mut(1) {
        *o = Fact {
            dtype: Some(DType::Float),
            dims: rows,
            ints: None,
        };
    }
    Ok(())
}

fn infer_attention(cx: &mut InferCx<'_>) -> Result<(), InferError> {
    like(cx, &[0])?;
    let width = cx.dims(2).and_then(|d| d.last().cloned());
    let rows = cx
        .dims(0)
        .and_then(|d| d.split_last())
        .map(|(_, rows)| rows.to_vec());
    if let (Some(dims), Some(width)) = (cx.outputs[0].dims.as_mut(), width)
        && let Some(last) = dims.last_mut()
    {
        *last = width;
    }
    if let Some(o) = cx.outputs.get_mut(1) {
        *o = Fact {
            dtype: Some(DType::Float),
            dims: rows,
            ints: None,
        };
    }
    Ok(())
}

fn infer_lce(cx: &mut InferCx<'_>) -> Result<(), InferError> {
    let hidden = cx.input(0).map(|f| Fact {
        ints: None,
        ..f.clone()
    });
    cx.outputs[0] = Fact {
        dtype: Some(DType::Float),
        dims: Some(Vec::new()),
        ints: None,
    };
    if let (Some(o), Some(f)) = (cx.outputs.get_mut(1), hidden) {
        *o = f;
    }
    Ok(())
}

fn graft(name: &str) -> OpId {
    OpId::new(DOMAIN, name)
}

fn frozen(cx: &GradCx<'_>, slots: &[usize]) -> Result<(), GradError> {
    match slots.iter().find(|&&s| cx.wants(s)) {
        Some(s) => Err(GradError(format!(
            "input {s} of this fused operator has no gradient; run the unfused graph"
        ))),
        None => Ok(()),
    }
}

fn grad_rms(cx: &mut GradCx<'_>) -> Result<(), GradError> {
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

fn grad_rotary(cx: &mut GradCx<'_>) -> Result<(), GradError> {
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

fn grad_attention(cx: &mut GradCx<'_>) -> Result<(), GradError> {
    frozen(cx, &[3])?;
    let scale = cx.node().float("scale", 1.0);
    let mask = cx.input(3).ok();
    let (q, k, v) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let ins = [
        Some(q),
        Some(k),
        Some(v),
        mask,
        Some(cx.output(0)?),
        Some(cx.output(1)?),
        Some(cx.grad()?),
    ];
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

fn grad_silu(cx: &mut GradCx<'_>) -> Result<(), GradError> {
    let out =
        cx.b.op_in(DOMAIN, "SiluGrad", &[cx.input(0)?, cx.grad()?], &[]);
    cx.set(0, out);
    Ok(())
}

fn grad_swiglu(cx: &mut GradCx<'_>) -> Result<(), GradError> {
    let ins = [cx.input(0)?, cx.input(1)?, cx.grad()?].map(Some);
    let outs = cx.b.node_n(graft("SwiGLUGrad"), &ins, &[], 2);
    cx.set(0, outs[0]);
    cx.set(1, outs[1]);
    Ok(())
}

fn grad_lce(cx: &mut GradCx<'_>) -> Result<(), GradError> {
    frozen(cx, &[1])?;
    let dh = cx.output(1)?;
    let out = cx.b.mul(dh, cx.grad()?);
    cx.set(0, out);
    Ok(())
}
