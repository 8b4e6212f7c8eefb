//! Plans: a graph prepared for execution.

use super::compile::{Setup, compile};
use super::device::{Device, Precision};
use super::exec::Program;
use super::kernels::Cx;
use super::lower::Lowerer;
use super::past::caches;
use super::tensor::Tensor;
use super::value::{Value, Weight};
use crate::diag::{Diagnostic, Severity, nearest};
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::{DType, Dim, Type, TypeKind, contract};
use indexmap::IndexMap;
use onnx_graft_kernels::pool::Pool;
use onnx_graft_kernels::team::Team;
use rustc_hash::FxHashMap;
use std::fmt;
use std::sync::Arc;

/// How a graph is prepared.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// Names of the values to compute: graph outputs or any intermediate value. `None` means all graph outputs. What is not needed
    /// for them is neither computed nor has to be supported.
    pub outputs: Option<Vec<String>>,
    /// Names of initializers that are fed at run time (adapter parameters); they are not folded. One that is not fed has the
    /// value of the file.
    pub variables: Vec<String>,
    /// Where float tensors live.
    pub device: Device,
    /// In which precision operands of matrix products may be rounded on the CPU; sums and everything else are `f32`.
    pub precision: Precision,
    /// Threads for this plan; `None` takes the global pool.
    pub threads: Option<usize>,
    /// Number of heads of cached keys and values, and the width of one, where the graph does not declare them.
    pub cache_size: Option<[usize; 2]>,
}

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions {
            outputs: None,
            variables: Vec::new(),
            device: Device::Cpu,
            precision: Precision::F32,
            threads: None,
            cache_size: None,
        }
    }
}

/// Something a plan is fed with.
#[derive(Clone, Debug)]
pub struct FeedSpec {
    /// Name of the graph input or variable.
    pub name: String,
    /// Declared type, if there is one.
    pub ty: Option<Type>,
    /// The value if it is not fed.
    pub(crate) default: Option<Value>,
    /// Whether anything requested depends on it.
    pub used: bool,
    /// Where this is an input for cached keys or values: the axis of their positions, as far as what reads it says that.
    #[expect(
        clippy::option_option,
        reason = "whether it is a cache, and where it grows"
    )]
    pub(crate) cache: Option<Option<usize>>,
    /// Heads and width of a cache, where they are not declared.
    pub(crate) cache_size: Option<[usize; 2]>,
}

impl FeedSpec {
    /// A cache without positions for so many rows, where this is an input for cached keys or values whose sizes are known:
    /// `[rows, heads, positions, head]` or `[rows, positions, heads, head]`, and what stands in front of that where keys and values or
    /// layers are one input.
    pub(crate) fn empty_cache(&self, rows: usize) -> Option<Value> {
        let ty = self.ty.as_ref()?;
        let grows = self.cache?;
        let dtype = ty.dtype().unwrap_or(DType::Float);
        if !matches!(dtype, DType::Float | DType::Float16 | DType::Bfloat16) {
            return None;
        }
        let declared = ty.dims()?;
        let batch = declared.len().checked_sub(4)?;
        let known = |axis: usize| match declared[axis] {
            Dim::Known(n) => usize::try_from(n).ok(),
            _ => None,
        };
        let open: Vec<usize> = (batch + 1..declared.len())
            .filter(|axis| known(*axis).is_none())
            .collect();
        let positions = match (grows, open.as_slice()) {
            (_, []) => return None,
            (Some(axis), _) => axis,
            (None, [one]) => *one,
            (None, _) => batch + 2,
        };
        let size = |axis: usize| match known(axis) {
            Some(n) => Some(n),
            None if axis == batch => Some(rows),
            None if axis == positions => Some(0),
            None if axis == batch + 1 => self.cache_size.map(|s| s[0]),
            None if axis == batch + 3 => self.cache_size.map(|s| s[1]),
            None => None,
        };
        let dims: Option<Vec<usize>> = (0..declared.len()).map(size).collect();
        match Value::from_f32(&dims?, Vec::new()).ok()? {
            Value::Float(x) => Some(Value::Float(x.tagged(dtype))),
            other => Some(other),
        }
    }
}

/// Named values for a run.
#[derive(Clone, Debug, Default)]
pub struct Feeds(pub(crate) IndexMap<String, Value>);

