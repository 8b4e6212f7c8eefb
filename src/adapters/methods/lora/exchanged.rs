//! Changes of a linear that a running model exchanges: two matrices in the orientation and with the scale that Olive and ONNX Runtime's
//! tools give them, vectors by PEFT's names.
//!
//! A fused projection gets the matrices of all its columns, so that adapters of other columns are exchanged for each other.

use super::{Form, Lora, tables};
use crate::adapters::methods::detail::{Detail, Target};
use crate::adapters::place::{At, BuildCx, Exchanged, Given, Params, Place};
use crate::ir::Val;
use crate::select::LinearSite;
use serde_json::Number;

impl Lora {
    pub(super) fn as_inputs(
        &self,
        place: &Place<'_>,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Exchanged<Self>, &'static str> {
        let fused = place.detail.columns().is_some();
        if let (At::Parameter(_), Detail::Stored(name)) = (&place.at, &place.detail) {
            // Without an adapter it is what the base model has.
            return Ok(Exchanged {
                config: Self::default(),
                detail: place.detail.clone(),
                own: vec![
                    Given::new(&**name, p.get(name)).named(&format!("modules_to_save.{name}")),
                ],
                shared: Vec::new(),
            });
        }
        if tables::is_one(place) {
            return Err("it changes rows of an embedding table, which are looked up by tokens");
        }
        if fused && self.use_gating {
            return Err("a fused projection has a gate for each of its blocks");
        }
        let Some(site) = place.linear() else {
            return Err("it changes no linear");
        };
        let targeted = place.detail.target();
        // The library takes the norm of DoRA without the scale, which stays beside it then.
        let apart = self.dora() && targeted.is_none();
        let (common, scale) = self.without_scale(place, apart);
        let mut own = match self.form() {
            Form::Scale => vec![self.scales(place, site, p, cx)],
            Form::LowRank => self.matrices(place, site, p, cx, scale),
            Form::Vera => {
                let [d, b] = if targeted.is_some() {
                    ["vera_lambda_d", "vera_lambda_b"]
                } else {
                    ["vera_D", "vera_B"]
                };
                let scaled = cx.b.scale(p.get(b), scale);
                vec![Given::new(d, p.get(d)), Given::new(b, scaled)]
            }
        };
        let kept = |(from, to): (&str, &str)| Some(Given::new(from, p.find(from)?).named(to));
        own.extend(
            [
                ("m.weight", "lora_magnitude_vector.weight"),
                ("gate.weight", "gate.weight"),
                ("gate.bias", "gate.bias"),
            ]
            .into_iter()
            .filter_map(kept),
        );
        let shared = p.shared.iter().map(|(suffix, v)| {
            let name = suffix.replace("lora_", "vera_");
            Given::new(&**suffix, *v).named(&name)
        });
        let detail = match place.detail.target() {
            Some(Target { shared, .. }) => Detail::Target(Target {
                rank: 1,
                scale: 1.0,
                shared,
            }),
            None if fused => Detail::None,
            None => place.detail.clone(),
        };
        Ok(Exchanged {
            config: common,
            detail,
            own,
            shared: shared.collect(),
        })
    }

    /// The configuration without what may differ, and the scale that its parameters take in.
    fn without_scale(&self, place: &Place<'_>, apart: bool) -> (Self, f32) {
        let scale = self.scale_at(place);
        let one = Self::default();
        let form = self.form();
        let zero = (form == Form::Vera)
            .then(|| Number::from_f64(0.0))
            .flatten();
        let mut common = Lora {
            composition_mode: self.composition_mode.clone(),
            // (IA)³ starts from ones, which leave the model as it is.
            init_weights: if form == Form::Scale { "ia3" } else { "lora" }.into(),
            vera_d: zero.clone(),
            vera_b: zero,
            use_gating: self.use_gating,
            use_dora: self.use_dora,
            ..one
        };
        common.targets.lora_bias = self.targets.lora_bias;
        if form == Form::Scale {
            (common.r, common.alpha) = (1, 1.into());
            return (common, 1.0);
        }
        if apart {
            let alpha = f64::from(scale) * common.r as f64;
            common.alpha = Number::from_f64(alpha).unwrap_or_else(|| 1.into());
            return (common, 1.0);
        }
        (common, if self.use_gating { 1.0 } else { scale })
    }

    /// The vector of (IA)³.
    fn scales(
        &self,
        place: &Place<'_>,
        site: &LinearSite,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Given {
        let suffix = "lora_B";
        let value = if self.use_gating {
            p.get(suffix)
        } else {
            let input = matches!(place.at, At::Input(_));
            let vector = self.vector(place, site, p, cx, None);
            cx.b.unsqueeze(vector, &[i64::from(!input)])
        };
        Given::new(suffix, value).named("ia3_l")
    }

    /// `A` and `B`, with the scale in `B`, and the bias beside them.
    fn matrices(
        &self,
        place: &Place<'_>,
        site: &LinearSite,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
        scale: f32,
    ) -> Vec<Given> {
        let b = cx.b;
        // The norm of DoRA reads the matrices themselves.
        let transposed = !self.dora();
        let matrix = |suffix: &str, value: Val| Given {
            transposed,
            ..Given::new(suffix, value).named(&format!("{suffix}.weight"))
        };
        let up = b.scale(self.full_b(place, site, p, cx), scale);
        let mut out = vec![matrix("lora_A", p.get("lora_A")), matrix("lora_B", up)];
        if let Some(bias) = p.find("lora_bias") {
            let bias = b.scale(bias, scale);
            out.push(Given::new("lora_bias", bias).named("lora_B.bias"));
        }
        out
    }
}
