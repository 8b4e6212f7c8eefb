//! Methods: one file for each architecture of AdapterHub, with its configuration, its parameters, its subgraph and its merge.
//!
//! A method sees a [`Place`] (a linear, a sublayer, a layer's output, the embeddings) and says which parameters it has there and how
//! they change what flows. It never sees weights as numbers, a runtime, or other adapters: what flows is a [`State`], which a
//! composition may cut, copy and join between the steps of its children.

pub mod bottleneck;
pub mod lora;
pub mod mtl_lora;
pub mod prefix_tuning;
pub mod prompt_tuning;
pub mod reft;

pub(crate) mod act;
mod invertible;
mod phm;

use super::config::{UnknownKeys, unknown_key};
use super::param::ParamSpec;
use super::place::{BuildCx, Params, Place, State, Surroundings, Tasks};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::{DType, Val};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::fmt::Debug;

/// A named default configuration.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
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

/// An adapter method: the type is its configuration, with AdapterHub's field names.
pub trait Method:
    Clone + PartialEq + Debug + Serialize + DeserializeOwned + schemars::JsonSchema + 'static
{
    /// The value of `architecture`; bottlenecks have no such key.
    const ARCHITECTURE: Option<&'static str>;

    /// Identifiers and their defaults.
    fn presets() -> Vec<Preset>;

    /// Keys that the type does not have.
    fn extra(&self) -> &Map<String, Value>;

    /// Values that cannot work.
    fn validate(&self) -> Result<(), Diagnostic> {
        Ok(())
    }

    /// Whether it can be folded into the base weights.
    fn merges(&self) -> bool {
        false
    }

    /// Whether two configurations of this method can be in one union.
    fn disjoint(&self, _other: &Self) -> bool {
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

    /// Where it attaches, in model order.
    fn places<'s>(&self, _around: &Surroundings<'_, 's>) -> Result<Vec<Place<'s>>, Diagnostic> {
        Err(unavailable::<Self>())
    }

    /// Where it also attaches in models that have such a place, for people: AdapterHub's location key, and what is there.
    fn elsewhere(&self) -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }

    /// Parameters that all its places share.
    fn shared(&self, _places: &[Place<'_>]) -> Result<Vec<ParamSpec>, Diagnostic> {
        Ok(Vec::new())
    }

    /// Parameters of one place.
    fn params(&self, _place: &Place<'_>) -> Result<Vec<ParamSpec>, Diagnostic> {
        Ok(Vec::new())
    }

    /// Applies the adapter to what flows.
    fn step(
        &self,
        _place: &Place<'_>,
        _state: State,
        _p: &Params<'_>,
        _cx: &BuildCx<'_>,
    ) -> Result<State, Diagnostic> {
        Err(unavailable::<Self>())
    }

    /// Parameters that the tasks of a `MultiTask` setup have together, by their names inside the module: AdapterHub's
    /// `share_parameters`.
    fn task_shared(&self) -> &'static [&'static str] {
        &[]
    }

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

    /// Ends the place, after the last step: the value that replaces what the place had, in the base model's element type.
    fn close(
        &self,
        _place: &Place<'_>,
        _state: State,
        _p: &Params<'_>,
        _cx: &BuildCx<'_>,
    ) -> Result<Val, Diagnostic> {
        Err(unavailable::<Self>())
    }

    /// The base weight and bias with the adapter folded in, or taken out of a weight that it was folded into.
    fn merge(
        &self,
        _place: &Place<'_>,
        _p: &Params<'_>,
        _cx: &BuildCx<'_>,
        _fold: Fold,
    ) -> Result<Merged, Diagnostic> {
        let name = Self::ARCHITECTURE.unwrap_or("bottleneck");
        Err(Diagnostic::error(
            "merge",
            format!("`{name}` has no form that could be folded into the base weights"),
        )
        .help("keep the adapter attached"))
    }
}

fn unavailable<M: Method>() -> Diagnostic {
    let name = M::ARCHITECTURE.unwrap_or("bottleneck");
    Diagnostic::error(
        "method-unavailable",
        format!("`{name}` cannot be attached by this version"),
    )
    .help("its configuration can be read, written and hashed")
}

/// A preset of any method.
fn preset(name: &'static str, make: fn() -> MethodConfig) -> Preset {
    Preset { name, make }
}

