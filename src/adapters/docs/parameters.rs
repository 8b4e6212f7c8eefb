//! Where a method attaches and which parameters it has there: asked of the method itself, on a small model whose sizes all differ, and
//! told in the names of these sizes.

use crate::adapters::config::UnknownKeys;
use crate::adapters::methods::MethodConfig;
use crate::adapters::naming::{Route, Sublayer, scope};
use crate::adapters::param::{Init, ParamSpec};
use crate::adapters::place::{At, Place, Surroundings};
use crate::diag::Diagnostic;
use crate::ir::{Fact, Graph, ValueId};
use crate::select::Selection;
use serde_json::{Value, json};
use std::fmt;

/// The model that is asked.
#[derive(Clone, Copy)]
pub struct Probe<'p> {
    /// What the interface selected in it.
    pub selection: &'p Selection,
    /// Its graph.
    pub graph: &'p Graph,
    /// What is known of a value.
    pub facts: &'p dyn Fn(ValueId) -> Option<Fact>,
    /// Attention heads, and the width of one.
    pub heads: [usize; 2],
}

impl fmt::Debug for Probe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").finish_non_exhaustive()
    }
}

/// A place where a method attaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceDoc {
    /// AdapterHub's location key.
    pub location: &'static str,
    /// What is there.
    pub what: String,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamDoc {
    /// Its key in a file: `I` stands for the layer, `NAME` for the adapter.
    pub key: String,
    /// Its shape.
    pub shape: Vec<String>,
    /// Its initial value.
    pub initial: String,
    /// `trained`, `frozen`, or `not read`.
    pub role: &'static str,
    /// Who else has it.
    pub shared: &'static str,
}

impl ParamDoc {
    /// `[r, in]`.
    pub fn dims(&self) -> String {
        format!("[{}]", self.shape.join(", "))
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "key": self.key, "shape": self.shape, "initial": self.initial, "trained": self.role == "trained",
            "role": self.role, "shared": self.shared,
        })
    }
}

/// Fields that are sizes, with values that no other size of the model has.
const SIZES: [(&str, i64); 7] = [
    ("r", 7),
    ("n_up_projection", 3),
    ("prefix_length", 11),
    ("prompt_length", 13),
    ("bottleneck_size", 17),
    ("phm_rank", 19),
    ("inv_adapter_reduction_factor", 3),
];

/// The configuration with sizes that can be told apart, where it allows them.
fn distinct(method: &MethodConfig) -> (MethodConfig, Vec<(String, usize)>) {
    let mut method = method.clone();
    let mut symbols = Vec::new();
    for (field, size) in SIZES {
        let mut dict = method.to_dict();
        if !dict[field].is_number() {
            continue;
        }
        dict[field] = size.into();
        let changed = MethodConfig::from_dict(&dict, UnknownKeys::Keep);
        if let Some(changed) = changed.ok().filter(|c| c.validate().is_ok()) {
            method = changed;
            symbols.push((field.to_owned(), size as usize));
        }
    }
    (method, symbols)
}

/// Sizes by name: those of the place, then those of the configuration, then the model's.
struct Sizes(Vec<(String, usize)>);

impl Sizes {
    fn new(
        place: Option<&Place<'_>>,
        dict: &Value,
        fields: &[(String, usize)],
        probe: &Probe<'_>,
    ) -> Self {
        let d = probe.selection.hidden_size;
        let mut out = Vec::new();
        let mut add = |name: &str, n: usize| out.push((name.to_owned(), n));
        if let Some(site) = place.and_then(Place::linear) {
            add("in", site.d_in);
            add("out", site.d_out);
        }
        if let Some(factor) = dict["reduction_factor"].as_f64() {
            add("d/reduction_factor", ((d as f64 / factor) as usize).max(1));
        }
        add("d", d);
        if dict["phm_layer"] == true {
            add("phm_dim", dict["phm_dim"].as_u64().unwrap_or(0) as usize);
        }
        if dict["inv_adapter"].is_string() {
            let factor = dict["inv_adapter_reduction_factor"].as_u64().unwrap_or(1) as usize;
            add("d/2", d / 2);
            add("d/2/inv_adapter_reduction_factor", d / 2 / factor.max(1));
        }
        fields
            .iter()
            .filter(|f| f.0 != "inv_adapter_reduction_factor")
            .for_each(|(f, n)| add(f, *n));
        if dict["architecture"] == "prefix_tuning" {
            add("layers", probe.selection.layers.len());
            add("heads", probe.heads[0]);
            add("head_size", probe.heads[1]);
        }
        Sizes(out)
    }

    fn name(&self, n: usize) -> String {
        let exact = self.0.iter().find(|(_, s)| *s == n);
        if let (Some((name, _)), true) = (exact, n > 1) {
            return name.clone();
        }
        if n <= 2 {
            return n.to_string();
        }
        let ratio = self.0.iter().find_map(|(a, x)| {
            let by = self
                .0
                .iter()
                .find(|(_, y)| *y > 1 && x / y == n && x % y == 0 && x != y)?;
            Some(format!("{a}/{}", by.0))
        });
        ratio
            .or_else(|| self.product(n, 0).map(|p| p.join("·")))
            .unwrap_or_else(|| n.to_string())
    }

