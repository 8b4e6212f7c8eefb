//! Qwen3-shaped decoders of any size, wired and named as torch's TorchScript exporter does it: for benches, growth tests and big files.

use bytes::Bytes;
use onnx_graft::ir::{Builder, DType, Dim, Model, TensorData, Type, Val};

/// The sizes of a decoder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) vocab: u64,
    pub(crate) hidden: u64,
    pub(crate) inner: u64,
    pub(crate) layers: usize,
    pub(crate) heads: i64,
    pub(crate) kv_heads: i64,
    pub(crate) head_dim: i64,
}

impl Shape {
    /// Qwen3-0.6B with this many layers and this vocabulary.
    pub(crate) fn qwen3_0_6b(layers: usize, vocab: u64) -> Shape {
        Shape {
            vocab,
            hidden: 1024,
            inner: 3072,
            layers,
            heads: 16,
            kv_heads: 8,
            head_dim: 128,
        }
    }

    /// Small enough to run anywhere.
    pub(crate) fn tiny(layers: usize) -> Shape {
        Shape {
            vocab: 48,
            hidden: 32,
            inner: 48,
            layers,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
        }
    }
}

/// A decoder with `input_ids` and `attention_mask` in and `logits` out. `weight(name, dims)` supplies the weights.
pub(crate) fn decoder(shape: Shape, weight: &mut dyn FnMut(&str, &[u64]) -> TensorData) -> Model {
    let b = Builder::new(20);
    let tokens = || {
        Type::tensor(
            DType::Int64,
            vec![Dim::Symbol("batch".into()), Dim::Symbol("seq".into())],
        )
    };
    let ids = b.graph_input("input_ids", tokens());
    let mask = b.graph_input("attention_mask", tokens());
    let mut m = Maker {
        b: &b,
        shape,
        weight,
    };
    m.b.set_scope("/model/embed_tokens");
    let table = m.param("model.embed_tokens.weight", &[shape.vocab, shape.hidden]);
    let mut x = b.op("Gather", &[table, ids], &[("axis", 0i64.into())]);
    b.set_scope("/model");
    let shared = m.shared(ids, mask);
    for l in 0..shape.layers {
        x = m.layer(l, x, &shared);
    }
    x = m.norm("/model/norm", "model.norm.weight", x, shape.hidden);
    let logits = m.linear("/lm_head", "lm_head.weight", x, shape.hidden, shape.vocab);
    let out = Type::tensor(
        DType::Float,
        vec![
            Dim::Symbol("batch".into()),
            Dim::Symbol("seq".into()),
            Dim::Known(shape.vocab as i64),
        ],
    );
    let graph = b
        .finish_graph("main_graph", &[(logits, "logits", out)])
        .expect("names are unique");
    Model {
        graph,
        opset_imports: vec![("".into(), 20)],
        ir_version: 10,
        producer_name: "onnx-graft-synth".into(),
        ..Model::default()
    }
}

/// Weights of a fixed, well-scaled pattern (uniform in `±√3/√fan_in`).
pub(crate) fn patterned(_name: &str, dims: &[u64]) -> TensorData {
    let count: u64 = dims.iter().product();
    let bound = 3f32.sqrt() / (dims[0].max(1) as f32).sqrt();
    let mut state = 0x9e37_79b9u32 ^ count as u32;
    let mut bytes = Vec::with_capacity(count as usize * 4);
    for _ in 0..count {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let x = if dims.len() == 1 {
            1.0
        } else {
            ((state >> 8) as f32 / 8_388_608.0 - 1.0) * bound
        };
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    TensorData::raw(DType::Float, dims, Bytes::from(bytes))
}

struct Shared {
    cos: Val,
    sin: Val,
    mask: Val,
    batch: Val,
    seq: Val,
}

struct Maker<'a> {
    b: &'a Builder,
    shape: Shape,
    weight: &'a mut dyn FnMut(&str, &[u64]) -> TensorData,
}

