//! The layer wired by hand from our kernels: what a planned graph can reach.

use super::Layer;
use super::setup::{
    self, BATCH, EPS, Fixture, Gradients, HEAD, HEADS, HIDDEN, INNER, KV_HEADS, RANK, SCALE, SEQ,
    TOKENS,
};
use half::bf16;
use onnx_graft_kernels::activation::{Activation, gated, gated_backward_in_place};
use onnx_graft_kernels::attention::{self, Attention, AttentionGrads};
use onnx_graft_kernels::gemm::{Mat, MatMut, Precision, Term, WeightRef, gemm};
use onnx_graft_kernels::norm::{Rows, rms_norm, rms_norm_backward};
use onnx_graft_kernels::pool::Pool;
use onnx_graft_kernels::rotary::{Rotary, rotary_in_place};
use onnx_graft_kernels::{DType, Heads, Result};

/// The products with the small matrices.
const F32: Precision = Precision::F32;

pub struct Wired {
    fixture: &'static Fixture,
    /// The weights as bytes, the way a file maps them.
    weights: Vec<Vec<u8>>,
    precision: Precision,
    pool: Pool,
}

/// What the backward pass needs of a linear.
struct Low {
    /// `x · a`.
    low: Vec<f32>,
}

impl Wired {
    /// The frozen weights are stored as `f32`, or as bfloat16 for products of that precision.
    pub fn new(fixture: &'static Fixture, precision: Precision) -> Self {
        let store = |weight: &[f32]| match precision {
            Precision::F32 => weight.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Precision::Bf16 => weight
                .iter()
                .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                .collect(),
        };
        let weights = fixture
            .linears
            .iter()
            .map(|linear| store(&linear.weight))
            .collect();
        Self {
            fixture,
            weights,
            precision,
            pool: Pool::new(),
        }
    }

    fn linear(&self, index: usize) -> (&'static setup::Linear, WeightRef<'_>) {
        let linear = &self.fixture.linears[index];
        let dtype = if self.precision == Precision::F32 {
            DType::F32
        } else {
            DType::Bf16
        };
        let weight = WeightRef::new(dtype, &self.weights[index], linear.inputs, linear.outputs);
        (linear, weight.unwrap())
    }

    fn sum(&self, terms: &[Term<'_>], accumulate: bool, c: MatMut<'_>) -> Result<()> {
        gemm(self.precision, terms, accumulate, c)
    }

    /// `y (=|+=) x · weight + SCALE · x · a · b`.
    fn forward(&self, index: usize, x: &[f32], accumulate: bool, y: &mut [f32]) -> Result<Low> {
        let (linear, weight) = self.linear(index);
        let mut low = self.pool.take(TOKENS * RANK);
        let x = Mat::new(x, TOKENS, linear.inputs)?;
        let (a, b) = (
            Mat::new(&linear.a, linear.inputs, RANK)?,
            Mat::new(&linear.b, RANK, linear.outputs)?,
        );
        gemm(
            F32,
            &[Term::new(x, a)],
            false,
            MatMut::new(&mut low, TOKENS, RANK)?,
        )?;
        let update = Term::new(Mat::new(&low, TOKENS, RANK)?, b).scaled(SCALE);
        self.sum(
            &[Term::new(x, weight), update],
            accumulate,
            MatMut::new(y, TOKENS, linear.outputs)?,
        )?;
        Ok(Low { low })
    }

    /// Gradient of `x · a` from that of the result.
    fn low_gradient(&self, index: usize, dy: &[f32]) -> Result<Vec<f32>> {
        let (linear, _) = self.linear(index);
        let mut dlow = self.pool.take(TOKENS * RANK);
        let b = Mat::new(&linear.b, RANK, linear.outputs)?;
        let term = Term::new(Mat::new(dy, TOKENS, linear.outputs)?, b)
            .trans_b()
            .scaled(SCALE);
        gemm(F32, &[term], false, MatMut::new(&mut dlow, TOKENS, RANK)?)?;
        Ok(dlow)
    }

    /// The two terms of the input's gradient.
    fn input_terms<'a>(
        &'a self,
        index: usize,
        dy: &'a [f32],
        dlow: &'a [f32],
    ) -> Result<[Term<'a>; 2]> {
        let (linear, weight) = self.linear(index);
        let a = Mat::new(&linear.a, linear.inputs, RANK)?;
        Ok([
            Term::new(Mat::new(dy, TOKENS, linear.outputs)?, weight).trans_b(),
            Term::new(Mat::new(dlow, TOKENS, RANK)?, a).trans_b(),
        ])
    }

