//! New LoRA adapters of several: PEFT's `add_weighted_adapter`, on folders, under PEFT's names.
//!
//! With `s` an adapter's scale and `w` its weight: `linear`, `ties`, `dare_linear`, `dare_ties` and `magnitude_prune` combine `A` and `B`
//! apart, each with `√|w·s|` (the sign goes with `A`); `cat` puts the factors side by side, which is exact; `svd` and the `…_svd` combine
//! `B·A` and cut the result to a rank. The result has the scale 1. (PEFT keeps `use_rslora`, which multiplies its result by `√r`: here it is
//! off.) Random pruning (DARE, Yu et al. 2024) draws by seed and name, and is that of no torch.
//!
//! TIES: Yadav et al. 2023. What cannot be combined exactly or by the named rule is refused.

use super::average::{tensor, truncated, values};
use super::folder::{AdapterFolder, VERSION};
use super::store::Weights;
use crate::adapters::methods::MethodConfig;
use crate::adapters::methods::lora::Lora;
use crate::adapters::naming::{belongs, renamed};
use crate::adapters::param::uniform;
use crate::adapters::plan::check_name;
use crate::diag::{Diagnostic, nearest};
use crate::error::{Error, ErrorKind, Result};
use crate::ir::TensorData;
use indexmap::IndexMap;
use nalgebra::DMatrix;

/// The names of the ways to combine.
const NAMES: [&str; 11] = [
    "svd",
    "linear",
    "cat",
    "ties",
    "ties_svd",
    "dare_ties",
    "dare_linear",
    "dare_ties_svd",
    "dare_linear_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
];

/// How LoRA adapters are combined.
#[derive(Clone, Debug)]
pub(crate) struct Weighting {
    /// PEFT's `combination_type`.
    pub combination: String,
    /// One for each adapter (default: 1 each).
    pub weights: Option<Vec<f64>>,
    /// Share of the values that pruning keeps.
    pub density: Option<f64>,
    /// Whether the sign of most values wins (`frequency`), or that of their sum (`total`).
    pub by_frequency: bool,
    /// Rank of a result that is cut (default: the greatest of the adapters').
    pub svd_rank: Option<usize>,
    /// Seed of random pruning.
    pub seed: u64,
}

/// What happens to the values before they are summed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pruning {
    None,
    /// The smallest go.
    Magnitude,
    /// Random ones go, the others grow.
    Random,
}

/// A way to combine.
#[derive(Clone, Copy)]
struct Rule {
    pruning: Pruning,
    /// Whether values of the less frequent sign are left out of the mean.
    elects: bool,
    /// Whether `B·A` is combined, and cut to a rank.
    cut: bool,
    /// Whether the factors are put side by side.
    joins: bool,
}

impl Rule {
    fn named(name: &str) -> Result<Rule> {
        if !NAMES.contains(&name) {
            let d = Diagnostic::error(
                "combination-type",
                format!("there is no combination type `{name}`"),
            );
            let d = match nearest(name, NAMES) {
                Some(near) => d.note(format!("the nearest one is `{near}`")),
                None => d,
            };
            let help = format!("PEFT's are {}", NAMES.join(", "));
            return Err(Error::new(ErrorKind::Usage, d.help(help)));
        }
        let plain = name.strip_suffix("_svd").unwrap_or(name);
        Ok(Rule {
            pruning: match plain {
                "ties" | "magnitude_prune" => Pruning::Magnitude,
                "dare_ties" | "dare_linear" => Pruning::Random,
                _ => Pruning::None,
            },
            elects: plain.ends_with("ties"),
            cut: name.ends_with("svd"),
            joins: name == "cat",
        })
    }
}

/// One adapter's change of one module.
struct Change {
    /// `[r, d_in]`.
    a: DMatrix<f64>,
    /// `[d_out, r]`.
    b: DMatrix<f64>,
    scale: f64,
    weight: f64,
}

