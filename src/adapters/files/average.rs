//! Averaging saved adapters: the library's `average_adapter`, on folders.
//!
//! Three ways to combine, under the library's names. Values are summed in double precision and stored in the type of the first file.
//! One departure: the library gives an adapter that was averaged by its singular values the new rank and the old `alpha`, which
//! multiplies its effect by `r / rank`. Here `alpha` follows the rank, so that `alpha / r`, and with it the effect, stays.

use crate::adapters::base::Base;
use crate::adapters::folder::{AdapterFolder, VERSION};
use crate::adapters::methods::MethodConfig;
use crate::adapters::naming::{belongs, renamed};
use crate::adapters::plan::check_name;
use crate::adapters::store::{Weights, convert};
use crate::adapters::{Config, folder};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::TensorData;
use indexmap::IndexMap;
use nalgebra::DMatrix;
use serde_json::Number;

/// How parameters are combined; `λ` are the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Combine {
    /// Every parameter is `Σ λᵢ·Φᵢ`.
    #[default]
    Linear,
    /// LoRA alone: `A = Σ |λᵢ|·Aᵢ`, `B = Σ λᵢ·Bᵢ`, so that a negative weight takes a change away (Zhang et al. 2023).
    LoraLinearOnlyNegateB,
    /// LoRA alone: the best approximation of `Σ λᵢ·Bᵢ·Aᵢ` of this rank (Chronopoulou et al. 2023).
    LoraDeltaWSvd {
        /// The new rank.
        rank: usize,
    },
}

impl Combine {
    /// The way of this name in the library, with the rank of the result for the one that needs it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: an unknown name; a rank that is missing, or that the way does not know.
    pub(crate) fn named(strategy: &str, rank: Option<usize>) -> Result<Self> {
        let refuse = |message: &str, help: &str| {
            let finding = Diagnostic::error("arguments", message).help(help);
            Err(Error::new(ErrorKind::Usage, finding))
        };
        match (strategy, rank) {
            ("linear", None) => Ok(Combine::Linear),
            ("lora_linear_only_negate_b", None) => Ok(Combine::LoraLinearOnlyNegateB),
            ("lora_delta_w_svd", Some(rank)) => Ok(Combine::LoraDeltaWSvd { rank }),
            ("linear" | "lora_linear_only_negate_b" | "lora_delta_w_svd", _) => refuse(
                "--svd-rank and --combine-strategy do not fit",
                "a rank belongs to --combine-strategy lora_delta_w_svd, and only to it",
            ),
            _ => refuse(
                &format!("there is no way to combine adapters called `{strategy}`"),
                "linear, lora_linear_only_negate_b or lora_delta_w_svd",
            ),
        }
    }
}

/// How to average.
#[derive(Clone, Debug)]
pub(crate) struct AverageOptions {
    /// One for each adapter; equal ones without.
    pub weights: Option<Vec<f64>>,
    /// Whether weights are divided by their sum.
    pub normalize: bool,
    /// How parameters are combined.
    pub combine: Combine,
}

impl Default for AverageOptions {
    fn default() -> Self {
        AverageOptions {
            weights: None,
            normalize: true,
            combine: Combine::Linear,
        }
    }
}

