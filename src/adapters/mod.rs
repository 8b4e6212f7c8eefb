//! Adapters: AdapterHub's methods, their configurations, parameters and files.
//!
//! Nothing here knows candle, protobuf or how a graph is edited: a method says which parameters it has at a [`Place`](place::Place) and
//! builds nodes there; [`rewrite::passes`](crate::rewrite::passes) puts them into a model.

pub(crate) mod config;
pub(crate) mod docs;
mod files;
pub(crate) mod heads;
pub(crate) mod manifest;
pub(crate) mod methods;
pub(crate) mod plan;
pub(crate) mod summary;

pub(crate) use files::{
    average, base, card, folder, onnx_adapter, peft, spec, stacked, target, torch,
};
pub(crate) use plan::{naming, param, place};

use files::store;
use methods::MethodConfig;
use plan::setup;

pub use config::Config;
pub(crate) use config::{UnknownKeys, fusion_identifiers, identifiers, presets};
pub use folder::{AdapterFolder, Meta, WriteOptions};
pub use naming::Route;
pub use setup::Setup;
pub use spec::Spec;
pub use store::{AdapterStore, Param};

pub(crate) use average::{AverageOptions, Combine, average};
pub(crate) use files::weighted::{Weighting, weighted};
pub(crate) use manifest::{Choice, choice, usually_trained, whole_row_adapters};
pub(crate) use store::{Weights, convert, param_stamps};

use crate::error::Result;
use crate::select::{Family, Interface};

/// An adapter to be attached: fresh, or with the weights of a file.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Its name: part of its parameters' names.
    pub name: String,
    /// Its configuration.
    pub config: Config,
    /// How the library integrated it. It decides names, and in a few places what is computed.
    pub(crate) route: Route,
    /// Its weights; without, it gets initial values.
    pub(crate) weights: Option<Weights>,
    /// The base model that its file names.
    pub(crate) base: base::Base,
    /// What its file says besides.
    pub(crate) meta: Option<Meta>,
    /// What of it can contradict a model.
    pub(crate) target: target::Target,
    /// Whether it may be attached to another base model than the one that it was made for.
    pub allow_other_base: bool,
}

impl Adapter {
    /// A fresh adapter of the first family of methods that an interface lists, named like its configuration.
    ///
    /// # Errors
    /// A family that is not known.
    pub fn default_of(interface: &Interface) -> Result<Self> {
        let listed = interface.fields.adapter_methods.first();
        let family = match listed {
            None => Some(Family::Bottleneck),
            Some(word) => Family::of(word),
        };
        let presets = || MethodConfig::presets().map(|p| (p.name, (p.make)()));
        let found = presets().find(|(_, m)| family.is_some() && m.family() == family);
        match (found, listed) {
            (Some((name, method)), _) => Ok(Adapter::fresh(name, method.into())),
            (None, word) => {
                let name = word.map_or("", |w| w.as_str());
                Ok(Adapter::fresh(name, Config::parse(name)?))
            }
        }
    }

    /// A fresh adapter with initial values.
    pub fn fresh(name: impl Into<String>, config: Config) -> Self {
        Adapter {
            name: name.into(),
            config,
            route: Route::Plugin,
            weights: None,
            meta: None,
            base: base::Base::default(),
            target: target::Target::default(),
            allow_other_base: false,
        }
    }
}

/// What an adapter method is made of: to write one of your own.
pub mod method {
    pub use super::methods::{Fold, Merged, Method};
    pub use super::param::{Init, ParamSpec, Size};
    pub use super::place::{At, BuildCx, Params, Place, State, SublayerSite, Surroundings};
}