impl Maker<'_> {
    fn param(&mut self, name: &str, dims: &[u64]) -> Val {
        let tensor = (self.weight)(name, dims);
        self.b.initializer(name, tensor)
    }

    fn linear(&mut self, scope: &str, name: &str, x: Val, n_in: u64, n_out: u64) -> Val {
        self.b.set_scope(scope);
        let w = self.param(name, &[n_in, n_out]);
        self.b.matmul(x, w)
    }

    fn norm(&mut self, scope: &str, name: &str, x: Val, width: u64) -> Val {
        let b = self.b;
        b.set_scope(scope);
        let w = self.param(name, &[width]);
        let square = b.op("Pow", &[x, b.scalar(2.0)], &[]);
        let mean = b.reduce_mean(square, &[-1], true);
        let root = b.unary("Sqrt", b.add(mean, b.scalar(1e-6)));
        let inverse = b.div(b.scalar(1.0), root);
        b.mul(w, b.mul(x, inverse))
    }

    fn shared(&mut self, ids: Val, mask: Val) -> Shared {
        let b = self.b;
        let dims = b.shape(ids);
        let (batch, seq) = (b.slice(dims, 0, 0, 1), b.slice(dims, 0, 1, 2));
        let length = b.squeeze(seq, &[0]);
        let range = b.op("Range", &[b.int(0), length, b.int(1)], &[]);
        b.set_scope("/model/rotary_emb");
        let half = self.shape.head_dim / 2;
        let freqs: Vec<f32> = (0..half)
            .map(|i| 1.0 / 1_000_000f32.powf(i as f32 / half as f32))
            .collect();
        let inv = b.constant(TensorData::from_f32([1, half as u64], &freqs));
        let at = b.cast(b.unsqueeze(range, &[1]), DType::Float);
        let angle = b.mul(at, inv);
        let angles = b.unsqueeze(b.concat(&[angle, angle], -1), &[0, 1]);
        let (cos, sin) = (b.unary("Cos", angles), b.unary("Sin", angles));
        b.set_scope("/model/mask");
        let rows = b.unsqueeze(range, &[1]);
        let future = b.op("Greater", &[range, rows], &[]);
        let padded = b.op("Equal", &[mask, b.int(0)], &[]);
        let hidden = b.op(
            "Or",
            &[b.unsqueeze(future, &[0, 1]), b.unsqueeze(padded, &[1, 2])],
            &[],
        );
        let mask = b.op("Where", &[hidden, b.scalar(f32::MIN), b.scalar(0.0)], &[]);
        Shared {
            cos,
            sin,
            mask,
            batch,
            seq,
        }
    }

    fn rotate(&self, x: Val, s: &Shared) -> Val {
        let (b, half) = (self.b, self.shape.head_dim / 2);
        let upper = b.neg(b.slice(x, 3, half, i64::MAX));
        let turned = b.concat(&[upper, b.slice(x, 3, 0, half)], -1);
        b.add(b.mul(x, s.cos), b.mul(turned, s.sin))
    }

    fn repeat(&self, x: Val, s: &Shared) -> Val {
        let (b, sh) = (self.b, self.shape);
        let to = b.concat(
            &[
                s.batch,
                b.ints(&[sh.kv_heads, sh.heads / sh.kv_heads]),
                s.seq,
                b.ints(&[sh.head_dim]),
            ],
            0,
        );
        let wide = b.op("Expand", &[b.unsqueeze(x, &[2]), to], &[]);
        let flat = b.concat(
            &[s.batch, b.ints(&[sh.heads]), s.seq, b.ints(&[sh.head_dim])],
            0,
        );
        b.reshape(wide, flat)
    }

    fn layer(&mut self, l: usize, x: Val, s: &Shared) -> Val {
        let (sh, b) = (self.shape, self.b);
        let (scope, name) = (format!("/model/layers.{l}"), format!("model.layers.{l}"));
        let (d, e) = (sh.hidden, sh.head_dim as u64);
        let (q_out, kv_out) = (sh.heads as u64 * e, sh.kv_heads as u64 * e);
        let h = self.norm(
            &format!("{scope}/input_layernorm"),
            &format!("{name}.input_layernorm.weight"),
            x,
            d,
        );
        let attn = format!("{scope}/self_attn");
        let head = |m: &mut Self, p: &str, out: u64, heads: i64, normed: bool| {
            let y = m.linear(
                &format!("{attn}/{p}_proj"),
                &format!("{name}.self_attn.{p}_proj.weight"),
                h,
                d,
                out,
            );
            b.set_scope(&attn);
            let to = b.concat(&[s.batch, s.seq, b.ints(&[heads, sh.head_dim])], 0);
            let mut y = b.reshape(y, to);
            if normed {
                y = m.norm(
                    &format!("{attn}/{p}_norm"),
                    &format!("{name}.self_attn.{p}_norm.weight"),
                    y,
                    e,
                );
            }
            b.set_scope(&attn);
            b.transpose(y, &[0, 2, 1, 3])
        };
        let q = head(self, "q", q_out, sh.heads, true);
        let k = head(self, "k", kv_out, sh.kv_heads, true);
        let v = head(self, "v", kv_out, sh.kv_heads, false);
        b.set_scope(&attn);
        let (q, k) = (self.rotate(q, s), self.rotate(k, s));
        let (k, v) = (self.repeat(k, s), self.repeat(v, s));
        let half = (sh.head_dim as f32).powf(-0.25);
        let kt = b.scale(b.transpose(k, &[0, 1, 3, 2]), half);
        let scores = b.add(b.matmul(b.scale(q, half), kt), s.mask);
        let p = b.op("Softmax", &[scores], &[("axis", (-1i64).into())]);
        let mixed = b.transpose(b.matmul(p, v), &[0, 2, 1, 3]);
        let to = b.concat(&[s.batch, s.seq, b.ints(&[q_out as i64])], 0);
        let mixed = b.reshape(mixed, to);
        let o = self.linear(
            &format!("{attn}/o_proj"),
            &format!("{name}.self_attn.o_proj.weight"),
            mixed,
            q_out,
            d,
        );
        b.set_scope(&scope);
        let x = b.add(x, o);
        let post = format!("{name}.post_attention_layernorm.weight");
        let h = self.norm(&format!("{scope}/post_attention_layernorm"), &post, x, d);
        let mlp = format!("{scope}/mlp");
        let gate = self.linear(
            &format!("{mlp}/gate_proj"),
            &format!("{name}.mlp.gate_proj.weight"),
            h,
            d,
            sh.inner,
        );
        b.set_scope(&format!("{mlp}/act_fn"));
        let gate = b.mul(gate, b.unary("Sigmoid", gate));
        let up = self.linear(
            &format!("{mlp}/up_proj"),
            &format!("{name}.mlp.up_proj.weight"),
            h,
            d,
            sh.inner,
        );
        b.set_scope(&mlp);
        let gated = b.mul(gate, up);
        let down = self.linear(
            &format!("{mlp}/down_proj"),
            &format!("{name}.mlp.down_proj.weight"),
            gated,
            sh.inner,
            d,
        );
        b.set_scope(&scope);
        b.add(x, down)
    }
}
