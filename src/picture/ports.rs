//! Inputs and outputs of the graph; those that differ in a number only, as the caches of all layers do, are one.

use super::Port;
use super::scene::Scene;
use super::text::{NAME, cut, declared};
use crate::adapters::manifest::Manifest;
use crate::diag::count;
use crate::ir::contract::is_cache;
use crate::ir::{GraphPort, Type, ValueId};
use indexmap::IndexMap;
use rustc_hash::FxHashSet;

/// Most inputs, and most outputs, that are drawn.
const MOST: usize = 16;

/// The ports of the model, and which one each value is.
pub(super) struct Ports {
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<Port>,
    pub(super) input_of: Vec<(ValueId, usize)>,
    /// Values that are outputs, with their ports, in the order of the graph.
    pub(super) output_of: Vec<(ValueId, usize)>,
    pub(super) left_out: usize,
}

/// The inputs and outputs of a model.
pub(super) fn ports(scene: &Scene<'_>, manifest: &Manifest) -> Ports {
    let graph = scene.flow.graph;
    let exchanged: FxHashSet<&str> = manifest
        .exchanged
        .iter()
        .flat_map(|e| e.inputs.iter().map(String::as_str))
        .collect();
    let name = |p: &GraphPort| graph.name_of(p.value);
    // Of inputs with a value of their own, those that come with adapters matter: others are weights of old exporters.
    let ours =
        |p: &GraphPort| exchanged.contains(name(p)) || manifest.inputs.iter().any(|i| i == name(p));
    let given = |p: &&GraphPort| graph.value(p.value).tensor.is_none() || ours(p);
    let form = |p: &GraphPort| {
        if exchanged.contains(name(p)) {
            "parameters of adapters".to_owned()
        } else {
            pattern(name(p))
        }
    };
    let (inputs, at, lost) = grouped(graph.inputs().iter().filter(given), name, form);
    let (outputs, out_at, more) = grouped(graph.outputs().iter(), name, |p| pattern(name(p)));
    Ports {
        inputs,
        outputs,
        input_of: at,
        output_of: out_at,
        left_out: lost + more,
    }
}

/// A name with a mark in the place of each number.
fn pattern(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars().take(256) {
        match (c.is_ascii_digit(), out.ends_with('#')) {
            (true, true) => {}
            (true, false) => out.push('#'),
            (false, _) => out.push(c),
        }
    }
    out
}

/// Ports of one form together: the ports, which one each value is, and how many are left out.
fn grouped<'p, 'g>(
    all: impl Iterator<Item = &'p GraphPort>,
    name: impl Fn(&GraphPort) -> &'g str,
    form: impl Fn(&GraphPort) -> String,
) -> (Vec<Port>, Vec<(ValueId, usize)>, usize) {
    let mut groups: IndexMap<String, Vec<&GraphPort>> = IndexMap::new();
    for p in all {
        groups.entry(form(p)).or_default().push(p);
    }
    let total = groups.len();
    let (mut ports, mut at) = (Vec::new(), Vec::new());
    for (form, group) in groups {
        // The last one stands for all that have no place.
        let i = ports.len().min(MOST - 1);
        at.extend(group.iter().map(|p| (p.value, i)));
        if ports.len() < MOST {
            ports.push(port(&form, &group, &name));
        }
    }
    let lost = total.saturating_sub(MOST);
    if lost > 0
        && let Some(last) = ports.last_mut()
    {
        last.name = count(lost + 1, "more", "more");
        last.ty.clear();
        last.aside = true;
    }
    (ports, at, lost)
}

fn port<'g>(form: &str, group: &[&GraphPort], name: &impl Fn(&GraphPort) -> &'g str) -> Port {
    let first = group[0];
    let own = name(first);
    let ty = first.ty.as_ref();
    let cached = is_cache(own, ty.and_then(Type::dims));
    let helps = [
        "mask",
        "position",
        "token_type",
        "cache",
        "past",
        "present",
        "task_ids",
        "adapter_",
    ];
    let shown = match group {
        [_] => cut(own, NAME),
        _ if form.contains('#') => {
            let (a, b) = (numbers(own), numbers(name(group[group.len() - 1])));
            let mut parts = form.split('#');
            let mut out = parts.next().unwrap_or_default().to_owned();
            for (i, part) in parts.enumerate() {
                match (a.get(i), b.get(i)) {
                    (Some(x), Some(y)) if x != y => out += &format!("{x}–{y}"),
                    (Some(x), _) => out += x,
                    (None, _) => out.push('#'),
                }
                out += part;
            }
            cut(&out, NAME)
        }
        _ => count(group.len(), form, form),
    };
    Port {
        name: shown,
        ty: ty.map(declared).unwrap_or_default(),
        count: group.len(),
        aside: cached || group.len() > 1 || helps.iter().any(|w| own.contains(w)),
    }
}

/// The numbers in a name.
fn numbers(name: &str) -> Vec<&str> {
    let parts = name.split(|c: char| !c.is_ascii_digit());
    parts.filter(|p| !p.is_empty()).collect()
}