/// The average of adapters of one configuration, under a new name. Configurations may differ in `dropout` and `init_weights`; those of
/// the first adapter are kept. Prediction heads that lie in the files are left out, as the library leaves them.
///
/// Complexity: linear in the size of the files; `O((out + in)·R²)` for each linear of rank `R = Σ rᵢ` by singular values.
///
/// # Errors
/// [`ErrorKind::Method`]: configurations, model types, names or shapes that differ, weights that cannot be used, and parameters that the
/// way of combining does not know (`gate` and `m` of LoRA); all findings of a kind together.
pub(crate) fn average(
    name: &str,
    adapters: &[AdapterFolder],
    options: &AverageOptions,
) -> Result<AdapterFolder> {
    check_name(name)?;
    let Some(first) = adapters.first() else {
        return Err(wrong(Diagnostic::error(
            "average",
            "there is no adapter to average",
        )));
    };
    let lambdas = lambdas(adapters.len(), options)?;
    alike(adapters)?;
    let files = aligned(name, adapters)?;
    let (config, tensors) = match options.combine {
        Combine::Linear => (first.config.clone(), linear(&files, &lambdas, |_, l| l)?),
        Combine::LoraLinearOnlyNegateB => {
            low_rank_only(first, &files[0], name, "lora_linear_only_negate_b")?;
            let signed = |key: &str, l: f64| if key.ends_with(".lora_A") { l.abs() } else { l };
            (first.config.clone(), linear(&files, &lambdas, signed)?)
        }
        Combine::LoraDeltaWSvd { rank } => {
            low_rank_only(first, &files[0], name, "lora_delta_w_svd")?;
            by_singular_values(first, &files, &lambdas, rank)?
        }
    };
    let mut meta = first.meta.clone();
    meta.version = Some(VERSION.into());
    meta.extra.shift_remove("config_id");
    Ok(AdapterFolder {
        name: name.to_owned(),
        config,
        meta,
        weights: Weights {
            adapter: name.into(),
            tensors,
        },
        interface: first.interface.clone(),
        notes: adapters
            .iter()
            .flat_map(|a| a.notes.clone())
            .chain(adapters[1..].iter().filter_map(|a| other_base(first, a)))
            .collect(),
    })
}

/// Two adapters that were made for different weights.
fn other_base(first: &AdapterFolder, other: &AdapterFolder) -> Option<Diagnostic> {
    let [a, b] = [first, other].map(|f| Base::recorded(&f.meta.extra));
    a.has_other_weights(&b).then(|| {
        let message = format!(
            "`{}` and `{}` were made for different base models",
            first.name, other.name
        );
        Diagnostic::warning("base-differs", message)
            .note(format!("{a}; {b}"))
            .help("the average is recorded as one for the first of them")
    })
}

/// Tensors by name, under the new adapter's name.
type Tensors = IndexMap<Box<str>, TensorData>;

fn wrong(d: Diagnostic) -> Error {
    Error::new(ErrorKind::Method, d)
}

fn lambdas(count: usize, options: &AverageOptions) -> Result<Vec<f64>> {
    let Some(weights) = &options.weights else {
        return Ok(vec![1.0 / count as f64; count]);
    };
    let bad = |what: String, help: &str| {
        Err(wrong(Diagnostic::error("average-weights", what).help(help)))
    };
    if weights.len() != count {
        return bad(
            format!("{} weights for {count} adapters", weights.len()),
            "give one weight for each adapter, in their order",
        );
    }
    if let Some(w) = weights.iter().find(|w| !w.is_finite()) {
        return bad(format!("a weight is {w}"), "weights are finite numbers");
    }
    if !options.normalize {
        return Ok(weights.clone());
    }
    let sum: f64 = weights.iter().sum();
    if sum == 0.0 {
        return bad(
            "the weights add up to 0 and cannot be normalized".into(),
            "use them as they are with `--no-normalize-weights`, or give others",
        );
    }
    Ok(weights.iter().map(|w| w / sum).collect())
}

/// That the adapters are of one configuration, for one kind of model.
fn alike(adapters: &[AdapterFolder]) -> Result<()> {
    const IGNORED: [&str; 2] = ["dropout", "init_weights"];
    let Some((first, rest)) = adapters.split_first() else {
        return Ok(());
    };
    let hash = first.config.hash_without(&IGNORED);
    let mut found = Vec::new();
    for other in rest {
        if other.config.hash_without(&IGNORED) != hash {
            found.push(
                Diagnostic::error(
                    "average-config",
                    format!(
                        "`{}` and `{}` have different configurations",
                        first.name, other.name
                    ),
                )
                .note(differences(&first.config, &other.config))
                .help("only `dropout` and `init_weights` may differ"),
            );
        }
        let types = [&first.meta.model_type, &other.meta.model_type];
        if types[0] != types[1] && types.iter().all(|t| !t.is_empty()) {
            found.push(Diagnostic::error(
                "average-model",
                format!(
                    "`{}` is for {}, `{}` for {}",
                    first.name, types[0], other.name, types[1]
                ),
            ));
        } else if first.route() != other.route() {
            found.push(
                Diagnostic::error(
                    "average-route",
                    format!(
                        "`{}` was saved as {}, `{}` as {}",
                        first.name,
                        first.route(),
                        other.name,
                        other.route()
                    ),
                )
                .help("the same names can mean other modules there; save both from the same kind of model"),
            );
        }
    }
    if found.is_empty() {
        Ok(())
    } else {
        Err(Error::many(ErrorKind::Method, found))
    }
}