/// Named results of a run, in the order in which they were requested.
pub type Outputs = IndexMap<String, Tensor>;

impl Feeds {
    /// No values.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Tensor>) -> Self {
        self.insert(name, value);
        self
    }

    /// Adds or replaces a value.
    pub fn insert(&mut self, name: &str, value: impl Into<Tensor>) {
        self.0.insert(name.to_owned(), value.into().0);
    }

    /// Without the values that a plan does not read.
    #[must_use]
    pub(crate) fn for_plan(mut self, plan: &Plan) -> Self {
        self.0
            .retain(|name, _| plan.feeds.iter().any(|f| f.name == *name));
        let rows = self.0.get(contract::INPUT_IDS).map(|ids| ids.dims()[0]);
        for spec in plan.feeds.iter().filter(|f| f.used && f.default.is_none()) {
            if let (Some(rows), false) = (rows, self.0.contains_key(&spec.name))
                && let Some(empty) = spec.empty_cache(rows)
            {
                self.0.insert(spec.name.clone(), empty);
            }
        }
        self
    }

    /// The same values under their plain names: files may say `input/NAME`.
    #[must_use]
    pub(crate) fn plain(self) -> Self {
        let plain = |name: String| match name.strip_prefix("input/") {
            Some(plain) => plain.to_owned(),
            None => name,
        };
        Feeds(self.0.into_iter().map(|(k, v)| (plain(k), v)).collect())
    }
}

/// A graph prepared for execution. `run` may be called from several threads at once.
pub struct Plan {
    program: Program,
    feeds: Vec<FeedSpec>,
    outputs: Vec<String>,
    device: candle_core::Device,
    pool: Arc<Pool>,
    precision: onnx_graft_kernels::gemm::Precision,
    team: Arc<Team>,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("steps", &self.program.steps.len())
            .field("slots", &self.program.slots)
            .field("constants", &self.program.constants.len())
            .field("feeds", &self.feeds)
            .field("outputs", &self.outputs)
            .finish_non_exhaustive()
    }
}

impl Plan {
    /// Prepares a model. Everything that cannot be executed is reported together.
    pub fn compile(model: &Verified, options: &CompileOptions) -> Result<Plan> {
        let g = &model.model().graph;
        let mut lowerer = Lowerer::new(model);
        let (code, env) = lowerer.main();
        let mut findings = std::mem::take(&mut lowerer.findings);
        let outputs: Vec<String> = options.outputs.clone().unwrap_or_else(|| {
            g.outputs()
                .iter()
                .map(|p| g.name_of(p.value).to_owned())
                .collect()
        });
        let mut find = |name: &str, what: &str| {
            let found = g.find(name).and_then(|v| env.get(&v).copied());
            if found.is_none() {
                let names: Vec<&str> = g.values().map(|v| g.name_of(v)).collect();
                let d =
                    Diagnostic::error("compile-name", format!("{what} `{name}` does not exist"));
                findings.push(match nearest(name, names.iter().copied()) {
                    Some(n) => d.help(format!("did you mean `{n}`?")),
                    None => d,
                });
            }
            found
        };
        let wanted: Vec<usize> = outputs
            .iter()
            .filter_map(|n| find(n, "the requested value"))
            .collect();
        let variables: Vec<usize> = options
            .variables
            .iter()
            .filter_map(|n| find(n, "the variable"))
            .collect();
        let pool = Arc::new(Pool::default());
        let device = options.device.open()?;
        let setup = Setup {
            device: &device,
            pool: &pool,
        };
        let mut code = code;
        let mut feeds = Vec::new();
        let caches = caches(g);
        for (p, &v) in g.inputs().iter().zip(&code.inputs) {
            let ty = p.ty.clone().or_else(|| g.value(p.value).ty.clone());
            feeds.push((v, ty, caches.get(&p.value).copied()));
        }
        for &v in &variables {
            if !code.inputs.contains(&v) {
                let ty = code.tensors[v].as_ref().map(|t| {
                    let dims: Vec<Dim> = t.dims.iter().map(|&d| Dim::Known(d as i64)).collect();
                    Type::tensor(t.dtype, dims)
                });
                code.inputs.push(v);
                feeds.push((v, ty, None));
            }
        }
        let mut specs = Vec::with_capacity(feeds.len());
        for (v, ty, cache) in feeds {
            let default = match code.tensors[v]
                .as_ref()
                .map(|t| Weight::new(t, &device).and_then(|w| w.value()))
            {
                None => None,
                Some(Ok(v)) => Some(v),
                Some(Err(e)) => {
                    findings.push(Diagnostic::error(
                        "compile-constant",
                        format!("`{}`: {e}", code.names[v]),
                    ));
                    None
                }
            };
            specs.push(FeedSpec {
                name: code.names[v].clone().into_owned(),
                ty,
                default,
                used: false,
                cache,
                cache_size: options.cache_size,
            });
        }
        let open = code.inputs.clone();
        let program = compile(
            &setup,
            code,
            &FxHashMap::default(),
            &open,
            &wanted,
            &mut findings,
        );
        if findings.iter().any(|d| d.severity == Severity::Error) {
            return Err(Error::many(ErrorKind::Compile, findings));
        }
        for (spec, slot) in specs.iter_mut().zip(&program.inputs) {
            spec.used = slot.is_some();
        }
        Ok(Plan {
            program,
            feeds: specs,
            outputs,
            device,
            pool,
            precision: options.precision.of_kernels(),
            team: team(options.threads)?,
        })
    }

