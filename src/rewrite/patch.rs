//! The only public editor of a graph.
//!
//! A patch is a fragment of new nodes plus edits of the old graph. Nothing is written before the last check has passed: every handle
//! is live, every new name is free, removed nodes have no remaining use.

use crate::ir::{
    Body, Builder, Fragment, Graph, GraphPort, InfoEntry, Metadata, Model, NodeId, OrderKey, Spot,
    TensorData, Type, Use, Val, ValueId,
};
use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};

/// Which readers of a value a redirect concerns. Readers that the same patch adds are never concerned, so that `y ← y + f(x)` does
/// not feed itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uses {
    /// All readers, and the graph output if the value is one. The output's name moves to the replacement.
    All,
    /// Only these readers.
    Only(Vec<Use>),
}

#[derive(Clone, Debug)]
enum Edit {
    Redirect {
        old: ValueId,
        new: Val,
        uses: Uses,
    },
    RemoveNode(NodeId),
    RemoveValue(ValueId),
    AddOutput {
        value: Val,
        name: Box<str>,
        ty: Option<Type>,
    },
    RemoveOutput(ValueId),
    Forget(Vec<ValueId>),
    OutputType {
        value: ValueId,
        ty: Option<Type>,
    },
    Rename {
        value: Val,
        name: Box<str>,
    },
    SetTensor {
        value: ValueId,
        tensor: TensorData,
    },
    ModelMetadata {
        key: Box<str>,
        value: Option<Box<str>>,
    },
    Import {
        domain: Box<str>,
        version: i64,
    },
    Stamp {
        node: NodeId,
        key: Box<str>,
        value: Box<str>,
    },
    SetBody {
        body: Body,
        inner: Box<Graph>,
        captured: Vec<Val>,
    },
}

/// A set of edits that is applied as a whole or not at all.
#[derive(Debug)]
pub struct Patch {
    why: String,
    anchor: Option<NodeId>,
    builder: Builder,
    edits: Vec<Edit>,
}

/// Why a patch cannot be applied. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// A handle names a node or value that is gone.
    #[error("{why}: a handle is stale")]
    Stale {
        /// The patch.
        why: String,
    },
    /// A new name exists already.
    #[error("{why}: the name `{name}` is taken")]
    NameTaken {
        /// The patch.
        why: String,
        /// The name.
        name: Box<str>,
    },
    /// A node or value to be removed is still read.
    #[error("{why}: `{name}` cannot be removed, `{reader}` reads it")]
    StillUsed {
        /// The patch.
        why: String,
        /// The value.
        name: Box<str>,
        /// A node that reads it, or `graph output`.
        reader: Box<str>,
    },
}

/// What a committed patch made.
#[derive(Clone, Debug)]
pub struct Applied {
    values: Vec<ValueId>,
    /// Number of nodes added.
    pub added: usize,
    /// Number of nodes removed.
    pub removed: usize,
}

impl Applied {
    /// The graph's handle of a value of the patch.
    pub fn value(&self, v: Val) -> ValueId {
        match v {
            Val::Old(id) => id,
            Val::New(ix) => self.values[ix as usize],
        }
    }
}

impl Patch {
    /// An empty patch. `why` is shown in reports and errors; new nodes are placed behind `anchor`, or at the end without one.
    pub(crate) fn new(model: &Model, why: impl Into<String>, anchor: Option<NodeId>) -> Self {
        let builder = Builder::new(model.opset("").unwrap_or(17));
        Patch {
            why: why.into(),
            anchor,
            builder,
            edits: Vec::new(),
        }
    }

    /// The builder of this patch's new nodes.
    pub fn builder(&self) -> &Builder {
        &self.builder
    }

    /// Readers of `old` read `new` from now on.
    pub fn redirect(&mut self, old: ValueId, new: Val, uses: Uses) {
        self.edits.push(Edit::Redirect { old, new, uses });
    }

    /// Removes a node and its outputs; nothing that stays may read them.
    pub fn remove_node(&mut self, node: NodeId) {
        self.edits.push(Edit::RemoveNode(node));
    }

    /// Removes an initializer or another value without producer; nothing that stays may read it.
    pub(crate) fn remove_value(&mut self, value: ValueId) {
        self.edits.push(Edit::RemoveValue(value));
    }

    /// Makes a value a graph output of this name. A value that has another name already is renamed.
    pub fn add_output(&mut self, value: Val, name: &str, ty: Option<Type>) {
        self.edits.push(Edit::AddOutput {
            value,
            name: name.into(),
            ty,
        });
    }

    /// Gives a value of the patch another name, when the edits before have left it free: that of a value that it replaces.
    pub fn rename(&mut self, value: Val, name: &str) {
        let name = name.into();
        self.edits.push(Edit::Rename { value, name });
    }