/// The fields in which two configurations differ.
fn differences(a: &Config, b: &Config) -> String {
    let (a, b) = (a.to_dict(), b.to_dict());
    let empty = serde_json::Map::new();
    let (a, b) = (
        a.as_object().unwrap_or(&empty),
        b.as_object().unwrap_or(&empty),
    );
    let null = serde_json::Value::Null;
    let keys = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
    let differing = keys.filter_map(|k| {
        let (x, y) = (a.get(k).unwrap_or(&null), b.get(k).unwrap_or(&null));
        (x != y).then(|| format!("{k}: {x} and {y}"))
    });
    differing.collect::<Vec<_>>().join("; ")
}

/// Every adapter's own tensors in the order of the first, under the new name.
fn aligned(name: &str, adapters: &[AdapterFolder]) -> Result<Vec<Tensors>> {
    let mut out: Vec<Tensors> = Vec::with_capacity(adapters.len());
    let mut found = Vec::new();
    for a in adapters {
        let mut weights = a.weights.clone().renamed(name);
        if let Some(first) = out.first() {
            weights = weights.fitted(first.keys().map(|k| &**k));
        }
        let mut own: Tensors = weights.tensors;
        own.retain(|k, _| belongs(k, name));
        if let Some(first) = out.first() {
            compare(first, &own, &adapters[0].name, &a.name, name, &mut found);
            own.sort_by(|k, _, l, _| first.get_index_of(k).cmp(&first.get_index_of(l)));
        }
        out.push(own);
    }
    if found.is_empty() {
        Ok(out)
    } else {
        Err(Error::many(ErrorKind::Method, found))
    }
}

fn compare(
    first: &Tensors,
    other: &Tensors,
    first_name: &str,
    other_name: &str,
    new: &str,
    found: &mut Vec<Diagnostic>,
) {
    let mut report = |key: &str, owner: &str, what: String| {
        found.push(Diagnostic::error(
            "average-weights",
            format!("`{}` {what}", renamed(key, new, owner)),
        ));
    };
    for (key, t) in first {
        match other.get(key) {
            None => report(
                key,
                first_name,
                format!("is not among the parameters of `{other_name}`"),
            ),
            Some(o) if o.dims != t.dims => report(
                key,
                first_name,
                format!("is {:?}, and {:?} in `{other_name}`", t.dims, o.dims),
            ),
            Some(_) => {}
        }
    }
    for key in other.keys().filter(|k| !first.contains_key(*k)) {
        report(
            key,
            other_name,
            format!("is not among the parameters of `{first_name}`"),
        );
    }
}

pub(super) fn values(key: &str, t: &TensorData) -> Result<Vec<f32>> {
    t.to_f32().ok_or_else(|| {
        wrong(Diagnostic::error(
            "average-weights",
            format!("`{key}` is {} and cannot be averaged", t.dtype),
        ))
    })
}

/// `values` of a shape, in the type of `like`.
pub(super) fn tensor(
    key: &str,
    dims: &[u64],
    values: &[f32],
    like: &TensorData,
) -> Result<TensorData> {
    convert(&TensorData::from_f32(dims, values), like.dtype).ok_or_else(|| {
        wrong(Diagnostic::error(
            "average-weights",
            format!("`{key}` cannot be {}", like.dtype),
        ))
    })
}

