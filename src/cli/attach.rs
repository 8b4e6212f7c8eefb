//! The main job, and merging.

use super::args::{AdapterArgs, AttachArgs};
use super::{Ui, exists, keep, open, usage};
use crate::adapters::folder::{self, AdapterFolder, WriteOptions, file};
use crate::adapters::place::Kind;
use crate::adapters::{AdapterStore, spec};
use crate::api::{self, Adapted};
use crate::diag::Severity;
use crate::error::{Error, Result};
use crate::infer::Verified;
use crate::ir::contract::stamp;
use crate::onnx::SaveOptions;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where the main job writes.
struct Targets {
    model: PathBuf,
    folder: PathBuf,
}

fn targets(args: &AttachArgs, input: &Path, names: &[String]) -> Targets {
    let stem = input
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let file = format!("{stem}.{}.onnx", names.join("+"));
    let beside = input.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    let model = match &args.output {
        None => beside.join(file),
        Some(out) if out.is_dir() || out.extension().is_none() => out.join(file),
        Some(out) => out.clone(),
    };
    let folder = model.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    Targets { model, folder }
}

pub(super) fn attach(args: &AttachArgs, ui: &Ui) -> Result<()> {
    let Some(input) = &args.model else {
        return Err(usage(
            "no model was given",
            "rewrite --interface qwen3 model.onnx",
        ));
    };
    let model = open(input, ui)?;
    let select = args.select.settings();
    let interface = select.interface(input, &model)?;
    let adapters = select.load(&interface)?;
    let names: Vec<String> = adapters.iter().map(|a| a.name.clone()).collect();
    let setup = select.setup(&adapters)?;
    let before = args.dry_run.then(|| model.clone());
    let adapted = api::attach(model, &interface, adapters, setup.clone(), args.seed, false)?;
    ui.warnings(
        adapted
            .warnings
            .iter()
            .filter(|d| d.severity == Severity::Warning),
    );
    let summary = api::summary(&adapted.model, &setup)?;
    let selected = selected(&adapted);
    if let Some(before) = before {
        let diff = super::graphs::difference(before.model(), adapted.model.model());
        return ui.result(
            &json!({ "selected": selected, "diff": diff, "dry_run": true }),
            || format!("{}\n{diff}\n{}\n", lines(&selected), summary.table()),
        );
    }
    let targets = targets(args, input, &names);
    keep(&targets.model, [&**input])?;
    if targets.model.exists() && !args.force {
        return Err(exists(&targets.model));
    }
    for name in &names {
        folder::free(&targets.folder.join(name))?;
    }
    std::fs::create_dir_all(&targets.folder)
        .map_err(|e| Error::io(&targets.folder, "cannot make the folder", e))?;
    let store = AdapterStore::from_model(adapted.model.model());
    let meta = api::meta(input, &interface, &adapted.selection);
    let folders = names
        .iter()
        .map(|n| {
            Ok((
                targets.folder.join(n),
                api::folder(&adapted.model, &store.of(n), n, &interface, meta.clone())?,
            ))
        })
        .collect::<Result<Vec<(PathBuf, AdapterFolder)>>>()?;
    let sources: Vec<PathBuf> = args
        .select
        .adapters
        .iter()
        .filter_map(|a| source(a))
        .collect();
    let written: Vec<&(PathBuf, AdapterFolder)> = folders
        .iter()
        .filter(|(f, _)| !f.canonicalize().is_ok_and(|f| sources.contains(&f)))
        .collect();
    if let (Some((there, _)), false) = (
        written.iter().find(|(f, _)| f.join(file::CONFIG).exists()),
        args.force,
    ) {
        return Err(exists(there));
    }
    let saved = crate::onnx::save(
        &adapted.model,
        &targets.model,
        SaveOptions {
            force: args.force,
            ..SaveOptions::default()
        },
    )?;
    for (path, folder) in written {
        folder.write(
            path,
            WriteOptions {
                force: args.force,
                ..WriteOptions::default()
            },
        )?;
    }
    let paths: Vec<&Path> = folders.iter().map(|(p, _)| &**p).collect();
    let rows: Vec<_> = summary.rows.iter().map(|r| json!({ "name": r.name, "architecture": r.architecture, "#param": r.params, "%param": r.percent, "active": r.active, "train": r.train })).collect();
    let report = json!({
        "model": saved.model, "bytes": saved.bytes, "adapters": paths, "selected": selected,
        "summary": rows, "full_model": summary.full,
    });
    ui.result(&report, || {
        let mut text = format!(
            "{}\n{}\n\nwrote {}",
            lines(&selected),
            summary.table(),
            saved.model.display()
        );
        for p in &paths {
            text += &format!("\nwrote {}{}", p.display(), std::path::MAIN_SEPARATOR);
        }
        text + "\n"
    })
}