    /// What the plan is fed with: graph inputs, then variables.
    pub fn feeds(&self) -> &[FeedSpec] {
        &self.feeds
    }

    /// Names of the results.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// Number of kernel calls of one run.
    pub fn step_count(&self) -> usize {
        self.program.steps.len()
    }

    /// Executes the plan in inference mode.
    pub fn run(&self, feeds: &Feeds) -> Result<Outputs> {
        self.run_seeded(feeds, None)
    }

    /// Executes the plan; with a seed, `Dropout` nodes in training mode draw from it. Equal seeds draw equal masks, whatever the number of threads.
    pub(crate) fn run_seeded(&self, feeds: &Feeds, seed: Option<u64>) -> Result<Outputs> {
        let inputs = self.bind(feeds)?;
        self.pool.begin();
        let work = || {
            let cx = Cx {
                pool: &self.pool,
                device: &self.device,
                random: seed,
                precision: self.precision,
            };
            let values = self.program.run(&cx, inputs)?;
            values
                .into_iter()
                .map(|v| {
                    super::kernels::plain(v).and_then(|v| match v {
                        Value::Float(x) => Ok(Value::Float(cx.dense(x)?)),
                        v => Ok(v),
                    })
                })
                .collect::<Result<Vec<Value>, _>>()
                .map_err(|e| Diagnostic::error("run-output", e.to_string()))
        };
        let values = self
            .team
            .run(work)
            .map_err(|d| Error::new(ErrorKind::Run, d))?;
        let values = values.into_iter().map(Tensor);
        Ok(self.outputs.iter().cloned().zip(values).collect())
    }

    /// A float in the float type that its input declares: a graph that was converted to `f16` takes the data of the original.
    fn rounded(&self, spec: &FeedSpec, v: &Value) -> Value {
        const FLOATS: [DType; 3] = [DType::Float, DType::Float16, DType::Bfloat16];
        let declared = spec.ty.as_ref().and_then(Type::dtype);
        match declared.filter(|t| FLOATS.contains(t) && FLOATS.contains(&v.dtype())) {
            Some(to) if to != v.dtype() => {
                let cx = Cx {
                    pool: &self.pool,
                    device: &self.device,
                    random: None,
                    precision: self.precision,
                };
                super::kernels::cast::cast(&cx, v.clone(), to).unwrap_or_else(|_| v.clone())
            }
            _ => v.clone(),
        }
    }

