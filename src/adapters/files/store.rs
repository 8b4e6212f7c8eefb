//! Parameters as data: what is saved, loaded and trained.

use crate::adapters::heads::{is_head_key, owner};
use crate::adapters::manifest::Manifest;
use crate::adapters::naming::{belongs, modern, of_any, renamed};
use crate::adapters::param::decays;
use crate::adapters::stacked::unstacked;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::contract::stamp;
use crate::ir::{DType, Metadata, Model, TensorData};
use indexmap::{IndexMap, IndexSet};
use std::collections::BTreeSet;

/// The module of what all places of an adapter share.
const SHARED: &str = "shared_parameters.";

/// One parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// The adapter it belongs to.
    pub adapter: Box<str>,
    /// Shape and elements.
    pub tensor: TensorData,
    /// Whether training changes it.
    pub trainable: bool,
    /// Whether nothing reads it, although the library makes it and calls it trained.
    pub idle: bool,
    /// Whether AdamW decays it.
    pub decay: bool,
    /// Weight of its squared distance from the identity, which training adds to the loss.
    pub to_identity: Option<f32>,
    /// Further names that it has in files.
    pub aliases: Vec<Box<str>>,
}

/// Parameters by name, in the order of the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterStore {
    params: IndexMap<Box<str>, Param>,
}

impl AdapterStore {
    /// The parameters of the adapters that are attached to a model.
    pub(crate) fn from_model(model: &Model) -> Self {
        let g = &model.graph;
        let mut params = IndexMap::new();
        let tenants = Manifest::read(model).ok().and_then(|m| m.tenants);
        let tenants = tenants.map(|t| t.names).unwrap_or_default();
        for &v in g.initializers() {
            let value = g.value(v);
            if let (Some(tensor), Some(rows)) = (&value.tensor, value.metadata.get(stamp::ROWS)) {
                let rows = unstacked(tensor, rows, &tenants);
                params.extend(rows.into_iter().map(|(name, p)| (name.into(), p)));
                continue;
            }
            let (Some(tensor), Some(param)) =
                (&value.tensor, read_param(&value.name, &value.metadata))
            else {
                continue;
            };
            let tensor = tensor.clone();
            params.insert(value.name.clone(), Param { tensor, ..param });
        }
        AdapterStore { params }
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.params.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.params.is_empty()
    }

