//! Bottleneck adapters: `u = W_up · f(W_down · h)` behind a sublayer, sequentially or in parallel.
//!
//! Houlsby et al. 2019 (`double_seq_bn`), Pfeiffer et al. 2020 (`seq_bn`), He et al. 2021 (`par_bn`), Steitz and Roth 2024
//! (`adapterplus`), Karimi Mahabadi et al. 2021 (`compacter`). With `o` the sublayer's output and `r` what entered it:
//!
//! | configuration | `o` becomes |
//! |---|---|
//! | `seq_bn` | `o + A(norm(o + r))`; without a post-norm `o + A(o + r)` |
//! | `double_seq_bn` | `o + A(o)` |
//! | `par_bn` | `o + 4·A(r)` |

mod exchanged;
mod invertible;
mod phm;
mod site;
mod stacked;

use super::{Fusible, GATE, Known, Method, MethodConfig, Opened, Preset, act, dict, preset};
use crate::adapters::naming::Sublayer;
use crate::adapters::param::{Init, ParamSpec, Size};
use crate::adapters::place::{
    At, BuildCx, Exchanged, Params, Place, Stacking, State, SublayerSite, Surroundings,
};
use crate::diag::Diagnostic;
use crate::ir::Val;
use crate::select::Family;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

/// `BnConfig` and the classes derived from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[expect(clippy::struct_excessive_bools, reason = "the fields are AdapterHub's")]
pub(crate) struct Bottleneck {
    /// An adapter behind self-attention.
    pub mh_adapter: bool,
    /// An adapter behind the feed-forward block.
    pub output_adapter: bool,
    /// Width of the residual stream over the adapter's width: one number, or one for each layer.
    pub reduction_factor: ReductionFactor,
    /// Activation between the two projections.
    pub non_linearity: Option<String>,
    /// Read `norm(o + r)` instead of `o`.
    #[serde(default)]
    pub original_ln_before: bool,
    /// Whether the model's own residual and norm follow. Without, the adapter's output takes the place of the stream itself.
    #[serde(default = "yes")]
    pub original_ln_after: bool,
    /// A layer norm of the adapter's own in front of the down projection.
    #[serde(default)]
    pub ln_before: bool,
    /// A layer norm of the adapter's own behind it.
    #[serde(default)]
    pub ln_after: bool,
    /// `bert`, `mam_adapter` or `houlsby`.
    #[serde(default = "bert")]
    pub init_weights: String,
    /// Seed of the initial values; 0 counts as none.
    #[serde(default)]
    pub init_weights_seed: Option<i64>,
    /// Read `r` and add to `o`, instead of reading `o`.
    #[serde(default)]
    pub is_parallel: bool,
    /// Factor of the up projection's output: a number, `learned` (one) or `channel` (one for each channel).
    #[serde(default)]
    pub scaling: Scaling,
    /// Whether a learned gate scales the output.
    #[serde(default)]
    pub use_gating: bool,
    /// What the adapter's own residual is: `o` (true), what it reads (false), or `o + r` (`post_add`).
    #[serde(default)]
    pub residual_before_ln: ResidualBeforeLn,
    /// Add the adapter's residual before `ln_after` instead of behind it.
    #[serde(default)]
    pub adapter_residual_before_ln: bool,
    /// An invertible adapter behind the embeddings: `nice` or `glow`.
    #[serde(default)]
    pub inv_adapter: Option<String>,
    /// Its reduction factor.
    #[serde(default)]
    #[schemars(with = "Option<f64>")]
    pub inv_adapter_reduction_factor: Option<Number>,
    /// An adapter behind cross-attention.
    #[serde(default)]
    pub cross_adapter: bool,
    /// Layers without an adapter.
    #[serde(default)]
    pub leave_out: Vec<usize>,
    /// Dropout on the output while training.
    #[serde(default)]
    pub dropout: f64,
    /// Probability that a sample skips the adapter while training.
    #[serde(default)]
    pub stochastic_depth: Option<f64>,
    /// Kronecker products instead of full projections.
    #[serde(default)]
    pub phm_layer: bool,
    /// Number of Kronecker products.
    #[serde(default = "phm::dim")]
    pub phm_dim: usize,
    /// Whether their second factors are products of two thin matrices.
    #[serde(default = "default::yes", rename = "factorized_phm_W")]
    pub factorized_phm_w: Option<bool>,
    /// Whether all layers share the second factors.
    #[serde(default = "default::no", rename = "shared_W_phm")]
    pub shared_w_phm: Option<bool>,
    /// Whether all layers share the first factors.
    #[serde(default = "default::yes")]
    pub shared_phm_rule: Option<bool>,
    /// Whether the first factors are products of two vectors.
    #[serde(default = "default::no")]
    pub factorized_phm_rule: Option<bool>,
    /// `normal` or `uniform`.
    #[serde(default = "default::normal")]
    pub phm_c_init: Option<String>,
    /// Spread of the initial first factors.
    #[serde(default = "default::init_range")]
    pub phm_init_range: Option<f64>,
    /// Whether the first factors are learned; `train_adapter` learns them in any case.
    #[serde(default = "default::yes")]
    pub learn_phm: Option<bool>,
    /// Initialisation of the second factors; the library takes every value for `glorot-normal`.
    #[serde(default = "default::glorot")]
    pub hypercomplex_nonlinearity: Option<String>,
    /// Rank of the second factors.
    #[serde(default = "default::one")]
    pub phm_rank: Option<usize>,
    /// Whether the projections have a bias.
    #[serde(default = "default::yes")]
    pub phm_bias: Option<bool>,
    /// Keys of other versions.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

fn yes() -> bool {
    true
}
/// Defaults of fields that may be null.
mod default {
    #![expect(clippy::unnecessary_wraps, reason = "serde wants the field's own type")]