/// Combines LoRA adapters into a new one.
///
/// # Errors
/// [`ErrorKind::Usage`] for arguments that do not fit, [`ErrorKind::Method`] for adapters that are no plain LoRA or that cannot be combined
/// so.
pub(crate) fn weighted(
    name: &str,
    adapters: &[AdapterFolder],
    how: &Weighting,
) -> Result<AdapterFolder> {
    check_name(name)?;
    let rule = Rule::named(&how.combination)?;
    check_arguments(how, rule, adapters.len())?;
    let Some(first) = adapters.first() else {
        return Err(wrong("weighted-adapters", "there is no adapter to combine"));
    };
    let loras = adapters
        .iter()
        .map(plain_lora)
        .collect::<Result<Vec<_>>>()?;
    let weights = how
        .weights
        .clone()
        .unwrap_or_else(|| vec![1.0; adapters.len()]);
    let mut modules: IndexMap<String, Vec<Change>> = IndexMap::new();
    let mut likes: IndexMap<String, TensorData> = IndexMap::new();
    for ((folder, lora), weight) in adapters.iter().zip(&loras).zip(weights) {
        for (module, change, like) in changes(name, folder, lora, weight)? {
            modules.entry(module.clone()).or_default().push(change);
            likes.entry(module).or_insert(like);
        }
    }
    let rank = new_rank(&modules, how, rule, first)?;
    let mut tensors: IndexMap<Box<str>, TensorData> = IndexMap::new();
    for (module, changes) in &modules {
        let (a, b) = combined(module, changes, how, rule, rank)?;
        let like = &likes[module];
        let rows =
            |m: &DMatrix<f64>| -> Vec<f32> { m.transpose().iter().map(|x| *x as f32).collect() };
        for (suffix, m) in [("A", a), ("B", b)] {
            let key = format!("{module}{suffix}");
            let dims = [m.nrows() as u64, m.ncols() as u64];
            let made = tensor(&key, &dims, &rows(&m), like)?;
            tensors.insert(key.into(), made);
        }
    }
    if let Some((key, _)) = tensors.iter().find(|(_, t)| t.not_finite() > 0) {
        let found = format!("`{key}` of the combination is not finite: its weights are too large");
        return Err(wrong("weighted-finite", found));
    }
    let mut meta = first.meta.clone();
    meta.version = Some(VERSION.into());
    meta.extra.shift_remove("config_id");
    Ok(AdapterFolder {
        name: name.to_owned(),
        config: MethodConfig::from(Lora::combined(&loras, rank)?).into(),
        meta,
        weights: Weights {
            adapter: name.into(),
            tensors,
        },
        interface: first.interface.clone(),
        notes: adapters.iter().flat_map(|a| a.notes.clone()).collect(),
    })
}

fn wrong(code: &'static str, what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Method, Diagnostic::error(code, what.into()))
}

fn check_arguments(how: &Weighting, rule: Rule, adapters: usize) -> Result<()> {
    let usage = |what: String, help: &str| {
        let d = Diagnostic::error("arguments", what).help(help);
        Err(Error::new(ErrorKind::Usage, d))
    };
    let name = &how.combination;
    match how.density {
        Some(d) if rule.pruning == Pruning::None => usage(
            format!("--density {d} and --combination-type {name} do not fit"),
            "only ties, dare_… and magnitude_prune leave values out",
        ),
        None if rule.pruning != Pruning::None => usage(
            format!("--combination-type {name} needs a --density"),
            "the share of values that stay, from 0 to 1: --density 0.5",
        ),
        Some(d) if !(d > 0.0 && d <= 1.0) => usage(
            format!("--density is {d}"),
            "it is the share of values that stay: more than 0, and at most 1",
        ),
        _ => Ok(()),
    }?;
    let finite = |w: &&f64| !w.is_finite();
    if let Some(other) = how.weights.iter().flatten().find(finite) {
        return usage(format!("a weight is {other}"), "weights are numbers");
    }
    if let Some(weights) = &how.weights
        && weights.len() != adapters
    {
        return usage(
            format!("{} weights for {adapters} adapters", weights.len()),
            "give one weight for each adapter, in their order",
        );
    }
    if how.svd_rank.is_some() && !rule.cut {
        return usage(
            format!("--svd-rank and --combination-type {name} do not fit"),
            "only svd and the …_svd are cut to a rank",
        );
    }
    Ok(())
}

/// The configuration of an adapter that is LoRA and nothing else.
fn plain_lora(folder: &AdapterFolder) -> Result<&Lora> {
    let refuse = |what: String| {
        let d = Diagnostic::error("weighted-method", what);
        let help =
            "`rewrite adapter average` with --combine-strategy linear is defined for every method";
        Err(Error::new(ErrorKind::Method, d.help(help)))
    };
    let Some(MethodConfig::Lora(lora)) = folder.config.only() else {
        return refuse(format!(
            "`{}` is {}, and only LoRA adapters are combined so",
            folder.name,
            folder.config.architecture()
        ));
    };
    if lora.composition_mode == "scale" {
        return refuse(format!(
            "`{}` is (IA)³, which multiplies, and only changes that are added are combined so",
            folder.name
        ));
    }
    let factor = |k: &str| {
        FACTORS
            .iter()
            .any(|f| k.ends_with(&format!("{f}A")) || k.ends_with(&format!("{f}B")))
    };
    let own = folder.weights.tensors.keys();
    let mut own = own.filter(|k| belongs(k, &folder.weights.adapter));
    match own.find(|k| !factor(k)) {
        Some(other) => refuse(format!(
            "`{}` also has `{other}`, and only the factors A and B of LoRA are combined so",
            folder.name
        )),
        None => Ok(lora),
    }
}

