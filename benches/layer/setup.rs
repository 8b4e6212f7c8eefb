//! Sizes, weights and inputs that all implementations share.

/// Sequences, positions, and width of the residual stream.
pub const BATCH: usize = 2;
pub const SEQ: usize = 256;
pub const TOKENS: usize = BATCH * SEQ;
pub const HIDDEN: usize = 1024;
pub const INNER: usize = 3072;
pub const HEADS: usize = 16;
pub const KV_HEADS: usize = 8;
pub const HEAD: usize = 128;
pub const RANK: usize = 8;
/// Factor of the adapters: alpha over rank.
pub const SCALE: f32 = 2.0;
pub const EPS: f32 = 1e-6;

/// Names, inputs and outputs of the linears.
pub const LINEARS: [(&str, usize, usize); 7] = [
    ("q", HIDDEN, HEADS * HEAD),
    ("k", HIDDEN, KV_HEADS * HEAD),
    ("v", HIDDEN, KV_HEADS * HEAD),
    ("o", HEADS * HEAD, HIDDEN),
    ("gate", HIDDEN, INNER),
    ("up", HIDDEN, INNER),
    ("down", INNER, HIDDEN),
];

/// A frozen weight `[inputs, outputs]` and its adapter `a`, `[inputs, RANK]`, and `b`, `[RANK, outputs]`.
pub struct Linear {
    pub inputs: usize,
    pub outputs: usize,
    pub weight: Vec<f32>,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
}

pub struct Fixture {
    pub linears: Vec<Linear>,
    /// Weights of the four norms: input, query, key, inner.
    pub norms: [Vec<f32>; 4],
    /// `[SEQ, HEAD / 2]`.
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    /// `[TOKENS, HIDDEN]`.
    pub input: Vec<f32>,
    /// Gradient of the result, `[TOKENS, HIDDEN]`.
    pub upstream: Vec<f32>,
}

impl Fixture {
    pub fn new() -> Self {
        let mut seed = 0;
        let mut random = |len: usize, scale: f32| {
            seed += 1;
            values(len, seed, scale)
        };
        let linears = LINEARS
            .iter()
            .map(|&(_, inputs, outputs)| {
                let scale = 1.0 / (inputs as f32).sqrt();
                Linear {
                    inputs,
                    outputs,
                    weight: random(inputs * outputs, scale),
                    a: random(inputs * RANK, scale),
                    b: random(RANK * outputs, 0.05),
                }
            })
            .collect();
        let norms = [HIDDEN, HEAD, HEAD, HIDDEN]
            .map(|len| random(len, 0.1).iter().map(|v| v + 1.0).collect());
        let angle = |i: usize| {
            let (s, d) = ((i / (HEAD / 2)) as f32, (i % (HEAD / 2)) as f32);
            s * 1e6f32.powf(-2.0 * d / HEAD as f32)
        };
        let table = SEQ * HEAD / 2;
        Self {
            linears,
            norms,
            cos: (0..table).map(|i| angle(i).cos()).collect(),
            sin: (0..table).map(|i| angle(i).sin()).collect(),
            input: random(TOKENS * HIDDEN, 1.0),
            upstream: random(TOKENS * HIDDEN, 1.0),
        }
    }
}

fn values(len: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
        })
        .collect()
}

/// Result, gradient of the input, and gradients of all `a` and `b` in the order of the linears.
pub struct Gradients(pub Vec<Vec<f32>>);

impl Gradients {
    /// Fingerprints to compare implementations by: the norm, and a sum with fixed weights.
    pub fn norms(&self) -> Vec<f64> {
        let norm = |v: &Vec<f32>| v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let part = |v: &Vec<f32>| {
            v.iter()
                .step_by(3)
                .map(|&x| f64::from(x).powi(2))
                .sum::<f64>()
                .sqrt()
        };
        self.0.iter().flat_map(|v| [norm(v), part(v)]).collect()
    }
}
