//! `rewrite hub`.

use super::Ui;
use super::args::{HubCommand, PullArgs, PushArgs, RepoType};
use crate::error::Result;
use crate::hub::{self, Hub, Kind, Pushed, Reference, Select, Transfer};
use crate::job::{Event, Parcel, Push};
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
    let mut reference = Reference::parse(&args.repo)?;
    if let Some(given) = args.repo_type {
        reference.kind = kind(given);
    }
    if let Some(revision) = &args.revision {
        let checked = Reference::parse(&format!("{}@{revision}", reference.page()))?;
        reference = reference.at(&checked.revision);
    }
    let hub = Hub::from_env()?;
    if args.list {
        let listing = hub.list(&reference)?;
        return ui.result(&json!(listing), || {
            let line = |f: &hub::RemoteFile| {
                let size = f.size.map_or_else(|| "?".to_owned(), |s| s.to_string());
                format!("{size:>14}  {}\n", f.path)
            };
            listing.files.iter().map(line).collect()
        });
    }
    let mut select = Select {
        include: args.include.clone(),
        exclude: args.exclude.clone(),
    };
    // A path is a file, a pattern, or a folder.
    if let Some(path) = reference.path.take() {
        let listing = hub.list(&reference)?;
        let folder = format!("{path}/");
        let inside = listing.files.iter().any(|f| f.path.starts_with(&folder));
        select.include.push(if inside { folder } else { path });
    }
    let mut bar = Bar::new(ui);
    let pulled = hub.pull(&reference, &select, &mut |t| bar.show(t));
    bar.clear();
    let pulled = pulled?;
    let target = match &args.output {
        Some(folder) => {
            pulled.export(folder, args.force)?;
            folder.clone()
        }
        None => pulled.folder.clone(),
    };
    let mut report = json!(pulled);
    report["folder"] = target.display().to_string().into();
    ui.note(&format!("{} at commit {}", pulled.repo, pulled.commit));
    ui.result(&report, || {
        let path = |f: &hub::PulledFile| format!("{}\n", target.join(&f.path).display());
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
        Ok(())
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

    fn show(&mut self, t: Transfer<'_>) {
        if self.file != t.file {
            t.file.clone_into(&mut self.file);
            self.bar.set_message(self.file.clone());
            self.bar.set_length(t.total.unwrap_or(0));
            self.bar.reset();
        }
        self.bar.set_position(t.done);
    }

    /// Shows how far a transfer is.
    pub(super) fn event(&mut self, event: &Event) {
        if let Event::Transfer { file, done, total } = event {
            self.show(Transfer {
                file,
                done: *done,
                total: *total,
            });
        }
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
