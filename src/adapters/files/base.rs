//! Which base model an adapter belongs to: the modules that it can adapt, by path and shape, and samples of the model's weights.
//!
//! An adapter is used on other exports of its model, and on variants with other number formats. So weights are compared as what they
//! are in the model's state dict, and never by the bytes of a file: a few linears and vectors and the largest table of tokens are named,
//! with a few elements of each; the positions of the elements follow from the parameter's name and size. Exports name initializers
//! differently, transpose, fuse and convert them; the selection knows the module of each. What a graph does not hold as floats (int8,
//! int4) is compared with the same form only, as it is stored, with its scales; where no matrix can be compared, that is said. Elements
//! are equal when they are so up to the rounding of the coarser of the two number formats: training moves weights by more.
//!
//! The cost does not depend on the size of the model: at most [`MATRICES`], [`VECTORS`] and one table, [`ELEMENTS`] elements each.

use crate::adapters::Adapter;
use crate::analyze::linear::WeightForm;
use crate::diag::Diagnostic;
use crate::infer::Verified;
use crate::ir::contract::stamp;
use crate::ir::{DType, Graph, TensorData, ValueId};
use crate::select::{AttentionSite, Layout, LinearSite, ParameterSite, QkvLayout, Role, Selection};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;

mod quantized;

/// Our key in `adapter_config.json`; the Adapters library ignores it.
pub(crate) const KEY: &str = "onnx_graft";

/// What the fingerprint of modules begins with.
const MODULES: &str = "blake3:";

/// What a fingerprint ends with where the columns of q, k and v lie head by head, and the adapter goes by them.
const COLUMNS: &str = "+columns";

/// Number of matrices that are sampled, evenly among all by name.
const MATRICES: usize = 8;
/// Number of vectors: biases, norms.
const VECTORS: usize = 4;
/// Number of elements of each.
const ELEMENTS: usize = 8;

/// What is known of a base model: by a graph, or by what a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Base {
    /// The fingerprint of the modules; `None` in files of others, and in ours that go by thirds of packed projections.
    modules: Option<Box<str>>,
    /// Samples by the parameter's name, without the prefix of the base model.
    weights: BTreeMap<Box<str>, Sample>,
}

/// Elements of one parameter.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    dtype: DType,
    dims: Vec<usize>,
    values: Vec<f32>,
    /// Of a quantized parameter: the largest distance of neighbouring numbers.
    step: Option<f32>,
}

/// A parameter of the base model.
#[derive(Debug)]
enum Source<'a> {
    /// Floats.
    Floats(Stored),
    /// The quantized weight of a linear.
    Quantized(&'a LinearSite),
}

impl Source<'_> {
    fn rank(&self) -> usize {
        match self {
            Source::Floats(stored) => stored.dims.len(),
            Source::Quantized(_) => 2,
        }
    }

    /// The elements that a name and a size choose; `None` where they cannot be read.
    fn sample(&self, name: &str, graph: &Graph) -> Option<Sample> {
        match self {
            Source::Floats(stored) => stored.sample(name, graph),
            Source::Quantized(site) => quantized::sample(site, name, graph),
        }
    }
}

/// A parameter of floats, as the state dict has it, and where its elements are.
#[derive(Clone, Debug)]
struct Stored {
    value: ValueId,
    dims: Vec<usize>,
    /// Distance between elements whose first index differs by one, and between those whose last index does.
    strides: [usize; 2],
    /// Position of the first element.
    begin: usize,
}

impl Base {
    /// The base model of a selection.
    pub(crate) fn of(selection: &Selection, model: &Verified) -> Base {
        let graph = &model.model().graph;
        let all = parameters(selection, graph);
        let of_rank = |rank: usize| all.iter().filter(move |p| p.1.rank() == rank);
        let table = selection.tables.iter().max_by_key(|t| t.rows);
        let table = table.and_then(|t| all.get_key_value(&*within(selection, &t.path, "weight")?));
        let chosen = spread(of_rank(2).collect(), MATRICES)
            .into_iter()
            .chain(spread(of_rank(1).collect(), VECTORS))
            .chain(table);
        let sampled = chosen.filter_map(|(n, p)| Some((n.clone(), p.sample(n, graph)?)));
        Base {
            modules: Some(modules(selection).into()),
            weights: sampled.collect(),
        }
    }