    pub(super) fn yes() -> Option<bool> {
        Some(true)
    }
    pub(super) fn no() -> Option<bool> {
        Some(false)
    }
    pub(super) fn normal() -> Option<String> {
        Some("normal".into())
    }
    pub(super) fn glorot() -> Option<String> {
        Some("glorot-uniform".into())
    }
    pub(super) fn init_range() -> Option<f64> {
        Some(0.0001)
    }
    pub(super) fn one() -> Option<usize> {
        Some(1)
    }
}

fn bert() -> String {
    "bert".into()
}

/// One number, or one for each layer id with `default` for the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum ReductionFactor {
    /// The same everywhere.
    One(#[schemars(with = "f64")] Number),
    /// By layer id.
    PerLayer(
        #[schemars(with = "std::collections::BTreeMap<String, f64>")] IndexMap<String, Number>,
    ),
}

/// Factor of the up projection's output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Scaling {
    /// A constant.
    Factor(f64),
    /// `learned` or `channel`.
    Named(String),
}

impl Default for Scaling {
    fn default() -> Self {
        Scaling::Factor(1.0)
    }
}

/// `residual_before_ln`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum ResidualBeforeLn {
    /// Yes or no.
    Is(bool),
    /// `post_add`.
    Named(String),
}

impl Default for ResidualBeforeLn {
    fn default() -> Self {
        ResidualBeforeLn::Is(true)
    }
}

impl Bottleneck {
    fn base(mh_adapter: bool, factor: i64, non_linearity: &str) -> Self {
        Bottleneck {
            mh_adapter,
            output_adapter: true,
            reduction_factor: ReductionFactor::One(factor.into()),
            non_linearity: Some(non_linearity.into()),
            original_ln_before: false,
            original_ln_after: true,
            ln_before: false,
            ln_after: false,
            init_weights: bert(),
            init_weights_seed: None,
            is_parallel: false,
            scaling: Scaling::default(),
            use_gating: false,
            residual_before_ln: ResidualBeforeLn::default(),
            adapter_residual_before_ln: false,
            inv_adapter: None,
            inv_adapter_reduction_factor: None,
            cross_adapter: false,
            leave_out: Vec::new(),
            dropout: 0.0,
            stochastic_depth: Some(0.0),
            phm_layer: false,
            phm_dim: phm::dim(),
            factorized_phm_w: default::yes(),
            shared_w_phm: default::no(),
            shared_phm_rule: default::yes(),
            factorized_phm_rule: default::no(),
            phm_c_init: default::normal(),
            phm_init_range: default::init_range(),
            learn_phm: default::yes(),
            hypercomplex_nonlinearity: default::glorot(),
            phm_rank: default::one(),
            phm_bias: default::yes(),
            extra: Map::new(),
        }
    }

