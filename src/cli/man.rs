//! `rewrite man`: manual pages, from the same description as the help.

use super::args::Cli;
use super::{Ui, stdout};
use crate::error::{Error, Result};
use crate::job::{ensure_absent, write_file};
use clap::CommandFactory;
use clap_mangen::Man;
use serde_json::json;
use std::fs;
use std::io;
use std::path::Path;

/// A page: its file name and its text.
type Page = (String, Vec<u8>);

pub(super) fn man(folder: Option<&Path>, force: bool, ui: &Ui) -> Result<()> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    let failed = |e| Error::io(Path::new("the manual"), "cannot be written", e);
    let Some(folder) = folder else {
        page(command, &mut pages).map_err(failed)?;
        return pages.pop().map_or(Ok(()), |(_, text)| stdout(&text));
    };
    all(command, &mut pages).map_err(failed)?;
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot make the folder", e))?;
    let files: Vec<_> = pages.iter().map(|(name, _)| folder.join(name)).collect();
    for file in &files {
        ensure_absent(file, force)?;
    }
    for (file, (_, text)) in files.iter().zip(&pages) {
        write_file(file, text)?;
    }
    ui.result(&json!({ "files": files }), || {
        let wrote = |file: &std::path::PathBuf| format!("wrote {}\n", file.display());
        files.iter().map(wrote).collect()
    })
}

/// The page of a command and those of the commands in it.
fn all(command: clap::Command, pages: &mut Vec<Page>) -> io::Result<()> {
    let within: Vec<_> = command.get_subcommands().cloned().collect();
    page(command, pages)?;
    let mut shown = within.into_iter().filter(|c| !c.is_hide_set());
    shown.try_for_each(|c| all(c, pages))
}

fn page(command: clap::Command, pages: &mut Vec<Page>) -> io::Result<()> {
    let man = Man::new(command);
    let mut text = Vec::new();
    man.render(&mut text)?;
    pages.push((man.get_filename(), text));
    Ok(())
}
