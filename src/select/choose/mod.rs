//! From an interface and a module tree to sites: by names, by structure where names are silent, and as the interface says outright.
//!
//! [`run`] asks one after the other, each with what it needs: the [`Scene`] to look at, the [`Record`] to write to. None knows another.

mod derived;
mod ends;
mod explicit;
mod modules;
mod named;
mod record;
mod scene;
mod unnamed;

use self::explicit::Explicit;
use self::named::Named;
use self::record::Record;
use self::scene::{Prefix, Scene};
use self::unnamed::Unnamed;
use crate::analyze::flow::Flow;
use crate::analyze::linear::Linears;
use crate::diag::{Diagnostic, Severity};
use crate::error::{Error, ErrorKind};
use crate::select::interface::Interface;
use crate::select::modules::ModuleTree;
use crate::select::site::{Layer, Selection};

/// The selection and every finding; only findings when there are no layers to speak of.
pub(super) fn run(
    view: &Flow<'_>,
    tree: &ModuleTree,
    linears: &Linears,
    interface: &Interface,
) -> (Option<Selection>, Vec<Diagnostic>) {
    let mut scene = Scene {
        view,
        tree,
        linears,
        interface,
        prefix: Prefix::default(),
        absent: Vec::new(),
    };
    let mut record = Record::default();
    let (mut layers, totals, named) = match layers(&mut scene, &mut record) {
        Ok(found) => found,
        Err(findings) => return (None, findings),
    };
    layers.sort_by_key(|l: &Layer| (l.stack, view.defined(l.output)));
    let mut unnamed = Unnamed {
        scene: &scene,
        record: &mut record,
    };
    if !unnamed.record.misses.is_empty() || layers.iter().any(|l| unnamed.is_frayed(l)) {
        unnamed.fill(&mut layers);
    }
    let mut explicit = Explicit {
        scene: &scene,
        record: &mut record,
    };
    let mut findings = explicit.apply(&mut layers);
    record.misses.retain(|_, m| !m.is_settled());
    if !record.misses.is_empty() {
        findings.extend(scene.left_out(&mut record, &layers, &totals));
    }
    findings.extend(record.findings(&interface.source, &totals));
    if layers.is_empty() && findings.is_empty() && !interface.is_bare() {
        findings.push(no_layers(interface));
    }
    if named {
        findings.extend(scene.other_base(&layers));
    }
    let mut absent = std::mem::take(&mut scene.absent);
    let before = findings.len();
    let embeddings = scene.embeddings(&layers, &mut findings);
    if !absent.is_empty() {
        // They may be those of a stack that another file holds.
        for d in &mut findings[before..] {
            d.severity = Severity::Warning;
        }
        findings.push(left_out(&absent));
    }
    let first = interface.fields.model_layers.get(0);
    let uncounted =
        first.is_some_and(|p| absent.iter().any(|a| a == p)) && interface.encoder_layers.is_none();
    absent.append(&mut record.absent);
    let output_embeddings = scene.head(&mut findings);
    let modules = scene.modules(&layers, output_embeddings.as_ref());
    let nameless = scene.nameless(&modules);
    let tables = scene.tables(&layers);
    let parameters = scene.parameters(&layers, &modules, &tables);
    let width = |l: &Layer| {
        view.last(l.input)
            .or(l.output_proj.as_ref().map(|p| p.d_out))
    };
    let selection = Selection {
        base_prefix: scene.prefix.full.into(),
        hidden_size: layers.iter().find_map(width).unwrap_or(0),
        embeddings,
        output_embeddings,
        layers,
        modules,
        nameless,
        tables,
        parameters,
        misses: Vec::new(),
        decisions: record.decisions,
        absent,
        uncounted,
        tree: None,
    };
    (Some(selection), findings)
}

/// The layers, the number of them in each stack, and whether they were found by name; where names lead nowhere, by structure.
fn layers(
    scene: &mut Scene<'_>,
    record: &mut Record,
) -> Result<(Vec<Layer>, Vec<usize>, bool), Vec<Diagnostic>> {
    let stacks = scene.interface.stacks();
    let error = match scene.spots() {
        Ok(spots) => {
            let total = |s: usize| spots.iter().filter(|p| p.stack == s).count();
            let totals = (0..stacks).map(total).collect();
            let mut named = Named::new(scene, record);
            let mut layers = Vec::new();
            for spot in &spots {
                for call in 0..named.split_calls(spot) {
                    layers.extend(named.layer(spot, call));
                }
            }
            // Where the list is there and none of its linears has a name, structure may find them.
            if !layers.is_empty() || scene.interface.is_bare() {
                return Ok((layers, totals, true));
            }
            let unnamed = Unnamed { scene, record }
                .layers(Error::new(ErrorKind::Interface, no_layers(scene.interface)));
            return match unnamed {
                Ok(found) => Ok((found, totals, true)),
                Err(_) => Ok((layers, totals, true)),
            };
        }
        Err(e) => e,
    };
    // Without names the layers are found and then the paths' prefix is guessed; finding them does not depend on it.
    scene.prefix.full = scene.guess_prefix();
    let mut unnamed = Unnamed { scene, record };
    match unnamed.layers(error) {
        Ok(layers) => {
            let totals = vec![layers.len(); stacks];
            Ok((layers, totals, false))
        }
        Err(e) => Err(e.findings().to_vec()),
    }
}

/// That a graph holds one part of an encoder-decoder.
fn left_out(lists: &[String]) -> Diagnostic {
    let names: Vec<String> = lists.iter().map(|l| format!("`{l}`")).collect();
    let message = format!("left out: {}, not in this graph", names.join(" and "));
    Diagnostic::warning("select-stack", message)
        .help("another file of the model holds it; `rewrite train FOLDER` trains its encoder and decoder together")
}

fn no_layers(interface: &Interface) -> Diagnostic {
    let path = interface.fields.model_layers.get(0).unwrap_or_default();
    Diagnostic::error(
        "select-no-layers",
        format!("`model_layers` = \"{path}\" holds no layer"),
    )
    .at(format!("{}, interface.model_layers", interface.source))
    .note(
        "none of its parts has `layer_self_attn`, `layer_intermediate_proj` or `layer_output_proj`",
    )
    .help("`rewrite inspect` shows the modules of the graph")
}