    fn bind(&self, feeds: &Feeds) -> Result<Vec<Option<Value>>> {
        let mut findings = Vec::new();
        for name in feeds.0.keys() {
            if !self.feeds.iter().any(|f| f.name == *name) {
                let names = self.feeds.iter().map(|f| f.name.as_str());
                let d = Diagnostic::error("run-input", format!("the graph has no input `{name}`"));
                let list = self
                    .feeds
                    .iter()
                    .map(|f| f.name.as_str())
                    .collect::<Vec<_>>();
                findings.push(match nearest(name, names) {
                    Some(n) => d.help(format!("did you mean `{n}`?")),
                    None => d.help(format!("its inputs are: {}", list.join(", "))),
                });
            }
        }
        let mut sizes: FxHashMap<&str, (usize, &str)> = FxHashMap::default();
        let mut inputs = Vec::with_capacity(self.feeds.len());
        for spec in &self.feeds {
            let given = feeds.0.get(&spec.name).map(|v| self.rounded(spec, v));
            if let Some(v) = &given {
                check(spec, v, &mut sizes, &mut findings);
            } else if spec.default.is_none() && spec.used {
                let d =
                    Diagnostic::error("run-input", format!("the input `{}` is missing", spec.name));
                findings.push(match &spec.ty {
                    Some(_) if spec.cache.is_some() => d.help(
                        "feed it; it is empty in training and evaluation, where the graph declares its sizes, or config.json beside the model (num_key_value_heads, head_dim)",
                    ),
                    Some(ty) => d.help(format!("feed a tensor of type {ty}")),
                    None => d,
                });
            }
            inputs.push(given.or_else(|| spec.default.clone()));
        }
        if findings.is_empty() {
            Ok(inputs)
        } else {
            Err(Error::many(ErrorKind::Run, findings))
        }
    }
}

/// Threads beyond this many for each core only wait for one another.
const THREADS_PER_CORE: usize = 16;

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The team of this many threads, or of one for each core. As programs on rayon do, it minds `RAYON_NUM_THREADS`.
fn team(asked: Option<usize>) -> Result<Arc<Team>> {
    let cores = cores();
    let most = cores.saturating_mul(THREADS_PER_CORE);
    let refused = |n: usize, why: String, help: String| {
        let d = Diagnostic::error("threads", format!("{n} threads: {why}"));
        Error::new(ErrorKind::Compile, d.help(help))
    };
    let threads = match asked {
        Some(n) if n > most => {
            let help = format!("give at most {most}, or none for one each");
            return Err(refused(n, format!("this machine has {cores} cores"), help));
        }
        Some(0) | None => {
            let usual = std::env::var("RAYON_NUM_THREADS").ok();
            let usual = usual.and_then(|n| n.parse().ok()).filter(|n| *n > 0);
            usual.unwrap_or(cores).min(most)
        }
        Some(n) => n,
    };
    Team::of(threads).map_err(|e| refused(threads, e.to_string(), "give fewer".into()))
}

/// What `task` makes of each item, in their order, on a thread for each core.
#[cfg(feature = "train")]
pub(crate) fn map<T: Send, R: Send>(items: Vec<T>, task: impl Fn(T) -> R + Sync) -> Result<Vec<R>> {
    Ok(team(None)?.run(|| onnx_graft_kernels::team::map(items, task)))
}

/// Checks a fed value against its declared type, and that one name of a size means one size.
fn check<'a>(
    spec: &'a FeedSpec,
    v: &Value,
    sizes: &mut FxHashMap<&'a str, (usize, &'a str)>,
    findings: &mut Vec<Diagnostic>,
) {
    let Some(ty) = &spec.ty else { return };
    let TypeKind::Tensor { dtype, dims } = &ty.kind else {
        return;
    };
    let mut wrong =
        |what: String| {
            findings.push(
                Diagnostic::error("run-input", format!("input `{}`: {what}", spec.name))
                    .note(format!("found {}{:?}, expected {ty}", v.dtype(), v.dims())),
            );
        };
    if *dtype != v.dtype() && *dtype != DType::Undefined {
        wrong(format!("found {}, expected {dtype}", v.dtype()));
    }
    let Some(dims) = dims else { return };
    if dims.len() != v.dims().len() {
        wrong(format!(
            "found rank {}, expected rank {}",
            v.dims().len(),
            dims.len()
        ));
        return;
    }
    for (i, (d, &n)) in dims.iter().zip(v.dims()).enumerate() {
        match d {
            Dim::Known(k) if *k >= 0 && *k != n as i64 => {
                wrong(format!("axis {i}: found {n}, expected {k}"));
            }
            Dim::Symbol(s) => match sizes.get(&**s) {
                Some((m, first)) if *m != n => {
                    wrong(format!("axis {i}: `{s}` is {n} here and {m} in `{first}`"));
                }
                Some(_) => {}
                None => {
                    sizes.insert(s, (n, &spec.name));
                }
            },
            Dim::Known(_) | Dim::Unknown => {}
        }
    }
}
