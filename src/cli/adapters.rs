//! `rewrite adapter`.

use super::args::{AdapterCommand, AdapterFormat, AverageArgs, CombineStrategy, ConvertArgs};
use super::{Ui, usage};
use crate::adapters::average::rename;
use crate::adapters::docs::MethodDoc;
use crate::adapters::folder::{self, AdapterFolder, WriteOptions};
use crate::adapters::peft::{self, PeftFolder};
use crate::adapters::{AverageOptions, Combine, Config, average, identifiers};
use crate::api;
use crate::error::Result;
use crate::select::Interface;
use serde_json::json;
use std::path::{Path, PathBuf};

pub(super) fn run(command: &AdapterCommand, ui: &Ui) -> Result<()> {
    match command {
        AdapterCommand::Summary { paths } => summary(paths, ui),
        AdapterCommand::Methods => methods(ui),
        AdapterCommand::Show { method } => show(method, ui),
        AdapterCommand::Average(args) => averaged(args, ui),
        AdapterCommand::Rename {
            folder,
            name,
            output,
            force,
        } => renamed(folder, name, output.as_deref(), *force, ui),
        AdapterCommand::Eject {
            folder,
            output,
            force,
        } => {
            let out = api::eject_prefix_tuning(AdapterFolder::read(folder)?)?;
            written(&out, output, *force, ui)
        }
        AdapterCommand::Delete { folder } => deleted(folder, ui),
        AdapterCommand::Convert(args) => converted(args, ui),
    }
}

fn averaged(args: &AverageArgs, ui: &Ui) -> Result<()> {
    let read = |p: &PathBuf| AdapterFolder::read(p);
    let adapters = args.adapters.iter().map(read).collect::<Result<Vec<_>>>()?;
    let combine = match (args.combine_strategy, args.svd_rank) {
        (CombineStrategy::Linear, None) => Combine::Linear,
        (CombineStrategy::LoraLinearOnlyNegateB, None) => Combine::LoraLinearOnlyNegateB,
        (CombineStrategy::LoraDeltaWSvd, Some(rank)) => Combine::LoraDeltaWSvd { rank },
        (CombineStrategy::LoraDeltaWSvd, None) | (_, Some(_)) => {
            return Err(usage(
                "--svd-rank and --combine-strategy do not fit",
                "a rank belongs to --combine-strategy lora_delta_w_svd, and only to it",
            ));
        }
    };
    let options = AverageOptions {
        weights: args.weights.clone(),
        normalize: !args.no_normalize_weights,
        combine,
    };
    let out = average(&args.name, &adapters, &options)?;
    let path = args
        .output
        .clone()
        .unwrap_or_else(|| PathBuf::from(&args.name));
    written(&out, &path, args.force, ui)
}

fn renamed(from: &Path, name: &str, to: Option<&Path>, force: bool, ui: &Ui) -> Result<()> {
    let out = rename(AdapterFolder::read(from)?, name)?;
    let beside = || from.parent().unwrap_or(Path::new("")).join(name);
    written(&out, &to.map_or_else(beside, Path::to_owned), force, ui)
}

/// Writes an adapter folder and says so.
fn written(out: &AdapterFolder, path: &Path, force: bool, ui: &Ui) -> Result<()> {
    ui.warnings(&out.notes);
    let options = WriteOptions {
        force,
        ..WriteOptions::default()
    };
    out.write(path, options)?;
    let report = json!({ "name": out.name, "folder": path, "config": out.config.to_dict(), "config_id": out.config.hash() });
    ui.result(&report, || {
        format!("wrote {}{}\n", path.display(), std::path::MAIN_SEPARATOR)
    })
}

fn deleted(path: &Path, ui: &Ui) -> Result<()> {
    let done = folder::delete(path)?;
    let report = json!({ "name": done.name, "deleted": done.files, "kept": done.kept });
    ui.result(&report, || {
        let mut text = format!(
            "deleted `{}`: {} files of {}\n",
            done.name,
            done.files.len(),
            path.display()
        );
        for kept in &done.kept {
            text += &format!("kept {}\n", kept.display());
        }
        text
    })
}