/// What stands in front of `A` and `B` in the names of factors.
const FACTORS: [&str; 2] = [".lora_", ".lora_embedding_"];

/// The changes of an adapter, by the names of their modules under the new name.
fn changes(
    name: &str,
    folder: &AdapterFolder,
    lora: &Lora,
    weight: f64,
) -> Result<Vec<(String, Change, TensorData)>> {
    let tensors = &folder.weights.tensors;
    let mut out = Vec::new();
    for (key, a) in tensors
        .iter()
        .filter(|(k, _)| belongs(k, &folder.weights.adapter))
    {
        let Some(module) = key
            .strip_suffix('A')
            .filter(|m| FACTORS.iter().any(|f| m.ends_with(f)))
        else {
            continue;
        };
        let Some(b) = tensors.get(&*format!("{module}B")) else {
            return Err(wrong("weighted-shape", format!("`{key}` stands alone")));
        };
        let (&[rows, d_in], &[d_out, r]) = (&*a.dims, &*b.dims) else {
            return Err(wrong("weighted-shape", format!("`{key}` is no matrix")));
        };
        if rows != r {
            let what = format!(
                "`{key}` is {:?} and `{module}B` {:?}: a packed projection's blocks",
                a.dims, b.dims
            );
            let d = Diagnostic::error("weighted-shape", what);
            let help = "use `rewrite adapter average --combine-strategy lora_delta_w_svd`";
            return Err(Error::new(ErrorKind::Method, d.help(help)));
        }
        let matrix = |key: &str, t: &TensorData, rows: u64, columns: u64| -> Result<DMatrix<f64>> {
            let wide: Vec<f64> = values(key, t)?.into_iter().map(f64::from).collect();
            Ok(DMatrix::from_row_slice(
                rows as usize,
                columns as usize,
                &wide,
            ))
        };
        let path = key.split(".loras.").next().unwrap_or(key);
        let change = Change {
            a: matrix(key, a, rows, d_in)?,
            b: matrix(key, b, d_out, r)?,
            scale: f64::from(lora.scale_of(path, r as usize)?),
            weight,
        };
        out.push((
            renamed(module, &folder.weights.adapter, name),
            change,
            a.clone(),
        ));
    }
    Ok(out)
}

fn new_rank(
    modules: &IndexMap<String, Vec<Change>>,
    how: &Weighting,
    rule: Rule,
    first: &AdapterFolder,
) -> Result<usize> {
    let ranks = |c: &[Change]| c.iter().map(|c| c.a.nrows()).collect::<Vec<_>>();
    let each: Vec<Vec<usize>> = modules.values().map(|c| ranks(c)).collect();
    let all = || each.iter().flatten().copied();
    let greatest = all().max().unwrap_or(0);
    if greatest == 0 {
        return Err(wrong(
            "weighted-adapters",
            format!("`{}` has no factors", first.name),
        ));
    }
    if rule.joins {
        return Ok(each.iter().map(|r| r.iter().sum()).max().unwrap_or(0));
    }
    if rule.cut {
        let rank = how.svd_rank.unwrap_or(greatest);
        let most = modules
            .values()
            .flatten()
            .map(|c| c.a.ncols().min(c.b.nrows()))
            .min();
        return match most {
            Some(most) if rank == 0 || rank > most => Err(wrong(
                "weighted-rank",
                format!("the new rank is {rank}, and a module's change has at most {most}"),
            )),
            _ => Ok(rank),
        };
    }
    if all().any(|r| r != greatest) {
        let d = Diagnostic::error(
            "weighted-rank",
            format!(
                "the adapters have different ranks, and `{}` combines their factors",
                how.combination
            ),
        );
        return Err(Error::new(
            ErrorKind::Method,
            d.help("use cat, svd, or one of the …_svd"),
        ));
    }
    Ok(greatest)
}