    /// Puts a value in the place of a node's output, whose name it is to get when the node is gone: `names` has the values so far. A value of
    /// the graph, or one that is another output too, keeps its name, and a copy of it is put there.
    pub(crate) fn supersede(
        &mut self,
        (old, name): (ValueId, &str),
        new: Val,
        names: &mut Vec<(Val, String)>,
    ) -> Val {
        let taken = !self.is_node_output(new) || names.iter().any(|(n, _)| *n == new);
        let new = if taken {
            self.builder.unary("Identity", new)
        } else {
            new
        };
        self.redirect(old, new, Uses::All);
        names.push((new, name.to_owned()));
        new
    }

    /// Whether a value is made by a new node of this patch.
    pub(crate) fn is_node_output(&self, value: Val) -> bool {
        let Val::New(ix) = value else { return false };
        let fragment = self.builder.peek();
        fragment
            .values
            .get(ix as usize)
            .is_some_and(|v| v.tensor.is_none() && !v.input)
    }

    /// Drops what `value_info` declares of values.
    pub(crate) fn forget(&mut self, values: Vec<ValueId>) {
        self.edits.push(Edit::Forget(values));
    }

    /// Declares another type of a graph output.
    pub(crate) fn output_type(&mut self, value: ValueId, ty: Option<Type>) {
        self.edits.push(Edit::OutputType { value, ty });
    }

    /// A value is no graph output any more; its node stays.
    pub(crate) fn remove_output(&mut self, value: ValueId) {
        self.edits.push(Edit::RemoveOutput(value));
    }

    /// Replaces the constant of an initializer.
    pub fn set_tensor(&mut self, value: ValueId, tensor: TensorData) {
        self.edits.push(Edit::SetTensor { value, tensor });
    }

    /// Sets or removes a `metadata_props` entry of the model.
    pub(crate) fn model_metadata(&mut self, key: &str, value: Option<&str>) {
        self.edits.push(Edit::ModelMetadata {
            key: key.into(),
            value: value.map(Into::into),
        });
    }

    /// Makes sure that a domain is imported; a version that is there already stays.
    pub(crate) fn import(&mut self, domain: &str, version: i64) {
        self.edits.push(Edit::Import {
            domain: domain.into(),
            version,
        });
    }

    /// Makes sure that the domains of all new nodes are imported, as version 1 where they are not yet.
    pub(crate) fn import_domains(&mut self) {
        let mut domains: Vec<Box<str>> = self
            .builder
            .peek()
            .nodes
            .iter()
            .map(|n| n.op.domain.clone())
            .filter(|d| !d.is_empty())
            .collect();
        domains.sort_unstable();
        domains.dedup();
        for d in domains {
            self.import(&d, 1);
        }
    }

    /// All redirects, in order: the value that was read and the one that is read instead.
    pub(super) fn redirects(&self) -> Vec<(ValueId, Val)> {
        self.edits
            .iter()
            .filter_map(|e| {
                if let Edit::Redirect { old, new, .. } = e {
                    Some((*old, *new))
                } else {
                    None
                }
            })
            .collect()
    }

    /// Sets a `metadata_props` entry of a node that is there already.
    pub(crate) fn stamp(&mut self, node: NodeId, key: &str, value: &str) {
        self.edits.push(Edit::Stamp {
            node,
            key: key.into(),
            value: value.into(),
        });
    }

    /// Replaces a graph inside a node. `captured` are the values that it captures, in the order of its captures.
    pub(crate) fn set_body(&mut self, body: Body, inner: Graph, captured: Vec<Val>) {
        self.edits.push(Edit::SetBody {
            body,
            inner: Box::new(inner),
            captured,
        });
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.edits.is_empty() && self.builder.node_count() == 0
    }

    /// Applies the patch. On an error the model is unchanged.
    pub(super) fn apply(self, model: &mut Model) -> Result<Applied, PatchError> {
        self.check(model)?;
        let Patch {
            why,
            anchor,
            builder,
            edits,
        } = self;
        let fragment = builder.finish();
        let g = &mut model.graph;
        let uses_before: FxHashMap<ValueId, Vec<Use>> = edits
            .iter()
            .filter_map(|e| {
                if let Edit::Redirect { old, .. } = e {
                    Some((*old, g.uses(*old)))
                } else {
                    None
                }
            })
            .collect();
        let added = fragment.nodes.len();
        let place = placement(g, anchor, &fragment);
        let values = g
            .insert_fragment(fragment, place)
            .map_err(|e| PatchError::NameTaken {
                why: why.clone(),
                name: e.0,
            })?;
        let mut applied = Applied {
            values,
            added,
            removed: 0,
        };
        // Values in a row go together: each removal passes over all initializers.
        let mut doomed: Vec<ValueId> = Vec::new();
        for edit in edits {
            match edit {
                Edit::RemoveNode(n) => {
                    applied.removed += 1;
                    doomed.extend(model.graph.node_outputs(n).into_iter().flatten());
                    model.graph.remove_node(n);
                }
                Edit::RemoveValue(v) => doomed.push(v),
                edit => {
                    if !doomed.is_empty() {
                        model.graph.remove_values(&std::mem::take(&mut doomed));
                    }
                    apply_edit(model, edit, &applied, &uses_before);
                }
            }
        }
        model.graph.remove_values(&doomed);
        Ok(applied)
    }

