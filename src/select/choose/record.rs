//! What was found and what was not: what matched nothing, where, and what stands nearest.

use super::scene::Scene;
use crate::diag::{Diagnostic, nearest};
use crate::ir::ValueId;
use crate::select::field::Field;
use crate::select::modules::{ModuleId, Witness};
use crate::select::site::Decision;
use std::collections::BTreeMap;

/// A field that matched nothing in some layers.
#[derive(Debug, Default)]
pub(super) struct Miss {
    layers: Vec<usize>,
    why: String,
    near: Vec<String>,
}

impl Miss {
    /// Forgets a layer in which another witness found the field.
    pub(super) fn found(&mut self, layer: usize) {
        self.layers.retain(|l| *l != layer);
    }

    /// Whether the field is in some layers of a stack, and the rest have no module of its name, nor one that does the same.
    fn is_of_others(&self, total: usize, lacks: &dyn Fn(usize) -> bool) -> bool {
        let absent = self.why.is_empty();
        absent && self.layers.len() < total && self.layers.iter().all(|l| lacks(*l))
    }

    pub(super) fn is_settled(&self) -> bool {
        self.layers.is_empty()
    }
}

/// What was found, and what was not.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) misses: BTreeMap<(usize, Field, String), Miss>,
    pub(super) decisions: Vec<Decision>,
    /// Paths of modules that the graph does not compute, as another file of the model does.
    pub(super) absent: Vec<String>,
}

impl Record {
    pub(super) fn decide(
        &mut self,
        scene: &Scene<'_>,
        layer: usize,
        field: Field,
        module: ModuleId,
        value: ValueId,
    ) {
        let witness = scene
            .view
            .producer(value)
            .and_then(|n| scene.tree.of(n))
            .filter(|(m, _)| scene.tree.is_within(*m, module))
            .map(|m| m.1)
            .or_else(|| {
                scene
                    .tree
                    .module(module)
                    .nodes
                    .first()
                    .and_then(|n| scene.tree.of(*n))
                    .map(|m| m.1)
            });
        self.decisions.push(Decision {
            layer: Some(layer),
            field,
            path: scene.full_path(module),
            value,
            witness: witness.unwrap_or(Witness::Neighbours),
        });
    }

    pub(super) fn miss(
        &mut self,
        scene: &Scene<'_>,
        (stack, layer): (usize, usize),
        field: Field,
        path: String,
        why: &str,
        near: Option<(ModuleId, ModuleId)>,
    ) {
        let mut names: Vec<String> = Vec::new();
        if let Some((within, of)) = near {
            let base = scene.tree.module(within).path.len() + 1;
            let all: Vec<String> = scene
                .tree
                .subtree(of)
                .into_iter()
                .filter(|m| *m != within && *m != of)
                .map(|m| {
                    scene
                        .tree
                        .module(m)
                        .path
                        .get(base..)
                        .unwrap_or_default()
                        .to_owned()
                })
                .collect();
            names = closest(&path, &all);
        }
        let miss = self.misses.entry((stack, field, path)).or_default();
        if miss.layers.last() != Some(&layer) {
            miss.layers.push(layer);
        }
        if miss.near.is_empty() {
            miss.near = names;
            why.clone_into(&mut miss.why);
        }
    }

    pub(super) fn missing(
        &mut self,
        stack: usize,
        layer: usize,
        field: Field,
        path: &str,
        why: &str,
    ) {
        let miss = self
            .misses
            .entry((stack, field, path.to_owned()))
            .or_default();
        if miss.layers.last() != Some(&layer) && !miss.layers.contains(&layer) {
            miss.layers.push(layer);
        }
        if miss.why.is_empty() && miss.near.is_empty() {
            why.clone_into(&mut miss.why);
        }
    }

