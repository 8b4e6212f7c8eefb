//! `rewrite hub`: parses arguments, shows events and prints.

use super::Ui;
use super::args::{HubCommand, PullArgs, PushArgs, RepoType};
use crate::error::Result;
use crate::hub::{Kind, PulledFile, Pushed, RemoteFile};
use crate::job::{Event, Parcel, Pull, Push};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

pub(super) fn run(command: &HubCommand, ui: &Ui) -> Result<()> {
    match command {
        HubCommand::Pull(args) => pull(args, ui),
        HubCommand::Push(args) => push(args, ui),
    }
}

fn kind(given: RepoType) -> Kind {
    match given {
        RepoType::Model => Kind::Model,
        RepoType::Dataset => Kind::Dataset,
    }
}

fn pull(args: &PullArgs, ui: &Ui) -> Result<()> {
    let pull = Pull {
        repo: args.repo.clone(),
        kind: args.repo_type.map(kind),
        revision: args.revision.clone(),
        variant: args.variant.clone(),
        include: args.include.clone(),
        exclude: args.exclude.clone(),
        output: args.output.clone(),
        force: args.force,
    };
    if args.list {
        let listing = pull.list()?;
        return ui.result(&json!(listing), || {
            let line = |f: &RemoteFile| {
                let size = f.size.map_or_else(|| "?".to_owned(), |s| s.to_string());
                format!("{size:>14}  {}\n", f.path)
            };
            listing.files.iter().map(line).collect()
        });
    }
    let mut bar = Bar::new(ui);
    let done = pull.run(&mut |event| {
        bar.event(event);
        Ok(())
    });
    bar.clear();
    let (pulled, folder) = done?;
    let mut report = json!(pulled);
    report["folder"] = folder.display().to_string().into();
    ui.note(&format!("{} at commit {}", pulled.repo, pulled.commit));
    ui.result(&report, || {
        let path = |f: &PulledFile| format!("{}\n", folder.join(&f.path).display());
        pulled.files.iter().map(path).collect()
    })
}

fn push(args: &PushArgs, ui: &Ui) -> Result<()> {
    let push = Push {
        folder: args.folder.clone(),
        repo: args.repo.clone(),
        kind: args.repo_type.map(kind),
        create: args.create,
        private: args.private,
        commit_message: args.commit_message.clone(),
        commit_description: args.commit_description.clone(),
        create_pr: args.create_pr,
        run: args.run.clone(),
        base_model: args.base_model.clone(),
        datasets: args.dataset.clone(),
        tags: args.tag.clone(),
        languages: args.language.clone(),
        license: args.license.clone(),
        overwrite_card: args.overwrite_card,
        no_card: args.no_card,
    };
    if args.dry_run {
        return preview(&push.parcel()?, ui);
    }
    let mut bar = Bar::new(ui);
    let done = push.run(&mut |event| {
        bar.event(event);
        ui.shown(event)
    });
    bar.clear();
    pushed(&done?, ui)
}

/// Prints what was pushed.
pub(super) fn pushed(pushed: &Pushed, ui: &Ui) -> Result<()> {
    ui.result(&json!(pushed), || {
        let mut text = match &pushed.commit {
            None => format!("{} has everything already\n", pushed.url),
            Some(commit) => format!(
                "{}: {} files in commit {commit}\n",
                pushed.url,
                pushed.files.len()
            ),
        };
        if let Some(request) = &pushed.pull_request {
            text += &format!("pull request {request}\n");
        }
        text
    })
}

fn preview(parcel: &Parcel, ui: &Ui) -> Result<()> {
    ui.warnings(&parcel.notes);
    let names: Vec<&str> = parcel.files.iter().map(|f| f.path.as_str()).collect();
    ui.note(&format!("{} would get {}", parcel.to, names.join(", ")));
    let card = parcel.card();
    ui.result(
        &json!({"repo": parcel.to.page(), "files": names, "card": card}),
        || card.clone().unwrap_or_default(),
    )
}

/// A bar for each file.
pub(super) struct Bar {
    bar: ProgressBar,
    file: String,
}

impl Bar {
    pub(super) fn new(ui: &Ui) -> Bar {
        let bar = if ui.progress() {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Bar {
            bar,
            file: String::new(),
        }
    }

    /// Shows how far a transfer is.
    pub(super) fn event(&mut self, event: &Event) {
        let Event::Transfer { file, done, total } = event else {
            return;
        };
        if self.file != *file {
            file.clone_into(&mut self.file);
            self.bar.set_message(self.file.clone());
            self.bar.set_length(total.unwrap_or(0));
            self.bar.reset();
        }
        self.bar.set_position(*done);
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