    fn check(&self, model: &Model) -> Result<(), PatchError> {
        let g = &model.graph;
        let stale = || PatchError::Stale {
            why: self.why.clone(),
        };
        let live = |v: ValueId| g.get_value(v).map(|_| ()).ok_or_else(stale);
        let fragment = self.builder.peek();
        for v in fragment
            .nodes
            .iter()
            .flat_map(|n| n.inputs.iter().flatten().chain(&n.captures))
        {
            if let Val::Old(id) = v {
                live(*id)?;
            }
        }
        let mut names: FxHashSet<&str> = FxHashSet::default();
        for v in &fragment.values {
            if g.find(&v.name).is_some() || !names.insert(&v.name) {
                return Err(PatchError::NameTaken {
                    why: self.why.clone(),
                    name: v.name.clone(),
                });
            }
        }
        let mut removed_nodes = FxHashSet::default();
        let mut moved: FxHashSet<Use> = FxHashSet::default();
        let mut moved_outputs: FxHashSet<ValueId> = FxHashSet::default();
        let mut held: Vec<Val> = Vec::new();
        for e in &self.edits {
            match e {
                Edit::Redirect { old, new, uses } => {
                    live(*old)?;
                    if let Val::Old(id) = new {
                        live(*id)?;
                    }
                    match uses {
                        Uses::All => {
                            moved.extend(g.uses(*old));
                            moved_outputs.insert(*old);
                        }
                        Uses::Only(list) => moved.extend(list.iter().copied()),
                    }
                }
                Edit::RemoveNode(n) => {
                    g.get_node(*n).ok_or_else(stale)?;
                    removed_nodes.insert(*n);
                }
                Edit::Stamp { node, .. } => {
                    g.get_node(*node).ok_or_else(stale)?;
                }
                Edit::SetBody { body, captured, .. } => {
                    body.graph(g).ok_or_else(stale)?;
                    for v in captured {
                        if let Val::Old(id) = v {
                            live(*id)?;
                        }
                    }
                    // What the graph captured before goes with it.
                    let captures = g.node_captures(body.node).len() as u32;
                    moved.extend((0..captures).map(|k| Use::Capture(body.node, k)));
                    held.extend(captured.iter().copied());
                }
                Edit::RemoveOutput(v) => {
                    live(*v)?;
                    moved_outputs.insert(*v);
                }
                Edit::RemoveValue(v)
                | Edit::SetTensor { value: v, .. }
                | Edit::OutputType { value: v, .. } => live(*v)?,
                Edit::AddOutput { .. }
                | Edit::Forget(_)
                | Edit::Rename { .. }
                | Edit::ModelMetadata { .. }
                | Edit::Import { .. } => {}
            }
        }
        let doomed = removed_nodes
            .iter()
            .flat_map(|n| g.node_outputs(*n).into_iter().flatten());
        let dropped = self.edits.iter().filter_map(|e| {
            if let Edit::RemoveValue(v) = e {
                Some(*v)
            } else {
                None
            }
        });
        let read_again: FxHashSet<ValueId> = fragment
            .nodes
            .iter()
            .flat_map(|n| n.inputs.iter().flatten().chain(&n.captures))
            .chain(&held)
            .filter_map(|v| {
                if let Val::Old(id) = v {
                    Some(*id)
                } else {
                    None
                }
            })
            .collect();
        for v in doomed.chain(dropped) {
            let stays = g
                .uses(v)
                .into_iter()
                .find(|u| !removed_nodes.contains(&u.node()) && !moved.contains(u));
            let reader: Option<Box<str>> = match stays {
                Some(u) => Some(g.node(u.node()).name.clone()),
                None if g.is_output(v) && !moved_outputs.contains(&v) => {
                    Some("graph output".into())
                }
                None if read_again.contains(&v) => Some("the patch".into()),
                None => None,
            };
            if let Some(reader) = reader {
                return Err(PatchError::StillUsed {
                    why: self.why.clone(),
                    name: g.value(v).name.clone(),
                    reader,
                });
            }
        }
        Ok(())
    }
}