    /// Parameters in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Param)> {
        self.params.iter().map(|(k, p)| (&**k, p))
    }

    /// Names of the parameters that are trained, in order.
    pub(crate) fn trainable(&self) -> Vec<String> {
        let trained = self.iter().filter(|(_, p)| p.trainable);
        trained.map(|(name, _)| name.to_owned()).collect()
    }

    /// Freezes the parameters of all adapters but these; heads stay as they are. The first of the names that nothing here has.
    pub(crate) fn train_only(&mut self, adapters: &[String]) -> Option<String> {
        let has = |name: &&String| self.params.values().any(|p| *p.adapter == **name);
        let unknown = adapters.iter().find(|n| !has(n)).cloned();
        for p in self.params.values_mut() {
            if !is_head(p) && !adapters.iter().any(|n| *n == *p.adapter) {
                p.trainable = false;
            }
        }
        unknown
    }

    /// Names of the adapters that have parameters here, heads apart, in order.
    pub(crate) fn adapters(&self) -> Vec<&str> {
        let mut out: Vec<&str> = Vec::new();
        for p in self.params.values() {
            if !is_head(p) && !out.contains(&&*p.adapter) {
                out.push(&p.adapter);
            }
        }
        out
    }

    /// What is trained, in order: names of adapters, and heads whose adapters are frozen.
    pub(crate) fn trained(&self) -> Vec<String> {
        let trained = || self.params.values().filter(|p| p.trainable);
        let adapters = trained().filter(|p| !is_head(p));
        let adapters: IndexSet<&str> = adapters.map(|p| &*p.adapter).collect();
        let mut out: Vec<String> = adapters.iter().map(|name| (*name).to_owned()).collect();
        let heads = trained().filter_map(|p| p.adapter.strip_prefix(&*owner("")));
        let heads: IndexSet<&str> = heads.filter(|name| !adapters.contains(name)).collect();
        out.extend(heads.iter().map(|name| format!("the head of {name}")));
        out
    }

    /// A parameter.
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.params.get(name)
    }

    /// Adds or replaces a parameter.
    pub(crate) fn insert(&mut self, name: &str, param: Param) {
        self.params.insert(name.into(), param);
    }

    /// Gives a parameter other elements, of the same shape and type.
    pub fn set(&mut self, name: &str, tensor: TensorData) -> Result<()> {
        let Some(p) = self.params.get_mut(name) else {
            return Err(Error::new(
                ErrorKind::Method,
                Diagnostic::error("param", format!("there is no parameter `{name}`")),
            ));
        };
        if p.tensor.dims != tensor.dims || p.tensor.dtype != tensor.dtype {
            return Err(Error::new(
                ErrorKind::Method,
                misshapen(name, &p.tensor, &tensor),
            ));
        }
        p.tensor = tensor;
        Ok(())
    }

    /// Those of one adapter, with those that it has together with others.
    #[must_use]
    pub fn of(&self, adapter: &str) -> AdapterStore {
        let concerns =
            |p: &Param| &*p.adapter == adapter || p.aliases.iter().any(|a| belongs(a, adapter));
        let params = self.params.iter().filter(|(_, p)| concerns(p));
        AdapterStore {
            params: params.map(|(k, p)| (k.clone(), p.clone())).collect(),
        }
    }

    /// Makes two parameters one: `name` is gone, and a further name of `kept`.
    pub(crate) fn unite(&mut self, kept: &str, name: &str) {
        let Some(gone) = self.params.shift_remove(name) else {
            return;
        };
        if let Some(p) = self.params.get_mut(kept) {
            p.aliases.push(name.into());
            p.aliases.extend(gone.aliases);
        }
    }

    /// Number of elements.
    pub fn count(&self) -> u64 {
        let elements = self.params.values().filter_map(|p| p.tensor.count());
        elements.sum()
    }

    /// All tensors under all their names, as files hold them.
    pub(crate) fn tensors(&self) -> IndexMap<Box<str>, TensorData> {
        let mut out = IndexMap::new();
        for (name, p) in &self.params {
            out.insert(name.clone(), p.tensor.clone());
            out.extend(p.aliases.iter().map(|a| (a.clone(), p.tensor.clone())));
        }
        out
    }

    /// The tensors of one adapter under the names that its file has for them.
    pub(crate) fn tensors_of(&self, adapter: &str) -> IndexMap<Box<str>, TensorData> {
        let mut out = self.of(adapter).tensors();
        out.retain(|name, _| belongs(name, adapter));
        out
    }

    /// Takes the elements from a file's tensors: all or nothing. Missing, unknown and misshapen names are listed together.
    pub(crate) fn load(&mut self, file: &Weights) -> Result<Loaded> {
        let mut found = Vec::new();
        let mut unshared: Vec<&str> = Vec::new();
        let mut taken = Vec::with_capacity(self.params.len());
        let mut expected: Vec<&str> = Vec::new();
        for (name, p) in &self.params {
            expected.push(name);
            expected.extend(p.aliases.iter().map(|a| &**a));
            let names = std::iter::once(name).chain(&p.aliases);
            let Some(tensor) = names.into_iter().find_map(|n| file.tensors.get(n)) else {
                if name.contains(SHARED) {
                    unshared.push(name);
                } else {
                    found.push(missing(name, p));
                }
                continue;
            };
            let mut copies = p
                .aliases
                .iter()
                .filter_map(|n| Some((n, file.tensors.get(n)?)));
            let other = copies.find(|(_, t)| t.dims == tensor.dims && t.bytes() != tensor.bytes());
            if let Some((copy, _)) = other {
                found.push(not_one(name, copy));
                continue;
            }
            match conform(tensor, &p.tensor) {
                Some(tensor) if !finite(&tensor) => found.push(not_finite(name)),
                Some(tensor) => taken.push(tensor),
                None => found.push(misshapen(name, &p.tensor, tensor)),
            }
        }
        expected.sort_unstable();
        let mut beside = Vec::new();
        for name in file.tensors.keys() {
            if expected.binary_search(&&**name).is_ok() {
                continue;
            }
            if belongs(name, &file.adapter) {
                found.push(
                    Diagnostic::error("weights-extra", format!("`{name}` is in the file, and nothing in the configuration or the model asks for it"))
                        .help("the file belongs to another configuration, or to another model"),
                );
            } else {
                beside.push(name.clone());
            }
        }
        if !unshared.is_empty() {
            found.push(missing_shared(&unshared));
        }
        if !found.is_empty() {
            return Err(Error::many(ErrorKind::Method, found));
        }
        for (p, tensor) in self.params.values_mut().zip(taken) {
            p.tensor = tensor;
        }
        Ok(Loaded { beside })
    }
}

