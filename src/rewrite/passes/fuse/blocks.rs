//! Norms, rotary embeddings and activations.

use super::{Fused, Fusion, Input, Shared};
use crate::analyze::pattern::{Picture, any, number, op, op_in, or, scalar};
use crate::ir::{NodeId, OpId, ValueId};
use crate::ops::{DOMAIN, MS};

fn fused(op: &str, inputs: impl IntoIterator<Item = ValueId>) -> Fused {
    Fused {
        op: OpId::new(DOMAIN, op),
        inputs: inputs.into_iter().map(|v| Some(Input::Is(v))).collect(),
        attrs: Vec::new(),
        n_out: 1,
    }
}

/// `x · 1/√(mean(x²) + ε) · w`, in the forms of both torch exporters.
pub(super) const RMS_NORM: Fusion = Fusion {
    why: "rms norm",
    shared: Shared::Forbids,
    picture: || {
        let square = or([
            op("Pow", [any("x"), number(2.0)]),
            op("Mul", [any("x"), any("x")]),
        ]);
        let mean = op("ReduceMean", [square]).called("mean");
        let root = op("Sqrt", [op("Add", [mean, scalar("epsilon")])]);
        let normal = or([
            op("Div", [any("x"), root.clone()]),
            op("Mul", [any("x"), op("Div", [number(1.0), root.clone()])]),
            op("Mul", [any("x"), op("Reciprocal", [root])]),
        ]);
        op("Mul", [normal, any("weight")])
    },
    fused: |view, fit| {
        let (x, weight) = (fit.value("x")?, fit.value("weight")?);
        let mean = fit.node("mean")?;
        let last = view.rank(x)? as i64 - 1;
        let axes = view.axes(mean)?;
        let over_last = matches!(axes.as_slice(), [a] if *a == -1 || *a == last);
        let (wd, xd) = (view.dims(weight)?, view.dims(x)?);
        let fits = view.node(mean).int("keepdims", 1) == 1
            && over_last
            && wd.len() == 1
            && wd.last() == xd.last()
            && view.is_f32(x)
            && view.is_f32(weight);
        let epsilon = view.scalar(fit.value("epsilon")?)?;
        fits.then(|| Fused {
            attrs: vec![("epsilon", epsilon.into())],
            n_out: 2,
            ..fused("RMSNormalization", [x, weight])
        })
    },
};

/// `x·cos + concat(-x₂, x₁)·sin` over the halves of the last axis.
pub(super) const ROTARY_EMBEDDING: Fusion = Fusion {
    why: "rotary embedding",
    shared: Shared::Forbids,
    picture: || {
        let lower = op("Slice", [any("x")]).called("lower");
        let upper = op("Slice", [any("x")]).called("upper");
        let turned = op("Concat", [op("Neg", [upper]), lower]).called("turned");
        op(
            "Add",
            [
                op("Mul", [any("x"), any("cos")]),
                op("Mul", [turned, any("sin")]),
            ],
        )
    },
    fused: |view, fit| {
        let [x, cos, sin] = [fit.value("x")?, fit.value("cos")?, fit.value("sin")?];
        let turned = view.node(fit.node("turned")?);
        let width = view.size(x, -1)?;
        let last = |a: i64| a == -1 || a == 3;
        let covers = |n: NodeId, from: i64, to: i64| -> Option<bool> {
            let at = |slot: usize| view.ints(view.input(n, slot)?)?.first().copied();
            let (start, end) = (at(1)?, at(2)?);
            let end = if end < 0 { end + width } else { end.min(width) };
            let step = view.input(n, 4).map_or(Some(1), |_| at(4))?;
            Some(start == from && end == to && last(at(3)?) && step == 1)
        };
        let halves = width % 2 == 0
            && covers(fit.node("lower")?, 0, width / 2)?
            && covers(fit.node("upper")?, width / 2, width)?;
        let table = |t: ValueId| {
            let dims = view.dims(t);
            dims.is_some_and(|d| d.len() == 4 && d[1].is(1) && d[3].is(width))
        };
        let fits = halves
            && view.rank(x)? == 4
            && turned.input_count() == 2
            && last(turned.int("axis", 0))
            && view.is_f32(x)
            && table(cos)
            && table(sin);
        fits.then(|| Fused {
            attrs: vec![("inverse", 0i64.into())],
            ..fused("RotaryEmbedding", [x, cos, sin])
        })
    },
};

/// `a·σ(a)·b`.
pub(super) const SWIGLU: Fusion = Fusion {
    why: "gated activation",
    shared: Shared::Forbids,
    picture: || {
        let silu = op("Mul", [any("a"), op("Sigmoid", [any("a")])]);
        op("Mul", [silu, any("b")])
    },
    fused: |view, fit| {
        let (a, b) = (fit.value("a")?, fit.value("b")?);
        let fits = view.is_f32(a) && view.is_f32(b) && view.same_shape(a, b);
        fits.then(|| fused("SwiGLU", [a, b]))
    },
};

