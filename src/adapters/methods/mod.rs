//! Methods: one file for each architecture of AdapterHub, with its configuration, its parameters, its subgraph and its merge.
//!
//! A method sees a [`Place`] (a linear, a sublayer, a layer's output, the embeddings) and says which parameters it has there and how
//! they change what flows. It never sees weights as numbers, a runtime, or other adapters: what flows is a [`State`], which a
//! composition may cut, copy and join between the steps of its children.
//!
//! [`Method`] is what every method says of itself, also one of another crate ([`MethodConfig::Custom`]); [`Known`] is what those of
//! this folder say besides, so that they can be read from files and strings.

pub(crate) mod bottleneck;
pub(crate) mod detail;
pub(crate) mod fusion;
pub(crate) mod lora;
pub(crate) mod mtl_lora;
pub(crate) mod prefix_tuning;
pub(crate) mod prompt_tuning;
pub(crate) mod reft;

pub(crate) mod act;
mod read;
mod thirds;
mod weight;

use super::config::keys::UnknownKeys;
use super::param::ParamSpec;
use super::place::{BuildCx, Exchanged, Params, Place, Stacking, State, Surroundings, Tasks};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::{DType, Val};
use crate::select::Family;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::fmt::Debug;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

/// A named default configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preset {
    /// AdapterHub's identifier.
    pub name: &'static str,
    /// Makes it.
    pub make: fn() -> MethodConfig,
}

/// What merging into the base weight gives.
#[derive(Clone, Copy, Debug)]
pub struct Merged {
    /// The new weight, in the axes of the stored one.
    pub weight: Val,
    /// The new bias, where it changes.
    pub bias: Option<Val>,
    /// What was added to the weight, where that is all: an adapter that stands behind this one goes on from it.
    pub change: Option<Val>,
}

impl Merged {
    /// A weight that is not only added to.
    pub(crate) fn product(weight: Val, bias: Option<Val>) -> Self {
        Merged {
            weight,
            bias,
            change: None,
        }
    }
}

/// Which way an adapter goes in relation to the base weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fold {
    /// Into it: the library's `merge_adapter`.
    #[default]
    In,
    /// Out of it again: the library's `reset_adapter`. The weight comes back up to rounding.
    Out,
}

/// An adapter method: a value of the type is one configuration of it.
pub trait Method: Debug + Send + Sync {
    /// Its name, which its configurations carry as `architecture`.
    fn name(&self) -> &'static str;