/// The folder that a specification loads, if it is one.
fn source(text: &str) -> Option<PathBuf> {
    match spec::parse(text).ok()? {
        spec::Spec::Saved { folder, .. } => folder.canonicalize().ok(),
        spec::Spec::Fresh { .. } => None,
    }
}

/// What was selected, for people and programs.
fn selected(adapted: &Adapted) -> serde_json::Value {
    let s = &adapted.selection;
    let first = s.layers.first();
    let mut fields = serde_json::Map::new();
    if let Some(l) = first {
        for a in [&l.self_attn, &l.cross_attn].into_iter().flatten() {
            for p in [&a.q, &a.k, &a.v, &a.qkv, &a.o].into_iter().flatten() {
                fields.insert(
                    p.role.field().to_owned(),
                    json!(format!("{} [{} → {}]", p.path, p.d_in, p.d_out)),
                );
            }
        }
        for p in [&l.intermediate, &l.output_proj].into_iter().flatten() {
            fields.insert(
                p.role.field().to_owned(),
                json!(format!("{} [{} → {}]", p.path, p.d_in, p.d_out)),
            );
        }
    }
    let (places, at) = places(&adapted.model);
    json!({ "layers": s.layers.len(), "hidden_size": s.hidden_size, "first_layer": fields, "places": places, "at": at })
}

/// The number of places, and how many there are of each kind, by adapter.
fn places(model: &Verified) -> (usize, Vec<serde_json::Value>) {
    let graph = &model.model().graph;
    let mut count = 0;
    let mut kinds: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for n in graph.nodes() {
        let metadata = &graph.node(n).metadata;
        let get = |key: &str| metadata.get(key).map(|v| &**v);
        if get(stamp::REPLACES).is_none() {
            continue;
        }
        count += 1;
        let adapter = get(stamp::ADAPTER).unwrap_or_default();
        // What has no kind grows along with another place.
        let kind = get(stamp::PLACE).unwrap_or(Kind::GROWN.name);
        *kinds.entry((adapter, kind)).or_default() += 1;
    }
    let row = |((adapter, kind), n): ((&str, &str), usize)| json!({ "adapter": adapter, "kind": kind, "places": n });
    (count, kinds.into_iter().map(row).collect())
}

fn lines(selected: &serde_json::Value) -> String {
    let mut text = format!(
        "selected {} layers, hidden size {}; adapters at {} places\n",
        selected["layers"], selected["hidden_size"], selected["places"]
    );
    let kinds = selected["at"].as_array().map_or(&[][..], Vec::as_slice);
    if kinds.iter().any(|k| k["kind"] != "linear") {
        for k in kinds {
            let [adapter, kind] =
                [&k["adapter"], &k["kind"]].map(|v| v.as_str().unwrap_or_default());
            text += &format!(
                "  {adapter}: {} {}\n",
                k["places"],
                Kind::of(kind).map_or(kind, |k| k.about)
            );
        }
    }
    for (field, at) in selected["first_layer"].as_object().into_iter().flatten() {
        text += &format!("  {field:<24} {}\n", at.as_str().unwrap_or_default());
    }
    text
}

pub(super) fn merge(
    path: &Path,
    args: &AdapterArgs,
    (output, force): (&Path, bool),
    reset: bool,
    ui: &Ui,
) -> Result<()> {
    keep(output, [path])?;
    if args.active.is_some() {
        return Err(usage(
            "merge folds in every adapter that is given, one after the other",
            "leave --active out, and give only the adapters to be merged",
        ));
    }
    let model = open(path, ui)?;
    let select = args.settings();
    let interface = select.interface(path, &model)?;
    let (model, opened) = api::opened(model, false)?;
    ui.warnings(&opened);
    let fold = if reset {
        crate::train::reset
    } else {
        crate::train::merge
    };
    let merged = fold(&model, &interface, select.load(&interface)?)?;
    let saved = crate::onnx::save(
        &merged,
        output,
        SaveOptions {
            force,
            ..SaveOptions::default()
        },
    )?;
    ui.result(
        &json!({ "model": saved.model, "bytes": saved.bytes }),
        || format!("wrote {}\n", saved.model.display()),
    )
}
