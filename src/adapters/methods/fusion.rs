//! `AdapterFusion`: each position mixes what several adapters make of it, with weights that it computes itself. Pfeiffer et al. 2021.
//!
//! With `u_n` what adapter `n` makes (scaled, before its residual), `q` the stream that they read, and `r` the residual:
//!
//! ```text
//! a = softmax_n(dropout((W_q q + b_q)·(W_k u_n + b_k)) / T)
//! y = Σ_n a_n W_v u_n + r
//! ```
//!
//! There is no `1/√d`. A matrix that the configuration leaves out is the identity. A fusion stands where the adapters stand that it
//! mixes, in their order; it is no adapter that could act alone.

use super::{Known, Method, MethodConfig, Opened, Preset, dict, preset};
use crate::adapters::param::{Init, ParamSpec, Size};
use crate::adapters::place::{
    At, BuildCx, Exchanged, Params, Place, Stacking, State, Surroundings,
};
use crate::diag::Diagnostic;
use crate::ir::contract::{self, stamp};
use crate::ir::{DType, Metadata, TensorData, Type, Val};
use crate::select::Family;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Weight of the regularisation: the library's constant.
const REGULARIZATION: f32 = 0.01;

/// `AdapterFusionConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[expect(clippy::struct_excessive_bools, reason = "the fields are AdapterHub's")]
pub(crate) struct AdapterFusion {
    /// `adapter_fusion`. The library's files do not say it.
    #[serde(default = "architecture")]
    pub architecture: String,
    /// Whether what the adapters make is projected before it is compared.
    #[serde(default = "yes")]
    pub key: bool,
    /// Whether what they read is.
    #[serde(default = "yes")]
    pub query: bool,
    /// Whether what is mixed is projected.
    #[serde(default = "yes")]
    pub value: bool,
    /// Compare with the sublayer's output as it was, before the residual and the norm.
    #[serde(default)]
    pub query_before_ln: bool,
    /// Whether training pulls the value matrix towards the identity: `0.01·‖I − W_v‖²` for each layer.
    #[serde(default)]
    pub regularization: bool,
    /// Add the residual to what each adapter makes, and not to the mixture.
    #[serde(default)]
    pub residual_before: bool,
    /// Whether the scores are divided by a temperature that falls from 50 to 1 in training.
    #[serde(default)]
    pub temperature: bool,
    /// Project before mixing, instead of behind it.
    #[serde(default = "yes")]
    pub value_before_softmax: bool,
    /// Whether the value matrix begins as the identity (with 1e-6 beside the diagonal).
    #[serde(default, deserialize_with = "truth")]
    pub value_initialized: bool,
    /// Dropout on the scores while training (default: `attention_probs_dropout_prob` of the model's `config.json`).
    #[serde(default)]
    pub dropout_prob: Option<f64>,
    /// The temperature that training has reached (default: 50, where it begins). A folder has it beside the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_now: Option<f32>,
    /// The adapters that it mixes. A folder has them beside the configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapter_names: Vec<String>,
    /// Keys of other versions.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
    /// The model's own dropout.
    #[serde(skip)]
    pub model_dropout: f64,
}

fn architecture() -> String {
    AdapterFusion::NAME.to_owned()
}

fn yes() -> bool {
    true
}

/// A truth value as Python sees it: the library's type of the field is a text.
fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Bool(set) => set,
        Value::String(text) => !text.is_empty(),
        other => !other.is_null(),
    })
}

impl AdapterFusion {
    /// `DynamicAdapterFusionConfig`.
    fn dynamic() -> Self {
        AdapterFusion {
            architecture: architecture(),
            key: true,
            query: true,
            value: true,
            query_before_ln: false,
            regularization: true,
            residual_before: false,
            temperature: false,
            value_before_softmax: true,
            value_initialized: true,
            dropout_prob: None,
            temperature_now: None,
            adapter_names: Vec::new(),
            extra: Map::new(),
            model_dropout: 0.0,
        }
    }

    /// `StaticAdapterFusionConfig`.
    fn fixed() -> Self {
        AdapterFusion {
            value: false,
            regularization: false,
            value_initialized: false,
            ..Self::dynamic()
        }
    }