fn converted(args: &ConvertArgs, ui: &Ui) -> Result<()> {
    match (args.to, peft::is_peft(&args.folder)) {
        (AdapterFormat::Peft, false) => {
            let out = peft::to_peft(&AdapterFolder::read(&args.folder)?)?;
            let options = WriteOptions {
                force: args.force,
                ..WriteOptions::default()
            };
            out.write(&args.output, options)?;
            let report = json!({ "folder": args.output, "config": out.config });
            ui.result(&report, || {
                format!(
                    "wrote {}{}\n",
                    args.output.display(),
                    std::path::MAIN_SEPARATOR
                )
            })
        }
        (AdapterFormat::Adapterhub, true) => {
            let interface = Interface::resolve(args.interface.as_deref().unwrap_or_default())?;
            let folder = args
                .folder
                .file_name()
                .map(|n| n.to_string_lossy().replace(['.', ','], "_"));
            let name = args
                .name
                .clone()
                .or(folder)
                .unwrap_or_else(|| "adapter".into());
            let out = peft::from_peft(&PeftFolder::read(&args.folder)?, &name, &interface)?;
            written(&out, &args.output, args.force, ui)
        }
        (AdapterFormat::Peft, true) | (AdapterFormat::Adapterhub, false) => Err(usage(
            format!(
                "{} is of that format already, or of none",
                args.folder.display()
            ),
            "give a folder of the other format",
        )),
    }
}

fn summary(paths: &[PathBuf], ui: &Ui) -> Result<()> {
    let [path] = paths else {
        return folders(paths, ui);
    };
    if path.is_dir() {
        return folders(paths, ui);
    }
    let model = api::open(path)?;
    let names = api::manifest(&model)?.into_iter().map(|(n, _)| n);
    let summary = api::summary(&model, &api::stacked(names))?;
    let rows: Vec<_> = summary
        .rows
        .iter()
        .map(|r| json!({ "name": r.name, "architecture": r.architecture, "#param": r.params, "%param": r.percent, "active": r.active, "train": r.train }))
        .collect();
    ui.result(
        &json!({ "adapters": rows, "full_model": summary.full }),
        || summary.table() + "\n",
    )
}

fn folders(paths: &[PathBuf], ui: &Ui) -> Result<()> {
    let read = |p: &PathBuf| -> Result<(PathBuf, AdapterFolder, u64)> {
        let f = AdapterFolder::read(p)?;
        let count: u64 = f
            .weights
            .tensors
            .iter()
            .filter(|(k, _)| crate::adapters::folder::is_adapter_key(k, &f.name))
            .filter_map(|(_, t)| t.count())
            .sum();
        Ok((p.clone(), f, count))
    };
    let all = paths.iter().map(read).collect::<Result<Vec<_>>>()?;
    let rows: Vec<_> = all
        .iter()
        .map(|(p, f, count)| {
            json!({ "folder": p, "name": f.name, "architecture": f.config.architecture(), "#param": count,
                    "model_type": f.meta.model_type, "route": f.route().to_string(), "config_id": f.config.hash(), "config": f.config.to_dict() })
        })
        .collect();
    for (_, f, _) in &all {
        ui.warnings(&f.notes);
    }
    ui.result(&json!(rows), || {
        let mut text = format!(
            "{:<20}{:<16}{:>12}  {:<14}{:<10}{}\n",
            "Name", "Architecture", "#Param", "Model type", "Route", "Config"
        );
        for (_, f, count) in &all {
            let route = f.route().to_string();
            text += &format!(
                "{:<20}{:<16}{count:>12}  {:<14}{route:<10}{}\n",
                f.name,
                f.config.architecture(),
                f.meta.model_type,
                f.config.hash()
            );
        }
        text
    })
}

fn methods(ui: &Ui) -> Result<()> {
    let mut rows = Vec::new();
    for name in identifiers() {
        let known = api::method(name)?;
        let config = Config::parse(name)?;
        let attaches: Vec<&str> = known
            .members
            .iter()
            .flat_map(MethodDoc::locations)
            .collect();
        let merges = known.members.iter().all(|m| m.merges);
        let at = match known.stands_for {
            Some(full) => format!("{} = {full}", attaches.join(", ")),
            None => attaches.join(", "),
        };
        let json = json!({ "identifier": name, "architecture": config.architecture(), "config_id": known.config_id,
                           "attaches": attaches, "merges": merges, "stands_for": known.stands_for });
        rows.push((
            json,
            name,
            config.architecture(),
            known.config_id,
            at,
            merges,
        ));
    }
    let json: Vec<_> = rows.iter().map(|r| &r.0).collect();
    ui.result(&json!(json), || {
        let mut text = format!(
            "{:<22}{:<16}{:<18}{:<8}{}\n",
            "identifier", "architecture", "config id", "merges", "attaches at"
        );
        for (_, n, a, h, at, m) in &rows {
            let m = if *m { "yes" } else { "no" };
            text += &format!("{n:<22}{a:<16}{h:<18}{m:<8}{at}\n");
        }
        text
    })
}

fn show(method: &str, ui: &Ui) -> Result<()> {
    let known = api::method(method)?;
    ui.result(&known.json(), || known.text())
}