/// Whether a parameter belongs to a head.
fn is_head(p: &Param) -> bool {
    p.adapter.starts_with(&*owner(""))
}

/// Whether a tensor holds numbers alone: no NaN, nothing infinite.
fn finite(tensor: &TensorData) -> bool {
    let values = tensor.dtype.is_float().then(|| tensor.to_f32()).flatten();
    values.is_none_or(|v| v.iter().all(|x| x.is_finite()))
}

fn not_finite(name: &str) -> Diagnostic {
    let found = format!("`{name}` holds values that are not finite");
    Diagnostic::error("weights-finite", found)
        .help("the training that made the file went wrong: take an earlier checkpoint")
}

/// What a file had beside the adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// Names of tensors that are no part of the adapter. They are not used.
    pub beside: Vec<Box<str>>,
}

impl Loaded {
    /// A warning for each kind of tensor beside the adapter `name`: a head's, another adapter's, or nothing that is known.
    pub(crate) fn said(&self, name: &str) -> Vec<Diagnostic> {
        let of = |kind: Beside| {
            let keys = self.beside.iter().filter(|k| Beside::of(k) == kind);
            let keys: Vec<String> = keys.map(|k| format!("`{k}`")).collect();
            let (first, rest) = keys.split_at_checked(3).unwrap_or((&keys, &[]));
            let more = if rest.is_empty() {
                String::new()
            } else {
                format!(", and {} more", rest.len())
            };
            (!keys.is_empty()).then(|| format!("{}{more}", first.join(", ")))
        };
        let found = |kind: Beside| {
            let keys = of(kind)?;
            let (code, what, help) = match kind {
                Beside::Head => (
                    "head-ignored",
                    "weights of a head",
                    "they are not used: a head is read from `head_config.json` and its own file of weights",
                ),
                Beside::Adapter => (
                    "weights-beside",
                    "weights of another adapter",
                    "they are not used: each adapter is saved in a folder of its own",
                ),
                Beside::Unknown => (
                    "weights-beside",
                    "tensors that are no part of an adapter or of a head",
                    "they are not used; the Adapters library does not write such a file: save it again from there",
                ),
            };
            let message = format!("the file of `{name}` also holds {what}: {keys}");
            Some(Diagnostic::warning(code, message).help(help))
        };
        [Beside::Head, Beside::Adapter, Beside::Unknown]
            .into_iter()
            .filter_map(found)
            .collect()
    }
}

/// What a tensor in an adapter's file is that is not the adapter's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// Part of a prediction head, flexible or of a Transformers class.
    Head,
    /// Part of another adapter.
    Adapter,
    /// Neither.
    Unknown,
}

impl Beside {
    fn of(key: &str) -> Beside {
        if of_any(key) {
            Beside::Adapter
        } else if is_head_key(key) {
            Beside::Head
        } else {
            Beside::Unknown
        }
    }
}

/// Tensors of a file, under the names of the exported model's state dict.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Weights {
    /// Name of the adapter in the keys.
    pub adapter: Box<str>,
    /// The tensors.
    pub tensors: IndexMap<Box<str>, TensorData>,
}

impl Weights {
    /// The tensors of a file, whose keys have the adapter's name `saved`. Keys of the library's first versions are modernised.
    pub(crate) fn new(
        saved: &str,
        tensors: impl IntoIterator<Item = (Box<str>, TensorData)>,
    ) -> Self {
        let tensors = tensors.into_iter().map(|(k, t)| (modern(&k).into(), t));
        Weights {
            adapter: saved.into(),
            tensors: tensors.collect(),
        }
    }