    /// What a file says of its base model.
    pub(crate) fn recorded(extra: &Map<String, Value>) -> Base {
        let Some(own) = extra.get(KEY) else {
            return Base::default();
        };
        let weights = own["weights"].as_object().into_iter().flatten();
        let parsed = weights.filter_map(|(n, v)| Some((n.as_str().into(), parse(v.as_str()?)?)));
        Base {
            modules: own["base"].as_str().map(Into::into),
            weights: parsed.collect(),
        }
    }

    /// Where a file names its base model, and what it says cannot be read.
    pub(crate) fn garbled(extra: &Map<String, Value>) -> Option<Diagnostic> {
        let own = extra.get(KEY)?;
        let fingerprint = |v: &Value| v.as_str().is_some_and(|t| t.starts_with(MODULES));
        let sample = |v: &Value| v.as_str().and_then(parse).is_some();
        let weights = own.get("weights").map(Value::as_object);
        let wrong = if !own.is_object() {
            KEY.to_owned()
        } else if own.get("base").is_some_and(|v| !fingerprint(v)) {
            format!("{KEY}.base")
        } else if let Some(None) = weights {
            format!("{KEY}.weights")
        } else {
            let mut all = weights.flatten().into_iter().flatten();
            let (name, _) = all.find(|(_, v)| !sample(v))?;
            format!("{KEY}.weights.{name}")
        };
        let message = format!("what the file says of its base model cannot be read: `{wrong}`");
        Some(
            Diagnostic::warning("base-garbled", message)
                .help("it is not compared with the model: another one may fit by chance; save the adapter again from its own model"),
        )
    }

    /// Records the base model for a file.
    pub(crate) fn record(&self, extra: &mut Map<String, Value>) {
        let mut own = Map::new();
        if let Some(modules) = &self.modules {
            own.insert("base".into(), json!(modules));
        }
        if !self.weights.is_empty() {
            let mut weights = Map::new();
            for (name, sample) in &self.weights {
                weights.insert(name.to_string(), json!(sample.to_string()));
            }
            own.insert("weights".into(), weights.into());
        }
        extra.insert(KEY.into(), own.into());
    }

    /// The same without the fingerprint of the modules, which says that an adapter does not go by thirds.
    pub(crate) fn by_thirds(self) -> Base {
        Base {
            modules: None,
            ..self
        }
    }

    /// Compares with no weights from here on.
    pub(crate) fn forget_weights(&mut self) {
        self.weights.clear();
    }

    /// Whether a file of this library says it.
    pub(crate) fn is_ours(&self) -> bool {
        self.modules.is_some()
    }

    /// Whether an adapter goes by the columns of q, k and v, and not by thirds.
    pub(crate) fn by_columns(&self) -> bool {
        self.modules
            .as_deref()
            .is_some_and(|m| m.ends_with(COLUMNS))
    }

    /// Compares an adapter's base model with the one of a selection: an error where weights differ, unless the adapter may be attached to
    /// another one; a warning where only modules do.
    pub(crate) fn differs(
        &self,
        adapter: &Adapter,
        selection: &Selection,
        model: &Verified,
    ) -> Option<Diagnostic> {
        let graph = &model.model().graph;
        let all = parameters(selection, graph);
        let here: BTreeMap<Box<str>, Sample> = self
            .weights
            .keys()
            .filter_map(|n| Some((n.clone(), all.get(n)?.sample(n, graph)?)))
            .collect();
        let here = Base {
            modules: Some(modules(selection).into()),
            weights: here,
        };
        // One file of several holds some of the modules: only weights are compared.
        let part = !selection.absent.is_empty();
        let other_modules = !part && self.is_ours() && self.modules != here.modules;
        let name = &adapter.name;
        let fingerprints = format!("its file says {self}, this model is {here}");
        let sampled = self.weights.values().map(|s| s.values.len()).sum::<usize>();
        let found = self.mismatches(&here);
        let Some(first) = found.first() else {
            if let Some(blind) = self.blind(&here, name) {
                return Some(blind);
            }
            return other_modules.then(|| {
                Diagnostic::warning(
                    "base-differs",
                    format!("`{name}` was made for another base model"),
                )
                .note(fingerprints)
                .help("modules or shapes differ; where its parameters fit, it is attached all the same")
            });
        };
        let message = format!(
            "`{name}` was made for another base model: {} of {sampled} sampled weights are other ones",
            found.len()
        );
        let make = if adapter.allow_other_base {
            Diagnostic::warning
        } else {
            Diagnostic::error
        };
        Some(
            make("base-differs", message)
                .note(fingerprints)
                .note(first.clone())
                .help("give the model that it was trained on; `--allow-other-base` (the field `allow_other_base`) takes it to this one"),
        )
    }