/// `Σ λᵢ·Φᵢ`, with the weight that `weigh` makes of `λᵢ`.
fn linear(files: &[Tensors], lambdas: &[f64], weigh: impl Fn(&str, f64) -> f64) -> Result<Tensors> {
    let mut out = Tensors::with_capacity(files[0].len());
    for (key, first) in &files[0] {
        let mut sum = vec![0f64; values(key, first)?.len()];
        for (file, lambda) in files.iter().zip(lambdas) {
            let lambda = weigh(key, *lambda);
            for (s, x) in sum.iter_mut().zip(values(key, &file[key])?) {
                *s += lambda * f64::from(x);
            }
        }
        let sum: Vec<f32> = sum.into_iter().map(|x| x as f32).collect();
        out.insert(key.clone(), tensor(key, &first.dims, &sum, first)?);
    }
    Ok(out)
}

/// That the adapter is plain LoRA: what the other ways of combining are defined for.
fn low_rank_only(
    adapter: &AdapterFolder,
    file: &Tensors,
    name: &str,
    strategy: &'static str,
) -> Result<()> {
    let bad = |what: String| {
        wrong(
            Diagnostic::error("average-strategy", format!("`{strategy}` {what}"))
                .help("use `linear`, which is defined for every method"),
        )
    };
    let Some(MethodConfig::Lora(_)) = adapter.config.only() else {
        return Err(bad(format!(
            "is defined for LoRA alone, and `{}` is {}",
            adapter.name,
            adapter.config.architecture()
        )));
    };
    let other = file
        .keys()
        .find(|k| !k.ends_with(".lora_A") && !k.ends_with(".lora_B"));
    if let Some(key) = other {
        let key = renamed(key, name, &adapter.name);
        return Err(bad(format!(
            "combines `lora_A` and `lora_B`, and there is also `{key}`"
        )));
    }
    let alone = |key: &str| {
        key.strip_suffix(".lora_B")
            .is_some_and(|m| !file.contains_key(&*format!("{m}.lora_A")))
    };
    match file.keys().find(|k| alone(k)) {
        Some(key) => Err(bad(format!(
            "combines `lora_A` and `lora_B`, and `{key}` stands alone"
        ))),
        None => Ok(()),
    }
}

fn by_singular_values(
    adapter: &AdapterFolder,
    files: &[Tensors],
    lambdas: &[f64],
    rank: usize,
) -> Result<(Config, Tensors)> {
    let Some(MethodConfig::Lora(lora)) = adapter.config.only() else {
        return Err(wrong(Diagnostic::error(
            "average-strategy",
            "this is not LoRA",
        )));
    };
    if rank == 0 {
        return Err(wrong(
            Diagnostic::error("average-rank", "the new rank is 0").help("it must be at least 1"),
        ));
    }
    let mut out = Tensors::with_capacity(files[0].len());
    for (a_key, a) in &files[0] {
        let Some(module) = a_key.strip_suffix(".lora_A") else {
            continue;
        };
        let b_key: Box<str> = format!("{module}.lora_B").into();
        let b = &files[0][&b_key];
        let shape = Blocks::of(module, a, b, lora.r, adapter.meta.hidden_size)?;
        if rank > shape.d_in.min(shape.d_out) {
            return Err(wrong(
                Diagnostic::error(
                    "average-rank",
                    format!("the new rank {rank} is more than `{module}` can have"),
                )
                .note(format!("its change is {} by {}", shape.d_out, shape.d_in)),
            ));
        }
        let (mut new_a, mut new_b) = (Vec::new(), Vec::new());
        for block in 0..shape.count {
            let mut factors = Vec::with_capacity(files.len());
            for (file, lambda) in files.iter().zip(lambdas) {
                let (a, b) = shape.factors(
                    block,
                    &values(a_key, &file[a_key])?,
                    &values(&b_key, &file[&b_key])?,
                );
                factors.push((b * *lambda, a));
            }
            let (a, b) = truncated(&factors, rank).ok_or_else(|| {
                wrong(
                    Diagnostic::error(
                        "average-svd",
                        format!("the singular values of `{module}` cannot be found"),
                    )
                    .help("are its parameters finite?"),
                )
            })?;
            // nalgebra stores columns; the transpose's columns are the rows.
            new_a.extend(a.transpose().iter().map(|x| *x as f32));
            new_b.extend(b.transpose().iter().map(|x| *x as f32));
        }
        let (h, k) = (shape.count as u64, rank as u64);
        let a = tensor(a_key, &[h * k, shape.d_in as u64], &new_a, a)?;
        let b = tensor(&b_key, &[h * shape.d_out as u64, k], &new_b, b)?;
        out.insert(a_key.clone(), a);
        out.insert(b_key, b);
    }
    let mut lora = lora.clone();
    lora.alpha = scaled(&lora.alpha, rank, lora.r);
    lora.r = rank;
    Ok((MethodConfig::from(lora).into(), out))
}