    /// The same tensors for an adapter of another name.
    #[must_use]
    pub(crate) fn renamed(self, name: &str) -> Self {
        let old = self.adapter;
        let tensors = self
            .tensors
            .into_iter()
            .map(|(k, t)| (renamed(&k, &old, name).into(), t));
        Weights {
            adapter: name.into(),
            tensors: tensors.collect(),
        }
    }

    /// The same tensors under the paths that the names in `expected` have: a model with a head writes `model.layers.…` or
    /// `bert.encoder.…`, a bare base model `layers.…`, a model that holds this one as a part `model.language_model.layers.…`. Names that
    /// fit already are left alone; a change of path is made only if every name that it concerns fits then.
    #[must_use]
    pub(crate) fn fitted<'a>(self, expected: impl IntoIterator<Item = &'a str>) -> Self {
        let mut open: BTreeSet<&str> = expected.into_iter().collect();
        let keys = self.tensors.keys().map(|k| &**k);
        let mut own: BTreeSet<&str> = keys.filter(|k| belongs(k, &self.adapter)).collect();
        let fit: Vec<&str> = own.intersection(&open).copied().collect();
        for name in fit {
            own.remove(name);
            open.remove(name);
        }
        let mut changes: IndexMap<Box<str>, Box<str>> = IndexMap::new();
        while let Some((drop, add)) = own.iter().find_map(|have| change_of(have, &open)) {
            let concerned = own.iter().filter(|k| k.starts_with(drop));
            let moved: Vec<(&str, String)> = concerned
                .map(|k| (*k, format!("{add}{}", &k[drop.len()..])))
                .filter(|(_, new)| open.contains(new.as_str()))
                .collect();
            for (old, new) in moved {
                own.remove(old);
                open.remove(new.as_str());
                changes.insert(old.into(), new.into());
            }
        }
        if changes.is_empty() {
            return self;
        }
        let tensors = self.tensors.into_iter();
        let tensors = tensors.map(|(k, t)| (changes.get(&k).cloned().unwrap_or(k), t));
        Weights {
            tensors: tensors.collect(),
            adapter: self.adapter,
        }
    }

    /// Whether a parameter has, or lies in, a scope that is given without the base model's prefix:
    /// `layers.0.self_attn.o_proj.loras.NAME`.
    pub(crate) fn has(&self, scope: &str) -> bool {
        self.tensors.keys().any(|k| {
            let bounds = |at: usize| matches!(k.as_bytes().get(at), None | Some(b'.'));
            let mut found = k.match_indices(scope);
            found.any(|(at, _)| (at == 0 || bounds(at - 1)) && bounds(at + scope.len()))
        })
    }
}

/// The path to drop at the front of `have` and the one to put there instead, so that it becomes one of `wanted`. What stays holds the
/// list of layers and a number in it, or is all of the shorter one.
fn change_of<'h, 'w>(have: &'h str, wanted: &BTreeSet<&'w str>) -> Option<(&'h str, &'w str)> {
    let dots = have.match_indices('.').map(|(at, _)| at + 1);
    let starts: Vec<usize> = std::iter::once(0).chain(dots).collect();
    let is_number = |at: &usize| {
        let part = have[*at..].split('.').next();
        part.is_some_and(|p| p.parse::<usize>().is_ok())
    };
    let layer = starts.iter().position(is_number).unwrap_or(0);
    // The longest end that both have.
    starts.iter().enumerate().find_map(|(i, at)| {
        let tail = &have[*at..];
        let found = wanted.iter().find(|w| {
            w.strip_suffix(tail).is_some_and(|front| {
                let whole = front.is_empty() || i == 0;
                (front.is_empty() || front.ends_with('.')) && (whole || i < layer)
            })
        })?;
        Some((&have[..*at], &found[..found.len() - tail.len()]))
    })
}

/// The tensor in the type that the model wants, if its shape is right.
fn conform(tensor: &TensorData, want: &TensorData) -> Option<TensorData> {
    if tensor.dims != want.dims {
        return None;
    }
    if tensor.dtype == want.dtype {
        return Some(tensor.clone());
    }
    convert(tensor, want.dtype)
}