    /// That no matrix which the file knows can be read here.
    fn blind(&self, here: &Base, name: &str) -> Option<Diagnostic> {
        let matrices = |b: &Base| b.weights.values().filter(|s| s.dims.len() == 2).count();
        let known = matrices(self);
        (known > 0 && matrices(here) == 0).then(|| {
            let message = format!(
                "the base model of `{name}` cannot be compared with this one: none of the {known} matrices that its file knows can be read here"
            );
            Diagnostic::warning("base-unknown", message)
                .help("their names or their quantized form are not understood: make sure that it is the model that the adapter was trained on")
        })
    }

    /// Whether weights that both know are other ones.
    pub(crate) fn has_other_weights(&self, other: &Base) -> bool {
        !self.mismatches(other).is_empty()
    }

    /// The elements that are other ones.
    fn mismatches(&self, here: &Base) -> Vec<String> {
        let mut out = Vec::new();
        for (name, there) in &self.weights {
            let Some(here) = here.weights.get(name) else {
                continue;
            };
            if there.dims != here.dims {
                let each = there.values.iter();
                let text = format!(
                    "`{name}` is {:?} in its file, {:?} here",
                    there.dims, here.dims
                );
                out.extend(each.map(|_| text.clone()));
                continue;
            }
            let pairs = there.values.iter().zip(&here.values);
            let formats = [there.format(), here.format()];
            let step = there.step.unwrap_or(0.0) + here.step.unwrap_or(0.0);
            let mut found = Vec::new();
            for (index, (a, b)) in positions(name, &there.dims).zip(pairs) {
                let slack = rounding(formats[0], *a).max(rounding(formats[1], *b));
                let equal = (a - b).abs() <= slack + step;
                if !equal {
                    found.push(format!(
                        "`{name}` is {a} in its file at {index:?}, {b} here"
                    ));
                }
            }
            // Quantizing cuts large numbers off.
            if step > 0.0 && found.len() * 4 <= there.values.len() {
                found.clear();
            }
            out.append(&mut found);
        }
        out
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.modules.as_deref().unwrap_or("blake3:?"))?;
        if self.weights.is_empty() {
            return Ok(());
        }
        let mut hasher = blake3::Hasher::new();
        for (name, sample) in &self.weights {
            hasher.update(format!("{name} {sample}\n").as_bytes());
        }
        write!(f, ", weights {}", &hasher.finalize().to_hex()[..16])
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.dims.iter().map(ToString::to_string).collect();
        write!(f, "{}[{}]", self.dtype.name(), dims.join(","))?;
        if let Some(step) = self.step {
            write!(f, "~{:08x}", step.to_bits())?;
        }
        let mut each = self.values.iter();
        each.try_for_each(|v| write!(f, " {:08x}", v.to_bits()))
    }
}

