//! MTL-LoRA (Yang et al. 2024): one down projection and several weighted up projections, with a diagonal for each task:
//!
//! `y = W·x + b + (alpha/r)·Σⱼ pⱼ·Bⱼ·Λ·A·x`, `Λ = diag(values)`, `p = softmax(weights / weights_sharpness)`.
//!
//! The weighted up projections are summed before they are multiplied, so that a step costs what LoRA's does. The softmax is the
//! stable one; the library's overflows for weights above `88·weights_sharpness`. A learned gate takes the place of `alpha/r`.
//!
//! In a `MultiTask` setup the tasks have `lora_A` and `lora_B` together, and the input `task_ids` says of which task each sample is: its
//! rank is weighted by `pⱼ·Λ` of its task, and the products with `lora_A` and `lora_B` are those of the whole batch. Unlike in the
//! library, interfaces do not have to name the method, and the layer merges.

use super::lora::{Lora, base_weight, site, stored_form};
use super::{Merged, Method, Preset, preset, torch_dtype};
use crate::adapters::param::{Init, ParamSpec};
use crate::adapters::place::{BuildCx, Params, Place, State, Surroundings, Tasks};
use crate::diag::Diagnostic;
use crate::ir::{DType, Val};
use crate::select::Layout;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

/// `MTLLoRAConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "the fields are AdapterHub's")]
pub struct MtlLora {
    /// Always `mtl_lora`.
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
    /// Which of the attention's projections: `q`, `k`, `v`, `o`.
    pub attn_matrices: Vec<String>,
    /// `add`.
    pub composition_mode: String,
    /// `lora`, `bert`, `ia3` or `vera`.
    pub init_weights: String,
    /// Seed of the initial values.
    pub init_weights_seed: Option<i64>,
    /// Whether a learned gate takes the place of `alpha / r`.
    pub use_gating: bool,
    /// Not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_dora: Option<bool>,
    /// Not used.
    #[schemars(with = "Option<f64>")]
    pub vera_d: Option<Number>,
    /// Not used.
    #[schemars(with = "Option<f64>")]
    pub vera_b: Option<Number>,
    /// Element type of the parameters, a torch name.
    pub dtype: Option<String>,
    /// Number of up projections.
    pub n_up_projection: usize,
    /// `singular_values` or `linear`.
    pub task_specific_matrix_type: String,
    /// Temperature of the softmax that weights the up projections.
    pub weights_sharpness: f64,
    /// Keys of other versions.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for MtlLora {
    fn default() -> Self {
        MtlLora {
            architecture: "mtl_lora".into(),
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
            n_up_projection: 1,
            task_specific_matrix_type: "singular_values".into(),
            weights_sharpness: 0.05,
            extra: Map::new(),
        }
    }
}

impl MtlLora {
    /// LoRA at the same places.
    fn lora(&self) -> Lora {
        Lora {
            selfattn_lora: self.selfattn_lora,
            intermediate_lora: self.intermediate_lora,
            output_lora: self.output_lora,
            leave_out: self.leave_out.clone(),
            r: self.r,
            alpha: self.alpha.clone(),
            dropout: self.dropout,
            attn_matrices: self.attn_matrices.clone(),
            composition_mode: self.composition_mode.clone(),
            init_weights: self.init_weights.clone(),
            dtype: self.dtype.clone(),
            ..Lora::default()
        }
    }

    fn scale(&self) -> f32 {
        self.alpha.as_f64().unwrap_or(1.0) as f32 / self.r as f32
    }

    /// The weights of the up projections, `[1, n]`.
    fn shares(&self, p: &Params<'_>, cx: &BuildCx<'_>) -> Val {
        let b = cx.b;
        let n = self.n_up_projection as i64;
        let sharp = b.scale(p.get("weights"), (1.0 / self.weights_sharpness) as f32);
        b.op(
            "Softmax",
            &[b.reshape(sharp, b.ints(&[1, n]))],
            &[("axis", (-1i64).into())],
        )
    }

    /// `Σⱼ pⱼ·Bⱼ`, `[out, r]`.
    fn up(&self, d_out: usize, p: &Params<'_>, cx: &BuildCx<'_>) -> Val {
        let b = cx.b;
        let (n, out, r) = (self.n_up_projection as i64, d_out as i64, self.r as i64);
        let shares = self.shares(p, cx);
        let rows = b.reshape(p.get("lora_B"), b.ints(&[n, out * r]));
        b.reshape(b.matmul(shares, rows), b.ints(&[out, r]))
    }
}

impl Method for MtlLora {
    const ARCHITECTURE: Option<&'static str> = Some("mtl_lora");

    fn presets() -> Vec<Preset> {
        vec![preset("mtl_lora", || {
            let fresh = MtlLora {
                use_dora: Some(false),
                ..MtlLora::default()
            };
            fresh.into()
        })]
    }

    fn extra(&self) -> &Map<String, Value> {
        &self.extra
    }

    fn validate(&self) -> Result<(), Diagnostic> {
        let bad = |message: String, help: &str| {
            Err(Diagnostic::error("config-value", message).help(help))
        };
        if self.composition_mode != "add" {
            return bad(
                format!("`composition_mode` is `{}`", self.composition_mode),
                "MTL-LoRA adds",
            );
        }
        if self.n_up_projection == 0 {
            return bad("`n_up_projection` is 0".into(), "it must be at least 1");
        }
        if self.weights_sharpness <= 0.0 || !self.weights_sharpness.is_finite() {
            return bad(
                format!("`weights_sharpness` is {}", self.weights_sharpness),
                "it is a temperature above 0",
            );
        }
        if self.task_specific_matrix_type != "singular_values" {
            return bad(
                format!(
                    "`task_specific_matrix_type` is `{}`",
                    self.task_specific_matrix_type
                ),
                "use singular_values; the library cannot make `linear` either",
            );
        }
        self.lora().validate()
    }