    /// The temperature: an input that training lowers, with what it has reached where nothing is given.
    fn divisor(&self, cx: &BuildCx<'_>) -> Val {
        let owner = cx.owner.borrow().clone();
        let input = cx.once(contract::FUSION_TEMPERATURE, || {
            let now = self.temperature_now.unwrap_or(contract::FIRST_TEMPERATURE);
            let name = format!("{}{owner}", contract::FUSION_TEMPERATURE);
            let (ty, now) = (
                Type::tensor(DType::Float, []),
                TensorData::from_f32([], &[now]),
            );
            cx.b.optional_input(&name, ty, now, kept(&owner))
        });
        cx.to_param(input)
    }

    /// What takes the place of the adapters' own mixture: `ups` are what they make, `[batch, positions, width]` each.
    pub(crate) fn mix(
        &self,
        opened: &Opened,
        ups: &[Val],
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Mixed {
        let b = cx.b;
        let each: Vec<Val> = ups
            .iter()
            .map(|u| {
                if self.residual_before {
                    b.add(*u, opened.residual)
                } else {
                    *u
                }
            })
            .map(|u| b.unsqueeze(u, &[-2]))
            .collect();
        let made = b.concat(&each, -2);
        let query = if self.query_before_ln {
            opened.before
        } else {
            opened.h
        };
        let query = if self.query {
            cx.linear(query, p, "query")
        } else {
            query
        };
        let key = if self.key {
            cx.linear(made, p, "key")
        } else {
            made
        };
        let project = |v: Val| b.linear_t(v, p.get("value.weight"));
        let value = if self.value && self.value_before_softmax {
            project(made)
        } else {
            made
        };
        let scores = b.reduce_sum(b.mul(b.unsqueeze(query, &[-2]), key), &[-1], false);
        let scores = cx.dropout(scores, self.dropout_prob.unwrap_or(self.model_dropout));
        let scores = if self.temperature {
            b.div(scores, self.divisor(cx))
        } else {
            scores
        };
        let attention = b.op("Softmax", &[scores], &[("axis", (-1i64).into())]);
        let mut out = b.reduce_sum(b.mul(b.unsqueeze(attention, &[-1]), value), &[-2], false);
        if self.value && !self.value_before_softmax {
            out = project(out);
        }
        if !self.residual_before {
            out = b.add(out, opened.residual);
        }
        Mixed { out, attention }
    }
}

/// The stamps of a value that belongs to a fusion, and that no optimizer changes.
fn kept(owner: &str) -> Metadata {
    let mut stamps = Metadata::default();
    stamps.insert(stamp::ADAPTER.into(), owner.into());
    stamps.insert(stamp::PARAM.into(), "frozen".into());
    stamps
}

/// What a fusion makes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mixed {
    /// What flows on: `[batch, positions, width]`.
    pub(crate) out: Val,
    /// The weights of the adapters: `[batch, positions, adapters]`.
    pub(crate) attention: Val,
}

impl Known for AdapterFusion {
    const NAME: &'static str = "adapter_fusion";
    const SOURCE: &'static str = include_str!("fusion.rs");
    const FUSES: bool = true;

    fn presets() -> Vec<Preset> {
        vec![
            preset("dynamic", || Self::dynamic().into()),
            preset("static", || Self::fixed().into()),
        ]
    }

    fn family(&self) -> Family {
        Family::Bottleneck
    }

    fn stacking(&self, _: &Place<'_>) -> Result<Stacking<Self>, &'static str> {
        Err("it mixes what other adapters make")
    }

    fn exchanged(
        &self,
        _: &Place<'_>,
        _: &Params<'_>,
        _: &BuildCx<'_>,
    ) -> Result<Exchanged<Self>, &'static str> {
        Err("it mixes what other adapters make")
    }

    fn extra(&self) -> &Map<String, Value> {
        &self.extra
    }
}

impl Method for AdapterFusion {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn to_dict(&self) -> Value {
        dict(self)
    }

    fn validate(&self) -> Result<(), Diagnostic> {
        let p = self.dropout_prob.unwrap_or(0.0);
        if !(0.0..1.0).contains(&p) {
            return Err(
                Diagnostic::error("config-value", format!("`dropout_prob` is {p}"))
                    .help("it must be at least 0 and below 1, or None"),
            );
        }
        Ok(())
    }

