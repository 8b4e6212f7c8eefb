//! Parameters of adapters: names, shapes and initial values.
//!
//! A parameter's name is its key in AdapterHub's state dict of the exported model; it is also the name of the graph initializer that
//! holds it. Initial values depend on nothing but the seed and the name (with `init_weights_seed`: that seed and the name inside the
//! module, so that modules of equal shape start equal, as the library's do). Order of attaching, device and thread count do not matter.

use crate::budget;
use crate::diag::Diagnostic;
use crate::ir::{Graph, TensorData, ValueId};
use crate::select::Layout;
use std::borrow::Cow;
use std::f64::consts::TAU;
use std::fmt;
use std::sync::Arc;

/// A size: a number, and the name that people have for it, from which documentation is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    number: usize,
    name: Cow<'static, str>,
    free: bool,
}

impl Size {
    /// A size of this name.
    pub fn new(name: impl Into<Cow<'static, str>>, number: usize) -> Self {
        Size {
            number,
            name: name.into(),
            free: false,
        }
    }

    /// A size that nothing of the base model decides, and that adapters of one configuration may have their own of: a rank, a length.
    pub fn free(name: impl Into<Cow<'static, str>>, number: usize) -> Self {
        Size {
            free: true,
            ..Size::new(name, number)
        }
    }

    /// Whether adapters may have their own.
    pub(crate) fn is_free(&self) -> bool {
        self.free
    }

    /// The number.
    pub fn get(&self) -> usize {
        self.number
    }

    /// The product with another size.
    #[must_use]
    pub fn times(&self, other: &Size) -> Size {
        match (self.is_one(), other.is_one()) {
            (_, true) => self.clone(),
            (true, false) => other.clone(),
            (false, false) => Size {
                free: self.free || other.free,
                ..Size::new(
                    format!("{self}·{other}"),
                    self.number.saturating_mul(other.number),
                )
            },
        }
    }

    /// The quotient by another size, which must not be 0, rounded down.
    #[must_use]
    pub fn over(&self, other: &Size) -> Size {
        let number = self.number / other.number.max(1);
        Size {
            free: self.free,
            ..Size::new(format!("{self}/{other}"), number)
        }
    }

    /// Whether it is the number 1, whatever the model and the configuration are.
    fn is_one(&self) -> bool {
        self.name == "1"
    }
}

impl From<usize> for Size {
    fn from(number: usize) -> Self {
        Size::new(number.to_string(), number)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// One parameter that a method asks for at a place.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    /// Name inside its module: `lora_A`, `adapter_down.0.weight`.
    pub suffix: String,
    /// Shape, as the library stores it.
    pub shape: Vec<Size>,
    /// Initial values.
    pub init: Init,
    /// Whether training changes it.
    pub trainable: bool,
    /// Whether nothing reads it: the library makes it, saves it and counts it as trained, but it has no effect.
    pub idle: bool,
    /// Further names of the same tensor, which the library writes to its files again.
    pub aliases: Vec<String>,
    /// Scopes to use instead of the place's: the first one names the parameter, in the others the library writes it again.
    pub scopes: Vec<String>,
    /// Weight of its squared distance from the identity, which training adds to the loss.
    pub(crate) to_identity: Option<f32>,
}

impl ParamSpec {
    /// A trainable parameter.
    pub fn new(suffix: impl Into<String>, shape: &[&Size], init: Init) -> Self {
        ParamSpec {
            suffix: suffix.into(),
            shape: shape.iter().copied().cloned().collect(),
            init,
            trainable: true,
            idle: false,
            aliases: Vec::new(),
            scopes: Vec::new(),
            to_identity: None,
        }
    }

    /// The same, but training leaves it alone.
    #[must_use]
    pub fn frozen(mut self) -> Self {
        self.trainable = false;
        self
    }

    /// The same, but nothing reads it.
    #[must_use]
    pub(crate) fn idle(mut self) -> Self {
        self.idle = self.trainable;
        self.trainable = false;
        self
    }

    /// The same, with a second name.
    #[must_use]
    pub(crate) fn alias(mut self, suffix: impl Into<String>) -> Self {
        self.aliases.push(suffix.into());
        self
    }

    /// The same, in other scopes than its place's.
    #[must_use]
    pub(crate) fn within(mut self, scopes: &[String]) -> Self {
        self.scopes = scopes.to_vec();
        self
    }

