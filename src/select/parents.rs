//! Where scoped names say less of a module's path than its parameters do.
//!
//! `TorchScript` names a module by its last attribute, and writes a scope where a module is called: `self.model.decoder(x)` is
//! `/decoder`, where the module's own path is `model.decoder`, and a table that the encoder borrows from the model is
//! `/encoder/shared`. What such a module reads has the whole path, so that the parameters say what is missing, or who owns it.
//! Exporters merge equal parameters, so a name counts only where it agrees with the rest of the scope, where nothing that is read
//! there contradicts it, and where no scope is written that way already.

use super::modules::Witness;
use crate::analyze::flow::Flow;
use crate::ir::NodeId;
use rustc_hash::{FxHashMap, FxHashSet};

/// What parameters say of scopes.
#[derive(Debug, Default)]
pub(super) struct Parents<'g> {
    /// The parts of a path that are missing in front of the last part of a scope: `decoder` → `model`.
    missing: FxHashMap<String, Vec<&'g str>>,
    /// The path of a module that is called by another one than its owner: `encoder/shared` → `shared`.
    owned: FxHashMap<&'g str, &'g str>,
}

impl<'g> Parents<'g> {
    /// What parameters say of the scopes of `nodes`. Linear in the nodes and the depth of their scopes.
    pub(super) fn new(view: &Flow<'g>, nodes: &[(NodeId, &'g str, Witness)]) -> Self {
        let mut called: FxHashSet<String> = FxHashSet::default();
        let mut missing: Votes<'g, &'g str, Vec<&'g str>> = Votes::default();
        let mut owned: Votes<'g, &'g str, &'g str> = Votes::default();
        for (n, scope, _) in nodes {
            called.extend(steps(scope).map(|step| step.upto.replace('/', ".")));
            let read = view.inputs(*n).into_iter().flatten();
            for v in read.filter(|v| view.tensor(*v).is_some()) {
                let Some((path, _)) = view.graph.name_of(v).rsplit_once('.') else {
                    continue;
                };
                let pieces: Vec<&'g str> = path.split('.').collect();
                for (step, gap) in gaps(scope, &pieces).unwrap_or_default() {
                    missing.cast(step.upto, step.outer, &gap.to_vec());
                }
                let borrowed = scope
                    .replace('/', ".")
                    .strip_suffix(path)
                    .is_some_and(|outer| outer.ends_with('.'));
                if borrowed {
                    owned.cast(scope, scope, &path);
                }
            }
        }
        let free = |path: &[&str]| !called.contains(&path.join("."));
        let missing = missing.agreed().filter_map(|(upto, outer, gap)| {
            let part = upto[outer.len()..].trim_start_matches('/');
            let outer: Vec<&str> = outer.split('/').filter(|p| !p.is_empty()).collect();
            let new = !gap.is_empty() && free(&[&*outer, &*gap, &[part]].concat());
            new.then(|| (format!("/{upto}"), gap))
        });
        let owned = owned.agreed().filter(|(.., path)| free(&[path]));
        Parents {
            missing: missing.collect(),
            owned: owned.map(|(scope, _, path)| (scope, path)).collect(),
        }
    }

    /// What is missing in front of the last part of a scope that is written as `/model/layers.0`.
    pub(super) fn before(&self, scope: &str) -> &[&'g str] {
        self.missing.get(scope).map_or(&[], Vec::as_slice)
    }

    /// The path of a scope's module, where another module than its owner calls it.
    pub(super) fn owned(&self, scope: &str) -> Option<&'g str> {
        self.owned.get(scope).copied()
    }
}

/// What is said of each key, as long as all say the same.
struct Votes<'g, W, T> {
    of: FxHashMap<&'g str, (W, Option<T>)>,
}

impl<W, T> Default for Votes<'_, W, T> {
    fn default() -> Self {
        Votes {
            of: FxHashMap::default(),
        }
    }
}

impl<'g, W, T: Clone + PartialEq> Votes<'g, W, T> {
    fn cast(&mut self, key: &'g str, with: W, said: &T) {
        let (_, vote) = self
            .of
            .entry(key)
            .or_insert_with(|| (with, Some(said.clone())));
        if vote.as_ref() != Some(said) {
            *vote = None;
        }
    }

    fn agreed(self) -> impl Iterator<Item = (&'g str, W, T)> {
        let of = self.of.into_iter();
        of.filter_map(|(key, (with, vote))| Some((key, with, vote?)))
    }
}

/// One part of a scope.
#[derive(Clone, Copy)]
struct Step<'s> {
    /// What is written in front of it.
    outer: &'s str,
    part: &'s str,
    /// The scope up to its end.
    upto: &'s str,
}