    /// Takes out the fields that only some layers of a stack have, where the others have no such part: what those hold is left as it is,
    /// which is said. `lacks` says that a layer of a stack has no part of a field's kind, by structure.
    pub(super) fn left_out(
        &mut self,
        totals: &[usize],
        lacks: &dyn Fn(Field, (usize, usize)) -> bool,
    ) -> Vec<Diagnostic> {
        let mut parts: BTreeMap<(usize, Vec<usize>), Vec<Field>> = BTreeMap::new();
        self.misses.retain(|(stack, field, _), miss| {
            let total = totals.get(*stack).copied().unwrap_or(0);
            let other = miss.is_of_others(total, &|l| lacks(*field, (*stack, l)));
            if other {
                let layers = parts.entry((*stack, miss.layers.clone())).or_default();
                layers.push(*field);
            }
            !other
        });
        parts
            .into_iter()
            .map(|((_, layers), fields)| {
                let fields: Vec<String> = fields.iter().map(|f| format!("`{f}`")).collect();
                let layers: Vec<String> = layers.iter().map(ToString::to_string).collect();
                let found = format!(
                    "layers {} have no {}: what stands there instead is left as it is",
                    layers.join(", "),
                    fields.join(", ")
                );
                Diagnostic::warning("select-left-out", found).help(
                    "linears in it are adapted where `target_modules` names them; `rewrite inspect` shows them",
                )
            })
            .collect()
    }

    pub(super) fn findings(&mut self, source: &str, totals: &[usize]) -> Vec<Diagnostic> {
        std::mem::take(&mut self.misses)
            .into_iter()
            .map(|((stack, field, path), miss)| {
                let total = totals.get(stack).copied().unwrap_or(0);
                let layers: Vec<String> = miss.layers.iter().map(ToString::to_string).collect();
                let mut d = Diagnostic::error(
                    "select-no-match",
                    format!(
                        "`{field}` = \"{path}\" matched nothing in {} of {total} layers",
                        layers.len()
                    ),
                )
                .at(format!("{source}, interface.{field}"))
                .note(format!("layers without a match: {}", layers.join(", ")));
                if !miss.why.is_empty() {
                    d = d.note(miss.why.clone());
                }
                if !miss.near.is_empty() {
                    d = d.note(format!("nearest there: {}", miss.near.join(", ")));
                }
                let fused = miss
                    .near
                    .iter()
                    .any(|n| n.to_lowercase().contains("qkv") || n.contains("c_attn"));
                if fused
                    && matches!(
                        field,
                        Field::AttnQProj | Field::AttnKProj | Field::AttnVProj
                    )
                {
                    d = d.help("if q, k and v share one weight, set `attn_qkv_proj` instead");
                } else {
                    d = d.help("`rewrite inspect` shows the modules of each layer");
                }
                d
            })
            .collect()
    }
}

pub(super) fn shown<S: AsRef<str>>(items: &[S]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for i in items {
        if !names.contains(&i.as_ref()) {
            names.push(i.as_ref());
        }
    }
    match names.len() {
        0 => "nothing".to_owned(),
        n if n <= 6 => names.join(", "),
        n => format!("{}, … ({n} in all)", names[..6].join(", ")),
    }
}

/// Up to three of the paths that are nearest to a path that was not found.
fn closest(path: &str, all: &[String]) -> Vec<String> {
    let last = |p: &str| p.rsplit('.').next().unwrap_or(p).to_owned();
    let tails: Vec<String> = all.iter().map(|p| last(p)).collect();
    let mut out: Vec<String> = Vec::new();
    if let Some(near) = nearest(&last(path), tails.iter().map(String::as_str)) {
        out.extend(all.iter().filter(|p| last(p) == near).cloned());
    }
    out.extend(
        all.iter()
            .filter(|p| p.matches('.').count() <= path.matches('.').count() + 1)
            .cloned(),
    );
    let mut seen: Vec<String> = Vec::new();
    for p in out {
        if !seen.contains(&p) {
            seen.push(p);
        }
    }
    seen.truncate(3);
    seen
}