    /// `SeqBnConfig`.
    pub(crate) fn seq_bn() -> Self {
        Bottleneck {
            original_ln_before: true,
            ..Self::base(false, 16, "relu")
        }
    }

    /// `DoubleSeqBnConfig`.
    pub(crate) fn double_seq_bn() -> Self {
        Self::base(true, 16, "swish")
    }

    /// `ParBnConfig`.
    pub(crate) fn par_bn() -> Self {
        Bottleneck {
            init_weights: "mam_adapter".into(),
            is_parallel: true,
            scaling: Scaling::Factor(4.0),
            ..Self::base(false, 2, "relu")
        }
    }

    /// `AdapterPlusConfig`.
    pub(crate) fn adapter_plus() -> Self {
        Bottleneck {
            original_ln_before: true,
            original_ln_after: false,
            residual_before_ln: ResidualBeforeLn::Is(false),
            stochastic_depth: Some(0.1),
            init_weights: "houlsby".into(),
            scaling: Scaling::Named("channel".into()),
            ..Self::base(false, 96, "gelu")
        }
    }

    fn inverted(self) -> Self {
        Bottleneck {
            inv_adapter: Some("nice".into()),
            inv_adapter_reduction_factor: Some(2.into()),
            ..self
        }
    }

    fn phm(self) -> Self {
        Bottleneck {
            phm_layer: true,
            reduction_factor: ReductionFactor::One(32.into()),
            non_linearity: Some("gelu".into()),
            ..self
        }
    }

    /// Width of the adapter in a layer: `max(1, int(d // factor))`.
    fn width(&self, d: usize, layer: Option<usize>) -> Result<usize, Diagnostic> {
        let factor = match &self.reduction_factor {
            ReductionFactor::One(f) => f.as_f64(),
            ReductionFactor::PerLayer(map) => {
                let id = layer.map(|l| l.to_string()).unwrap_or_default();
                let found = map.get(&id).or_else(|| map.get("default"));
                let Some(f) = found else {
                    return Err(Diagnostic::error(
                        "reduction-factor",
                        format!("`reduction_factor` has no entry for layer {id}"),
                    )
                    .help("add one, or `default`"));
                };
                f.as_f64()
            }
        };
        Ok(((d as f64 / factor.unwrap_or(1.0)).floor() as usize).max(1))
    }

    /// Whether the configuration has an adapter at places of this name.
    fn wants(&self, location: &str) -> bool {
        match location {
            "mh_adapter" => self.mh_adapter,
            "cross_adapter" => self.cross_adapter,
            _ => self.output_adapter,
        }
    }

    /// The residual of the adapter itself, and what it reads.
    fn pre(
        &self,
        site: &SublayerSite<'_>,
        state: State,
        cx: &BuildCx<'_>,
    ) -> Result<(Val, Val), Diagnostic> {
        let b = cx.b;
        let o = cx.up(state.x);
        let r = state.residual.map(|r| cx.up(r));
        if self.is_parallel {
            let r = r.ok_or_else(|| {
                Diagnostic::error(
                    "residual-missing",
                    "a parallel bottleneck reads the residual",
                )
            })?;
            return Ok((r, r));
        }
        let mut sum = o;
        let mut h = o;
        if self.original_ln_before {
            sum = r.map_or(o, |r| b.add(o, r));
            h = match site.norm {
                Some(norm) => cx.norm(norm, sum),
                None => sum,
            };
        }
        let residual = match self.residual_before_ln {
            ResidualBeforeLn::Is(true) => o,
            ResidualBeforeLn::Is(false) => h,
            ResidualBeforeLn::Named(_) => sum,
        };
        Ok((h, residual))
    }

