//! A small model in which methods are asked where they attach and what parameters they have: a decoder whose sizes all differ, and that
//! is never executed.

use crate::adapters::docs::{Explained, Probe, explain};
use crate::error::{Error, Result};
use crate::infer::Verified;
use crate::ir::contract;
use crate::ir::{Builder, DType, Dim, Model, TensorData, Type, Val, ValueId};
use crate::select::{Interface, Selection};
use bytes::Bytes;

/// Whether 2, 4, 16, 32, 64 and 96 divide it and its parts decides which presets can be asked.
const HIDDEN: u64 = 1536;
const INNER: u64 = 2000;
const HEADS: [u64; 2] = [20, 80];
const LAYERS: usize = 5;
const VOCABULARY: u64 = 23;

/// What there is to know of a configuration: an identifier, or a configuration string.
///
/// ```
/// let known = onnx_graft::api::method("mam")?;
/// assert!(known.text().contains("prefix_tuning"));
/// # Ok::<(), onnx_graft::Error>(())
/// ```
///
/// # Errors
/// An identifier or a field that is not known, with the nearest one.
pub fn method(text: &str) -> Result<Explained> {
    Probed::new()?.explain(text)
}

/// All methods as one Markdown document: `schemas/methods.md`.
///
/// # Errors
/// Never, with the methods that there are.
pub fn methods_markdown() -> Result<String> {
    let probed = Probed::new()?;
    crate::adapters::docs::markdown(&|name| probed.explain(name))
}

struct Probed {
    model: Verified,
    selection: Selection,
}

impl Probed {
    fn new() -> Result<Self> {
        let model = Verified::check(decoder()).map_err(Error::from)?;
        let interface = Interface::resolve("llama")?;
        let selection = interface.select(&model)?;
        Ok(Probed { model, selection })
    }

    fn explain(&self, text: &str) -> Result<Explained> {
        let facts = |v: ValueId| self.model.fact(v).cloned();
        let probe = Probe {
            selection: &self.selection,
            graph: &self.model.model().graph,
            facts: &facts,
            heads: HEADS.map(|n| n as usize),
        };
        explain(text, &probe)
    }
}

/// The decoder.
fn decoder() -> Model {
    let b = Builder::new(20);
    let zeros = Bytes::from(vec![0u8; (HIDDEN * INNER * 4) as usize]);
    let m = Maker { b: &b, zeros };
    let axes = || vec![Dim::Symbol("batch".into()), Dim::Symbol("seq".into())];
    let ids = b.graph_input(contract::INPUT_IDS, Type::tensor(DType::Int64, axes()));
    let mask = b.graph_input(contract::ATTENTION_MASK, Type::tensor(DType::Int64, axes()));
    b.set_scope("/model/embed_tokens");
    let table = m.weight("model.embed_tokens.weight", &[VOCABULARY, HIDDEN]);
    let mut x = b.op("Gather", &[table, ids], &[("axis", 0i64.into())]);
    b.set_scope("/model/mask");
    let padded = b.op("Equal", &[b.unsqueeze(mask, &[1, 2]), b.int(0)], &[]);
    let mask = b.op("Where", &[padded, b.scalar(f32::MIN), b.scalar(0.0)], &[]);
    for l in 0..LAYERS {
        x = m.layer(l, x, mask);
    }
    let x = m.norm("model.norm", x);
    let logits = m.linear("lm_head", x, HIDDEN, VOCABULARY);
    let mut dims = axes();
    dims.push(Dim::Known(VOCABULARY as i64));
    let graph = b
        .finish_graph(
            "probe",
            &[(logits, contract::LOGITS, Type::tensor(DType::Float, dims))],
        )
        .expect("invariant: names are unique");
    Model {
        graph,
        opset_imports: vec![("".into(), 20)],
        ir_version: 10,
        ..Model::default()
    }
}

struct Maker<'a> {
    b: &'a Builder,
    zeros: Bytes,
}

impl Maker<'_> {
    fn weight(&self, name: &str, dims: &[u64]) -> Val {
        let len = dims.iter().product::<u64>() as usize * 4;
        let tensor = TensorData::raw(DType::Float, dims, self.zeros.slice(..len));
        self.b.initializer(name, tensor)
    }

    fn enter(&self, module: &str) {
        self.b.set_scope(&format!(
            "/{}",
            module.replace('.', "/").replace("layers/", "layers.")
        ));
    }

    fn linear(&self, module: &str, x: Val, n_in: u64, n_out: u64) -> Val {
        self.enter(module);
        let w = self.weight(&format!("{module}.weight"), &[n_in, n_out]);
        self.b.matmul(x, w)
    }

    fn norm(&self, module: &str, x: Val) -> Val {
        self.enter(module);
        let b = self.b;
        let w = self.weight(&format!("{module}.weight"), &[HIDDEN]);
        let mean = b.reduce_mean(b.op("Pow", &[x, b.scalar(2.0)], &[]), &[-1], true);
        let root = b.unary("Sqrt", b.add(mean, b.scalar(1e-6)));
        b.mul(w, b.mul(x, b.div(b.scalar(1.0), root)))
    }

    fn attention(&self, module: &str, h: Val, mask: Val) -> Val {
        let (b, [heads, size]) = (self.b, HEADS);
        let head = |p: &str| {
            let y = self.linear(&format!("{module}.{p}_proj"), h, HIDDEN, heads * size);
            self.enter(module);
            let split = b.reshape(y, b.ints(&[0, 0, heads as i64, size as i64]));
            b.transpose(split, &[0, 2, 1, 3])
        };
        let [q, k, v] = ["q", "k", "v"].map(head);
        let scores = b.scale(b.matmul(q, b.transpose(k, &[0, 1, 3, 2])), 0.1);
        let scores = b.add(scores, mask);
        let shares = b.op("Softmax", &[scores], &[("axis", (-1i64).into())]);
        let mixed = b.transpose(b.matmul(shares, v), &[0, 2, 1, 3]);
        let mixed = b.reshape(mixed, b.ints(&[0, 0, (heads * size) as i64]));
        self.linear(&format!("{module}.o_proj"), mixed, heads * size, HIDDEN)
    }

    fn layer(&self, l: usize, x: Val, mask: Val) -> Val {
        let (b, layer) = (self.b, format!("model.layers.{l}"));
        let module = |name: &str| format!("{layer}.{name}");
        let h = self.norm(&module("input_layernorm"), x);
        let o = self.attention(&module("self_attn"), h, mask);
        self.enter(&layer);
        let x = b.add(x, o);
        let h = self.norm(&module("post_attention_layernorm"), x);
        let gate = self.linear(&module("mlp.gate_proj"), h, HIDDEN, INNER);
        let up = self.linear(&module("mlp.up_proj"), h, HIDDEN, INNER);
        self.enter(&module("mlp"));
        let gated = b.mul(b.mul(gate, b.unary("Sigmoid", gate)), up);
        let down = self.linear(&module("mlp.down_proj"), gated, INNER, HIDDEN);
        self.enter(&layer);
        b.add(x, down)
    }
}