    fn disjoint(&self, other: &Self) -> bool {
        !self.leave_out.is_empty() || !other.leave_out.is_empty()
    }

    fn merges(&self) -> bool {
        !self.use_gating
    }

    fn seed(&self) -> Option<i64> {
        self.init_weights_seed
    }

    fn dtype(&self) -> Result<DType, Diagnostic> {
        torch_dtype(self.dtype.as_deref())
    }

    fn places<'s>(&self, around: &Surroundings<'_, 's>) -> Result<Vec<Place<'s>>, Diagnostic> {
        let places = self.lora().places(around)?;
        match places.iter().find(|p| p.fused.is_some()) {
            Some(place) => Err(Diagnostic::error(
                "mtl-lora-fused",
                "MTL-LoRA has no form for a fused projection",
            )
            .at(place.scope.clone())
            .help("this projection is q, k and v in one; use lora")),
            None => Ok(places),
        }
    }

    fn params(&self, place: &Place<'_>) -> Result<Vec<ParamSpec>, Diagnostic> {
        let site = site(place)?;
        let (n, r) = (self.n_up_projection, self.r);
        let (a, b) = match &*self.init_weights {
            "bert" => (Init::bert(), Init::bert()),
            "ia3" => (Init::Ones, Init::Zeros),
            "vera" => (Init::kaiming(site.d_in), Init::Zeros),
            _ => (Init::linear(site.d_in), Init::Zeros),
        };
        let mut out = vec![
            ParamSpec::new("lora_A", [r, site.d_in], a),
            ParamSpec::new("lora_B", [n, site.d_out, r], b),
            ParamSpec::new("weights", [n], Init::Ones),
            ParamSpec::new("task_specific.values", [r], Init::Ones),
        ];
        if self.use_gating {
            out.push(ParamSpec::new("gate.weight", [1, site.d_in], Init::bert()));
            out.push(ParamSpec::new("gate.bias", [1], Init::linear(site.d_in)));
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
        let site = site(place)?;
        let b = cx.b;
        let gate = self.use_gating.then(|| cx.gate(cx.up(state.x), p));
        let x = cx.dropout(cx.up(state.delta.unwrap_or(state.x)), self.dropout);
        let z = b.mul(
            b.linear_t(x, p.get("lora_A")),
            p.get("task_specific.values"),
        );
        let z = b.linear_t(z, self.up(site.d_out, p, cx));
        let delta = match gate {
            Some(gate) => b.mul(z, gate),
            None => b.scale(z, self.scale()),
        };
        Ok(State {
            delta: Some(delta),
            ..state
        })
    }

    fn task_shared(&self) -> &'static [&'static str] {
        &["lora_A", "lora_B"]
    }

    fn step_tasks(
        configs: &[&Self],
        state: State,
        tasks: &Tasks<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Option<State>, Diagnostic> {
        let ([first, ..], [(place, p), ..]) = (configs, tasks.of) else {
            return Ok(None);
        };
        // Dropout is drawn once, and a gate reads the input: each task by itself where they differ in these.
        let alike = |c: &&&Self| !c.use_gating && c.dropout.to_bits() == first.dropout.to_bits();
        let (a, up) = (p.get("lora_A"), p.get("lora_B"));
        let together = |(_, q): &(_, Params<'_>)| q.get("lora_A") == a && q.get("lora_B") == up;
        if !configs.iter().all(|c| alike(&c)) || !tasks.of.iter().all(together) {
            return Ok(None);
        }
        let b = cx.b;
        let (n, r) = (first.n_up_projection, first.r);
        let out = site(place)?.d_out as i64;
        let weighted: Vec<Val> = configs
            .iter()
            .zip(tasks.of)
            .map(|(c, (_, q))| {
                let shares = b.scale(c.shares(q, cx), c.scale());
                let shares = b.reshape(shares, b.ints(&[n as i64, 1]));
                b.mul(shares, q.get("task_specific.values"))
            })
            .collect();
        let x = cx.dropout(cx.up(state.delta.unwrap_or(state.x)), first.dropout);
        let z = b.linear_t(x, a);
        let z = if n == 1 { z } else { b.concat(&vec![z; n], -1) };
        let z = b.mul(z, cx.rows(&weighted, tasks));
        let columns = b.transpose(up, &[1, 0, 2]);
        let columns = b.reshape(columns, b.ints(&[out, (n * r) as i64]));
        Ok(Some(State {
            delta: Some(b.linear_t(z, columns)),
            ..state
        }))
    }

    fn close(
        &self,
        _place: &Place<'_>,
        state: State,
        _p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Val, Diagnostic> {
        Ok(match state.delta {
            Some(delta) => cx.b.add(state.out, cx.down(delta)),
            None => state.out,
        })
    }

    fn merge(
        &self,
        place: &Place<'_>,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Merged, Diagnostic> {
        let site = site(place)?;
        let b = cx.b;
        if self.use_gating {
            return Err(Diagnostic::error(
                "merge-gated",
                "a gated adapter depends on its input and cannot be folded into a weight",
            )
            .at(place.scope.clone())
            .help("keep it attached"));
        }
        let up = b.mul(self.up(site.d_out, p, cx), p.get("task_specific.values"));
        let delta = b.scale(b.matmul(up, p.get("lora_A")), self.scale());
        let delta = match site.weight.layout {
            Layout::OutIn => delta,
            Layout::InOut => b.transpose(delta, &[1, 0]),
        };
        let weight = b.add(base_weight(site, cx)?, delta);
        Ok(Merged {
            weight: stored_form(site, weight, cx),
            bias: None,
        })
    }
}