/// A sample from its text.
fn parse(text: &str) -> Option<Sample> {
    let (head, values) = text.split_once(' ')?;
    let number = |v: &str| u32::from_str_radix(v, 16).ok().map(f32::from_bits);
    let (head, step) = match head.split_once('~') {
        Some((head, step)) => (head, Some(number(step)?)),
        None => (head, None),
    };
    let (dtype, dims) = head.strip_suffix(']')?.split_once('[')?;
    let dims = dims.split(',').map(|d| d.parse().ok());
    Some(Sample {
        dtype: DType::from_name(dtype)?,
        dims: dims.collect::<Option<_>>()?,
        values: values.split(' ').map(number).collect::<Option<_>>()?,
        step,
    })
}

impl Sample {
    /// The format that the elements were rounded to: weights that were published in `f16` or `bf16` are often stored as `f32`.
    fn format(&self) -> DType {
        let all = |fits: fn(f32) -> bool| self.values.iter().all(|x| fits(*x));
        if self.dtype != DType::Float || self.values.len() < ELEMENTS {
            self.dtype
        } else if all(|x| x.to_bits().trailing_zeros() >= 16) {
            DType::Bfloat16
        } else if all(fits_half) {
            DType::Float16
        } else {
            self.dtype
        }
    }
}

/// Whether `f16` has the number: eleven significant bits, and a multiple of 2⁻²⁴.
fn fits_half(x: f32) -> bool {
    let steps = x * 2f32.powi(24);
    x.to_bits().trailing_zeros() >= 13
        && x.abs() <= 65504.0
        && steps.fract().abs() < f32::MIN_POSITIVE
}

/// How far two conversions of a number to a format may lie apart. Converters of `f16` flush what is smaller than 1e-7.
fn rounding(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::Bfloat16 => x.abs() * 2f32.powi(-7),
        DType::Float16 => x.abs() * 2f32.powi(-10) + 2e-7,
        _ => x.abs() * 2f32.powi(-20) + 1e-12,
    }
}

/// Evenly chosen ones, the first and the last among them.
fn spread<T: Copy>(all: Vec<T>, wanted: usize) -> Vec<T> {
    let Some(last) = all.len().checked_sub(1) else {
        return all;
    };
    let steps = wanted.min(all.len()).saturating_sub(1).max(1);
    let mut at: Vec<usize> = (0..=steps).map(|i| i * last / steps).collect();
    at.dedup();
    at.into_iter().map(|i| all[i]).collect()
}

/// Which elements are sampled: this depends on nothing but name and size.
fn positions<'d>(name: &str, dims: &'d [usize]) -> impl Iterator<Item = Vec<usize>> + use<'d> {
    let count: usize = dims.iter().product();
    let mut stream = blake3::Hasher::new().update(name.as_bytes()).finalize_xof();
    (0..ELEMENTS.min(count)).map(move |_| {
        let mut bytes = [0; 8];
        stream.fill(&mut bytes);
        let mut flat = u64::from_le_bytes(bytes) as usize % count;
        let mut index: Vec<usize> = dims
            .iter()
            .rev()
            .map(|d| {
                let i = flat % d;
                flat /= d;
                i
            })
            .collect();
        index.reverse();
        index
    })
}

impl Stored {
    /// The elements that a name and a size choose; `None` where they are no floats.
    fn sample(&self, name: &str, graph: &Graph) -> Option<Sample> {
        let tensor = graph.get_value(self.value)?.tensor.as_ref()?;
        let at = |index: Vec<usize>| {
            let [first, last] = self.strides;
            match index[..] {
                [i] => self.begin + i * last,
                [i, k] => self.begin + i * first + k * last,
                _ => usize::MAX,
            }
        };
        let places: Vec<usize> = positions(name, &self.dims).map(at).collect();
        Some(Sample {
            dtype: tensor.dtype,
            dims: self.dims.clone(),
            values: tensor.floats_at(&places)?,
            step: None,
        })
    }

    fn vector(value: ValueId, width: usize) -> Stored {
        Stored {
            value,
            dims: vec![width],
            strides: [0, 1],
            begin: 0,
        }
    }