    /// The shape in numbers.
    pub fn dims(&self) -> Vec<usize> {
        self.shape.iter().map(Size::get).collect()
    }

    /// Refuses one that a mistyped size made enormous, before anything is allocated.
    ///
    /// # Errors
    /// Its values, their gradients and moments take more memory than there is, or it has more than 2^30 elements.
    pub(crate) fn bounded(&self, name: &str) -> Result<(), Diagnostic> {
        const LARGEST: usize = 1 << 30;
        let dims = self.dims();
        let refused = |why: String| {
            let d = Diagnostic::error("param-size", why);
            Err(d.help("check the sizes in the configuration: `r`, `reduction_factor`, …, and the number of classes"))
        };
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if count.is_none_or(|n| n > LARGEST) {
            return refused(format!(
                "`{name}` would have the shape {dims:?}, more than {LARGEST} elements"
            ));
        }
        let bytes = budget::bytes_of(dims.iter().map(|d| *d as u64), 16);
        let what = || format!("`{name}` of shape {dims:?}, with gradient and moments,");
        budget::check(what, bytes).or_else(|e| refused(e.to_string()))
    }
}

/// Distributions of initial values, named as in torch.
#[derive(Clone, Debug)]
pub enum Init {
    /// Zeros.
    Zeros,
    /// Ones.
    Ones,
    /// `N(0, std²)`.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// `N(0, std²)`, drawn again until it lies within two standard deviations.
    TruncatedNormal {
        /// Standard deviation.
        std: f64,
    },
    /// `U(-bound, bound)`.
    Uniform {
        /// The bound.
        bound: f64,
    },
    /// `kaiming_uniform_(a=√5)`, torch's default of a linear's weight, and of its bias.
    Linear {
        /// Width of what the linear reads.
        fan_in: Size,
    },
    /// `kaiming_uniform_(a=0)`.
    Kaiming {
        /// Width of what the linear reads.
        fan_in: Size,
    },
    /// `xavier_normal_`.
    Xavier {
        /// Sum of the widths of what is read and what is made.
        fans: usize,
    },
    /// A diagonal matrix with this diagonal.
    Diagonal {
        /// The diagonal.
        value: f32,
    },
    /// The identity, with this value beside the diagonal.
    NearIdentity {
        /// The value.
        beside: f32,
    },
    /// `-[I 0]`: the Householder form of the first columns of the identity.
    NegativeIdentity,
    /// An orthogonal matrix whose first `columns` columns span a random subspace.
    Orthogonal {
        /// Number of random columns.
        columns: usize,
    },
    /// This value throughout.
    Constant {
        /// The value.
        value: f32,
    },
    /// What the base model has.
    Stored {
        /// The initializer.
        value: ValueId,
        /// Whether its axes are exchanged there.
        transposed: bool,
    },
    /// Rows of an embedding table.
    Rows {
        /// The initializer.
        table: ValueId,
        /// Which rows.
        rows: Arc<[usize]>,
    },
    /// Euclidean norms of a linear's rows: one for each output.
    RowNorms {
        /// The stored weight: an initializer.
        weight: ValueId,
        /// Its axes.
        layout: Layout,
        /// Width of the output.
        d_out: usize,
    },
}

impl Init {
    /// [`Linear`](Init::Linear) of this width.
    pub fn linear(fan_in: &Size) -> Init {
        Init::Linear {
            fan_in: fan_in.clone(),
        }
    }

    /// [`Kaiming`](Init::Kaiming) of this width.
    pub fn kaiming(fan_in: &Size) -> Init {
        Init::Kaiming {
            fan_in: fan_in.clone(),
        }
    }

    /// [`Xavier`](Init::Xavier) of these widths.
    pub fn xavier(fan_in: &Size, fan_out: &Size) -> Init {
        Init::Xavier {
            fans: fan_in.get() + fan_out.get(),
        }
    }

    /// BERT's: `N(0, 0.02²)`.
    pub(crate) fn bert() -> Init {
        Init::Normal { std: 0.02 }
    }