    fn stochastic_depth(&self, u: Val, cx: &BuildCx<'_>) -> Val {
        let p = self.stochastic_depth.unwrap_or(0.0);
        if !cx.training || p == 0.0 {
            return u;
        }
        // Dropout of one number for each sample: `[batch, 1, 1]` ones, made of the input's shape.
        let b = cx.b;
        let batch = b.slice(b.shape(u), 0, 0, 1);
        let shape = b.concat(&[batch, b.ints(&[1, 1])], 0);
        let ones = b.op("Expand", &[b.scalar(1.0), shape], &[]);
        b.mul(u, cx.dropout(ones, p))
    }

    /// Widths of the residual stream and of the adapter.
    fn sizes(&self, d: usize, layer: Option<usize>) -> Result<[Size; 2], Diagnostic> {
        let k = self.width(d, layer)?;
        Ok([Size::new("d", d), Size::free("d/reduction_factor", k)])
    }

    fn projections(&self) -> phm::Projections<'_> {
        phm::Projections::new(self)
    }
}

impl Known for Bottleneck {
    const NAME: &'static str = "bottleneck";
    const SOURCE: &'static str = include_str!("mod.rs");
    const KEYED: bool = false;

    fn presets() -> Vec<Preset> {
        fn of(name: &'static str, make: fn() -> MethodConfig) -> Preset {
            preset(name, make)
        }
        vec![
            of("seq_bn", || Self::seq_bn().into()),
            of("double_seq_bn", || Self::double_seq_bn().into()),
            of("par_bn", || Self::par_bn().into()),
            of("scaled_par_bn", || {
                let scaled = Bottleneck {
                    scaling: Scaling::Named("learned".into()),
                    ..Self::par_bn()
                };
                scaled.into()
            }),
            of("seq_bn_inv", || Self::seq_bn().inverted().into()),
            of("double_seq_bn_inv", || {
                Self::double_seq_bn().inverted().into()
            }),
            of("adapterplus", || Self::adapter_plus().into()),
            of("compacter++", || Self::seq_bn().phm().into()),
            of("compacter", || Self::double_seq_bn().phm().into()),
        ]
    }

    fn family(&self) -> Family {
        if self.inv_adapter.is_some() {
            Family::Invertible
        } else {
            Family::Bottleneck
        }
    }

    fn extra(&self) -> &Map<String, Value> {
        &self.extra
    }

    fn fusible(&self) -> Option<&dyn Fusible> {
        Some(self)
    }