/// The places of the new nodes: behind their anchor and everything spliced in behind it before.
fn placement(
    g: &Graph,
    anchor: Option<NodeId>,
    fragment: &Fragment,
) -> impl FnMut(&crate::ir::NewNode, u32) -> OrderKey + use<> {
    let behind = |n: NodeId| g.get_node(n).map(|node| node.order().anchor);
    let usual = match anchor.and_then(behind) {
        Some(anchor) => (anchor, g.next_seq(anchor)),
        None => (g.end_anchor(), 0),
    };
    let mut next: FxHashMap<u32, u32> = FxHashMap::default();
    let keys: Vec<OrderKey> = fragment
        .nodes
        .iter()
        .map(|n| {
            let own = match n.spot {
                None => None,
                Some(Spot::Front) => Some(0),
                Some(Spot::Behind(n)) => behind(n),
            };
            let (anchor, first) = own.map_or(usual, |a| (a, g.next_seq(a)));
            let seq = next.entry(anchor).or_insert(first);
            *seq += 1;
            OrderKey {
                anchor,
                seq: *seq - 1,
            }
        })
        .collect();
    move |_, i| keys[i as usize]
}

fn apply_edit(
    model: &mut Model,
    edit: Edit,
    applied: &Applied,
    uses_before: &FxHashMap<ValueId, Vec<Use>>,
) {
    let g = &mut model.graph;
    match edit {
        Edit::Redirect { old, new, uses } => {
            let new = applied.value(new);
            match uses {
                Uses::All => {
                    for u in uses_before.get(&old).into_iter().flatten() {
                        g.set_use(*u, new);
                    }
                    redirect_output(g, old, new);
                }
                Uses::Only(list) => list.into_iter().for_each(|u| g.set_use(u, new)),
            }
        }
        // Removals are gathered by the caller.
        Edit::RemoveNode(_) | Edit::RemoveValue(_) => {}
        Edit::AddOutput { value, name, ty } => {
            let value = applied.value(value);
            // A taken name leaves the value's own name, which is valid ONNX too.
            let _ = g.rename(value, &name);
            g.outputs.push(GraphPort {
                value,
                ty,
                residue: Bytes::new(),
            });
        }
        Edit::Rename { value, name } => {
            // A taken name leaves the value's own name.
            let _ = g.rename(applied.value(value), &name);
        }
        Edit::RemoveOutput(v) => g.outputs.retain(|p| p.value != v),
        Edit::Forget(values) => {
            let gone: FxHashSet<ValueId> = values.iter().copied().collect();
            g.infos
                .retain(|i| !matches!(i, InfoEntry::Value(p) if gone.contains(&p.value)));
            for v in values {
                if let Some(value) = g.value_mut(v) {
                    value.ty = None;
                }
            }
        }
        Edit::OutputType { value, ty } => {
            for port in g.outputs.iter_mut().filter(|p| p.value == value) {
                port.ty.clone_from(&ty);
            }
        }
        Edit::SetTensor { value, tensor } => {
            if let Some(v) = g.value_mut(value) {
                v.tensor = Some(tensor);
            }
        }
        Edit::ModelMetadata { key, value } => set(&mut model.metadata, key, value),
        Edit::Stamp { node, key, value } => {
            if let Some(node) = g.node_mut(node) {
                set(&mut node.metadata, key, Some(value));
            }
        }
        Edit::SetBody {
            body,
            inner,
            captured,
        } => {
            let captured: Vec<ValueId> = captured.iter().map(|v| applied.value(*v)).collect();
            g.set_body(&body, *inner, &captured);
        }
        Edit::Import { domain, version } => {
            if model.opset(&domain).is_none() {
                model.opset_imports.push((domain, version));
            }
        }
    }
}

/// A graph output's name is public: the replacement takes it over, and the inner value takes the replacement's.
fn redirect_output(g: &mut Graph, old: ValueId, new: ValueId) {
    if !g.is_output(old) {
        return;
    }
    let (public, inner) = (g.name_of(old).to_owned(), g.name_of(new).to_owned());
    let swap = format!("{public}\u{0}");
    let renamed = g
        .rename(old, &swap)
        .and_then(|()| g.rename(new, &public))
        .and_then(|()| g.rename(old, &inner));
    debug_assert!(renamed.is_ok(), "the three names are the two values' own");
    for port in &mut g.outputs {
        if port.value == old {
            port.value = new;
        }
    }
}

fn set(map: &mut Metadata, key: Box<str>, value: Option<Box<str>>) {
    match value {
        Some(v) => {
            map.insert(key, v);
        }
        None => {
            map.shift_remove(&key);
        }
    }
}
