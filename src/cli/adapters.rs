//! `rewrite adapter`: parses arguments, shows events and prints.

use super::Ui;
use super::args::{AdapterCommand, ConvertArgs};
use super::average::{AverageArgs, SignMethod};
use super::export::AdapterFormat;
use crate::adapters::folder::{self, AdapterFolder};
use crate::adapters::{Weighting, fusion_identifiers, identifiers};
use crate::api;
use crate::error::Result;
use crate::job::{Average, Convert, Converted, Format, Summed, rename_beside, sum_up, write_like};
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
        } => {
            let (out, path) = rename_beside(folder, name, output.as_deref())?;
            write_like(&out, folder, &path, *force)?;
            say(&out, &path, ui)
        }
        AdapterCommand::Eject {
            folder,
            output,
            force,
        } => {
            let out = api::eject_prefix_tuning(AdapterFolder::read(folder)?)?;
            write_like(&out, folder, output, *force)?;
            say(&out, output, ui)
        }
        AdapterCommand::Delete { folder } => deleted(folder, ui),
        AdapterCommand::Convert(args) => converted(args, ui),
    }
}

fn averaged(args: &AverageArgs, ui: &Ui) -> Result<()> {
    let job = Average {
        name: args.name.clone(),
        adapters: args.adapters.clone(),
        weights: args.weights.clone(),
        normalize: !args.no_normalize_weights,
        strategy: args.combine_strategy.name().to_owned(),
        rank: args.svd_rank,
        weighting: args.combination_type.as_ref().map(|combination| Weighting {
            combination: combination.clone(),
            weights: args.weights.clone(),
            density: args.density,
            by_frequency: args.majority_sign_method == SignMethod::Frequency,
            svd_rank: args.svd_rank,
            seed: args.seed,
        }),
        output: args.output.clone(),
        force: args.force,
    };
    let (out, path) = job.run()?;
    say(&out, &path, ui)
}

/// Says that an adapter folder was written.
fn say(out: &AdapterFolder, path: &Path, ui: &Ui) -> Result<()> {
    ui.warnings(&out.notes);
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
    let to = match args.to {
        AdapterFormat::Peft => Format::Peft,
        AdapterFormat::Adapterhub => Format::Adapterhub,
        AdapterFormat::OnnxAdapter => Format::OnnxAdapter,
    };
    let mut job = Convert::new(&args.folder, to, &args.output);
    job.interface.clone_from(&args.interface);
    job.name.clone_from(&args.name);
    job.force = args.force;
    match job.run()? {
        Converted::OnnxAdapter(tensors, notes) => {
            ui.warnings(&notes);
            let report = json!({ "file": args.output, "tensors": tensors });
            ui.result(&report, || format!("wrote {}\n", args.output.display()))
        }
        Converted::Adapterhub(out) => say(&out, &args.output, ui),
        Converted::Peft(out, notes) => {
            ui.warnings(&notes);
            let report = json!({ "folder": args.output, "config": out.config });
            ui.result(&report, || {
                let separator = std::path::MAIN_SEPARATOR;
                format!("wrote {}{separator}\n", args.output.display())
            })
        }
    }
}

fn summary(paths: &[PathBuf], ui: &Ui) -> Result<()> {
    match sum_up(paths, &mut |event| ui.shown(event))? {
        Summed::Model(summary) => ui.result(
            &json!({ "adapters": super::attach::rows(&summary), "full_model": summary.full }),
            || summary.table() + "\n",
        ),
        Summed::Folders(all) => folders(&all, ui),
    }
}

fn folders(all: &[(PathBuf, AdapterFolder)], ui: &Ui) -> Result<()> {
    let rows: Vec<_> = all
        .iter()
        .map(|(p, f)| {
            json!({ "folder": p, "name": f.name, "architecture": f.config.architecture(), "#param": f.parameters(),
                    "model_type": f.meta.model_type, "route": f.route().to_string(), "config_id": f.config.hash(), "config": f.config.to_dict() })
        })
        .collect();
    for (_, f) in all {
        ui.warnings(&f.notes);
    }
    ui.result(&json!(rows), || {
        let mut text = format!(
            "{:<20}{:<16}{:>12}  {:<16}{:<24}{}\n",
            "Name", "Architecture", "#Param", "Model type", "Route", "Config"
        );
        for (_, f) in all {
            let route = f.route().to_string();
            text += &format!(
                "{:<20}{:<16}{:>12}  {:<16}{route:<24}{}\n",
                f.name,
                f.config.architecture(),
                f.parameters(),
                f.meta.model_type,
                f.config.hash()
            );
        }
        text
    })
}

fn methods(ui: &Ui) -> Result<()> {
    let mut rows = Vec::new();
    for name in identifiers().chain(fusion_identifiers()) {
        let known = api::method(name)?;
        let architecture = known.architecture();
        let (attaches, merges) = (known.locations(), known.merges());
        let at = match known.stands_for {
            Some(full) => format!("{} = {full}", attaches.join(", ")),
            None => attaches.join(", "),
        };
        let json = json!({ "identifier": name, "architecture": architecture, "config_id": known.config_id,
                           "attaches": attaches, "merges": merges, "stands_for": known.stands_for });
        rows.push((json, name, architecture, known.config_id, at, merges));
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