/// The factors of the combination at one module.
fn combined(
    module: &str,
    changes: &[Change],
    how: &Weighting,
    rule: Rule,
    rank: usize,
) -> Result<(DMatrix<f64>, DMatrix<f64>)> {
    if let Some(other) = changes
        .iter()
        .find(|c| c.a.ncols() != changes[0].a.ncols() || c.b.nrows() != changes[0].b.nrows())
    {
        return Err(wrong(
            "weighted-shape",
            format!(
                "`{module}A` is of modules {} and {} wide: the adapters are for different models",
                changes[0].a.ncols(),
                other.a.ncols()
            ),
        ));
    }
    let (d_in, d_out) = (changes[0].a.ncols(), changes[0].b.nrows());
    if rule.joins {
        let (mut a, mut b) = (DMatrix::zeros(rank, d_in), DMatrix::zeros(d_out, rank));
        let mut at = 0;
        for c in changes {
            let r = c.a.nrows();
            a.rows_mut(at, r).copy_from(&(&c.a * (c.weight * c.scale)));
            b.columns_mut(at, r).copy_from(&c.b);
            at += r;
        }
        return Ok((a, b));
    }
    if !rule.cut {
        let roots: Vec<f64> = changes
            .iter()
            .map(|c| (c.weight * c.scale).abs().sqrt())
            .collect();
        let signs = changes
            .iter()
            .map(|c| if c.weight * c.scale < 0.0 { -1.0 } else { 1.0 });
        let signed: Vec<f64> = roots.iter().zip(signs).map(|(r, s)| r * s).collect();
        let a: Vec<DMatrix<f64>> = changes.iter().map(|c| c.a.clone()).collect();
        let b: Vec<DMatrix<f64>> = changes.iter().map(|c| c.b.clone()).collect();
        return Ok((
            mixed(a, &signed, how, rule, &format!("{module}A")),
            mixed(b, &roots, how, rule, &format!("{module}B")),
        ));
    }
    let cut = if rule.pruning == Pruning::None {
        let factors: Vec<_> = changes
            .iter()
            .map(|c| (&c.b * (c.weight * c.scale), c.a.clone()))
            .collect();
        truncated(&factors, rank)
    } else {
        let deltas = changes.iter().map(|c| (&c.b * &c.a) * c.scale).collect();
        let weights: Vec<f64> = changes.iter().map(|c| c.weight).collect();
        let delta = mixed(deltas, &weights, how, rule, module);
        truncated(&[(delta, DMatrix::identity(d_in, d_in))], rank)
    };
    cut.ok_or_else(|| {
        wrong(
            "weighted-svd",
            format!("the singular values of `{module}` cannot be found"),
        )
    })
}

/// The weighted sum of matrices, pruned and elected as the rule says.
fn mixed(
    each: Vec<DMatrix<f64>>,
    weights: &[f64],
    how: &Weighting,
    rule: Rule,
    name: &str,
) -> DMatrix<f64> {
    let density = how.density.unwrap_or(1.0);
    let pruned: Vec<DMatrix<f64>> = each
        .into_iter()
        .enumerate()
        .map(|(i, m)| match rule.pruning {
            _ if density >= 1.0 => m,
            Pruning::None => m,
            Pruning::Magnitude => largest(m, density),
            Pruning::Random => thinned(m, density, how.seed, &format!("{name} {i}")),
        })
        .collect();
    let (rows, columns) = pruned.first().map_or((0, 0), |m| (m.nrows(), m.ncols()));
    DMatrix::from_fn(rows, columns, |i, j| {
        let each = || pruned.iter().map(|m| m[(i, j)]);
        let weighted = || each().zip(weights).map(|(x, w)| x * w);
        if !rule.elects {
            return weighted().sum();
        }
        let sum: f64 = each()
            .map(|x| if how.by_frequency { sign(x) } else { x })
            .sum();
        let majority = if sum >= 0.0 { 1.0 } else { -1.0 };
        let kept = || each().map(|x| x * majority > 0.0);
        let count = kept().filter(|k| *k).count();
        let total: f64 = weighted()
            .zip(kept())
            .filter(|(_, k)| *k)
            .map(|(x, _)| x)
            .sum();
        total / (count as f64).max(1.0)
    })
}

/// As torch has it: 0 has none.
fn sign(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

/// The share of greatest magnitude; the others are 0.
fn largest(mut m: DMatrix<f64>, density: f64) -> DMatrix<f64> {
    let keep = (density * m.len() as f64) as usize;
    let mut order: Vec<usize> = (0..m.len()).collect();
    order.sort_by(|a, b| m[*b].abs().total_cmp(&m[*a].abs()));
    for i in &order[keep.min(order.len())..] {
        m[*i] = 0.0;
    }
    m
}

/// A random share, made larger by what is gone.
fn thinned(mut m: DMatrix<f64>, density: f64, seed: u64, name: &str) -> DMatrix<f64> {
    let draws = uniform(m.len(), seed, name);
    for (x, draw) in m.iter_mut().zip(draws) {
        *x = if draw < density { *x / density } else { 0.0 };
    }
    m
}