/// `a·σ(a)`.
pub(super) const SILU: Fusion = Fusion {
    why: "silu",
    shared: Shared::Forbids,
    picture: || op("Mul", [any("a"), op("Sigmoid", [any("a")])]),
    fused: |view, fit| {
        let a = fit.value("a")?;
        view.is_f32(a).then(|| fused("Silu", [a]))
    },
};

/// The norm of ONNX over the last axis, whose own gradient is one kernel.
pub(super) const LAYER_NORM: Fusion = Fusion {
    why: "layer norm",
    shared: Shared::Forbids,
    picture: || op("LayerNormalization", [any("x"), any("weight")]).called("norm"),
    fused: |view, fit| {
        let (x, weight, n) = (fit.value("x")?, fit.value("weight")?, fit.node("norm")?);
        let (node, last) = (view.node(n), view.rank(x)? as i64 - 1);
        let axis = node.int("axis", -1);
        let vector = |v: ValueId| {
            view.is_f32(v) && view.rank(v) == Some(1) && view.size(v, -1) == view.size(x, -1)
        };
        let bias = view.input(n, 2);
        let fits = (axis == -1 || axis == last)
            && last > 0
            && view.is_f32(x)
            && view.size(x, -1).is_some()
            && vector(weight)
            && bias.is_none_or(vector)
            && node.int("stash_type", 1) == 1;
        let statistics = view.graph.node_outputs(n).into_iter().skip(1).flatten();
        let read = statistics.into_iter().any(|v| view.graph.is_used(v));
        let epsilon = node.float("epsilon", 1e-5);
        (fits && !read).then(|| Fused {
            attrs: vec![("epsilon", epsilon.into())],
            ..fused("LayerNormalization", [x, weight].into_iter().chain(bias))
        })
    },
};

/// What scales the ways of writing a GELU have in common.
fn gelu_of(inner: &Picture) -> Picture {
    let raised = || op("Add", [inner.clone(), number(1.0)]);
    or([
        op("Mul", [op("Mul", [any("x"), raised()]), number(0.5)]),
        op("Mul", [any("x"), op("Mul", [raised(), number(0.5)])]),
        op("Mul", [op("Mul", [any("x"), number(0.5)]), raised()]),
    ])
}

/// `x·½(1 + erf(x/√2))`, or one operator that says so.
pub(super) const GELU: Fusion = Fusion {
    why: "gelu",
    shared: Shared::Forbids,
    picture: || {
        let divided = op("Div", [any("x"), scalar("root")]).called("divided");
        let scaled = op("Mul", [any("x"), scalar("root")]);
        or([
            gelu_of(&op("Erf", [or([divided, scaled])])),
            op("Gelu", [any("x")]).called("one"),
            op_in(MS, "Gelu", [any("x")]).called("one"),
        ])
    },
    fused: |view, fit| {
        let x = fit.value("x")?;
        let mut form = "none";
        if let Some(n) = fit.node("one") {
            form = match view.node(n).str("approximate") {
                None | Some("none") => "none",
                Some("tanh") => "tanh",
                Some(_) => return None,
            };
        } else {
            let root = view.scalar(fit.value("root")?)?;
            let wanted = if fit.node("divided").is_some() {
                std::f32::consts::SQRT_2
            } else {
                std::f32::consts::FRAC_1_SQRT_2
            };
            if (root - wanted).abs() > 1e-6 {
                return None;
            }
        }
        view.is_f32(x).then(|| Fused {
            attrs: vec![("approximate", form.into())],
            ..fused("Gelu", [x])
        })
    },
};

/// `x·½(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
pub(super) const GELU_TANH: Fusion = Fusion {
    why: "gelu",
    shared: Shared::Forbids,
    picture: || {
        let square = || op("Mul", [any("x"), any("x")]);
        let cube = or([
            op("Pow", [any("x"), number(3.0)]),
            op("Mul", [square(), any("x")]),
        ]);
        let sum = op("Add", [any("x"), op("Mul", [cube, scalar("cubed")])]);
        gelu_of(&op("Tanh", [op("Mul", [sum, scalar("scale")])]))
    },
    fused: |view, fit| {
        let near = |name: &str, wanted: f32| {
            let found = fit.value(name).and_then(|v| view.scalar(v));
            found.is_some_and(|x| (x - wanted).abs() <= 1e-6)
        };
        let x = fit.value("x")?;
        let fits = near("cubed", 0.044_715) && near("scale", 0.797_884_6) && view.is_f32(x);
        fits.then(|| Fused {
            attrs: vec![("approximate", "tanh".into())],
            ..fused("Gelu", [x])
        })
    },
};
