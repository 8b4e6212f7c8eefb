//! The LoRA family: small changes of a linear.
//!
//! * LoRA (Hu et al. 2021): `y = W·x + b + (alpha/r)·B·A·x`;
//! * (IA)³ (Liu et al. 2022): `y = (W·x + b) ⊙ alpha·l`;
//! * VeRA (Kopiczko et al. 2023): LoRA with `B·A` replaced by `V·B·D·A`, `A` and `B` frozen and shared. The library trains the full
//!   matrices `V` and `D`, and so does this;
//! * DoRA (Liu et al. 2024), and DvoRA with VeRA inside: `y = m/‖W + ΔW‖ ⊙ (W·x + b + (alpha/r)·ΔW·x)`, where the norm of each row is
//!   taken without `alpha/r`, as the library does.
//!
//! A learned gate, where there is one, takes the place of `alpha/r` (of `alpha` in (IA)³).
//!
//! With `target_modules` the choice of linears is PEFT's, and so is what is computed: DoRA takes the norm of `W + (alpha/r)·B·A` and
//! leaves the bias out of it, VeRA trains the diagonals of `V` and `D` alone, (IA)³ scales `feedforward_modules` at their input.

use super::detail::{Detail, Greatest};
use super::weight::{base_bias, base_weight, stored_bias, stored_form};
use super::{Fold, GATE, Known, Merged, Method, Preset, dict, preset, torch_dtype};
use crate::adapters::param::{Init, ParamSpec, Size};
use crate::adapters::place::{
    At, BuildCx, Exchanged, Params, Place, Stacking, State, Surroundings,
};
use crate::diag::Diagnostic;
use crate::ir::{DType, Val};
use crate::select::{Family, Layout, LinearSite};
use columns::Block;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};
pub(crate) use targets::{Names, Targets, TokenIndices};

mod columns;
mod dora;
mod exchanged;
pub(super) mod places;
mod saved;
pub(super) mod stack;
mod stacked;
mod tables;
mod targets;

/// `LoRAConfig` and the classes derived from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "the fields are AdapterHub's")]
#[expect(clippy::struct_field_names, reason = "AdapterHub's field names")]
pub(crate) struct Lora {
    /// Always `lora`.
    pub architecture: String,
    /// Adapt the attention's projections named in `attn_matrices`.
    pub selfattn_lora: bool,
    /// Adapt the feed-forward block's up projection.
    pub intermediate_lora: bool,
    /// Adapt the feed-forward block's down projection.
    pub output_lora: bool,
    /// Layers without the adapter.
    pub leave_out: Vec<usize>,
    /// Rank.
    pub r: usize,
    /// Scale: the change is multiplied by `alpha / r`.
    #[schemars(with = "f64")]
    pub alpha: Number,
    /// Dropout on the input while training.
    pub dropout: f64,
    /// Which of the attention's projections: `q`, `k`, `v`, `o`. The library has no `o`; files of its own have no such parameters.
    pub attn_matrices: Vec<String>,
    /// `add`, or `scale` for (IA)³.
    pub composition_mode: String,
    /// `lora`, `bert`, `ia3` or `vera`.
    pub init_weights: String,
    /// Seed of the initial values; 0 counts as none.
    pub init_weights_seed: Option<i64>,
    /// Whether a learned gate takes the place of `alpha / r`.
    pub use_gating: bool,
    /// Whether magnitudes are learned apart from directions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_dora: Option<bool>,
    /// A float makes it VeRA: the initial diagonal of `vera_D`.
    #[schemars(with = "Option<f64>")]
    pub vera_d: Option<Number>,
    /// A float makes it VeRA: the initial diagonal of `vera_B`.
    #[schemars(with = "Option<f64>")]
    pub vera_b: Option<Number>,
    /// Element type of the parameters, a torch name.
    pub dtype: Option<String>,
    /// PEFT's choice of modules.
    #[serde(flatten)]
    pub targets: Targets,
    /// Keys of other versions.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for Lora {
    fn default() -> Self {
        Lora {
            architecture: "lora".into(),
            selfattn_lora: true,
            intermediate_lora: false,
            output_lora: false,
            leave_out: Vec::new(),
            r: 8,
            alpha: 8.into(),
            dropout: 0.0,
            attn_matrices: vec!["q".into(), "v".into()],
            composition_mode: "add".into(),
            init_weights: "lora".into(),
            init_weights_seed: None,
            use_gating: false,
            use_dora: None,
            vera_d: None,
            vera_b: None,
            dtype: None,
            targets: Targets::default(),
            extra: Map::new(),
        }
    }
}