/// `alpha · rank / r`; an integer where it is one.
pub(in crate::adapters) fn scaled(alpha: &Number, rank: usize, r: usize) -> Number {
    let whole = alpha.as_u64().and_then(|a| {
        let product = a.checked_mul(rank as u64)?;
        (product % r as u64 == 0).then(|| product / r as u64)
    });
    match whole {
        Some(n) => n.into(),
        None => alpha
            .as_f64()
            .and_then(|a| Number::from_f64(a * rank as f64 / r as f64))
            .unwrap_or_else(|| alpha.clone()),
    }
}

/// The blocks of a linear's change: one; for a fused projection, one for each of q, k and v that is adapted.
pub(in crate::adapters) struct Blocks {
    pub(in crate::adapters) count: usize,
    r: usize,
    d_in: usize,
    /// Width of one block.
    pub(in crate::adapters) d_out: usize,
}

impl Blocks {
    pub(in crate::adapters) fn of(
        module: &str,
        a: &TensorData,
        b: &TensorData,
        r: usize,
        hidden: Option<u64>,
    ) -> Result<Blocks> {
        let shapes = || {
            Diagnostic::error(
                "average-shape",
                format!("`{module}` has factors {:?} and {:?}", a.dims, b.dims),
            )
        };
        let (&[rows, d_in], &[d_out, columns]) = (&*a.dims, &*b.dims) else {
            return Err(wrong(shapes().help("LoRA's factors are matrices")));
        };
        let r64 = r as u64;
        if r == 0 || columns != r64 || rows == 0 || rows % r64 != 0 {
            return Err(wrong(
                shapes().note(format!("the configuration says `r` is {r}")),
            ));
        }
        let count = rows / r64;
        if count > 1 && hidden.is_none_or(|h| h.checked_mul(count) != Some(d_out)) {
            return Err(wrong(shapes().help(
                "the columns of this fused projection cannot be told apart from the file; average with `linear`",
            )));
        }
        Ok(Blocks {
            count: count as usize,
            r,
            d_in: d_in as usize,
            d_out: (d_out / count) as usize,
        })
    }

