//! What a graph says of its head: the configuration, classes among it, as part of the manifest. So a file that was written knows the
//! names of its classes, and its head is written again with its adapter.
//!
//! Values are not repeated: they are parameters of the graph.

use super::HeadConfig;
use super::files::{Head, SavedHead, StaticHead};
use crate::adapters::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::{Graph, TensorData};
use crate::select::Selection;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// One head of a graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Noted {
    /// Its name: that of its adapter.
    pub name: String,
    /// Whether its adapter is part of the weights, which it was trained with.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub merged: bool,
    /// What it is.
    #[serde(flatten)]
    pub kind: Kind,
}

/// Where a head's parameters are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Its own, of a flexible head: the configuration.
    Flexible(Value),
    /// Among its adapter's, in modules of a Transformers class.
    Static(Modules),
}

/// A head of a Transformers class, without values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Modules {
    class: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    num_labels: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label2id: Option<BTreeMap<String, i64>>,
    /// Names of its parameters.
    weights: Vec<Box<str>>,
    /// Second names of some, with the first ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<(Box<str>, Box<str>)>,
    /// Their names among the adapter's own.
    keys: Vec<Box<str>>,
    /// The adapter's configuration without it.
    adapter: Value,
}

impl Noted {
    /// A flexible head.
    pub(crate) fn flexible(head: &Head) -> Noted {
        Noted {
            name: head.name.clone(),
            merged: head.base.merged,
            kind: Kind::Flexible(head.config.to_note()),
        }
    }

    /// A head among the parameters of an adapter, whose configuration without it is `own`.
    pub(crate) fn joined(head: &StaticHead, own: &Config) -> Noted {
        Noted {
            name: head.name.clone(),
            merged: false,
            kind: Kind::Static(Modules {
                class: head.class.clone(),
                num_labels: head.num_labels,
                label2id: head.label2id.clone(),
                weights: head.weights.keys().cloned().collect(),
                aliases: head.aliases.clone(),
                keys: head.keys.iter().cloned().collect(),
                adapter: own.to_dict(),
            }),
        }
    }

    /// The head, with what the graph has for values; an adapter's own come from its store.
    ///
    /// # Errors
    /// A configuration that is not understood.
    pub(crate) fn head(&self, selection: &Selection, graph: &Graph) -> Result<SavedHead> {
        let modules = match &self.kind {
            Kind::Flexible(config) => {
                let config = HeadConfig::from_file(config.clone());
                let config = config.map_err(|d| Error::new(ErrorKind::Method, d))?;
                return Ok(SavedHead::Flexible(Head::fresh(&self.name, config)));
            }
            Kind::Static(modules) => modules,
        };
        let value = |name: &str| {
            let mut sites = selection.parameters.iter();
            let site = sites.find(|p| format!("{}.{}", p.module, p.name) == name);
            site.and_then(|p| super::join::stored(p, graph))
        };
        let absent = || TensorData::from_f32([0], &[]);
        let weights = modules.weights.iter();
        let weights = weights.map(|n| (n.clone(), value(n).unwrap_or_else(absent)));
        Ok(SavedHead::Static(StaticHead {
            name: self.name.clone(),
            class: modules.class.clone(),
            num_labels: modules.num_labels,
            label2id: modules.label2id.clone(),
            weights: weights.collect(),
            aliases: modules.aliases.clone(),
            keys: modules.keys.iter().cloned().collect(),
        }))
    }

    /// The configuration of its adapter without it, where it is part of that.
    pub(crate) fn adapter(&self) -> Option<&Value> {
        match &self.kind {
            Kind::Flexible(_) => None,
            Kind::Static(modules) => Some(&modules.adapter),
        }
    }

    /// Whether its parameters are stamped as a head's.
    pub(crate) fn is_flexible(&self) -> bool {
        matches!(self.kind, Kind::Flexible(_))
    }

    /// Names of its classes, in the order of their ids.
    pub(crate) fn classes(&self) -> Option<Vec<String>> {
        let ids: BTreeMap<String, i64> = match &self.kind {
            Kind::Flexible(config) => serde_json::from_value(config["label2id"].clone()).ok()?,
            Kind::Static(modules) => modules.label2id.clone()?,
        };
        let mut names: Vec<(i64, String)> = ids.into_iter().map(|(n, i)| (i, n)).collect();
        names.sort_unstable();
        Some(names.into_iter().map(|(_, name)| name).collect())
    }

    /// What it is, in a word: the type of a flexible head, or the class that has it.
    pub(crate) fn word(&self) -> &str {
        match &self.kind {
            Kind::Flexible(config) => config["head_type"].as_str().unwrap_or_default(),
            Kind::Static(modules) => &modules.class,
        }
    }
}