/// How the change of a linear is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    LowRank,
    Scale,
    Vera,
}

impl Lora {
    #[expect(clippy::self_named_constructors, reason = "AdapterHub's identifier")]
    /// `LoRAConfig`, as the current version writes it.
    pub(crate) fn lora() -> Self {
        Lora {
            use_dora: Some(false),
            ..Self::default()
        }
    }

    /// `IA3Config`.
    pub(crate) fn ia3() -> Self {
        Lora {
            intermediate_lora: true,
            r: 1,
            alpha: 1.into(),
            attn_matrices: vec!["k".into(), "v".into()],
            composition_mode: "scale".into(),
            init_weights: "ia3".into(),
            ..Self::lora()
        }
    }

    /// `VeraConfig`.
    pub(crate) fn vera() -> Self {
        Lora {
            vera_d: Number::from_f64(0.1),
            vera_b: Number::from_f64(0.0),
            init_weights: "vera".into(),
            ..Self::lora()
        }
    }

    fn with_dora(self) -> Self {
        Lora {
            use_dora: Some(true),
            ..self
        }
    }

    fn form(&self) -> Form {
        // The library asks whether they are floats: an integer is none.
        let float = |n: &Option<Number>| n.as_ref().is_some_and(Number::is_f64);
        if self.composition_mode == "scale" {
            Form::Scale
        } else if float(&self.vera_d) || float(&self.vera_b) {
            Form::Vera
        } else {
            Form::LowRank
        }
    }

    fn dora(&self) -> bool {
        self.use_dora == Some(true)
    }

    fn alpha(&self) -> f32 {
        self.alpha.as_f64().unwrap_or(1.0) as f32
    }

    pub(super) fn scale(&self) -> f32 {
        match self.form() {
            Form::Scale => self.alpha(),
            Form::LowRank | Form::Vera => self.alpha() / self.r as f32,
        }
    }

    /// The scale at a place.
    fn scale_at(&self, place: &Place<'_>) -> f32 {
        place
            .detail
            .target()
            .map_or_else(|| self.scale(), |t| t.scale)
    }

    /// The rank at a place.
    fn rank_at(&self, place: &Place<'_>) -> Size {
        Size::free("r", place.detail.target().map_or(self.r, |t| t.rank))
    }

    pub(super) fn rank(&self) -> Size {
        Size::free("r", self.r)
    }

    fn wants(&self, letter: &str) -> bool {
        self.attn_matrices.iter().any(|m| m == letter)
    }

    /// Initial values of `A` and `B` of these fan-ins.
    fn inits(&self, fan_a: &Size, fan_b: &Size) -> (Init, Init) {
        match &*self.init_weights {
            "bert" => (Init::bert(), Init::bert()),
            "ia3" => (Init::Ones, Init::Ones),
            "vera" => (Init::kaiming(fan_a), Init::kaiming(fan_b)),
            _ => (Init::linear(fan_a), Init::Zeros),
        }
    }

