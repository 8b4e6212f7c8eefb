//! `rewrite tenants`: parses arguments, shows events and prints.

#![expect(
    clippy::doc_markdown,
    reason = "the documentation is the help text on a terminal"
)]

use super::Ui;
use crate::error::Result;
use crate::ir::contract;
use crate::job::{AdapterSettings, ChangeTenants, ExtractTenant, ListTenants};
use clap::Subcommand;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum TenantsCommand {
    /// Ids, names and configurations
    #[command(after_help = "Example:\n  rewrite tenants list tenants.onnx")]
    List {
        /// A model that was made with --adapter-ids
        model: PathBuf,
    },
    /// Add adapters behind those that are there
    #[command(
        after_help = "Example:\n  rewrite tenants add tenants.onnx -a c=adapters/c -o more.onnx"
    )]
    Add {
        /// A model that was made with --adapter-ids
        model: PathBuf,
        /// NAME=SPEC or SPEC: a saved adapter folder, an adapter_config.json or a configuration string. May be repeated
        #[arg(short, long = "adapter", value_name = "[NAME=]SPEC", required = true)]
        adapters: Vec<String>,
        /// Add saved adapters that were made for another base model
        #[arg(long)]
        allow_other_base: bool,
        /// File that the model goes to
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Replace an existing output
        #[arg(long)]
        force: bool,
        /// Seed of initial parameter values
        #[arg(long, default_value_t = 42)]
        seed: u64,
    },
    /// Take adapters out; the ids of those behind them move up
    #[command(after_help = "Example:\n  rewrite tenants remove tenants.onnx b -o fewer.onnx")]
    Remove {
        /// A model that was made with --adapter-ids
        model: PathBuf,
        /// Names of the adapters
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// File that the model goes to
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Replace an existing output
        #[arg(long)]
        force: bool,
    },
    /// Write the folder of one adapter, as it was attached
    #[command(after_help = "Example:\n  rewrite tenants extract tenants.onnx b -o adapters/b")]
    Extract {
        /// A model that was made with --adapter-ids
        model: PathBuf,
        /// Name of the adapter
        name: String,
        /// The folder
        #[arg(short, long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
        output: PathBuf,
        /// Replace existing files
        #[arg(long)]
        force: bool,
    },
}

pub(super) fn run(command: &TenantsCommand, ui: &Ui) -> Result<()> {
    match command {
        TenantsCommand::List { model } => list(model, ui),
        TenantsCommand::Add {
            model,
            adapters,
            allow_other_base,
            output,
            force,
            seed,
        } => {
            let add = AdapterSettings {
                adapters: adapters.clone(),
                allow_other_base: *allow_other_base,
                ..AdapterSettings::default()
            };
            let job = ChangeTenants {
                model: model.clone(),
                add,
                remove: Vec::new(),
                output: output.clone(),
                force: *force,
                seed: *seed,
            };
            change(&job, ui)
        }
        TenantsCommand::Remove {
            model,
            names,
            output,
            force,
        } => {
            let job = ChangeTenants {
                model: model.clone(),
                add: AdapterSettings::default(),
                remove: names.clone(),
                output: output.clone(),
                force: *force,
                seed: 0,
            };
            change(&job, ui)
        }
        TenantsCommand::Extract {
            model,
            name,
            output,
            force,
        } => {
            let job = ExtractTenant {
                model: model.clone(),
                name: name.clone(),
                output: output.clone(),
                force: *force,
            };
            let out = job.run(&mut |event| ui.shown(event))?;
            let report = json!({ "name": out.name, "folder": output, "config": out.config.to_dict(), "config_id": out.config.hash() });
            ui.result(&report, || {
                format!("wrote {}{}\n", output.display(), std::path::MAIN_SEPARATOR)
            })
        }
    }
}

fn change(job: &ChangeTenants, ui: &Ui) -> Result<()> {
    let (names, saved) = job.run(&mut |event| ui.shown(event))?;
    let report = json!({ "model": saved.model, "bytes": saved.bytes, "adapter_ids": names });
    ui.result(&report, || {
        let wrote = format!("wrote {}\n", saved.model.display());
        ids(names.iter().map(|n| &**n)) + &wrote
    })
}

fn list(model: &Path, ui: &Ui) -> Result<()> {
    let job = ListTenants {
        model: model.to_owned(),
    };
    let all = job.run(&mut |event| ui.shown(event))?;
    let rows = all.iter().enumerate().map(|(id, f)| {
        json!({ "id": id, "name": f.name, "architecture": f.config.architecture(), "#param": f.parameters(),
                "config_id": f.config.hash(), "config": f.config.to_dict() })
    });
    let rows: Vec<_> = rows.collect();
    ui.result(&json!(rows), || {
        let mut text = format!(
            "{:>5}  {:<24}{:<16}{:>12}  {}\n",
            "Id", "Name", "Architecture", "#Param", "Config"
        );
        for (id, f) in all.iter().enumerate() {
            text += &format!(
                "{id:>5}  {:<24}{:<16}{:>12}  {}\n",
                f.name,
                f.config.architecture(),
                f.parameters(),
                f.config.hash()
            );
        }
        text
    })
}

/// Which id is whose, in lines.
pub(super) fn ids<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 16;
    let names: Vec<&str> = names.collect();
    let shown = names.iter().take(SHOWN).enumerate();
    let shown: Vec<String> = shown.map(|(id, name)| format!("{id} {name}")).collect();
    let more = names.len().saturating_sub(SHOWN);
    let more = if more > 0 {
        format!(", and {more} more (`rewrite tenants list`)")
    } else {
        String::new()
    };
    format!(
        "{}: {}{more}; -1 none\n",
        contract::ADAPTER_IDS,
        shown.join(", ")
    )
}