    /// The value of `architecture` in its dictionary.
    fn architecture(&self) -> Option<&'static str> {
        Some(self.name())
    }

    /// The dictionary form of the configuration: the library's `to_dict`.
    fn to_dict(&self) -> Value;

    /// Values that cannot work.
    fn validate(&self) -> Result<(), Diagnostic> {
        Ok(())
    }

    /// Whether it reads what an adapter in front of it made at the same place; `None` where adapters there do not add to each other.
    fn chains(&self, _place: &Place<'_>) -> Option<bool> {
        None
    }

    /// Why what its file says has no effect in the library that wrote it, in a model of this type.
    fn idle_in(&self, _model_type: &str) -> Option<Diagnostic> {
        None
    }

    /// Whether no other adapter can stand in a stack with it at the same place.
    fn stands_alone(&self) -> bool {
        false
    }

    /// Whether it can be folded into the base weights.
    fn merges(&self) -> bool {
        false
    }

    /// `init_weights_seed`.
    fn seed(&self) -> Option<i64> {
        None
    }

    /// Element type of the parameters.
    fn dtype(&self) -> Result<DType, Diagnostic> {
        Ok(DType::Float)
    }

    /// Whether it works inside the core of attentions, which a fused operator hides.
    fn opens_attention(&self) -> bool {
        false
    }

    /// Whether it adapts the projections of attentions, which a fused operator may take in.
    fn adapts_projections(&self) -> bool {
        false
    }

    /// Why its effect on a position depends on the whole sequence, where it does: then neither a cache of earlier positions nor rows
    /// that are filled up give what the sequence alone gives.
    fn reads_whole_rows(&self) -> Option<&'static str> {
        None
    }

    /// Whether it chooses modules by their own names, and not by what they are for.
    fn names_modules(&self) -> bool {
        false
    }

    /// Where it attaches, in model order.
    fn places<'s>(&self, around: &Surroundings<'_, 's>) -> Result<Vec<Place<'s>>, Diagnostic>;

    /// Where it also attaches in models that have such a place, for people: AdapterHub's location key, and what is there.
    fn elsewhere(&self) -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }

    /// Parameters that all its places share.
    fn shared(&self, _places: &[Place<'_>]) -> Result<Vec<ParamSpec>, Diagnostic> {
        Ok(Vec::new())
    }

    /// Parameters of one place.
    fn params(&self, place: &Place<'_>) -> Result<Vec<ParamSpec>, Diagnostic>;

    /// Notes on how this configuration computes at its places, where people may expect something else.
    fn notes(&self, _around: &Surroundings<'_, '_>, _places: &[Place<'_>]) -> Vec<Diagnostic> {
        Vec::new()
    }

    /// Applies the adapter to what flows.
    fn step(
        &self,
        place: &Place<'_>,
        state: State,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<State, Diagnostic>;

    /// What an adapter behind it reads, where a composition has ended the place with `closed`; `None` where that cannot be told.
    fn reopen(
        &self,
        _place: &Place<'_>,
        _state: State,
        _closed: Val,
        _cx: &BuildCx<'_>,
    ) -> Option<State> {
        None
    }

    /// Parameters that the tasks of a `MultiTask` setup have together, by their names inside the module: AdapterHub's
    /// `share_parameters`.
    fn task_shared(&self) -> &'static [&'static str] {
        &[]
    }

    /// Ends the place, after the last step: the value that replaces what the place had, in the base model's element type.
    fn close(
        &self,
        place: &Place<'_>,
        state: State,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Val, Diagnostic>;

    /// The base weight and bias with the adapter folded in, or taken out of a weight that it was folded into; `below` is what the
    /// adapters in front of it add to the weight.
    fn merge(
        &self,
        _place: &Place<'_>,
        _p: &Params<'_>,
        _cx: &BuildCx<'_>,
        _fold: Fold,
        _below: Option<Val>,
    ) -> Result<Merged, Diagnostic> {
        let name = self.name();
        Err(Diagnostic::error(
            "merge",
            format!("`{name}` has no form that could be folded into the base weights"),
        )
        .help("keep the adapter attached"))
    }
}

/// A method of this library: the type is its configuration, with AdapterHub's field names.
pub(crate) trait Known:
    Method + Clone + PartialEq + Serialize + DeserializeOwned + schemars::JsonSchema + 'static
{
    /// Its [`name`](Method::name).
    const NAME: &'static str;

    /// Its file, whose head documents it.
    const SOURCE: &'static str;

    /// Whether dictionaries carry the name as `architecture`.
    const KEYED: bool = true;

    /// Whether it mixes what other adapters make, and cannot act alone.
    const FUSES: bool = false;

    /// Identifiers and their defaults.
    fn presets() -> Vec<Preset>;

    /// What interfaces call its family.
    fn family(&self) -> Family;

    /// Keys that the type does not have.
    fn extra(&self) -> &Map<String, Value>;

    /// Whether two configurations of this method can be in one union.
    fn disjoint(&self, _other: &Self) -> bool {
        false
    }

    /// What a fusion mixes of it; `None` where the library cannot mix adapters of the method.
    fn fusible(&self) -> Option<&dyn Fusible> {
        None
    }

    /// What it has in common with others of its method at the place, where the parameters of many are stacked.
    ///
    /// # Errors
    /// Why they cannot be.
    fn stacking(&self, place: &Place<'_>) -> Result<Stacking<Self>, &'static str>;

    /// The adapter at the place as a running model exchanges it for others of its method, made of its parameters.
    ///
    /// # Errors
    /// Why it has no such form.
    fn exchanged(
        &self,
        place: &Place<'_>,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Exchanged<Self>, &'static str>;

    /// Applies several adapters of this method at once, to each sample its own. `None` where the method cannot: then each is applied
    /// to all samples, and what a sample needs is taken.
    fn step_tasks(
        _configs: &[&Self],
        _state: State,
        _tasks: &Tasks<'_>,
        _cx: &BuildCx<'_>,
    ) -> Result<Option<State>, Diagnostic> {
        Ok(None)
    }
}

/// A method whose adapters `AdapterFusion` mixes.
pub(crate) trait Fusible {
    /// What enters the adapters of a fusion, by the configuration of this one.
    fn open(&self, place: &Place<'_>, state: State, cx: &BuildCx<'_>)
    -> Result<Opened, Diagnostic>;

    /// What the adapter makes of `h`, scaled: in front of its dropout, gate, norm and residual.
    fn branch(&self, h: Val, p: &Params<'_>, cx: &BuildCx<'_>) -> Val;
}

/// What enters the adapters of a fusion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opened {
    /// What they read.
    pub(crate) h: Val,
    /// The same before residual and norm.
    pub(crate) before: Val,
    /// What is added behind them.
    pub(crate) residual: Val,
}

/// A preset of any method.
fn preset(name: &'static str, make: fn() -> MethodConfig) -> Preset {
    Preset { name, make }
}

macro_rules! methods {
    ($($module:ident::$name:ident),* $(,)?) => {
        /// The configuration of one method. What it says is said by [`Method`], which it stands for.
        #[derive(Clone, Debug)]
        pub(crate) enum MethodConfig {
            $($name($module::$name),)*
            /// A method of another crate.
            Custom(Arc<dyn Method>),
        }

        $(impl From<$module::$name> for MethodConfig {
            fn from(m: $module::$name) -> Self {
                MethodConfig::$name(m)
            }
        })*

        impl Deref for MethodConfig {
            type Target = dyn Method;

            fn deref(&self) -> &Self::Target {
                match self {
                    $(MethodConfig::$name(m) => m,)*
                    MethodConfig::Custom(m) => &**m,
                }
            }
        }

        impl PartialEq for MethodConfig {
            fn eq(&self, other: &Self) -> bool {
                match (self, other) {
                    $((MethodConfig::$name(a), MethodConfig::$name(b)) => a == b,)*
                    (MethodConfig::Custom(a), MethodConfig::Custom(b)) => {
                        a.name() == b.name() && a.to_dict() == b.to_dict()
                    }
                    _ => false,
                }
            }
        }

        impl MethodConfig {
            /// All identifiers of adapters.
            pub(crate) fn presets() -> impl Iterator<Item = Preset> {
                Self::all_presets().filter(|(fuses, _)| !fuses).map(|(_, p)| p)
            }

            /// All identifiers of what mixes adapters.
            pub(crate) fn fusions() -> impl Iterator<Item = Preset> {
                Self::all_presets().filter(|(fuses, _)| *fuses).map(|(_, p)| p)
            }

            fn all_presets() -> impl Iterator<Item = (bool, Preset)> {
                let all = [$((<$module::$name as Known>::FUSES, <$module::$name as Known>::presets())),*];
                all.into_iter().flat_map(|(fuses, presets)| presets.into_iter().map(move |p| (fuses, p)))
            }

            /// What a fusion mixes of it, if it can.
            pub(crate) fn fusible(&self) -> Option<&dyn Fusible> {
                match self {
                    $(MethodConfig::$name(m) => <$module::$name as Known>::fusible(m),)*
                    MethodConfig::Custom(_) => None,
                }
            }

            /// What it has in common with others of its method at the place.
            pub(crate) fn stacking(&self, place: &Place<'_>) -> Result<Stacking<Self>, &'static str> {
                match self {
                    $(MethodConfig::$name(m) => {
                        let found = <$module::$name as Known>::stacking(m, place)?;
                        Ok(Stacking { common: found.common.into(), detail: found.detail, factor: found.factor })
                    })*
                    MethodConfig::Custom(_) => Err("a method of another crate does not say how its parameters are stacked"),
                }
            }

            /// The adapter at the place as a running model exchanges it.
            pub(crate) fn exchanged(
                &self,
                place: &Place<'_>,
                p: &Params<'_>,
                cx: &BuildCx<'_>,
            ) -> Result<Exchanged<Self>, &'static str> {
                match self {
                    $(MethodConfig::$name(m) => {
                        let found = <$module::$name as Known>::exchanged(m, place, p, cx)?;
                        let Exchanged { config, detail, own, shared } = found;
                        Ok(Exchanged { config: config.into(), detail, own, shared })
                    })*
                    MethodConfig::Custom(_) => Err("a method of another crate does not say how it is exchanged"),
                }
            }

            /// Values of `architecture` that this library knows.
            fn architectures() -> impl Iterator<Item = &'static str> {
                let all = [$(<$module::$name as Known>::KEYED.then_some(<$module::$name as Known>::NAME)),*];
                all.into_iter().flatten()
            }

            /// Reads the dictionary form; `architecture` decides the type.
            ///
            /// # Errors
            /// An architecture that is not known, or fields that the type does not have or take.
            pub(crate) fn from_dict(value: &Value, unknown: UnknownKeys) -> Result<Self> {
                let architecture = value.get("architecture").and_then(Value::as_str);
                $(if architecture == <$module::$name as Known>::KEYED.then_some(<$module::$name as Known>::NAME) {
                    return read::read::<$module::$name>(value, unknown).map(MethodConfig::$name);
                })*
                let known: Vec<&str> = Self::architectures().collect();
                let found = architecture.unwrap_or_default();
                Err(Error::new(
                    ErrorKind::Method,
                    Diagnostic::error("architecture", format!("`{found}` is not a known architecture"))
                        .help(format!("known are {}, and none for bottlenecks", known.join(", "))),
                ))
            }

            /// What interfaces call its family; `None` for a method of another crate.
            pub(crate) fn family(&self) -> Option<Family> {
                match self {
                    $(MethodConfig::$name(m) => Some(m.family()),)*
                    MethodConfig::Custom(_) => None,
                }
            }

            /// The method's file, whose head documents it.
            pub(crate) fn source(&self) -> &'static str {
                match self {
                    $(MethodConfig::$name(_) => <$module::$name as Known>::SOURCE,)*
                    MethodConfig::Custom(_) => "",
                }
            }

            /// The JSON Schema of its fields.
            pub(crate) fn schema(&self) -> &'static Value {
                match self {
                    $(MethodConfig::$name(_) => {
                        static SCHEMA: LazyLock<Value> =
                            LazyLock::new(|| schemars::schema_for!($module::$name).to_value());
                        &SCHEMA
                    })*
                    MethodConfig::Custom(_) => &Value::Null,
                }
            }

            /// Fields of its dictionary that the type does not have.
            pub(crate) fn extra(&self) -> Vec<String> {
                match self {
                    $(MethodConfig::$name(m) => m.extra().keys().cloned().collect(),)*
                    MethodConfig::Custom(_) => Vec::new(),
                }
            }

            /// Whether two configurations can be in one union.
            pub(crate) fn disjoint(&self, other: &Self) -> bool {
                match (self, other) {
                    $((MethodConfig::$name(a), MethodConfig::$name(b)) => a.disjoint(b),)*
                    (MethodConfig::Custom(a), MethodConfig::Custom(b)) => a.name() != b.name(),
                    _ => true,
                }
            }

            /// Applies several configurations of one method at once; `None` where they are of several, or the method cannot.
            pub(crate) fn step_tasks(configs: &[&Self], state: State, tasks: &Tasks<'_>, cx: &BuildCx<'_>) -> Result<Option<State>, Diagnostic> {
                match configs.first() {
                    None | Some(MethodConfig::Custom(_)) => Ok(None),
                    $(Some(MethodConfig::$name(_)) => {
                        let same: Option<Vec<_>> = configs
                            .iter()
                            .map(|c| if let MethodConfig::$name(m) = c { Some(m) } else { None })
                            .collect();
                        same.map_or(Ok(None), |all| <$module::$name as Known>::step_tasks(&all, state, tasks, cx))
                    })*
                }
            }
        }
    };
}

methods! {
    bottleneck::Bottleneck,
    fusion::AdapterFusion,
    lora::Lora,
    mtl_lora::MtlLora,
    reft::Reft,
    prefix_tuning::PrefixTuning,
    prompt_tuning::PromptTuning,
}

impl MethodConfig {
    /// Names of the fields that a dictionary may have: those that are written always, then those that are written where they are set.
    pub(crate) fn fields(&self) -> Vec<String> {
        let names = |v: &Value| match v {
            Value::Object(map) => map.keys().cloned().collect(),
            _ => Vec::new(),
        };
        let mut out: Vec<String> = names(&self.to_dict());
        for name in names(&self.schema()["properties"]) {
            if !out.contains(&name) {
                out.push(name);
            }
        }
        out
    }

    /// Whether a dictionary is of a method that this library knows.
    pub(crate) fn knows(dict: &Value) -> bool {
        match dict["architecture"].as_str() {
            None => true,
            Some(name) => Self::architectures().any(|a| a == name),
        }
    }
}

/// The reason of gates for [`Method::reads_whole_rows`].
const GATE: &str = "a gate is the mean over all positions of a row";

/// A configuration type as the dictionary that it is written as.
fn dict(config: &impl Serialize) -> Value {
    serde_json::to_value(config).unwrap_or(Value::Null)
}

/// `dtype` of a configuration: a torch name, or none for `f32`.
fn torch_dtype(name: Option<&str>) -> Result<DType, Diagnostic> {
    Ok(match name {
        None | Some("float32" | "float") => DType::Float,
        Some("bfloat16") => DType::Bfloat16,
        Some("float16" | "half") => DType::Float16,
        Some("float64" | "double") => DType::Double,
        Some(other) => {
            return Err(Diagnostic::error("dtype", format!("`dtype` is `{other}`"))
                .help("use float32, bfloat16, float16 or null"));
        }
    })
}