    /// Gradients of `a` and `b`.
    fn parameters(
        &self,
        index: usize,
        x: &[f32],
        low: Low,
        dy: &[f32],
        dlow: Vec<f32>,
    ) -> Result<[Vec<f32>; 2]> {
        let (linear, _) = self.linear(index);
        let (inputs, outputs) = (linear.inputs, linear.outputs);
        let (mut da, mut db) = (vec![0.0; inputs * RANK], vec![0.0; RANK * outputs]);
        let dlow_mat = Mat::new(&dlow, TOKENS, RANK)?;
        let term = Term::new(Mat::new(x, TOKENS, inputs)?, dlow_mat).trans_a();
        gemm(F32, &[term], false, MatMut::new(&mut da, inputs, RANK)?)?;
        let term = Term::new(
            Mat::new(&low.low, TOKENS, RANK)?,
            Mat::new(dy, TOKENS, outputs)?,
        );
        gemm(
            F32,
            &[term.trans_a().scaled(SCALE)],
            false,
            MatMut::new(&mut db, RANK, outputs)?,
        )?;
        self.pool.give(low.low);
        self.pool.give(dlow);
        Ok([da, db])
    }

    fn run(&self) -> Result<Gradients> {
        let Fixture {
            norms,
            cos,
            sin,
            input,
            upstream,
            ..
        } = self.fixture;
        let take = |width: usize| self.pool.take(TOKENS * width);
        let give = |buffers: Vec<Vec<f32>>| {
            for buffer in buffers {
                self.pool.give(buffer);
            }
        };
        let tables = Rotary {
            cos,
            sin,
            rows: SEQ,
            positions: None,
            width: HEAD / 2,
            dim: HEAD,
            interleaved: false,
        };
        let (q_at, kv_at) = (
            Heads::bshd(BATCH, SEQ, HEADS, HEAD),
            Heads::bshd(BATCH, SEQ, KV_HEADS, HEAD),
        );
        let spec = Attention {
            q: q_at,
            k: kv_at,
            v: kv_at,
            out: q_at,
            scale: 1.0 / (HEAD as f32).sqrt(),
            causal: Some(0),
            mask: None,
            live: None,
        };

        // Forward.
        let (mut n1, mut inv1) = (take(HIDDEN), take(1));
        rms_norm(rows(input, HIDDEN, &norms[0]), EPS, &mut n1, &mut inv1)?;
        let (mut q_raw, mut k_raw, mut v) = (
            take(HEADS * HEAD),
            take(KV_HEADS * HEAD),
            take(KV_HEADS * HEAD),
        );
        let low_q = self.forward(0, &n1, false, &mut q_raw)?;
        let low_k = self.forward(1, &n1, false, &mut k_raw)?;
        let low_v = self.forward(2, &n1, false, &mut v)?;
        let (mut q, mut inv_q) = (take(HEADS * HEAD), take(HEADS));
        rms_norm(rows(&q_raw, HEAD, &norms[1]), EPS, &mut q, &mut inv_q)?;
        rotary_in_place(&mut q, q_at, &tables, false)?;
        let (mut k, mut inv_k) = (take(KV_HEADS * HEAD), take(KV_HEADS));
        rms_norm(rows(&k_raw, HEAD, &norms[2]), EPS, &mut k, &mut inv_k)?;
        rotary_in_place(&mut k, kv_at, &tables, false)?;
        let (mut attended, mut lse) = (take(HEADS * HEAD), take(HEADS));
        attention::forward(&spec, &q, &k, &v, &mut attended, &mut lse)?;
        let mut middle = take(HIDDEN);
        middle.copy_from_slice(input);
        let low_o = self.forward(3, &attended, true, &mut middle)?;
        let (mut n2, mut inv2) = (take(HIDDEN), take(1));
        rms_norm(rows(&middle, HIDDEN, &norms[3]), EPS, &mut n2, &mut inv2)?;
        let (mut gate, mut up, mut inner) = (take(INNER), take(INNER), take(INNER));
        let low_gate = self.forward(4, &n2, false, &mut gate)?;
        let low_up = self.forward(5, &n2, false, &mut up)?;
        gated(Activation::Silu, &gate, &up, &mut inner)?;
        let mut y = middle.clone();
        let low_down = self.forward(6, &inner, true, &mut y)?;

        // Backward; `inner` turns into its gradient and back.
        let dlow = self.low_gradient(6, upstream)?;
        let terms = self.input_terms(6, upstream, &dlow)?;
        self.sum(&terms, false, MatMut::new(&mut inner, TOKENS, INNER)?)?;
        gated_backward_in_place(Activation::Silu, &mut gate, &mut up, &mut inner)?;
        let down = self.parameters(6, &inner, low_down, upstream, dlow)?;
        give(vec![inner]);
        let (dlow_gate, dlow_up) = (self.low_gradient(4, &gate)?, self.low_gradient(5, &up)?);
        let [a, b] = self.input_terms(4, &gate, &dlow_gate)?;
        let [c, d] = self.input_terms(5, &up, &dlow_up)?;
        let mut dn = take(HIDDEN);
        self.sum(&[a, b, c, d], false, MatMut::new(&mut dn, TOKENS, HIDDEN)?)?;
        let gate_grads = self.parameters(4, &n2, low_gate, &gate, dlow_gate)?;
        let up_grads = self.parameters(5, &n2, low_up, &up, dlow_up)?;
        give(vec![gate, up]);
        let mut dx = upstream.clone();
        rms_norm_backward(
            rows(&middle, HIDDEN, &norms[3]),
            &inv2,
            &dn,
            true,
            &mut dx,
            None,
        )?;
        give(vec![n2, inv2, middle]);

        let dlow = self.low_gradient(3, &dx)?;
        let mut dattended = take(HEADS * HEAD);
        let terms = self.input_terms(3, &dx, &dlow)?;
        self.sum(
            &terms,
            false,
            MatMut::new(&mut dattended, TOKENS, HEADS * HEAD)?,
        )?;
        let o_grads = self.parameters(3, &attended, low_o, &dx, dlow)?;
        let (mut dq, mut dk, mut dv) = (
            take(HEADS * HEAD),
            take(KV_HEADS * HEAD),
            take(KV_HEADS * HEAD),
        );
        let grads = AttentionGrads {
            dq: &mut dq,
            dk: &mut dk,
            dv: &mut dv,
        };
        attention::backward(&spec, (&q, &k, &v), (&attended, &lse), &dattended, grads)?;
        give(vec![attended, lse, dattended, v]);
        rotary_in_place(&mut dq, q_at, &tables, true)?;
        rms_norm_backward(
            rows(&q_raw, HEAD, &norms[1]),
            &inv_q,
            &dq,
            false,
            &mut q,
            None,
        )?;
        rotary_in_place(&mut dk, kv_at, &tables, true)?;
        rms_norm_backward(
            rows(&k_raw, HEAD, &norms[2]),
            &inv_k,
            &dk,
            false,
            &mut k,
            None,
        )?;
        give(vec![q_raw, inv_q, k_raw, inv_k, dq, dk]);
        let lows = [
            self.low_gradient(0, &q)?,
            self.low_gradient(1, &k)?,
            self.low_gradient(2, &dv)?,
        ];
        let mut terms = Vec::new();
        for (index, (dy, dlow)) in [&q, &k, &dv].into_iter().zip(&lows).enumerate() {
            terms.extend(self.input_terms(index, dy, dlow)?);
        }
        self.sum(&terms, false, MatMut::new(&mut dn, TOKENS, HIDDEN)?)?;
        drop(terms);
        let [dlow_q, dlow_k, dlow_v] = lows;
        let q_grads = self.parameters(0, &n1, low_q, &q, dlow_q)?;
        let k_grads = self.parameters(1, &n1, low_k, &k, dlow_k)?;
        let v_grads = self.parameters(2, &n1, low_v, &dv, dlow_v)?;
        rms_norm_backward(
            rows(input, HIDDEN, &norms[0]),
            &inv1,
            &dn,
            true,
            &mut dx,
            None,
        )?;
        give(vec![n1, inv1, dn, q, k, dv]);
        let mut all = vec![y, dx];
        all.extend(
            [
                q_grads, k_grads, v_grads, o_grads, gate_grads, up_grads, down,
            ]
            .into_iter()
            .flatten(),
        );
        Ok(Gradients(all))
    }
}

impl Layer for Wired {
    fn step(&mut self) -> Gradients {
        self.run().unwrap()
    }
}

fn rows<'a>(x: &'a [f32], cols: usize, weight: &'a [f32]) -> Rows<'a> {
    Rows {
        x,
        cols,
        weight: Some(weight),
    }
}
