//! The layer as a candle user writes it: differentiable primitive ops, `Var`s for what is trained, candle's tape.

use super::Layer;
use super::setup::{
    BATCH, EPS, Fixture, Gradients, HEAD, HEADS, HIDDEN, KV_HEADS, RANK, SCALE, SEQ, TOKENS,
};
use candle_core::{D, Device, Result, Tensor, Var};

struct Linear {
    weight: Tensor,
    a: Var,
    b: Var,
}

pub struct Tape {
    linears: Vec<Linear>,
    norms: Vec<Tensor>,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
    input: Var,
    upstream: Tensor,
}

fn tensor<const N: usize>(values: &[f32], dims: [usize; N]) -> Tensor {
    Tensor::from_slice(values, dims.to_vec(), &Device::Cpu).unwrap()
}

impl Tape {
    pub fn new(fixture: &'static Fixture) -> Self {
        let var = |values: &[f32], dims| Var::from_tensor(&tensor(values, dims)).unwrap();
        let linears = fixture
            .linears
            .iter()
            .map(|linear| Linear {
                weight: tensor(&linear.weight, [linear.inputs, linear.outputs]),
                a: var(&linear.a, [linear.inputs, RANK]),
                b: var(&linear.b, [RANK, linear.outputs]),
            })
            .collect();
        let mask: Vec<f32> = (0..SEQ * SEQ)
            .map(|i| {
                if i % SEQ > i / SEQ {
                    f32::NEG_INFINITY
                } else {
                    0.0
                }
            })
            .collect();
        let table = |values: &[f32]| {
            let half = tensor(values, [SEQ, HEAD / 2]);
            Tensor::cat(&[&half, &half], 1).unwrap()
        };
        Self {
            linears,
            norms: fixture
                .norms
                .iter()
                .map(|norm| tensor(norm, [norm.len()]))
                .collect(),
            cos: table(&fixture.cos),
            sin: table(&fixture.sin),
            mask: tensor(&mask, [1, 1, SEQ, SEQ]),
            input: var(&fixture.input, [TOKENS, HIDDEN]),
            upstream: tensor(&fixture.upstream, [TOKENS, HIDDEN]),
        }
    }

    fn linear(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        let Linear { weight, a, b } = &self.linears[index];
        let low = x.matmul(a)?.matmul(b)?;
        x.matmul(weight)? + (low * f64::from(SCALE))?
    }

    fn norm(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        let inv = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(EPS))?.sqrt()?;
        x.broadcast_div(&inv)?.broadcast_mul(&self.norms[index])
    }

    fn rotary(&self, x: &Tensor) -> Result<Tensor> {
        let (low, high) = (
            x.narrow(D::Minus1, 0, HEAD / 2)?,
            x.narrow(D::Minus1, HEAD / 2, HEAD / 2)?,
        );
        let turned = Tensor::cat(&[&high.neg()?, &low], D::Minus1)?;
        x.broadcast_mul(&self.cos)? + turned.broadcast_mul(&self.sin)?
    }

    fn heads(x: &Tensor, heads: usize) -> Result<Tensor> {
        x.reshape((BATCH, SEQ, heads, HEAD))?
            .transpose(1, 2)?
            .contiguous()
    }

    fn repeat(x: &Tensor) -> Result<Tensor> {
        const GROUP: usize = HEADS / KV_HEADS;
        Tensor::cat(&[x; GROUP], 2)?.reshape((BATCH, HEADS, SEQ, HEAD))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let n = self.norm(0, x)?;
        let q = self.rotary(&self.norm(1, &Self::heads(&self.linear(0, &n)?, HEADS)?)?)?;
        let k = self.rotary(&self.norm(2, &Self::heads(&self.linear(1, &n)?, KV_HEADS)?)?)?;
        let v = Self::heads(&self.linear(2, &n)?, KV_HEADS)?;
        let (k, v) = (Self::repeat(&k)?, Self::repeat(&v)?);
        let scores = (q.matmul(&k.t()?)? / (HEAD as f64).sqrt())?.broadcast_add(&self.mask)?;
        let scores = scores
            .broadcast_sub(&scores.max_keepdim(D::Minus1)?)?
            .exp()?;
        let probs = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        let attended = probs
            .matmul(&v)?
            .transpose(1, 2)?
            .reshape((TOKENS, HEADS * HEAD))?;
        let x = (x + self.linear(3, &attended)?)?;
        let n = self.norm(3, &x)?;
        let inner = (self.linear(4, &n)?.silu()? * self.linear(5, &n)?)?;
        x + self.linear(6, &inner)?
    }

    fn gradients(&self) -> Result<Gradients> {
        let y = self.forward(&self.input)?;
        let grads = (&y * &self.upstream)?.sum_all()?.backward()?;
        let trained = self
            .linears
            .iter()
            .flat_map(|linear| [&linear.a, &linear.b]);
        let mut all = vec![y.detach()];
        for var in std::iter::once(&self.input).chain(trained) {
            all.push(grads.get(var).unwrap().clone());
        }
        drop((y, grads));
        all.iter()
            .map(|t| t.flatten_all()?.to_vec1())
            .collect::<Result<_>>()
            .map(Gradients)
    }
}

impl Layer for Tape {
    fn step(&mut self) -> Gradients {
        self.gradients().unwrap()
    }
}