    fn places<'s>(&self, around: &Surroundings<'_, 's>) -> Result<Vec<Place<'s>>, Diagnostic> {
        let mut out: Vec<Place<'s>> = Vec::new();
        for (name, place) in around.fused {
            let module = place.scope.strip_suffix(name.as_str());
            let Some(module) = module.and_then(|s| s.strip_suffix("adapters.")) else {
                continue;
            };
            let scope = format!("{module}adapter_fusion_layer.{}", around.name);
            if matches!(place.at, At::Sublayer(_)) && out.iter().all(|p| p.scope != scope) {
                out.push(Place {
                    scope,
                    ..place.clone()
                });
            }
        }
        Ok(out)
    }

    fn params(&self, place: &Place<'_>) -> Result<Vec<ParamSpec>, Diagnostic> {
        let At::Sublayer(site) = &place.at else {
            return Ok(Vec::new());
        };
        let d = &Size::new("d", site.width);
        let mut out = Vec::new();
        for (name, wanted) in [("query", self.query), ("key", self.key)] {
            if wanted {
                out.push(ParamSpec::new(
                    format!("{name}.weight"),
                    &[d, d],
                    Init::bert(),
                ));
                out.push(ParamSpec::new(format!("{name}.bias"), &[d], Init::Zeros));
            }
        }
        if self.value {
            let init = if self.value_initialized {
                Init::NearIdentity { beside: 1e-6 }
            } else {
                Init::bert()
            };
            let value = ParamSpec::new("value.weight", &[d, d], init);
            let pull = self.regularization.then_some(REGULARIZATION);
            out.push(ParamSpec {
                to_identity: pull,
                ..value
            });
        }
        if !self.key && !self.query && !self.value {
            // The library makes it, and reads it nowhere.
            let one = &Size::from(1);
            for (name, shape) in [("dense.weight", &[one, d][..]), ("dense.bias", &[one])] {
                out.push(ParamSpec::new(name, shape, Init::linear(d)).idle());
            }
        }
        Ok(out)
    }

    fn step(
        &self,
        place: &Place<'_>,
        _: State,
        _: &Params<'_>,
        _: &BuildCx<'_>,
    ) -> Result<State, Diagnostic> {
        Err(alone(place))
    }

    fn close(
        &self,
        place: &Place<'_>,
        _: State,
        _: &Params<'_>,
        _: &BuildCx<'_>,
    ) -> Result<Val, Diagnostic> {
        Err(alone(place))
    }
}

/// A fusion mixes what adapters make, and makes nothing itself.
fn alone(place: &Place<'_>) -> Diagnostic {
    Diagnostic::error(
        "fusion-alone",
        "an AdapterFusion acts through the `Fuse` of a setup only",
    )
    .at(place.scope.clone())
    .help("name the adapters that it mixes: --active 'Fuse(a, b)'")
}

impl MethodConfig {
    /// The architecture of fusions.
    pub(crate) const FUSION: &str = AdapterFusion::NAME;

    /// The adapters that it mixes, where it is a fusion.
    pub(crate) fn fuses(&self) -> Option<&[String]> {
        match self {
            MethodConfig::AdapterFusion(f) => Some(&f.adapter_names),
            _ => None,
        }
    }

    /// A fusion whose value matrix training pulls towards the identity, or does not.
    #[cfg(test)]
    pub(crate) fn regularised(self, regularization: bool) -> Self {
        match self {
            MethodConfig::AdapterFusion(f) => AdapterFusion {
                regularization,
                ..f
            }
            .into(),
            other => other,
        }
    }

    /// What a fusion makes of what its adapters make; `None` of any other method.
    pub(crate) fn mix(
        &self,
        opened: &Opened,
        ups: &[Val],
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Option<Mixed> {
        match self {
            MethodConfig::AdapterFusion(f) => Some(f.mix(opened, ups, p, cx)),
            _ => None,
        }
    }

    /// A fusion whose temperature training has brought to this.
    #[must_use]
    pub(crate) fn cooled(self, now: f32) -> Self {
        match self {
            MethodConfig::AdapterFusion(f) => AdapterFusion {
                temperature_now: Some(now),
                ..f
            }
            .into(),
            other => other,
        }
    }

    /// A fusion of these adapters, in a model with this dropout of attentions; any other method as it is.
    #[must_use]
    pub(crate) fn fusing(self, adapter_names: Vec<String>, model_dropout: f64) -> Self {
        match self {
            MethodConfig::AdapterFusion(f) => AdapterFusion {
                adapter_names,
                model_dropout,
                ..f
            }
            .into(),
            other => other,
        }
    }
}