    /// The values with which a parameter of an adapter whose [free](Size::free) sizes are 0 changes nothing: these where they depend on no
    /// draw, and zeros otherwise. `None` where they depend on a base weight that cannot be read as floats.
    pub(crate) fn neutral(&self, dims: &[usize], graph: &Graph) -> Option<Vec<f32>> {
        match self {
            Init::Ones | Init::Constant { .. } | Init::Stored { .. } | Init::RowNorms { .. } => {
                self.values(dims, 0, "", graph)
            }
            Init::Zeros
            | Init::Normal { .. }
            | Init::TruncatedNormal { .. }
            | Init::Uniform { .. }
            | Init::Linear { .. }
            | Init::Kaiming { .. }
            | Init::Xavier { .. }
            | Init::Diagonal { .. }
            | Init::NearIdentity { .. }
            | Init::NegativeIdentity
            | Init::Orthogonal { .. }
            | Init::Rows { .. } => Some(vec![0.0; dims.iter().product()]),
        }
    }

    /// The values. `None` where they depend on a base weight that cannot be read as floats.
    pub(crate) fn values(
        &self,
        dims: &[usize],
        seed: u64,
        name: &str,
        graph: &Graph,
    ) -> Option<Vec<f32>> {
        let n: usize = dims.iter().product();
        let mut random = Random::new(seed, name);
        Some(match self {
            Init::Zeros => vec![0.0; n],
            Init::Ones => vec![1.0; n],
            Init::Normal { std } => random.normal_values(n, *std),
            Init::Xavier { fans } => random.normal_values(n, (2.0 / (*fans).max(1) as f64).sqrt()),
            Init::TruncatedNormal { std } => {
                let inside = |x: &f64| x.abs() <= 2.0;
                let draws = random.endless_normals().filter(inside).take(n);
                draws.map(|x| (x * std) as f32).collect()
            }
            Init::Uniform { bound } => random.uniform_values(n, *bound),
            Init::Linear { fan_in } => {
                random.uniform_values(n, 1.0 / (fan_in.get().max(1) as f64).sqrt())
            }
            Init::Kaiming { fan_in } => {
                random.uniform_values(n, (6.0 / fan_in.get().max(1) as f64).sqrt())
            }
            Init::Diagonal { value } => diagonal(dims, *value),
            Init::NearIdentity { beside } => {
                let on = |v: f32| if v > 0.5 { 1.0 } else { *beside };
                diagonal(dims, 1.0).into_iter().map(on).collect()
            }
            Init::NegativeIdentity => diagonal(dims, -1.0),
            Init::Orthogonal { columns } => orthogonal(*dims.first()?, *columns, &mut random),
            Init::Constant { value } => vec![*value; n],
            Init::Stored { value, transposed } => stored(graph, *value, *transposed, dims)?,
            Init::Rows { table, rows } => {
                let width = *dims.last()?;
                let values = graph.get_value(*table)?.tensor.as_ref()?.to_f32()?;
                let row = |r: &usize| values.get(r * width..(r + 1) * width);
                let found: Option<Vec<&[f32]>> = rows.iter().map(row).collect();
                found?.concat()
            }
            Init::RowNorms {
                weight,
                layout,
                d_out,
            } => row_norms(graph.get_value(*weight)?.tensor.as_ref()?, *layout, *d_out)?,
        })
    }
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Init::Zeros => f.write_str("0"),
            Init::Ones => f.write_str("1"),
            Init::Normal { std } => write!(f, "N(0, {std}²)"),
            Init::TruncatedNormal { std } => write!(f, "N(0, {std}²), cut at ±{}", 2.0 * std),
            Init::Uniform { bound } => write!(f, "U(±{bound})"),
            Init::Linear { fan_in } => write!(f, "U(±1/√{fan_in})"),
            Init::Kaiming { fan_in } => write!(f, "U(±√(6/{fan_in}))"),
            Init::Xavier { .. } => f.write_str("Xavier normal"),
            Init::Diagonal { value } => write!(f, "{value} on the diagonal"),
            Init::NearIdentity { beside } => write!(f, "1 on the diagonal, {beside:e} beside it"),
            Init::NegativeIdentity => f.write_str("-1 on the diagonal"),
            Init::Orthogonal { .. } => f.write_str("a random orthogonal matrix"),
            Init::Constant { value } => write!(f, "{value}"),
            Init::Stored { .. } | Init::Rows { .. } => f.write_str("those of the base model"),
            Init::RowNorms { .. } => f.write_str("norms of the weight's rows"),
        }
    }
}

/// What the base model stores, in the order of the state dict.
fn stored(graph: &Graph, value: ValueId, transposed: bool, dims: &[usize]) -> Option<Vec<f32>> {
    let values = graph.get_value(value)?.tensor.as_ref()?.to_f32()?;
    if values.len() != dims.iter().product::<usize>() {
        return None;
    }
    Some(match *dims {
        [rows, columns] if transposed => exchanged(&values, [columns, rows]),
        _ => values,
    })
}