    /// `A` and `B` of one block.
    fn factors(&self, block: usize, a: &[f32], b: &[f32]) -> (DMatrix<f64>, DMatrix<f64>) {
        let wide = |v: &[f32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let (n_a, n_b) = (self.r * self.d_in, self.d_out * self.r);
        (
            DMatrix::from_row_slice(self.r, self.d_in, &wide(&a[block * n_a..(block + 1) * n_a])),
            DMatrix::from_row_slice(
                self.d_out,
                self.r,
                &wide(&b[block * n_b..(block + 1) * n_b]),
            ),
        )
    }
}

/// `A` and `B` of rank `k` with the least squared distance of `B·A` from `Σ Bᵢ·Aᵢ`: the first singular vectors, the values with `B`.
///
/// The sum is never made: of `Σ Bᵢ·Aᵢ = [B₁ B₂ …]·[A₁; A₂; …]` both sides are reduced by QR, and the small core is decomposed. Each
/// row of `A` has a positive entry of greatest magnitude, so that the result is the same everywhere. `None` without convergence.
pub(super) fn truncated(
    factors: &[(DMatrix<f64>, DMatrix<f64>)],
    k: usize,
) -> Option<(DMatrix<f64>, DMatrix<f64>)> {
    const ITERATIONS: usize = 10_000;
    let (first_b, first_a) = factors.first()?;
    let (d_out, d_in) = (first_b.nrows(), first_a.ncols());
    let total: usize = factors.iter().map(|(b, _)| b.ncols()).sum();
    let mut left = DMatrix::zeros(d_out, total);
    let mut right = DMatrix::zeros(d_in, total);
    let mut at = 0;
    for (b, a) in factors {
        left.columns_mut(at, b.ncols()).copy_from(b);
        right.columns_mut(at, a.nrows()).copy_from(&a.transpose());
        at += b.ncols();
    }
    if left.iter().chain(right.iter()).any(|x| !x.is_finite()) {
        return None;
    }
    let (left, right) = (left.qr(), right.qr());
    let core = left.r() * right.r().transpose();
    let svd = core.try_svd(true, true, f64::EPSILON, ITERATIONS)?;
    let u = left.q() * svd.u?;
    let v = right.q() * svd.v_t?.transpose();
    let mut a = DMatrix::zeros(k, d_in);
    let mut b = DMatrix::zeros(d_out, k);
    for (i, value) in svd.singular_values.iter().enumerate().take(k) {
        let column = v.column(i);
        let greatest = column
            .iter()
            .fold(0f64, |g, x| if x.abs() > g.abs() { *x } else { g });
        let sign = if greatest < 0.0 { -1.0 } else { 1.0 };
        a.row_mut(i).copy_from(&(column * sign).transpose());
        b.column_mut(i).copy_from(&(u.column(i) * (sign * value)));
    }
    Some((a, b))
}

/// The same adapter under another name.
///
/// # Errors
/// [`ErrorKind::Method`] for a name that cannot be part of a parameter's.
pub(crate) fn rename(mut adapter: AdapterFolder, name: &str) -> Result<AdapterFolder> {
    check_name(name)?;
    let old = std::mem::replace(&mut adapter.name, name.to_owned());
    let fits = adapter
        .weights
        .tensors
        .keys()
        .any(|k| folder::is_adapter_key(k, &old));
    if !fits && !adapter.weights.tensors.is_empty() {
        return Err(wrong(
            Diagnostic::error(
                "adapter-name",
                format!("no parameter of the file belongs to `{old}`"),
            )
            .help("the name in adapter_config.json and those in the weights differ"),
        ));
    }
    adapter.weights = adapter.weights.renamed(name);
    Ok(adapter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::Meta;

    fn adapter(name: &str, config: &str, tensors: &[(&str, [u64; 2], &[f32])]) -> AdapterFolder {
        let tensors = tensors.iter().map(|(suffix, dims, values)| {
            let key = format!("layers.0.self_attn.q_proj.loras.{name}.{suffix}");
            (key.into(), TensorData::from_f32(*dims, values))
        });
        AdapterFolder {
            name: name.into(),
            config: Config::parse(config).unwrap(),
            meta: Meta::default(),
            weights: Weights::new(name, tensors),
            interface: Some("{}".into()),
            notes: Vec::new(),
        }
    }

    fn pair() -> [AdapterFolder; 2] {
        let one = |name, a, b| {
            adapter(
                name,
                "lora[r=1,alpha=2]",
                &[("lora_A", [1, 2], a), ("lora_B", [2, 1], b)],
            )
        };
        [
            one("x", &[1.0, 2.0], &[3.0, 4.0]),
            one("y", &[5.0, 6.0], &[7.0, 8.0]),
        ]
    }

    fn values(f: &AdapterFolder, suffix: &str) -> Vec<f32> {
        let key = format!("layers.0.self_attn.q_proj.loras.{}.{suffix}", f.name);
        f.weights.tensors[&*key].to_f32().unwrap()
    }

    fn options(weights: &[f64], combine: Combine) -> AverageOptions {
        AverageOptions {
            weights: Some(weights.to_vec()),
            normalize: false,
            combine,
        }
    }

    #[test]
    fn parameters_are_summed_by_weight() {
        let both = average("n", &pair(), &AverageOptions::default()).unwrap();
        assert_eq!(values(&both, "lora_A"), [3.0, 4.0]);
        let normal = AverageOptions {
            normalize: true,
            ..options(&[1.0, 3.0], Combine::Linear)
        };
        assert_eq!(
            values(&average("n", &pair(), &normal).unwrap(), "lora_B"),
            [6.0, 7.0]
        );
        let minus = options(&[1.0, -0.5], Combine::LoraLinearOnlyNegateB);
        let out = average("n", &pair(), &minus).unwrap();
        assert_eq!(values(&out, "lora_A"), [3.5, 5.0]);
        assert_eq!(values(&out, "lora_B"), [-0.5, 0.0]);
    }

    /// Rank 2 holds the sum of two changes of rank 1; `alpha / r` stays 2.
    #[test]
    fn singular_values_keep_the_change_and_the_scale() {
        let out = average(
            "n",
            &pair(),
            &options(&[1.0, -0.5], Combine::LoraDeltaWSvd { rank: 2 }),
        )
        .unwrap();
        let (a, b) = (values(&out, "lora_A"), values(&out, "lora_B"));
        let wanted = [3.0 - 17.5, 6.0 - 21.0, 4.0 - 20.0, 8.0 - 24.0];
        for (i, want) in wanted.into_iter().enumerate() {
            let found = b[i / 2 * 2] * a[i % 2] + b[i / 2 * 2 + 1] * a[2 + i % 2];
            // f32 rounding of factors below 50.
            assert!((found - want).abs() < 1e-5, "{found} is not {want}");
        }
        let Some(MethodConfig::Lora(lora)) = out.config.only() else {
            unreachable!()
        };
        assert_eq!((lora.r, lora.alpha.as_u64()), (2, Some(4)));
        assert_eq!(scaled(&1.into(), 3, 8).as_f64(), Some(0.375));
    }

    /// Of a diagonal matrix the greatest entries stay; ranks beyond its own are zeros.
    #[test]
    fn the_greatest_singular_values_stay() {
        let identity = DMatrix::<f64>::identity(3, 3);
        let diagonal = DMatrix::from_diagonal(&nalgebra::DVector::from_vec(vec![1.0, -5.0, 0.0]));
        let cut = |k| {
            let (a, b) = truncated(&[(diagonal.clone(), identity.clone())], k).unwrap();
            b * a
        };
        let close = |m: DMatrix<f64>, d: [f64; 3]| {
            (m - DMatrix::from_diagonal(&nalgebra::DVector::from_vec(d.to_vec()))).norm() < 1e-12
        };
        assert!(close(cut(1), [0.0, -5.0, 0.0]));
        assert!(close(cut(3), [1.0, -5.0, 0.0]));
        let broken = diagonal.map(|x| x / 0.0);
        assert!(truncated(&[(broken, identity)], 1).is_none());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = |adapters: &[AdapterFolder], o: &AverageOptions| {
            average("n", adapters, o).unwrap_err().to_string()
        };
        let [x, _] = pair();
        let other = adapter("z", "lora[r=1,alpha=3,dropout=0.5]", &[]);
        assert!(error(&[x.clone(), other], &AverageOptions::default()).contains("alpha: 2 and 3"));
        let fewer = adapter(
            "z",
            "lora[r=1,alpha=2,dropout=0.5]",
            &[("lora_A", [1, 2], &[0.0; 2])],
        );
        assert!(
            error(&[x.clone(), fewer], &AverageOptions::default())
                .contains("loras.x.lora_B` is not among")
        );
        let gated = adapter(
            "g",
            "lora[r=1]",
            &[
                ("lora_A", [1, 2], &[0.0; 2]),
                ("gate.weight", [1, 2], &[0.0; 2]),
            ],
        );
        assert!(
            error(&[gated], &options(&[1.0], Combine::LoraLinearOnlyNegateB))
                .contains("gate.weight")
        );
        let zero = AverageOptions {
            normalize: true,
            ..options(&[1.0, -1.0], Combine::Linear)
        };
        assert!(error(&pair(), &zero).contains("add up to 0"));
        assert!(error(&pair(), &options(&[1.0], Combine::Linear)).contains("1 weights for 2"));
        assert!(
            error(
                &pair(),
                &options(&[1.0, 1.0], Combine::LoraDeltaWSvd { rank: 3 })
            )
            .contains("more than")
        );
    }

    #[test]
    fn renaming_changes_names_only() {
        let [x, _] = pair();
        let renamed = rename(x.clone(), "new").unwrap();
        assert_eq!(values(&renamed, "lora_A"), values(&x, "lora_A"));
        assert!(rename(x, "a.b").is_err());
    }
}
