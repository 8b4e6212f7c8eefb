//! Places that the interface's `graph` names outright, by node or value name. They override every other witness.

use super::choose::{Chooser, site};
use super::interface::GraphNames;
use super::modules::{Witness, join};
use super::norm::Norms;
use super::site::{AttentionSite, Decision, Layer, LinearSite, NormSite, Role};
use crate::diag::{Diagnostic, nearest};
use crate::ir::{NodeId, ValueId};
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

impl Chooser<'_> {
    /// Applies `graph` to the layers; returns what does not fit.
    pub(super) fn explicit(&mut self, layers: &mut [Layer]) -> Vec<Diagnostic> {
        let graph = self.interface.fields.graph.clone();
        if graph.is_empty() {
            return Vec::new();
        }
        let named = self
            .view
            .order
            .iter()
            .map(|n| (&*self.view.node(*n).name, *n));
        let names = Names {
            nodes: named.filter(|(name, _)| !name.is_empty()).collect(),
            norms: Norms::new(self.view),
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
        let own = self.interface.fields.paths().into_iter().map(|p| p.0);
        let tail = field.strip_prefix("layer_cross_attn.").unwrap_or(field);
        let known: Vec<&'static str> = own.collect();
        for ((_, f, _), miss) in &mut self.misses {
            if *f == tail {
                miss.found(layer.index);
            }
        }
        self.decisions.push(Decision {
            layer: Some(layer.index),
            field: known.into_iter().find(|k| *k == tail).unwrap_or("layer"),
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
            self.interface.source
        ));
        let values = self.view.graph.values().map(|v| self.view.graph.name_of(v));
        if let Some(near) = nearest(name, values.chain(names.nodes.keys().copied())) {
            d = d.note(format!("nearest: {near}"));
        }
        d.help("names are those of nodes or values, as `rewrite print` shows them")
    }

    fn find(&self, names: &Names<'_>, name: &str) -> Result<Named, String> {
        let node = names.nodes.get(name).copied().map(Named::Node);
        let value = self.view.graph.find(name).map(Named::Value);
        node.or(value)
            .ok_or_else(|| "names neither a node nor a value".to_owned())
    }

    fn value(&self, named: Named, enters: bool) -> Result<ValueId, String> {
        match named {
            Named::Value(v) => Ok(v),
            Named::Node(n) if enters => {
                let inputs = self.view.inputs(n).into_iter().flatten();
                inputs
                    .into_iter()
                    .find(|v| self.view.is_flow(*v))
                    .ok_or_else(|| "reads no hidden state".to_owned())
            }
            Named::Node(n) => self
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
            Named::Value(v) => self.view.producer(v),
        };
        let at = node
            .and_then(|n| self.linears.of(n))
            .ok_or("is no linear")?;
        Ok(site(role, path.into(), &self.linears.all[at]))
    }

    fn explicit_norm(
        &self,
        names: &Names<'_>,
        named: Named,
        path: String,
    ) -> Result<NormSite, String> {
        let found = match named {
            Named::Value(v) => names.norms.making(self.view, v),
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
        let own = self.interface.fields.paths();
        let relative = own
            .iter()
            .find(|(f, _)| *f == tail)
            .and_then(|(_, p)| p.get(layer.stack));
        let path = join(&layer.path, relative.unwrap_or(tail));
        let role = match tail {
            "attn_q_proj" => Some(Role::Query),
            "attn_k_proj" => Some(Role::Key),
            "attn_v_proj" => Some(Role::Value),
            "attn_qkv_proj" => Some(Role::Qkv),
            "attn_o_proj" => Some(Role::AttentionOutput),
            "layer_intermediate_proj" => Some(Role::Intermediate),
            "layer_output_proj" => Some(Role::Output),
            _ => None,
        };
        if let Some(role) = role {
            return self
                .set_linear(layer, role, container, named, &path)
                .map(Some);
        }
        let value = match tail {
            "layer_pre_self_attn" | "layer_pre_cross_attn" | "layer_pre_ffn" | "layer" => {
                self.value(named, true)?
            }
            "layer_ln_1" | "layer_ln_2" | "layer_ln_cross" => {
                let norm = self.explicit_norm(names, named, path)?;
                let value = norm.output;
                match tail {
                    "layer_ln_1" => layer.ln_1 = Some(norm),
                    "layer_ln_2" => layer.ln_2 = Some(norm),
                    _ => layer.ln_cross = Some(norm),
                }
                return Ok(Some(value));
            }
            _ => self.value(named, false)?,
        };
        match tail {
            "layer_pre_self_attn" => layer.pre_self_attn = Some(value),
            "layer_pre_cross_attn" => layer.pre_cross_attn = Some(value),
            "layer_pre_ffn" => layer.pre_ffn = Some(value),
            "layer" => layer.input = value,
            "layer.output" => layer.output = value,
            "layer_self_attn" => attention(&mut layer.self_attn, &path, value).output = value,
            "layer_cross_attn" => attention(&mut layer.cross_attn, &path, value).output = value,
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
        let f = &self.interface.fields;
        let module = if cross {
            &f.layer_cross_attn
        } else {
            &f.layer_self_attn
        };
        let outer = join(&layer.path, module.get(layer.stack).unwrap_or_default());
        let in_attention = !matches!(role, Role::Intermediate | Role::Output | Role::Head);
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
                a.qkv_layout = Some(super::fused::layout(self.view, &site));
                a.qkv = Some(site);
            }
            Role::AttentionOutput => {
                let a = attention(slot, &outer, value);
                a.output = value;
                a.o = Some(site);
            }
            Role::Intermediate => layer.intermediate = Some(site),
            Role::Output => layer.output_proj = Some(site),
            Role::Head => {}
        }
        Ok(value)
    }

    /// Names of the `graph` entry of a field, over all layers.
    pub(super) fn explicit_values(&self, field: &str) -> Option<Vec<ValueId>> {
        let names: Vec<String> = match self.interface.fields.graph.get(field)? {
            GraphNames::Pattern(p) => vec![p.clone()],
            GraphNames::Each(list) => list.iter().flatten().cloned().collect(),
        };
        Some(
            names
                .iter()
                .filter_map(|n| self.view.graph.find(n))
                .collect(),
        )
    }
}

fn attention<'s>(
    slot: &'s mut Option<AttentionSite>,
    path: &str,
    output: ValueId,
) -> &'s mut AttentionSite {
    slot.get_or_insert_with(|| AttentionSite {
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