/// The elements of a matrix `[rows, columns]` with its axes exchanged.
pub(crate) fn exchanged(values: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    let at = |i: usize| values[(i % rows) * columns + i / rows];
    (0..values.len()).map(at).collect()
}

fn diagonal(dims: &[usize], value: f32) -> Vec<f32> {
    let mut out = vec![0.0; dims.iter().product()];
    if let [rows, cols] = *dims {
        for i in 0..rows.min(cols) {
            out[i * cols + i] = value;
        }
    }
    out
}

/// `H_1 … H_k`, the reflections of a Householder QR of a random `d x k` matrix, signs chosen so that R's diagonal is positive.
/// `O(k d²)`.
fn orthogonal(d: usize, columns: usize, random: &mut Random) -> Vec<f32> {
    let k = columns.min(d);
    let mut a: Vec<Vec<f64>> = (0..k).map(|_| random.normals(d).collect()).collect();
    let mut q = vec![0.0; d * d];
    for i in 0..d {
        q[i * d + i] = 1.0;
    }
    let mut signs = vec![1.0; d];
    for j in 0..k {
        let norm = a[j][j..].iter().map(|x| x * x).sum::<f64>().sqrt();
        let alpha = if a[j][j] > 0.0 { -norm } else { norm };
        let mut v = a[j].clone();
        v[..j].fill(0.0);
        v[j] -= alpha;
        let vv: f64 = v.iter().map(|x| x * x).sum();
        if vv == 0.0 {
            continue;
        }
        signs[j] = alpha.signum();
        for column in &mut a[j..] {
            let dot: f64 = column.iter().zip(&v).map(|(x, y)| x * y).sum();
            let f = 2.0 * dot / vv;
            column.iter_mut().zip(&v).for_each(|(x, y)| *x -= f * y);
        }
        for row in q.chunks_exact_mut(d) {
            let dot: f64 = row.iter().zip(&v).map(|(x, y)| x * y).sum();
            let f = 2.0 * dot / vv;
            row.iter_mut().zip(&v).for_each(|(x, y)| *x -= f * y);
        }
    }
    q.chunks_exact(d)
        .flat_map(|row| row.iter().zip(&signs).map(|(x, s)| (x * s) as f32))
        .collect()
}

fn row_norms(weight: &TensorData, layout: Layout, d_out: usize) -> Option<Vec<f32>> {
    let w = weight.to_f32()?;
    if d_out == 0 || w.len() % d_out != 0 {
        return None;
    }
    let square = |x: f32| f64::from(x) * f64::from(x);
    let squares: Vec<f64> = match layout {
        Layout::OutIn => w
            .chunks_exact(w.len() / d_out)
            .map(|row| row.iter().map(|x| square(*x)).sum())
            .collect(),
        Layout::InOut => w
            .chunks_exact(d_out)
            .fold(vec![0.0; d_out], |mut sums, row| {
                sums.iter_mut().zip(row).for_each(|(s, x)| *s += square(*x));
                sums
            }),
    };
    Some(squares.into_iter().map(|s| s.sqrt() as f32).collect())
}

/// Whether AdamW decays a parameter of this name, by the rule of Hugging Face's trainer: nothing in layer norms, no biases.
pub(crate) fn decays(name: &str) -> bool {
    const WORDS: [&str; 5] = [
        "bias",
        "layernorm",
        "rmsnorm",
        "adapter_norm_before",
        "adapter_norm_after",
    ];
    let name = name.to_lowercase();
    let norm_part = |part: &str| part == "norm" || part.ends_with("_norm");
    !(WORDS.iter().any(|w| name.contains(w)) || name.split('.').any(norm_part))
}

/// A stream of random numbers that belongs to a name.
/// Numbers from 0 to 1, by seed and name.
pub(crate) fn uniform(n: usize, seed: u64, name: &str) -> Vec<f64> {
    let mut random = Random::new(seed, name);
    (0..n).map(|_| random.unit()).collect()
}

struct Random {
    stream: blake3::OutputReader,
    spare: Option<f64>,
}

impl Random {
    fn new(seed: u64, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(name.as_bytes());
        Random {
            stream: hasher.finalize_xof(),
            spare: None,
        }
    }