    /// The weight of a linear as `[out, in]`, which may be some columns of a fused one.
    fn of_linear(site: &LinearSite, graph: &Graph) -> Option<Stored> {
        let count = graph
            .get_value(site.weight.value)?
            .tensor
            .as_ref()?
            .count()?;
        let whole = usize::try_from(count).ok()?.checked_div(site.d_in)?;
        let first = site.column.unwrap_or(0);
        if whole.checked_mul(site.d_in)? as u64 != count || first + site.d_out > whole {
            return None;
        }
        let (strides, begin) = match site.weight.layout {
            Layout::OutIn => ([site.d_in, 1], first * site.d_in),
            Layout::InOut => ([1, whole], first),
        };
        Some(Stored {
            value: site.weight.value,
            dims: vec![site.d_out, site.d_in],
            strides,
            begin,
        })
    }
}

/// The name of a parameter inside the base model.
fn within(selection: &Selection, module: &str, name: &str) -> Option<Box<str>> {
    let inner = module.strip_prefix(&*selection.base_prefix)?;
    Some(format!("{inner}.{name}").into())
}

/// The base model's matrices and vectors by name. Those of adapters and of the head are none of it.
fn parameters<'a>(selection: &'a Selection, graph: &Graph) -> BTreeMap<Box<str>, Source<'a>> {
    let mut out = BTreeMap::new();
    let is_float = |v: ValueId| base_floats(graph, v).is_some();
    let inside = selection.modules.iter().map(|m| &m.site);
    for site in inside.filter(|s| s.role != Role::Head) {
        let Some(name) = within(selection, &site.path, "weight") else {
            continue;
        };
        let source = if site.weight.form == WeightForm::Float {
            let stored = Stored::of_linear(site, graph);
            stored.filter(|s| is_float(s.value)).map(Source::Floats)
        } else {
            Some(Source::Quantized(site))
        };
        if let Some(source) = source {
            out.entry(name).or_insert(source);
        }
    }
    for t in selection.tables.iter().filter(|t| is_float(t.value)) {
        if let Some(name) = within(selection, &t.path, "weight") {
            out.entry(name).or_insert(Source::Floats(Stored {
                value: t.value,
                dims: vec![t.rows, t.width],
                strides: [t.width, 1],
                begin: 0,
            }));
        }
    }
    // What an exporter made of a parameter differs between exports.
    for p in stored(selection).filter(|p| is_float(p.stored) && !p.derived) {
        if let ([width], Some(name)) = (&p.dims[..], within(selection, &p.module, &p.name)) {
            let vector = || Source::Floats(Stored::vector(p.stored, *width));
            out.entry(name).or_insert_with(vector);
        }
    }
    out
}

/// The parameters of modules. Of what else has a name with dots, such as masks, an infinity is part and other exports have other values.
fn stored(selection: &Selection) -> impl Iterator<Item = &ParameterSite> {
    let all = selection.parameters.iter();
    all.filter(|p| matches!(&*p.name, "weight" | "bias"))
}

/// The tensor of an initializer that holds floats and is no adapter's.
fn base_floats(graph: &Graph, value: ValueId) -> Option<&TensorData> {
    let value = graph.get_value(value)?;
    let own = !value.metadata.contains_key(stamp::ADAPTER);
    value.tensor.as_ref().filter(|t| own && t.dtype.is_float())
}

/// The fingerprint of a selection's modules.
fn modules(selection: &Selection) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut line = |text: String| {
        hasher.update(text.as_bytes());
        hasher.update(b"\n");
    };
    line(format!("hidden {}", selection.hidden_size));
    for layer in &selection.layers {
        line(format!("layer {}", layer.index));
        let attention = layer.self_attn.iter().chain(&layer.cross_attn);
        let projections = attention.flat_map(|a| [&a.q, &a.k, &a.v, &a.qkv, &a.o]);
        let sites = projections.chain([&layer.intermediate, &layer.output_proj]);
        for LinearSite {
            path, d_in, d_out, ..
        } in sites.flatten()
        {
            let path = path.strip_prefix(&*selection.base_prefix).unwrap_or(path);
            line(format!("{path} {d_in} {d_out}"));
        }
    }
    let mut attentions = selection.layers.iter().filter_map(|l| l.self_attn.as_ref());
    let by_head = |a: &AttentionSite| matches!(a.qkv_layout, Some(QkvLayout::Interleaved { .. }));
    let suffix = if attentions.any(by_head) { COLUMNS } else { "" };
    format!("{MODULES}{}{suffix}", &hasher.finalize().to_hex()[..16])
}

