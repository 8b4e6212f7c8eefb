//! MTL-LoRA (Yang et al. 2024): one down projection and several weighted up projections, with a diagonal for each task:
//!
//! `y = W·x + b + (alpha/r)·Σⱼ pⱼ·Bⱼ·Λ·A·x`, `Λ = diag(values)`, `p = softmax(weights / weights_sharpness)`.
//!
//! The weighted up projections are summed before they are multiplied, so that a step costs what LoRA's does. The softmax is the
//! stable one; the library's overflows for weights above `88·weights_sharpness`. A learned gate takes the place of `alpha/r`.
//!
//! In a `MultiTask` setup the tasks have `lora_A` and `lora_B` together, and the input `task_ids` says of which task each sample is: its
//! rank is weighted by `pⱼ·Λ` of its task, and the products with `lora_A` and `lora_B` are those of the whole batch. Unlike in the
//! library, interfaces do not have to name the method, and the layer merges. Of a fused projection, for which the library has no form,
//! the columns of the chosen matrices are adapted as one linear.

use super::lora::places::swapped;
use super::lora::stack;
use super::lora::{Lora, site};
use super::weight::{base_weight, stored_form};
use super::{Fold, GATE, Known, Merged, Method, Preset, dict, preset};
use crate::adapters::param::{Init, ParamSpec, Size};
use crate::adapters::place::{
    BuildCx, Exchanged, Params, Place, Stacking, State, Surroundings, Tasks,
};
use crate::diag::Diagnostic;
use crate::ir::{DType, Val};
use crate::select::{Family, Layout};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `MTLLoRAConfig`: LoRA's fields, and three more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
#[schemars(transform = describe)]
pub(crate) struct MtlLora {
    /// LoRA at the same places.
    #[serde(flatten)]
    pub lora: Lora,
    /// Number of up projections.
    pub n_up_projection: usize,
    /// `singular_values` or `linear`.
    pub task_specific_matrix_type: String,
    /// Temperature of the softmax that weights the up projections.
    pub weights_sharpness: f64,
}

/// LoRA's fields that mean something else here, or nothing.
fn describe(schema: &mut schemars::Schema) {
    const OTHER: [(&str, &str); 7] = [
        ("architecture", "Always `mtl_lora`."),
        (
            "attn_matrices",
            "Which of the attention's projections: `q`, `k`, `v`, `o`.",
        ),
        ("composition_mode", "`add`."),
        ("init_weights_seed", "Seed of the initial values."),
        ("use_dora", "Not used."),
        ("vera_d", "Not used."),
        ("vera_b", "Not used."),
    ];
    let Some(properties) = schema.ensure_object().get_mut("properties") else {
        return;
    };
    for (field, about) in OTHER {
        properties[field]["description"] = about.into();
    }
    properties["architecture"]["default"] = MtlLora::NAME.into();
}

impl Default for MtlLora {
    fn default() -> Self {
        MtlLora {
            lora: Lora {
                architecture: Self::NAME.into(),
                ..Lora::default()
            },
            n_up_projection: 1,
            task_specific_matrix_type: "singular_values".into(),
            weights_sharpness: 0.05,
        }
    }
}

impl MtlLora {
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
    fn up(&self, place: &Place<'_>, d_out: usize, p: &Params<'_>, cx: &BuildCx<'_>) -> Val {
        let b = cx.b;
        let (n, r) = (self.n_up_projection as i64, self.lora.r as i64);
        let out = self.lora.adapted_width(place, d_out) as i64;
        let shares = self.shares(p, cx);
        let rows = b.reshape(p.get("lora_B"), b.ints(&[n, out * r]));
        let up = b.reshape(b.matmul(shares, rows), b.ints(&[out, r]));
        self.lora.whole_width(place, (up, self.lora.r), d_out, cx)
    }
}

impl Known for MtlLora {
    const NAME: &'static str = "mtl_lora";
    const SOURCE: &'static str = include_str!("mtl_lora.rs");

    fn presets() -> Vec<Preset> {
        vec![preset("mtl_lora", || {
            let mut fresh = MtlLora::default();
            fresh.lora.use_dora = Some(false);
            fresh.into()
        })]
    }

    fn family(&self) -> Family {
        Family::MtlLora
    }

    fn stacking(&self, _: &Place<'_>) -> Result<Stacking<Self>, &'static str> {
        Err("its adapters share a matrix, in which `task_ids` chooses")
    }

    fn exchanged(
        &self,
        _: &Place<'_>,
        _: &Params<'_>,
        _: &BuildCx<'_>,
    ) -> Result<Exchanged<Self>, &'static str> {
        Err("its adapters share a matrix, in which `task_ids` chooses")
    }

    fn extra(&self) -> &Map<String, Value> {
        self.lora.extra()
    }