    fn stacking(&self, place: &Place<'_>) -> Result<Stacking<Self>, &'static str> {
        self.common(place)
    }

    fn exchanged(
        &self,
        place: &Place<'_>,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Exchanged<Self>, &'static str> {
        self.as_inputs(place, p, cx)
    }

    fn disjoint(&self, other: &Self) -> bool {
        let places =
            self.mh_adapter != other.mh_adapter && self.output_adapter != other.output_adapter;
        places || !self.leave_out.is_empty() || !other.leave_out.is_empty()
    }
}

impl Fusible for Bottleneck {
    fn open(
        &self,
        place: &Place<'_>,
        state: State,
        cx: &BuildCx<'_>,
    ) -> Result<Opened, Diagnostic> {
        let At::Sublayer(site) = &place.at else {
            let found = "an invertible adapter cannot be mixed";
            return Err(Diagnostic::error("fusion-place", found).at(place.scope.clone()));
        };
        let (h, residual) = self.pre(site, state, cx)?;
        let before = if self.is_parallel { h } else { cx.up(state.x) };
        Ok(Opened {
            h,
            before,
            residual,
        })
    }

    fn branch(&self, h: Val, p: &Params<'_>, cx: &BuildCx<'_>) -> Val {
        let b = cx.b;
        let normed = if self.ln_before {
            cx.layer_norm(h, p, "adapter_norm_before")
        } else {
            h
        };
        let projections = self.projections();
        let z = act::apply(
            b,
            self.non_linearity.as_deref(),
            projections.down(normed, p, cx),
        );
        let mut u = projections.up(z, p, cx);
        if !self.is_parallel {
            u = self.stochastic_depth(u, cx);
        }
        match &self.scaling {
            Scaling::Factor(s) => cx.times(u, p, *s as f32),
            Scaling::Named(_) => b.mul(u, p.get("scaling")),
        }
    }
}

impl Method for Bottleneck {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn to_dict(&self) -> Value {
        dict(self)
    }

    fn reads_whole_rows(&self) -> Option<&'static str> {
        self.use_gating.then_some(GATE)
    }

    fn validate(&self) -> Result<(), Diagnostic> {
        act::check(self.non_linearity.as_deref())?;
        let bad = |field: &str, found: String, help: &str| {
            Err(
                Diagnostic::error("config-value", format!("`{field}` is {found}"))
                    .help(help.to_owned()),
            )
        };
        if !["bert", "mam_adapter", "houlsby"].contains(&&*self.init_weights) {
            return bad(
                "init_weights",
                format!("`{}`", self.init_weights),
                "use bert, mam_adapter or houlsby",
            );
        }
        if let Scaling::Named(name) = &self.scaling
            && !["learned", "channel"].contains(&&**name)
        {
            return bad(
                "scaling",
                format!("`{name}`"),
                "use a number, 'learned' or 'channel'",
            );
        }
        if let ResidualBeforeLn::Named(name) = &self.residual_before_ln
            && name != "post_add"
        {
            return bad(
                "residual_before_ln",
                format!("`{name}`"),
                "use True, False or 'post_add'",
            );
        }
        let factors: Vec<&Number> = match &self.reduction_factor {
            ReductionFactor::One(f) => vec![f],
            ReductionFactor::PerLayer(map) => map.values().collect(),
        };
        if let Some(f) = factors.iter().find(|f| f.as_f64().is_none_or(|x| x <= 0.0)) {
            return bad(
                "reduction_factor",
                f.to_string(),
                "it must be greater than 0",
            );
        }
        for (field, p) in [
            ("dropout", self.dropout),
            ("stochastic_depth", self.stochastic_depth.unwrap_or(0.0)),
        ] {
            if !(0.0..1.0).contains(&p) {
                return bad(field, p.to_string(), "it must be at least 0 and below 1");
            }
        }
        invertible::check(self)?;
        phm::check(self)
    }

    fn seed(&self) -> Option<i64> {
        self.init_weights_seed
    }

    fn places<'s>(&self, around: &Surroundings<'_, 's>) -> Result<Vec<Place<'s>>, Diagnostic> {
        let (first, last) = invertible::places(self, around)?;
        let mut out: Vec<Place<'s>> = first.into_iter().collect();
        for layer in &around.selection.layers {
            if self.leave_out.contains(&layer.index) {
                continue;
            }
            for which in [Sublayer::Attention, Sublayer::Cross, Sublayer::Output] {
                let Some(location) = around.route.location(which) else {
                    continue;
                };
                if !self.wants(location) {
                    continue;
                }
                if let Some(site) = self.site(around, layer, which)? {
                    let scope = around.scope(&around.route.bottleneck(layer, which), "adapters");
                    let at = At::Sublayer(site);
                    out.push(Place::new(at, Some(layer.index), location, scope));
                }
            }
        }
        out.extend(last);
        Ok(out)
    }

    fn notes(&self, around: &Surroundings<'_, '_>, _: &[Place<'_>]) -> Vec<Diagnostic> {
        let layers = &around.selection.layers;
        let post_norm = layers.iter().any(|l| l.ln_1.is_some() || l.ln_2.is_some());
        let one_stack = layers.iter().all(|l| l.stack == 0);
        let late = around.route.binds_norms_late() && one_stack && layers.len() > 1 && post_norm;
        if !late || !self.original_ln_before || self.is_parallel {
            return Vec::new();
        }
        vec![Diagnostic::warning(
            "compat-last-norm",
            format!("`{}` applies the last layer's norm in every layer, as the Adapters library does through an interface", around.name),
        )
        .help("the library's own class for this model uses each layer's norm; its files do the same here")]
    }

    fn shared(&self, places: &[Place<'_>]) -> Result<Vec<ParamSpec>, Diagnostic> {
        let first = places.iter().find_map(|p| match &p.at {
            At::Sublayer(site) => Some((site.width, p.layer)),
            At::Linear(_)
            | At::Layer(_)
            | At::Embeddings(_)
            | At::HeadInput(_)
            | At::Input(_)
            | At::Table(_)
            | At::Parameter(_)
            | At::Sequence(_)
            | At::Mask(_)
            | At::Attention(_) => None,
        });
        match first {
            Some((d, layer)) if self.phm_layer => {
                let [d, k] = self.sizes(d, layer)?;
                Ok(self.projections().shared(&d, &k))
            }
            _ => Ok(Vec::new()),
        }
    }

    fn params(&self, place: &Place<'_>) -> Result<Vec<ParamSpec>, Diagnostic> {
        let At::Sublayer(site) = &place.at else {
            return invertible::params(self, place);
        };
        let [d, k] = &self.sizes(site.width, place.layer)?;
        let one = &Size::from(1);
        let mut out = Vec::new();
        match &self.scaling {
            Scaling::Factor(_) => {}
            Scaling::Named(name) => {
                let n = if name == "channel" { d } else { one };
                out.push(ParamSpec::new("scaling", &[n], Init::Ones));
            }
        }
        if self.ln_before {
            for (name, init) in [("weight", Init::Ones), ("bias", Init::Zeros)] {
                let spec = ParamSpec::new(format!("adapter_norm_before.{name}"), &[d], init);
                out.push(spec.alias(format!("adapter_down.0.{name}")));
            }
        }
        out.extend(self.projections().params(d, k)?);
        if self.ln_after {
            for (name, init) in [("weight", Init::Ones), ("bias", Init::Zeros)] {
                out.push(ParamSpec::new(
                    format!("adapter_norm_after.{name}"),
                    &[d],
                    init,
                ));
            }
        }
        if self.use_gating {
            let (weight, bias) = match &*self.init_weights {
                "houlsby" => (Init::linear(d), Init::linear(d)),
                _ => (Init::bert(), Init::Zeros),
            };
            out.push(ParamSpec::new("gate.weight", &[one, d], weight));
            out.push(ParamSpec::new("gate.bias", &[one], bias));
        }
        Ok(out)
    }

    fn step(
        &self,
        place: &Place<'_>,
        state: State,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<State, Diagnostic> {
        let At::Sublayer(site) = &place.at else {
            return Ok(State {
                x: invertible::step(self, place, cx.up(state.x), p, cx),
                ..state
            });
        };
        let b = cx.b;
        let (h, residual) = self.pre(site, state, cx)?;
        let mut y = cx.dropout(self.branch(h, p, cx), self.dropout);
        if self.use_gating {
            y = b.mul(y, cx.gate(h, p));
        }
        let residual = (!self.is_parallel).then_some(residual);
        if let Some(res) = residual
            && self.adapter_residual_before_ln
        {
            y = b.add(y, res);
        }
        if self.ln_after {
            y = cx.layer_norm(y, p, "adapter_norm_after");
        }
        if let Some(res) = residual
            && !self.adapter_residual_before_ln
        {
            y = b.add(res, y);
        }
        Ok(State { x: y, ..state })
    }

    fn reopen(
        &self,
        place: &Place<'_>,
        state: State,
        closed: Val,
        cx: &BuildCx<'_>,
    ) -> Option<State> {
        let mut x = cx.up(closed);
        if let At::Sublayer(site) = &place.at {
            if let Some(r) = state.residual.filter(|_| site.rejoins) {
                x = cx.b.sub(x, cx.up(r));
            }
            if self.is_parallel {
                x = cx.b.sub(x, cx.up(state.out));
            }
        }
        Some(State { x, ..state })
    }

    fn close(
        &self,
        place: &Place<'_>,
        state: State,
        _: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Val, Diagnostic> {
        match &place.at {
            At::Sublayer(site) => {
                let mut y = state.x;
                if self.is_parallel {
                    y = cx.b.add(cx.up(state.out), y);
                }
                if let Some(r) = state.residual.filter(|_| site.rejoins) {
                    y = cx.b.add(y, cx.up(r));
                }
                Ok(cx.down(y))
            }
            At::Linear(_)
            | At::Layer(_)
            | At::Embeddings(_)
            | At::HeadInput(_)
            | At::Input(_)
            | At::Table(_)
            | At::Parameter(_)
            | At::Sequence(_)
            | At::Mask(_)
            | At::Attention(_) => Ok(cx.down(state.x)),
        }
    }
}