/// Whether an adapter takes thirds of a fused projection for its queries, keys and values where they are other columns: a file of the
/// library's, or of ours that came from one.
pub(crate) fn keeps_thirds(adapter: &Adapter, selection: &Selection) -> bool {
    if adapter.weights.is_none() {
        return false;
    }
    let base = &adapter.base;
    let mut attentions = selection.layers.iter().filter_map(|l| l.self_attn.as_ref());
    attentions.any(|a| match &a.qkv_layout {
        Some(QkvLayout::Blocks { q, k, v }) => !base.is_ours() && (q != k || k != v),
        Some(QkvLayout::Interleaved { .. }) => !base.by_columns(),
        Some(QkvLayout::Unknown) | None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::Config;
    use crate::adapters::plan::plan;
    use crate::diag::Severity;
    use crate::error::Error;
    use crate::select::Interface;
    use std::path::{Path, PathBuf};

    fn folder(arch: &str) -> PathBuf {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        fixtures.join(arch)
    }

    fn interface(arch: &str) -> Interface {
        Interface::read(&folder(arch).join("interface.json")).unwrap()
    }

    fn open(arch: &str, file: &str) -> (Verified, Selection) {
        let model = crate::onnx::open(folder(arch).join(file)).unwrap();
        let model = Verified::check(model).unwrap();
        let selection = interface(arch).select(&model).unwrap();
        (model, selection)
    }

    #[test]
    fn exports_of_one_model_share_it_and_other_models_do_not() {
        let of = |arch, file| {
            let (model, selection) = open(arch, file);
            Base::of(&selection, &model)
        };
        let qwen = of("qwen3", "model.onnx");
        assert_eq!(qwen, of("qwen3", "model.torchscript.onnx"));
        assert_eq!(qwen, of("qwen3", "extra/optimum.onnx"));
        assert_ne!(qwen, of("bert", "model.onnx"));
    }

    /// The findings of a plan for an adapter of this base model.
    fn planned(
        base: Base,
        allow: bool,
        to: &(Verified, Selection),
    ) -> Result<Vec<Diagnostic>, Error> {
        let mut adapter = Adapter::fresh("a", Config::parse("lora").unwrap());
        adapter.base = base;
        adapter.allow_other_base = allow;
        plan(&[adapter], &to.1, &to.0, 0).map(|p| p.notes)
    }

    /// The model with every stored float multiplied by this.
    fn scaled(arch: &str, file: &str, by: f32) -> (Verified, Selection) {
        let (model, _) = open(arch, file);
        changed(arch, model, |x| x * by, |t| t.dtype)
    }

    /// The model with other floats in its initializers, in perhaps other types.
    fn changed(
        arch: &str,
        model: Verified,
        each: impl Fn(f32) -> f32,
        dtype: impl Fn(&TensorData) -> DType,
    ) -> (Verified, Selection) {
        let mut model = model.into_model();
        let all = model.graph.initializers().to_vec();
        for v in all {
            let Some(t) = model.graph.value(v).tensor.clone() else {
                continue;
            };
            if let Some(values) = t.to_f32().filter(|v| v.len() > 1) {
                let values: Vec<f32> = values.into_iter().map(&each).collect();
                let new = TensorData::from_floats(dtype(&t), t.dims.clone(), &values).unwrap();
                model.graph.value_mut(v).unwrap().tensor = Some(new);
            }
        }
        let model = Verified::check(model).unwrap();
        let selection = interface(arch).select(&model).unwrap();
        (model, selection)
    }

    #[test]
    fn other_modules_are_a_warning() {
        let to = open("qwen3", "model.onnx");
        let codes = |base| -> Vec<&str> {
            let notes = planned(base, false, &to).unwrap();
            notes.iter().map(|n| n.code).collect()
        };
        assert_eq!(codes(Base::of(&to.1, &to.0)), [""; 0]);
        assert_eq!(codes(Base::default()), [""; 0], "a file that says nothing");
        let other = Base {
            modules: Some("blake3:0".into()),
            ..Base::default()
        };
        assert_eq!(codes(other), ["base-differs"]);
    }

    #[test]
    fn other_weights_of_equal_shape_are_refused_unless_that_is_wanted() {
        for (arch, file) in [("qwen3", "model.onnx"), ("gpt2", "model.torchscript.onnx")] {
            let (model, selection) = open(arch, file);
            let base = Base::of(&selection, &model);
            let to = scaled(arch, file, 1.5);
            let e = planned(base.clone(), false, &to).unwrap_err().to_string();
            let there = base.to_string();
            let here = Base::of(&to.1, &to.0).to_string();
            assert_ne!(there, here);
            assert!(
                e.contains("error[base-differs]")
                    && e.contains(&there)
                    && e.contains(&here)
                    && e.contains("--allow-other-base"),
                "{e}"
            );
            let notes = planned(base, true, &to).unwrap();
            assert_eq!(notes[0].severity, Severity::Warning);
        }
    }

    #[test]
    fn one_table_of_another_size_is_another_base_model() {
        let (model, selection) = open("qwen3", "model.onnx");
        let mut base = Base::of(&selection, &model);
        let table = base.weights.get_mut("embed_tokens.weight").unwrap();
        table.dims[0] += 1;
        let e = planned(base, false, &(model, selection))
            .unwrap_err()
            .to_string();
        assert!(e.contains("`embed_tokens.weight` is ["), "{e}");
    }

    #[test]
    fn what_rounding_changes_is_the_same_base_model() {
        for dtype in [DType::Float16, DType::Bfloat16] {
            let (model, selection) = open("bert", "model.onnx");
            let base = Base::of(&selection, &model);
            let round = |x: f32| {
                TensorData::from_floats(dtype, [1], &[x])
                    .unwrap()
                    .to_f32()
                    .unwrap()[0]
            };
            // Stored in the wider type again: the file says `f32`, so that the sample must not.
            let narrow = changed("bert", model, round, |t| t.dtype);
            let mut rounded = Base::of(&narrow.1, &narrow.0);
            for sample in rounded.weights.values_mut() {
                sample.dtype = dtype;
            }
            assert!(
                planned(rounded.clone(), false, &(open("bert", "model.onnx")))
                    .unwrap()
                    .is_empty()
            );
            assert_eq!(base.mismatches(&rounded), [""; 0]);
            // The numbers themselves tell that they were rounded.
            for sample in rounded.weights.values_mut() {
                sample.dtype = DType::Float;
            }
            assert_eq!(base.mismatches(&rounded), [""; 0]);
            for sample in rounded.weights.values_mut() {
                sample.values[0] *= 1.01;
            }
            assert_ne!(base.mismatches(&rounded), [""; 0]);
        }
    }

    #[test]
    fn numbers_of_half_precision_are_known() {
        let exact = [
            1.0,
            -0.5,
            65504.0,
            6.103_515_6e-5,
            5.960_464_5e-8,
            0.0,
            0.333_251_95,
        ];
        assert!(exact.into_iter().all(fits_half));
        assert!(![0.1, 65536.0, 1e-8, 0.333_252].into_iter().any(fits_half));
    }

    #[test]
    fn a_file_keeps_it() {
        let (model, selection) = open("t5", "model.onnx");
        let base = Base::of(&selection, &model);
        assert!(base.weights.len() > MATRICES, "{base:?}");
        let mut extra = Map::new();
        base.record(&mut extra);
        assert_eq!(Base::recorded(&extra), base);
        let text = Value::Object(extra).to_string();
        assert!(text.len() < 4096, "{}", text.len());
        for broken in [
            json!({"weights": {"a": "f32[2] xyz"}}),
            json!({"weights": 1}),
            json!([]),
        ] {
            let extra = Map::from_iter([(KEY.to_owned(), broken)]);
            assert_eq!(Base::recorded(&extra), Base::default());
        }
    }
}