    fn disjoint(&self, other: &Self) -> bool {
        self.lora.disjoint(&other.lora)
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
        let alike = |c: &&&Self| {
            !c.lora.use_gating && c.lora.dropout.to_bits() == first.lora.dropout.to_bits()
        };
        let (a, up) = (p.get("lora_A"), p.get("lora_B"));
        let together = |(_, q): &(_, Params<'_>)| q.get("lora_A") == a && q.get("lora_B") == up;
        if !configs.iter().all(|c| alike(&c)) || !tasks.of.iter().all(together) {
            return Ok(None);
        }
        let b = cx.b;
        let (n, r) = (first.n_up_projection, first.lora.r);
        let d_out = site(place)?.d_out;
        let out = first.lora.adapted_width(place, d_out) as i64;
        let weighted: Vec<Val> = configs
            .iter()
            .zip(tasks.of)
            .map(|(c, (_, q))| {
                let shares = b.scale(c.shares(q, cx), c.lora.scale());
                let shares = b.reshape(shares, b.ints(&[n as i64, 1]));
                b.mul(shares, q.get("task_specific.values"))
            })
            .collect();
        let x = cx.dropout(stack::read(place, state, cx), first.lora.dropout);
        let z = b.linear_t(x, a);
        let z = if n == 1 { z } else { b.concat(&vec![z; n], -1) };
        let z = b.mul(z, cx.rows(&weighted, tasks));
        let columns = b.transpose(up, &[1, 0, 2]);
        let columns = b.reshape(columns, b.ints(&[out, (n * r) as i64]));
        let columns = first.lora.whole_width(place, (columns, n * r), d_out, cx);
        let delta = b.linear_t(z, columns);
        Ok(Some(State {
            delta: Some(stack::joined(place, state, delta, cx)),
            ..state
        }))
    }
}

impl Method for MtlLora {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn to_dict(&self) -> Value {
        dict(self)
    }

    fn reads_whole_rows(&self) -> Option<&'static str> {
        self.lora.use_gating.then_some(GATE)
    }

    fn validate(&self) -> Result<(), Diagnostic> {
        let bad = |message: String, help: &str| {
            Err(Diagnostic::error("config-value", message).help(help))
        };
        if self.lora.composition_mode != "add" {
            return bad(
                format!("`composition_mode` is `{}`", self.lora.composition_mode),
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
        self.lora.validate()
    }

    fn merges(&self) -> bool {
        !self.lora.use_gating
    }

    fn adapts_projections(&self) -> bool {
        self.lora.adapts_projections()
    }

    fn seed(&self) -> Option<i64> {
        self.lora.seed()
    }

    fn dtype(&self) -> Result<DType, Diagnostic> {
        self.lora.dtype()
    }

    fn places<'s>(&self, around: &Surroundings<'_, 's>) -> Result<Vec<Place<'s>>, Diagnostic> {
        self.lora.places(around)
    }

    fn notes(&self, around: &Surroundings<'_, '_>, places: &[Place<'_>]) -> Vec<Diagnostic> {
        swapped(around, places).into_iter().collect()
    }

    fn params(&self, place: &Place<'_>) -> Result<Vec<ParamSpec>, Diagnostic> {
        let site = site(place)?;
        let n = &Size::new("n_up_projection", self.n_up_projection);
        let d_out = self.lora.adapted_width(place, site.d_out);
        let (d_in, d_out) = (&Size::new("in", site.d_in), &Size::new("out", d_out));
        let (r, one) = (&self.lora.rank(), &Size::from(1));
        let (a, b) = match &*self.lora.init_weights {
            "bert" => (Init::bert(), Init::bert()),
            "ia3" => (Init::Ones, Init::Zeros),
            "vera" => (Init::kaiming(d_in), Init::Zeros),
            _ => (Init::linear(d_in), Init::Zeros),
        };
        let mut out = vec![
            ParamSpec::new("lora_A", &[r, d_in], a),
            ParamSpec::new("lora_B", &[n, d_out, r], b),
            ParamSpec::new("weights", &[n], Init::Ones),
            ParamSpec::new("task_specific.values", &[r], Init::Ones),
        ];
        if self.lora.use_gating {
            out.push(ParamSpec::new("gate.weight", &[one, d_in], Init::bert()));
            out.push(ParamSpec::new("gate.bias", &[one], Init::linear(d_in)));
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
        let gate = self.lora.use_gating.then(|| cx.gate(cx.up(state.x), p));
        let x = cx.dropout(stack::read(place, state, cx), self.lora.dropout);
        let z = b.mul(
            b.linear_t(x, p.get("lora_A")),
            p.get("task_specific.values"),
        );
        let z = b.linear_t(z, self.up(place, site.d_out, p, cx));
        let delta = match gate {
            Some(gate) => b.mul(z, gate),
            None => b.scale(z, self.lora.scale()),
        };
        Ok(State {
            delta: Some(stack::joined(place, state, delta, cx)),
            ..state
        })
    }

    fn chains(&self, place: &Place<'_>) -> Option<bool> {
        Some(stack::chains(place))
    }

    fn reopen(&self, _: &Place<'_>, state: State, closed: Val, cx: &BuildCx<'_>) -> Option<State> {
        Some(stack::reopened(state, closed, cx))
    }

    fn task_shared(&self) -> &'static [&'static str] {
        &["lora_A", "lora_B"]
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
        fold: Fold,
        below: Option<Val>,
    ) -> Result<Merged, Diagnostic> {
        let site = site(place)?;
        let b = cx.b;
        if self.lora.use_gating {
            return Err(Diagnostic::error(
                "merge-gated",
                "a gated adapter depends on its input and cannot be folded into a weight",
            )
            .at(place.scope.clone())
            .help("keep it attached"));
        }
        let up = b.mul(
            self.up(place, site.d_out, p, cx),
            p.get("task_specific.values"),
        );
        let delta = b.scale(b.matmul(up, p.get("lora_A")), self.lora.scale());
        let delta = match site.weight.layout {
            Layout::OutIn => delta,
            Layout::InOut => b.transpose(delta, &[1, 0]),
        };
        let delta = stack::merged(place, below, delta, site.weight.layout, b);
        let base = base_weight(site, cx)?;
        let weight = match fold {
            Fold::In => b.add(base, delta),
            Fold::Out => b.sub(base, delta),
        };
        Ok(Merged {
            weight: stored_form(site, weight, cx),
            bias: None,
            change: Some(delta),
        })
    }
}