macro_rules! methods {
    ($($module:ident::$name:ident),* $(,)?) => {
        /// The configuration of one method.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(missing_docs, reason = "the configuration types are documented")]
        pub enum MethodConfig {
            $($name($module::$name)),*
        }

        $(impl From<$module::$name> for MethodConfig {
            fn from(m: $module::$name) -> Self {
                MethodConfig::$name(m)
            }
        })*

        impl MethodConfig {
            /// All identifiers.
            pub fn presets() -> impl Iterator<Item = Preset> {
                [$(<$module::$name as Method>::presets()),*].into_iter().flatten()
            }

            /// The value of `architecture`; `None` for bottlenecks.
            pub fn architecture(&self) -> Option<&'static str> {
                match self { $(MethodConfig::$name(_) => $module::$name::ARCHITECTURE),* }
            }

            /// The dictionary that the library's `to_dict` gives.
            pub fn to_dict(&self) -> Value {
                let value = match self { $(MethodConfig::$name(m) => serde_json::to_value(m)),* };
                value.unwrap_or(Value::Null)
            }

            /// Reads the dictionary form; `architecture` decides the type.
            pub fn from_dict(value: &Value, unknown: UnknownKeys) -> Result<Self> {
                let architecture = value.get("architecture").and_then(Value::as_str);
                $(if architecture == $module::$name::ARCHITECTURE {
                    return read::<$module::$name>(value, unknown).map(MethodConfig::$name);
                })*
                let known: Vec<&str> = [$($module::$name::ARCHITECTURE),*].into_iter().flatten().collect();
                let found = architecture.unwrap_or_default();
                Err(Error::new(
                    ErrorKind::Method,
                    Diagnostic::error("architecture", format!("`{found}` is not a known architecture"))
                        .help(format!("known are {}, and none for bottlenecks", known.join(", "))),
                ))
            }

            /// Keys that the type does not have.
            pub fn extra(&self) -> &Map<String, Value> {
                match self { $(MethodConfig::$name(m) => m.extra()),* }
            }

            /// Values that cannot work.
            pub fn validate(&self) -> Result<(), Diagnostic> {
                match self { $(MethodConfig::$name(m) => m.validate()),* }
            }

            /// Whether it can be folded into the base weights.
            pub fn merges(&self) -> bool {
                match self { $(MethodConfig::$name(m) => m.merges()),* }
            }

            /// The method's file, whose head documents it.
            pub(crate) fn source(&self) -> &'static str {
                match self { $(MethodConfig::$name(_) => include_str!(concat!(stringify!($module), ".rs"))),* }
            }

            /// The JSON Schema of its fields.
            pub(crate) fn schema(&self) -> Value {
                let schema = match self { $(MethodConfig::$name(_) => schemars::schema_for!($module::$name)),* };
                schema.to_value()
            }

            /// Whether two configurations can be in one union.
            pub(crate) fn disjoint(&self, other: &Self) -> bool {
                match (self, other) {
                    $((MethodConfig::$name(a), MethodConfig::$name(b)) => a.disjoint(b),)*
                    _ => true,
                }
            }

            /// Whether it works inside the core of attentions, which a fused operator hides.
            pub fn opens_attention(&self) -> bool {
                match self { $(MethodConfig::$name(m) => m.opens_attention()),* }
            }

            /// `init_weights_seed`.
            pub(crate) fn seed(&self) -> Option<i64> {
                match self { $(MethodConfig::$name(m) => m.seed()),* }
            }

            /// Element type of the parameters.
            pub(crate) fn dtype(&self) -> Result<DType, Diagnostic> {
                match self { $(MethodConfig::$name(m) => m.dtype()),* }
            }

            /// Where it attaches, in model order.
            pub(crate) fn places<'s>(&self, around: &Surroundings<'_, 's>) -> Result<Vec<Place<'s>>, Diagnostic> {
                match self { $(MethodConfig::$name(m) => m.places(around)),* }
            }

            /// Where it also attaches in models that have such a place.
            pub(crate) fn elsewhere(&self) -> Vec<(&'static str, &'static str)> {
                match self { $(MethodConfig::$name(m) => m.elsewhere()),* }
            }

            /// Parameters that all its places share.
            pub(crate) fn shared(&self, places: &[Place<'_>]) -> Result<Vec<ParamSpec>, Diagnostic> {
                match self { $(MethodConfig::$name(m) => m.shared(places)),* }
            }

            /// Parameters of one place.
            pub(crate) fn params(&self, place: &Place<'_>) -> Result<Vec<ParamSpec>, Diagnostic> {
                match self { $(MethodConfig::$name(m) => m.params(place)),* }
            }

            pub(crate) fn step(&self, place: &Place<'_>, state: State, p: &Params<'_>, cx: &BuildCx<'_>) -> Result<State, Diagnostic> {
                match self { $(MethodConfig::$name(m) => m.step(place, state, p, cx)),* }
            }

            /// Parameters that the tasks of a `MultiTask` setup have together.
            pub(crate) fn task_shared(&self) -> &'static [&'static str] {
                match self { $(MethodConfig::$name(m) => m.task_shared()),* }
            }

            /// Applies several configurations of one method at once; `None` where they are of several, or the method cannot.
            pub(crate) fn step_tasks(configs: &[&Self], state: State, tasks: &Tasks<'_>, cx: &BuildCx<'_>) -> Result<Option<State>, Diagnostic> {
                match configs.first() {
                    None => Ok(None),
                    $(Some(MethodConfig::$name(_)) => {
                        let same: Option<Vec<_>> = configs
                            .iter()
                            .map(|c| if let MethodConfig::$name(m) = c { Some(m) } else { None })
                            .collect();
                        same.map_or(Ok(None), |all| <$module::$name as Method>::step_tasks(&all, state, tasks, cx))
                    })*
                }
            }

            pub(crate) fn close(&self, place: &Place<'_>, state: State, p: &Params<'_>, cx: &BuildCx<'_>) -> Result<Val, Diagnostic> {
                match self { $(MethodConfig::$name(m) => m.close(place, state, p, cx)),* }
            }

            pub(crate) fn merge(&self, place: &Place<'_>, p: &Params<'_>, cx: &BuildCx<'_>, fold: Fold) -> Result<Merged, Diagnostic> {
                match self { $(MethodConfig::$name(m) => m.merge(place, p, cx, fold)),* }
            }
        }
    };
}