    /// The matrices whose product is `ΔW`, `[out, in]`, without the scale.
    fn factors(
        &self,
        place: &Place<'_>,
        site: &LinearSite,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Vec<Val> {
        let b = cx.b;
        match self.form() {
            Form::LowRank => vec![self.full_b(place, site, p, cx), p.get("lora_A")],
            Form::Scale => Vec::new(),
            Form::Vera => {
                let [shared_a, shared_b] = shared_at(place, site, p, cx);
                if place.detail.target().is_some() {
                    // PEFT trains the diagonals alone.
                    let rows = |v: &str, m: Val| b.mul(b.unsqueeze(p.get(v), &[1]), m);
                    return vec![
                        rows("vera_lambda_b", shared_b),
                        rows("vera_lambda_d", shared_a),
                    ];
                }
                vec![p.get("vera_B"), shared_b, p.get("vera_D"), shared_a]
            }
        }
    }

    /// `ΔW` without the scale, in the axes of the stored weight.
    fn delta_weight(
        &self,
        place: &Place<'_>,
        site: &LinearSite,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Option<Val> {
        let b = cx.b;
        let mut factors = self.factors(place, site, p, cx);
        if site.weight.layout == Layout::InOut {
            factors.reverse();
            factors = factors
                .into_iter()
                .map(|f| b.transpose(f, &[1, 0]))
                .collect();
        }
        factors.into_iter().reduce(|a, c| b.matmul(a, c))
    }
}

/// The matrices that all places share, as wide as the linear here.
fn shared_at(place: &Place<'_>, site: &LinearSite, p: &Params<'_>, cx: &BuildCx<'_>) -> [Val; 2] {
    let Greatest { d_out, d_in } = place.detail.greatest().unwrap_or(Greatest {
        d_out: site.d_out,
        d_in: site.d_in,
    });
    let cut = |v: Val, axis: i64, have: usize, want: usize| {
        if have == want {
            v
        } else {
            cx.b.slice(v, axis, 0, want as i64)
        }
    };
    [
        cut(p.shared("lora_A"), 1, d_in, site.d_in),
        cut(p.shared("lora_B"), 0, d_out, site.d_out),
    ]
}

fn constant(value: Option<&Number>) -> Init {
    Init::Constant {
        value: value.and_then(Number::as_f64).unwrap_or(0.0) as f32,
    }
}

pub(super) fn site<'p>(place: &'p Place<'_>) -> Result<&'p LinearSite, Diagnostic> {
    place
        .linear()
        .ok_or_else(|| Diagnostic::error("place", "LoRA adapts linears only"))
}

impl Known for Lora {
    const NAME: &'static str = "lora";
    const SOURCE: &'static str = include_str!("lora.rs");

    fn presets() -> Vec<Preset> {
        vec![
            preset("lora", || Self::lora().into()),
            preset("ia3", || Self::ia3().into()),
            preset("vera", || Self::vera().into()),
            preset("dora", || Self::lora().with_dora().into()),
            preset("dvora", || Self::vera().with_dora().into()),
        ]
    }

    fn family(&self) -> Family {
        Family::Lora
    }

    fn extra(&self) -> &Map<String, Value> {
        &self.extra
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
        // One that adapts nothing holds a head's values alone.
        let none = |l: &Lora| l.targets.target_modules.is_some() && l.targets.adapts_none();
        !self.leave_out.is_empty() || !other.leave_out.is_empty() || none(self) || none(other)
    }
}

impl Method for Lora {
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
        let bad = |message: String, help: &str| {
            Err(Diagnostic::error("config-value", message).help(help))
        };
        if self.r == 0 {
            return bad("`r` is 0".into(), "it must be at least 1");
        }
        if !["add", "scale"].contains(&&*self.composition_mode) {
            return bad(
                format!("`composition_mode` is `{}`", self.composition_mode),
                "use add or scale",
            );
        }
        if !["lora", "bert", "ia3", "vera"].contains(&&*self.init_weights) {
            return bad(
                format!("`init_weights` is `{}`", self.init_weights),
                "use lora, bert, ia3 or vera",
            );
        }
        if let Some(m) = self
            .attn_matrices
            .iter()
            .find(|m| !["q", "k", "v", "o"].contains(&&***m))
        {
            return bad(format!("`attn_matrices` has `{m}`"), "use q, k, v and o");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad(
                format!("`dropout` is {}", self.dropout),
                "it must be at least 0 and below 1",
            );
        }
        if self.form() == Form::Scale && (self.r != 1 || self.dropout > 0.0 || self.dora()) {
            return bad(
                "`composition_mode='scale'` with a rank, dropout or `use_dora`".into(),
                "(IA)³ has r=1, dropout=0.0 and no magnitudes",
            );
        }
        self.targets.compiled()?;
        if self.targets.is_some() && self.use_gating {
            return bad(
                "`use_gating` with `target_modules`".into(),
                "PEFT's LoRA has no gate; choose the places by attn_matrices and the like",
            );
        }
        torch_dtype(self.dtype.as_deref()).map(|_| ())
    }

    fn merges(&self) -> bool {
        !self.use_gating
    }

    fn idle_in(&self, model_type: &str) -> Option<Diagnostic> {
        tables::idle_in(self.targets.trainable_token_indices.is_some(), model_type)
    }

    fn stands_alone(&self) -> bool {
        // PEFT's DoRA of a linear that another adapter changed is another function for each order.
        self.dora() && self.targets.is_some()
    }

    fn chains(&self, place: &Place<'_>) -> Option<bool> {
        let adds = self.form() != Form::Scale && !self.dora() && !self.targets.lora_bias;
        (adds && !tables::is_one(place)).then(|| stack::chains(place))
    }

    fn reopen(&self, place: &Place<'_>, s: State, closed: Val, cx: &BuildCx<'_>) -> Option<State> {
        match (&place.at, self.form()) {
            (At::Linear(_), Form::Scale) => Some(State { out: closed, ..s }),
            (At::Linear(_), _) if !self.dora() => Some(stack::reopened(s, closed, cx)),
            _ => None,
        }
    }

    fn adapts_projections(&self) -> bool {
        self.selfattn_lora && ["q", "k", "v"].iter().any(|m| self.wants(m))
    }

    fn seed(&self) -> Option<i64> {
        self.init_weights_seed
    }

    fn dtype(&self) -> Result<DType, Diagnostic> {
        torch_dtype(self.dtype.as_deref())
    }

    fn names_modules(&self) -> bool {
        self.targets.is_some()
    }

    fn places<'s>(&self, around: &Surroundings<'_, 's>) -> Result<Vec<Place<'s>>, Diagnostic> {
        if self.targets.is_some() {
            self.targeted(around)
        } else {
            self.by_parts(around)
        }
    }

    fn shared(&self, places: &[Place<'_>]) -> Result<Vec<ParamSpec>, Diagnostic> {
        let greatest = places.iter().find_map(|p| p.detail.greatest());
        let (Form::Vera, Some(Greatest { d_out, d_in })) = (self.form(), greatest) else {
            return Ok(Vec::new());
        };
        let (d_in, d_out) = (&Size::new("in", d_in), &Size::new("out", d_out));
        let r = &self.rank();
        let (a, b) = self.inits(d_in, r);
        Ok(vec![
            ParamSpec::new("lora_A", &[r, d_in], a).frozen(),
            ParamSpec::new("lora_B", &[d_out, r], b).frozen(),
        ])
    }

    fn notes(&self, around: &Surroundings<'_, '_>, places: &[Place<'_>]) -> Vec<Diagnostic> {
        self.remarks(around, places)
    }

    fn params(&self, place: &Place<'_>) -> Result<Vec<ParamSpec>, Diagnostic> {
        if let (At::Parameter(stored), Detail::Stored(name)) = (&place.at, &place.detail) {
            if stored.derived {
                return Err(saved::derived(stored, place));
            }
            let dims: Vec<Size> = stored.dims.iter().map(|d| Size::from(*d)).collect();
            let init = Init::Stored {
                value: stored.stored,
                transposed: stored.stored_transposed,
            };
            let spec = ParamSpec::new(&**name, &dims.iter().collect::<Vec<_>>(), init);
            let trained =
                self.targets.saved(&stored.module).is_some() || !self.targets.kept(&stored.module);
            return Ok(vec![if trained { spec } else { spec.frozen() }]);
        }
        if let Some(specs) = self.table_params(place) {
            return Ok(specs);
        }
        let site = site(place)?;
        let blocks = self.blocks(place, site.d_out);
        let enabled: Vec<&Block> = blocks.iter().filter(|k| k.on).collect();
        let adapted = enabled.iter().map(|k| k.width).sum();
        let (d_in, d_out) = (&Size::new("in", site.d_in), &Size::new("out", site.d_out));
        let (r, h, one) = (
            &self.rank_at(place),
            &Size::from(enabled.len()),
            &Size::from(1),
        );
        let width = &Size::new("out", adapted);
        let (a, b) = self.inits(d_in, r);
        let diagonal = |n: &Option<Number>| Init::Diagonal {
            value: n.as_ref().and_then(Number::as_f64).unwrap_or(0.0) as f32,
        };
        let mut out = match self.form() {
            Form::LowRank => vec![
                ParamSpec::new("lora_A", &[&r.times(h), d_in], a),
                ParamSpec::new("lora_B", &[width, r], b),
            ],
            Form::Scale if matches!(place.at, At::Input(_)) => {
                vec![ParamSpec::new("lora_B", &[one, d_in], b)]
            }
            Form::Scale => vec![ParamSpec::new("lora_B", &[width, one], b)],
            Form::Vera if place.detail.target().is_some() => vec![
                ParamSpec::new("vera_lambda_d", &[r], constant(self.vera_d.as_ref())),
                ParamSpec::new("vera_lambda_b", &[d_out], Init::Zeros),
            ],
            Form::Vera => vec![
                ParamSpec::new("vera_D", &[r, r], diagonal(&self.vera_d)),
                ParamSpec::new("vera_B", &[d_out, d_out], diagonal(&self.vera_b)),
            ],
        };
        if self.targets.lora_bias && self.form() == Form::LowRank {
            out.push(ParamSpec::new("lora_bias", &[d_out], Init::Zeros));
        }
        if self.use_gating {
            out.push(ParamSpec::new("gate.weight", &[h, d_in], Init::bert()));
            out.push(ParamSpec::new("gate.bias", &[h], Init::linear(d_in)));
        }
        if self.dora() {
            out.push(ParamSpec::new(
                "m.weight",
                &[d_out, one],
                Init::RowNorms {
                    weight: site.weight.value,
                    layout: site.weight.layout,
                    d_out: site.d_out,
                },
            ));
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
        if let At::Parameter(_) = place.at {
            return Ok(state);
        }
        if let Some(state) = self.table_step(place, state, p, cx) {
            return Ok(state);
        }
        let site = site(place)?;
        let b = cx.b;
        let gate = self.use_gating.then(|| cx.gate(cx.up(state.x), p));
        if self.form() == Form::Scale {
            let vector = self.vector(place, site, p, cx, gate);
            let delta = state.delta.map_or(vector, |d| b.mul(cx.up(d), vector));
            return Ok(State {
                delta: Some(delta),
                ..state
            });
        }
        let x = cx.dropout(stack::read(place, state, cx), self.dropout);
        let fused = place.detail.columns().is_some();
        if stacked::has_diagonals(p, cx) {
            let z = stacked::by_diagonals(place, site, x, p, cx);
            return Ok(State {
                delta: Some(cx.times(z, p, self.scale_at(place))),
                ..state
            });
        }
        let mut factors = self.factors(place, site, p, cx);
        let mut z = x;
        if let (true, Some(gate)) = (fused, gate)
            && let Some(a) = factors.pop()
        {
            // One gate for each adapted block, on the block's own share of the rank.
            z = b.linear_t(z, a);
            let enabled = self
                .blocks(place, site.d_out)
                .iter()
                .filter(|k| k.on)
                .count();
            let ones = cx.ones(&[1, self.r]);
            let parts: Vec<Val> = (0..enabled as i64)
                .map(|g| b.mul(b.slice(gate, -1, g, g + 1), ones))
                .collect();
            z = b.mul(z, b.concat(&parts, -1));
        }
        while let Some(f) = factors.pop() {
            z = if fused && b.is_by_row(f) && factors.is_empty() {
                self.blockwise(place, site, z, f, cx)
            } else {
                b.linear_t(z, f)
            };
        }
        if let Some(bias) = p.find("lora_bias") {
            z = b.add(z, bias);
        }
        let delta = match gate {
            Some(_) if fused => z,
            Some(gate) => b.mul(z, gate),
            None => cx.times(z, p, self.scale_at(place)),
        };
        Ok(State {
            delta: Some(stack::joined(place, state, delta, cx)),
            ..state
        })
    }

    fn close(
        &self,
        place: &Place<'_>,
        state: State,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Val, Diagnostic> {
        let b = cx.b;
        if let (At::Parameter(stored), Detail::Stored(name)) = (&place.at, &place.detail) {
            let own = p.get(name);
            let own = if stored.transposed {
                b.transpose(own, &[1, 0])
            } else {
                own
            };
            return Ok(cx.down(own));
        }
        if tables::is_one(place) {
            return Ok(state.out);
        }
        let site = site(place)?;
        let Some(delta) = state.delta else {
            return Ok(state.out);
        };
        if self.form() == Form::Scale {
            return Ok(b.mul(state.out, cx.down(delta)));
        }
        if !self.dora() {
            return Ok(b.add(state.out, cx.down(delta)));
        }
        if place.detail.target().is_some() {
            // PEFT leaves the bias out of the magnitude.
            let factor = self.dora_factor(place, site, p, cx)?;
            let out = cx.up(state.out);
            return Ok(cx.down(match site.weight.bias {
                None => b.mul(b.add(out, delta), factor),
                Some(bias) => {
                    let bias = cx.up(dora::bias_now(site, bias, cx));
                    let product = b.add(b.sub(out, bias), delta);
                    b.add(b.mul(product, factor), bias)
                }
            }));
        }
        let sum = b.add(cx.up(state.out), delta);
        Ok(cx.down(b.mul(sum, self.dora_factor(place, site, p, cx)?)))
    }

    fn merge(
        &self,
        place: &Place<'_>,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
        fold: Fold,
        below: Option<Val>,
    ) -> Result<Merged, Diagnostic> {
        if below.is_some() && self.chains(place).is_none() {
            return Err(Diagnostic::error(
                "merge-stack",
                "what this adapter makes of the change in front of it has no form as a weight",
            )
            .at(place.scope.clone())
            .help("keep both attached: `--active \"Stack(a, b)\"`"));
        }
        if tables::is_one(place) {
            return self.table_merge(place, p, cx, fold);
        }
        let site = site(place)?;
        let b = cx.b;
        if fold == Fold::Out && self.dora() {
            return Err(Diagnostic::error(
                "reset-dora",
                "DoRA divides by norms that the merged weight does not tell any more",
            )
            .at(place.scope.clone())
            .help("keep the base model's file: nothing else brings its weights back"));
        }
        if self.use_gating {
            return Err(Diagnostic::error(
                "merge-gated",
                "a gated adapter depends on its input and cannot be folded into a weight",
            )
            .at(place.scope.clone())
            .help("keep it attached"));
        }
        let weight = base_weight(site, cx)?;
        let bias = site.weight.bias;
        let rows = |f: Val| match site.weight.layout {
            Layout::OutIn => b.unsqueeze(f, &[1]),
            Layout::InOut => f,
        };
        let times = |x: Val, f: Val| match fold {
            Fold::In => b.mul(x, f),
            Fold::Out => b.div(x, f),
        };
        let scaled = |w: Val, f: Val| {
            (
                times(w, rows(f)),
                bias.map(|v| stored_bias(site, times(base_bias(site, v, cx), f), v, cx)),
            )
        };
        if let At::Input(_) = place.at {
            let vector = self.vector(place, site, p, cx, None);
            let columns = match site.weight.layout {
                Layout::OutIn => vector,
                Layout::InOut => b.unsqueeze(vector, &[1]),
            };
            let weight = stored_form(site, times(weight, columns), cx);
            return Ok(Merged::product(weight, None));
        }
        let mut change = None;
        let (weight, bias) = match self.delta_weight(place, site, p, cx) {
            None => scaled(weight, self.vector(place, site, p, cx, None)),
            Some(delta) => {
                let own = b.scale(delta, self.scale_at(place));
                let own = stack::merged(place, below, own, site.weight.layout, b);
                change = self.chains(place).map(|_| own);
                let sum = match fold {
                    Fold::In => b.add(weight, own),
                    Fold::Out => b.sub(weight, own),
                };
                if self.dora() && place.detail.target().is_some() {
                    let factor = self.dora_factor(place, site, p, cx)?;
                    (b.mul(sum, rows(factor)), None)
                } else if self.dora() {
                    scaled(sum, self.dora_factor(place, site, p, cx)?)
                } else if let Some(own) = p.find("lora_bias") {
                    let Some(bias) = bias else {
                        return Err(Diagnostic::error(
                            "merge-bias",
                            "the adapter has a bias, and the linear has none that it could be folded into",
                        )
                        .at(place.scope.clone())
                        .help("keep the adapter attached"));
                    };
                    let own = b.scale(own, self.scale_at(place));
                    let base = base_bias(site, bias, cx);
                    let new = match fold {
                        Fold::In => b.add(base, own),
                        Fold::Out => b.sub(base, own),
                    };
                    (sum, Some(stored_bias(site, new, bias, cx)))
                } else {
                    (sum, None)
                }
            }
        };
        let weight = stored_form(site, weight, cx);
        Ok(Merged {
            weight,
            bias,
            change,
        })
    }
}
