//! Places that the interface's `graph` names outright, by node or value name. They override every other witness.

use super::record::Record;
use super::scene::{Scene, site};
use crate::analyze::columns;
use crate::analyze::norm::Norms;
use crate::diag::{Diagnostic, nearest};
use crate::ir::{NodeId, ValueId};
use crate::select::field::Field;
use crate::select::modules::{Witness, join};
use crate::select::site::{AttentionSite, Decision, Layer, LinearSite, NormSite, Role};
use rustc_hash::FxHashMap;

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
enum Named {
    Node(NodeId),
    Value(ValueId),
}

struct Names<'a> {
    nodes: FxHashMap<&'a str, NodeId>,
    norms: Norms,
}

/// Puts what `graph` names into the layers.
pub(super) struct Explicit<'s> {
    pub(super) scene: &'s Scene<'s>,
    pub(super) record: &'s mut Record,
}

impl Explicit<'_> {
    /// Applies `graph` to the layers; returns what does not fit.
    pub(super) fn apply(&mut self, layers: &mut [Layer]) -> Vec<Diagnostic> {
        let graph = self.scene.interface.fields.graph.clone();
        if graph.is_empty() {
            return Vec::new();
        }
        let named = self
            .scene
            .view
            .order
            .iter()
            .map(|n| (&*self.scene.view.node(*n).name, *n));
        let names = Names {
            nodes: named.filter(|(name, _)| !name.is_empty()).collect(),
            norms: Norms::new(self.scene.view),
        };
        let mut findings = Vec::new();
        for (field, wanted) in &graph {
            if field.starts_with("x-")
                || field.starts_with("model_")
                || field == "output_embeddings"
            {
                continue;
            }
            for layer in layers.iter_mut() {
                let Some(name) = wanted.get(layer.index) else {
                    continue;
                };
                match self.set(&names, layer, field, &name) {
                    Ok(Some(value)) => self.note(layer, field, value),
                    Ok(None) => {}
                    Err(why) => {
                        findings.push(self.misnamed(field, &name, &why, layer.index, &names));
                    }
                }
            }
        }
        findings
    }

    fn note(&mut self, layer: &Layer, field: &str, value: ValueId) {
        let tail = field.strip_prefix("layer_cross_attn.").unwrap_or(field);
        let known = Field::of(tail).filter(|f| *f != Field::LayerOutput);
        let known = known.unwrap_or(Field::Layer);
        for ((_, f, _), miss) in &mut self.record.misses {
            if f.name() == tail {
                miss.found(layer.index);
            }
        }
        self.record.decisions.push(Decision {
            layer: Some(layer.index),
            field: known,
            path: layer.path.clone(),
            value,
            witness: Witness::Explicit,
        });
    }

    fn misnamed(
        &self,
        field: &str,
        name: &str,
        why: &str,
        layer: usize,
        names: &Names<'_>,
    ) -> Diagnostic {
        let mut d = Diagnostic::error(
            "select-graph-name",
            format!("`graph.{field}` = \"{name}\" {why}"),
        )
        .at(format!(
            "{}, interface.graph.{field}, layer {layer}",
            self.scene.interface.source
        ));
        let values = self
            .scene
            .view
            .graph
            .values()
            .map(|v| self.scene.view.graph.name_of(v));
        if let Some(near) = nearest(name, values.chain(names.nodes.keys().copied())) {
            d = d.note(format!("nearest: {near}"));
        }
        d.help("names are those of nodes or values, as `rewrite print` shows them")
    }

    fn find(&self, names: &Names<'_>, name: &str) -> Result<Named, String> {
        let node = names.nodes.get(name).copied().map(Named::Node);
        let value = self.scene.view.graph.find(name).map(Named::Value);
        node.or(value)
            .ok_or_else(|| "names neither a node nor a value".to_owned())
    }

    fn value(&self, named: Named, enters: bool) -> Result<ValueId, String> {
        match named {
            Named::Value(v) => Ok(v),
            Named::Node(n) if enters => {
                let inputs = self.scene.view.inputs(n).into_iter().flatten();
                inputs
                    .into_iter()
                    .find(|v| self.scene.view.is_flow(*v))
                    .ok_or_else(|| "reads no hidden state".to_owned())
            }
            Named::Node(n) => self
                .scene
                .view
                .graph
                .output(n, 0)
                .ok_or_else(|| "makes nothing".to_owned()),
        }
    }

    fn explicit_linear(
        &self,
        named: Named,
        role: Role,
        path: String,
    ) -> Result<LinearSite, String> {
        let node = match named {
            Named::Node(n) => Some(n),
            Named::Value(v) => self.scene.view.producer(v),
        };
        let at = node
            .and_then(|n| self.scene.linears.of(n))
            .ok_or("is no linear")?;
        Ok(site(role, path.into(), &self.scene.linears.all[at]))
    }

    fn explicit_norm(
        &self,
        names: &Names<'_>,
        named: Named,
        path: String,
    ) -> Result<NormSite, String> {
        let found = match named {
            Named::Value(v) => names.norms.making(self.scene.view, v),
            Named::Node(n) => names.norms.all.iter().find(|norm| norm.nodes.contains(&n)),
        };
        let norm = found.ok_or("is no normalisation")?;
        let input = norm
            .input
            .ok_or("normalises a sum that is no value of the graph")?;
        Ok(NormSite {
            path: path.into(),
            nodes: norm.nodes.clone(),
            input,
            output: norm.output,
            kind: norm.kind,
        })
    }

    fn set(
        &self,
        names: &Names<'_>,
        layer: &mut Layer,
        field: &str,
        name: &str,
    ) -> Result<Option<ValueId>, String> {
        let named = self.find(names, name)?;
        let (container, tail) = match field.split_once('.') {
            Some(("layer_cross_attn", tail)) => (true, tail),
            _ => (false, field),
        };
        let Some(tail) = Field::of(tail) else {
            return Ok(None);
        };
        let relative = tail.path(&self.scene.interface.fields, layer.stack);
        let path = join(&layer.path, relative.unwrap_or(tail.name()));
        let role = Role::ALL
            .into_iter()
            .find(|r| r.field() == tail && *r != Role::Head);
        if let Some(role) = role {
            return self
                .set_linear(layer, role, container, named, &path)
                .map(Some);
        }
        let value = match tail {
            Field::LayerPreSelfAttn
            | Field::LayerPreCrossAttn
            | Field::LayerPreFfn
            | Field::Layer => self.value(named, true)?,
            Field::LayerLn1 | Field::LayerLn2 | Field::LayerLnCross => {
                let norm = self.explicit_norm(names, named, path)?;
                let value = norm.output;
                match tail {
                    Field::LayerLn1 => layer.ln_1 = Some(norm),
                    Field::LayerLn2 => layer.ln_2 = Some(norm),
                    _ => layer.ln_cross = Some(norm),
                }
                return Ok(Some(value));
            }
            _ => self.value(named, false)?,
        };
        match tail {
            Field::LayerPreSelfAttn => layer.pre_self_attn = Some(value),
            Field::LayerPreCrossAttn => layer.pre_cross_attn = Some(value),
            Field::LayerPreFfn => layer.pre_ffn = Some(value),
            Field::Layer => layer.input = value,
            Field::LayerOutput => layer.output = value,
            Field::LayerSelfAttn => attention(&mut layer.self_attn, &path, value).output = value,
            Field::LayerCrossAttn => attention(&mut layer.cross_attn, &path, value).output = value,
            _ => return Ok(None),
        }
        Ok(Some(value))
    }

    fn set_linear(
        &self,
        layer: &mut Layer,
        role: Role,
        cross: bool,
        named: Named,
        path: &str,
    ) -> Result<ValueId, String> {
        let f = &self.scene.interface.fields;
        let module = if cross {
            &f.layer_cross_attn
        } else {
            &f.layer_self_attn
        };
        let outer = join(&layer.path, module.get(layer.stack).unwrap_or_default());
        let in_attention = !matches!(
            role,
            Role::Intermediate | Role::Gate | Role::Output | Role::Head | Role::Linear
        );
        let path = if in_attention {
            let tail = path.get(layer.path.len() + 1..).unwrap_or(path);
            join(&outer, tail)
        } else {
            path.to_owned()
        };
        let site = self.explicit_linear(named, role, path)?;
        let value = site.output;
        let slot = if cross {
            &mut layer.cross_attn
        } else {
            &mut layer.self_attn
        };
        match role {
            Role::Query => attention(slot, &outer, value).q = Some(site),
            Role::Key => attention(slot, &outer, value).k = Some(site),
            Role::Value => attention(slot, &outer, value).v = Some(site),
            Role::Qkv => {
                let a = attention(slot, &outer, value);
                a.qkv_layout = Some(columns::layout(self.scene.view, site.output, site.d_out));
                a.qkv = Some(site);
            }
            Role::AttentionOutput => {
                let a = attention(slot, &outer, value);
                a.output = value;
                a.o = Some(site);
            }
            Role::Intermediate => layer.intermediate = Some(site),
            Role::Gate => layer.gate_proj = Some(site),
            Role::Output => layer.output_proj = Some(site),
            Role::Head | Role::Linear => {}
        }
        Ok(value)
    }
}

fn attention<'s>(
    slot: &'s mut Option<AttentionSite>,
    path: &str,
    output: ValueId,
) -> &'s mut AttentionSite {
    slot.get_or_insert_with(|| AttentionSite {
        fed: None,
        path: path.into(),
        q: None,
        k: None,
        v: None,
        qkv: None,
        qkv_layout: None,
        o: None,
        output,
    })
}