methods! {
    bottleneck::Bottleneck,
    lora::Lora,
    mtl_lora::MtlLora,
    reft::Reft,
    prefix_tuning::PrefixTuning,
    prompt_tuning::PromptTuning,
}

fn read<M: Method>(value: &Value, unknown: UnknownKeys) -> Result<M> {
    let mut value = value.clone();
    // The library writes no `architecture` for bottlenecks, but some tools write null.
    if M::ARCHITECTURE.is_none()
        && let Value::Object(map) = &mut value
    {
        map.shift_remove("architecture");
    }
    let method: M = serde_json::from_value(value.clone()).map_err(|e| {
        let found = wrong_fields::<M>(&value);
        if found.is_empty() {
            let finding = Diagnostic::error("config-value", e.to_string());
            return Error::new(ErrorKind::Method, finding);
        }
        Error::many(ErrorKind::Method, found)
    })?;
    if unknown == UnknownKeys::Refuse
        && let Some(key) = method.extra().keys().next()
    {
        let all = match serde_json::to_value(&method) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        };
        let known: Vec<&str> = all
            .keys()
            .filter(|k| !method.extra().contains_key(*k))
            .map(String::as_str)
            .collect();
        let of = M::ARCHITECTURE.unwrap_or("bottleneck");
        return Err(unknown_key(key, of, known.iter().copied()));
    }
    Ok(method)
}

/// The fields whose values have the wrong type: each is put alone into a configuration that is right.
fn wrong_fields<M: Method>(value: &Value) -> Vec<Diagnostic> {
    let right = M::presets().first().map(|p| (p.make)().to_dict());
    let (Value::Object(fields), Some(Value::Object(right))) = (value, right) else {
        return Vec::new();
    };
    let schema = schemars::schema_for!(M).to_value();
    let mut found = Vec::new();
    for (name, v) in fields {
        let mut alone = right.clone();
        alone.insert(name.clone(), v.clone());
        if serde_json::from_value::<M>(Value::Object(alone)).is_ok() {
            continue;
        }
        let property = &schema["properties"][name];
        let finding = Diagnostic::error("config-value", format!("`{name}` is {v}"));
        let about = property["description"].as_str().unwrap_or_default();
        let finding = match about.lines().next() {
            Some(line) => finding.note(line.to_owned()),
            None => finding,
        };
        found.push(finding.help(match wanted(property, &schema, 0) {
            Some(text) => format!("it takes {text}"),
            None => "`rewrite adapter show METHOD` lists the fields with their defaults".to_owned(),
        }));
    }
    found
}

/// What a field takes, by its schema, in the words of a configuration string.
fn wanted(property: &Value, schema: &Value, depth: usize) -> Option<String> {
    const MAX_DEPTH: usize = 4;
    if depth > MAX_DEPTH {
        return None;
    }
    let inner = |p: &Value| wanted(p, schema, depth + 1);
    if let Some(target) = property["$ref"].as_str() {
        return inner(schema.pointer(target.strip_prefix('#')?)?);
    }
    if let Some(all) = property["anyOf"]
        .as_array()
        .or(property["oneOf"].as_array())
    {
        let all: Option<Vec<String>> = all.iter().map(inner).collect();
        return all.map(|a| a.join(", or "));
    }
    if let Some(all) = property["type"].as_array() {
        let one = |t: &Value| {
            let mut p = property.clone();
            p["type"] = t.clone();
            inner(&p)
        };
        let all: Option<Vec<String>> = all.iter().map(one).collect();
        return all.map(|a| a.join(", or "));
    }
    Some(match property["type"].as_str()? {
        "integer" => match property["minimum"].as_i64() {
            Some(least) => format!("a whole number, {least} or more"),
            None => "a whole number".into(),
        },
        "number" => "a number".into(),
        "boolean" => "True or False".into(),
        "string" => "a text in quotes".into(),
        "null" => "None".into(),
        "array" => match inner(&property["items"]) {
            Some(items) => format!("a list, each of it {items}"),
            None => "a list".into(),
        },
        "object" => "a map such as {'0': 8, 'default': 16}".into(),
        _ => return None,
    })
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