fn steps(scope: &str) -> impl DoubleEndedIterator<Item = Step<'_>> {
    let starts = std::iter::once(0).chain(scope.match_indices('/').map(|(at, _)| at + 1));
    let step = move |start: usize| {
        let part = scope[start..].split('/').next().unwrap_or_default();
        Step {
            outer: &scope[..start.saturating_sub(1)],
            part,
            upto: &scope[..start + part.len()],
        }
    };
    let all: Vec<Step<'_>> = starts.map(step).filter(|s| !s.part.is_empty()).collect();
    all.into_iter()
}

/// What a parameter's path has in front of each part of a scope; `None` where the two do not agree.
fn gaps<'s, 'p, 'g>(scope: &'s str, path: &'p [&'g str]) -> Option<Vec<(Step<'s>, &'p [&'g str])>> {
    let mut out: Vec<(Step<'s>, &'p [&'g str])> = Vec::new();
    let mut inner: Option<Step<'s>> = None;
    let mut end = path.len();
    for step in steps(scope).rev() {
        let pieces = step.part.split('.').count();
        let fits = |at: &usize| {
            path[at - pieces..*at]
                .iter()
                .copied()
                .eq(step.part.split('.'))
        };
        // The innermost part is where the path ends.
        let lowest = if inner.is_none() { end } else { pieces };
        let at = (lowest.max(pieces)..=end).rev().find(fits)?;
        if let Some(inner) = inner {
            out.push((inner, &path[at..end]));
        }
        end = at - pieces;
        inner = Some(step);
    }
    out.push((inner?, &path[..end]));
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::ModuleTree;

    #[test]
    fn a_path_has_what_a_scope_leaves_out() {
        let gap = |scope: &str, path: &str| {
            let pieces: Vec<&str> = path.split('.').collect();
            let found = gaps(scope, &pieces)?;
            let named = found.iter().filter(|(_, gap)| !gap.is_empty());
            let text = |(s, gap): &(Step<'_>, &[&str])| format!("{}<{}", gap.join("."), s.upto);
            Some(named.map(text).collect::<Vec<_>>())
        };
        let one = |text: &str| Some(vec![text.to_owned()]);
        let path = "model.decoder.layers.0.fc1";
        assert_eq!(gap("decoder/layers.0/fc1", path), one("model<decoder"));
        assert_eq!(
            gap("model/layers.0/fc1", path),
            one("decoder<model/layers.0")
        );
        assert_eq!(gap("model/decoder/layers.0/fc1", path), Some(vec![]));
        assert_eq!(gap("decoder/layers.1/fc1", path), None);
        assert_eq!(gap("decoder/layers.0/fc2", path), None);
        assert_eq!(gap("", path), None);
    }

    /// The module of each node of a graph: `name: scope reads parameter`.
    fn modules(nodes: &[(&str, &str)]) -> Vec<String> {
        let mut inits: Vec<&str> = nodes.iter().map(|(_, read)| *read).collect();
        inits.sort_unstable();
        inits.dedup();
        let inits = inits
            .iter()
            .map(|n| format!("  init %{n}: f32[4] = fill(0.5)\n"));
        let head = "graph-text 1\nir_version 8\nopset \"\" 17\ngraph g(%x: f32[2, 4]) -> (%y)\n";
        let mut text = head.to_owned() + &inits.collect::<String>();
        for (i, (scope, read)) in nodes.iter().enumerate() {
            let from = i.checked_sub(1).map_or("x".to_owned(), |i| format!("v{i}"));
            text += &format!("  %v{i} = Add(%{from}, %{read})  // /{scope}/Add\n");
        }
        text += &format!("  %y = Relu(%v{})", nodes.len() - 1);
        let model = crate::ir::text::parse(&text).unwrap();
        let verified = crate::infer::Verified::check(model).unwrap();
        let tree = ModuleTree::new(&verified);
        let graph = &verified.model().graph;
        let adds = graph.nodes().filter(|n| graph.node(*n).op.is_onnx("Add"));
        adds.map(|n| tree.module(tree.of(n).unwrap().0).path.to_string())
            .collect()
    }

    #[test]
    fn modules_stand_where_their_parameters_say() {
        let found = modules(&[
            ("decoder/embed_tokens", "model.decoder.embed_tokens.weight"),
            ("decoder/layers.0/fc1", "model.decoder.layers.0.fc1.bias"),
            ("decoder/layers.1/fc1", "model.decoder.layers.0.fc1.bias"),
            ("encoder/shared", "shared.weight"),
        ]);
        let want = [
            "model.decoder.embed_tokens",
            "model.decoder.layers.0.fc1",
            "model.decoder.layers.1.fc1",
            "shared",
        ];
        assert_eq!(found, want);
    }

    #[test]
    fn a_merged_parameter_moves_no_module() {
        let read = "encoder.layer.0.attention.output.dense.bias";
        let scopes = [
            "encoder/layer.0/attention/output/dense",
            "encoder/layer.0/output/dense",
            "encoder/layer.1/output/dense",
        ];
        let found = modules(&scopes.map(|s| (s, read)));
        assert_eq!(found, scopes.map(|s| s.replace('/', ".")));
    }
}