/// Conversion between float types.
pub(crate) fn convert(tensor: &TensorData, to: DType) -> Option<TensorData> {
    if tensor.dtype == to {
        return Some(tensor.clone());
    }
    let values = tensor.to_f32()?;
    let bytes: Vec<u8> = match to {
        DType::Float => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::Double => values
            .iter()
            .flat_map(|x| f64::from(*x).to_le_bytes())
            .collect(),
        DType::Float16 => values
            .iter()
            .flat_map(|x| crate::ir::f32_to_f16(*x).to_le_bytes())
            .collect(),
        DType::Bfloat16 => values
            .iter()
            .flat_map(|x| crate::ir::f32_to_bf16(*x).to_le_bytes())
            .collect(),
        _ => return None,
    };
    Some(TensorData::raw(to, tensor.dims.clone(), bytes.into()))
}

fn missing(name: &str, p: &Param) -> Diagnostic {
    Diagnostic::error(
        "weights-missing",
        format!("`{name}` {:?} is not in the file", p.tensor.dims),
    )
    .help("the file belongs to another configuration, or to another model")
}

/// What all places of an adapter share: the library does not write it from a model whose base is the model itself, and makes new
/// random values when it reads such a file.
fn missing_shared(names: &[&str]) -> Diagnostic {
    let list: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
    Diagnostic::error(
        "weights-shared",
        format!("the file lacks what all places share: {}", list.join(", ")),
    )
    .note("the Adapters library leaves these out when it saves from a model without a head, so the trained adapter is not whole")
    .help("save it again from a model with a head, or add `model.shared_parameters` to the file under these names")
}

/// Several modules of the library hold one parameter, and save it each.
fn not_one(name: &str, copy: &str) -> Diagnostic {
    Diagnostic::error(
        "weights-differ",
        format!("`{name}` and `{copy}` are one parameter, and the file has other values for each"),
    )
    .help("the file was changed by hand, or written by something else than the Adapters library: save it again from there")
}

fn misshapen(name: &str, want: &TensorData, found: &TensorData) -> Diagnostic {
    Diagnostic::error(
        "weights-shape",
        format!(
            "`{name}` is {} {:?}, expected {} {:?}",
            found.dtype, found.dims, want.dtype, want.dims
        ),
    )
    .help("the file belongs to another configuration, or to another model")
}

/// The stamps of a parameter.
pub(crate) fn param_stamps(param: &Param) -> Metadata {
    let mut m = Metadata::default();
    m.insert(stamp::ADAPTER.into(), param.adapter.clone());
    let kind = match (param.trainable, param.idle) {
        (true, _) => "trainable",
        (false, true) => "idle",
        (false, false) => "frozen",
    };
    m.insert(stamp::PARAM.into(), kind.into());
    if let Some(weight) = param.to_identity {
        m.insert(stamp::TO_IDENTITY.into(), weight.to_string().into());
    }
    if !param.aliases.is_empty() {
        m.insert(stamp::ALIASES.into(), param.aliases.join(",").into());
    }
    m
}

fn read_param(name: &str, metadata: &Metadata) -> Option<Param> {
    let adapter = metadata.get(stamp::ADAPTER)?.clone();
    let kind = metadata.get(stamp::PARAM)?;
    let aliases = metadata.get(stamp::ALIASES);
    Some(Param {
        adapter,
        tensor: TensorData::from_f32([0], &[]),
        trainable: &**kind == "trainable",
        idle: &**kind == "idle",
        decay: decays(name),
        to_identity: metadata
            .get(stamp::TO_IDENTITY)
            .and_then(|w| w.parse().ok()),
        aliases: aliases
            .into_iter()
            .flat_map(|a| a.split(','))
            .map(Into::into)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_beside_an_adapter_is_called_what_it_is() {
        let names = |all: &[&str]| all.iter().map(|n| (*n).into()).collect();
        let loaded = Loaded {
            beside: names(&[
                "heads.a.1.weight",
                "model.layers.0.mlp.loras.b.lora_A",
                "model.norm.weight",
                "score.weight",
            ]),
        };
        let said: Vec<String> = loaded.said("a").iter().map(|d| d.message.clone()).collect();
        assert_eq!(
            said,
            [
                "the file of `a` also holds weights of a head: `heads.a.1.weight`, `score.weight`",
                "the file of `a` also holds weights of another adapter: `model.layers.0.mlp.loras.b.lora_A`",
                "the file of `a` also holds tensors that are no part of an adapter or of a head: `model.norm.weight`",
            ]
        );
    }
}