    /// Sizes whose product it is.
    fn product(&self, n: usize, depth: usize) -> Option<Vec<String>> {
        const MOST: usize = 5;
        if n == 1 {
            return Some(Vec::new());
        }
        if depth == MOST {
            return None;
        }
        let two = ("2".to_owned(), 2);
        let factors = self.0.iter().chain([&two]);
        let mut divisors = factors.filter(|(_, s)| *s > 1 && n.is_multiple_of(*s));
        divisors.find_map(|(name, s)| {
            let mut rest = self.product(n / s, depth + 1)?;
            rest.insert(0, name.clone());
            Some(rest)
        })
    }

    fn initial(&self, spec: &ParamSpec) -> String {
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs();
        match &spec.init {
            Init::Zeros => "0".into(),
            Init::Ones => "1".into(),
            Init::Normal { std } => match *spec.dims {
                [.., a, b] if near(*std, (2.0 / (a + b) as f64).sqrt()) => "Xavier normal".into(),
                _ => format!("N(0, {std}²)"),
            },
            Init::TruncatedNormal { std } => format!("N(0, {std}²), cut at ±{}", 2.0 * std),
            Init::Uniform { bound } => {
                let square = 1.0 / (bound * bound);
                let (one, six) = (square.round(), (6.0 * square).round());
                let known = |n: f64| self.0.iter().any(|s| near(s.1 as f64, n));
                if known(one) && near(*bound, 1.0 / one.sqrt()) {
                    format!("U(±1/√{})", self.name(one as usize))
                } else if known(six) && near(*bound, (6.0 / six).sqrt()) {
                    format!("U(±√(6/{}))", self.name(six as usize))
                } else {
                    format!("U(±{bound})")
                }
            }
            Init::Diagonal { value } => format!("{value} on the diagonal"),
            Init::NegativeIdentity => "-1 on the diagonal".into(),
            Init::Orthogonal { .. } => "a random orthogonal matrix".into(),
            Init::RowNorms { .. } => "norms of the weight's rows".into(),
        }
    }
}

/// What a place is, for people; paths with `I` for the layer.
fn what(place: &Place<'_>) -> String {
    match &place.at {
        At::Linear(site) => format!("the linear {}", any_layer(&site.path)),
        At::Sublayer(site) => {
            let which = match site.which {
                Sublayer::Attention => "the attention's output",
                Sublayer::Cross => "the cross-attention's output",
                Sublayer::Output => "the feed-forward block's output",
            };
            match site.stream {
                Some(_) => format!("{which}, behind the residual"),
                None => format!("{which}, before the residual is added"),
            }
        }
        At::Layer(_) => "the output of a layer".into(),
        At::Embeddings(_) => "the output of the embeddings".into(),
        At::HeadInput(_) => "what the language model's head reads, inverted".into(),
        At::Sequence(_) => "the embedded sequence, which grows".into(),
        At::Mask(_) => "the attention mask, which grows".into(),
        At::Attention(_) => "keys and values of an attention".into(),
    }
}

fn any_layer(path: &str) -> String {
    path.replace("layers.0.", "layers.I.")
}

/// Asks the method.
pub(super) fn ask(
    method: &MethodConfig,
    probe: &Probe<'_>,
) -> Result<(Vec<PlaceDoc>, Vec<ParamDoc>), Diagnostic> {
    const NAME: &str = "NAME";
    let (method, fields) = distinct(method);
    let dict = method.to_dict();
    let around = Surroundings {
        selection: probe.selection,
        graph: probe.graph,
        route: &Route::Plugin,
        name: NAME,
        has: None,
        facts: probe.facts,
    };
    let places = method.places(&around)?;
    let mut at: Vec<PlaceDoc> = Vec::new();
    let mut params: Vec<ParamDoc> = Vec::new();
    let mut add = |scope: &str, spec: &ParamSpec, sizes: &Sizes, shared| {
        let scope = spec.scopes.first().map_or(scope, |s| s);
        let key = any_layer(&format!("{scope}.{}", spec.suffix));
        if params.iter().all(|p| p.key != key) {
            params.push(ParamDoc {
                key,
                shape: spec.dims.iter().map(|d| sizes.name(*d)).collect(),
                initial: sizes.initial(spec),
                role: match (spec.trainable, spec.idle) {
                    (true, _) => "trained",
                    (false, true) => "not read",
                    (false, false) => "frozen",
                },
                shared,
            });
        }
    };
    for place in places.iter().filter(|p| p.layer.is_none_or(|l| l == 0)) {
        let doc = PlaceDoc {
            location: place.location,
            what: what(place),
        };
        if !at.contains(&doc) {
            at.push(doc);
        }
        let sizes = Sizes::new(Some(place), &dict, &fields, probe);
        for spec in method.params(place)? {
            let shared = if place.pool.is_some() && !spec.scopes.is_empty() {
                "all layers"
            } else if method.task_shared().contains(&&*spec.suffix) {
                "the tasks of a MultiTask"
            } else {
                ""
            };
            add(&place.scope, &spec, &sizes, shared);
        }
    }
    let elsewhere = method.elsewhere().into_iter();
    at.extend(elsewhere.map(|(location, what)| PlaceDoc {
        location,
        what: what.to_owned(),
    }));
    let base = &probe.selection.base_prefix;
    let shared = scope(&format!("{base}shared_parameters"), "", NAME);
    let sizes = Sizes::new(places.first(), &dict, &fields, probe);
    for spec in method.shared(&places)? {
        add(&shared, &spec, &sizes, "all places");
    }
    Ok((at, params))
}