    /// Uniform on [0, 1), 53 bits.
    fn unit(&mut self) -> f64 {
        let mut bytes = [0; 8];
        self.stream.fill(&mut bytes);
        (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal, Box and Muller.
    fn normal(&mut self) -> f64 {
        if let Some(x) = self.spare.take() {
            return x;
        }
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let angle = TAU * self.unit();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    fn endless_normals(&mut self) -> impl Iterator<Item = f64> + '_ {
        std::iter::repeat_with(|| self.normal())
    }

    fn normals(&mut self, n: usize) -> impl Iterator<Item = f64> + '_ {
        self.endless_normals().take(n)
    }

    fn normal_values(&mut self, n: usize, std: f64) -> Vec<f32> {
        self.normals(n).map(|x| (x * std) as f32).collect()
    }

    fn uniform_values(&mut self, n: usize, bound: f64) -> Vec<f32> {
        let one = |_| ((2.0 * self.unit() - 1.0) * bound) as f32;
        (0..n).map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(v: &[f32]) -> (f64, f64) {
        let n = v.len() as f64;
        let mean = v.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let var = v
            .iter()
            .map(|x| (f64::from(*x) - mean).powi(2))
            .sum::<f64>()
            / n;
        (mean, var.sqrt())
    }

    #[test]
    fn values_depend_on_seed_and_name_only() {
        let init = Init::bert();
        let a = init.values(&[4, 8], 1, "x", &Graph::default()).unwrap();
        assert_eq!(a, init.values(&[4, 8], 1, "x", &Graph::default()).unwrap());
        assert_ne!(a, init.values(&[4, 8], 2, "x", &Graph::default()).unwrap());
        assert_ne!(a, init.values(&[4, 8], 1, "y", &Graph::default()).unwrap());
    }

    /// 40,000 draws: the mean is within 5 standard errors, the deviation within 2 %.
    #[test]
    fn distributions_have_their_moments() {
        let dims = [200, 200];
        let cases = [
            (Init::bert(), 0.02),
            (Init::linear(&48.into()), 1.0 / 48f64.sqrt() / 3f64.sqrt()),
            (Init::kaiming(&6.into()), 1.0 / 3f64.sqrt()),
            (Init::xavier(&10.into(), &6.into()), (2.0f64 / 16.0).sqrt()),
            // A normal cut at two deviations has 0.8796 of the deviation.
            (Init::TruncatedNormal { std: 0.01 }, 0.01 * 0.8796),
        ];
        for (init, std) in cases {
            let v = init.values(&dims, 7, "w", &Graph::default()).unwrap();
            let (mean, found) = moments(&v);
            assert!(mean.abs() < 5.0 * std / 200.0, "{init:?}: mean {mean}");
            assert!(
                (found / std - 1.0).abs() < 0.02,
                "{init:?}: {found} is not {std}"
            );
        }
        let cut = Init::TruncatedNormal { std: 0.01 }
            .values(&dims, 7, "w", &Graph::default())
            .unwrap();
        assert!(cut.iter().all(|x| x.abs() <= 0.02));
    }

    #[test]
    fn an_orthogonal_matrix_is_one() {
        let d = 16;
        let q = Init::Orthogonal { columns: 3 }
            .values(&[d, d], 3, "base", &Graph::default())
            .unwrap();
        for i in 0..d {
            for j in 0..d {
                let dot: f32 = (0..d).map(|k| q[k * d + i] * q[k * d + j]).sum();
                // f32 rounding of 16 products of entries below one.
                assert!((dot - f32::from(u8::from(i == j))).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn row_norms_follow_the_layout() {
        let w = TensorData::from_f32([2, 2], &[3.0, 4.0, 0.0, 2.0]);
        let norms = |layout| row_norms(&w, layout, 2).unwrap();
        assert_eq!(norms(Layout::OutIn), [5.0, 2.0]);
        assert_eq!(norms(Layout::InOut), [3.0, 20f32.sqrt()]);
    }

    #[test]
    fn decay_follows_the_trainers_rule() {
        assert!(decays("layers.0.q_proj.loras.a.lora_A"));
        assert!(decays("layers.0.output_adapters.adapters.a.adapter_up.b"));
        assert!(!decays(
            "layers.0.output_adapters.adapters.a.adapter_up.bias"
        ));
        assert!(!decays(
            "layers.0.output_adapters.adapters.a.adapter_norm_after.weight"
        ));
        assert!(!decays("layers.0.q_norm.loras.a.lora_A"));
    }
}
