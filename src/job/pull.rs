//! Files of a repository on the Hub are pulled into the cache, or copied into a folder.

use super::event::{Event, OnEvent};
use crate::error::Result;
use crate::hub::{Hub, Kind, Listing, Pulled, Reference, Select, Sought, Transfer, Want};
use std::path::PathBuf;

/// Files that are pulled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pull {
    /// `ORG/NAME`, with `@REVISION` and `:PATH` as needed.
    pub(crate) repo: String,
    /// What the repository holds (default: what its name says).
    pub(crate) kind: Option<Kind>,
    /// Branch, tag or commit (default: the one in the name).
    pub(crate) revision: Option<String>,
    /// The variant of an ONNX model that is pulled, with what is beside it (default: what the patterns say).
    pub(crate) variant: Option<String>,
    /// Patterns of the files that are wanted (default: all files).
    pub(crate) include: Vec<String>,
    /// Patterns of files that are left out.
    pub(crate) exclude: Vec<String>,
    /// The folder that the files are copied to (default: they stay in the cache).
    pub(crate) output: Option<PathBuf>,
    /// Whether files that are there are replaced.
    pub(crate) force: bool,
}

impl Pull {
    /// The files of the repository. Nothing is pulled.
    ///
    /// # Errors
    /// A name that no repository has, and those of [`Hub::list`].
    pub(crate) fn list(&self) -> Result<Listing> {
        Hub::from_env()?.list(&self.reference()?)
    }

    /// Pulls the files: what was pulled, and the folder that holds it.
    ///
    /// # Errors
    /// A name that no repository has, those of [`Hub::pull`] and [`Pulled::export`].
    pub(crate) fn run(&self, events: OnEvent<'_>) -> Result<(Pulled, PathBuf)> {
        let reference = self.reference()?;
        let select = Select {
            include: self.include.clone(),
            exclude: self.exclude.clone(),
        };
        let mut heard = Ok(());
        let mut on = |t: Transfer<'_>| {
            if heard.is_ok() {
                heard = events(&Event::transfer(t));
            }
        };
        let hub = Hub::from_env()?;
        let pulled = match &self.variant {
            Some(variant) => {
                let sought = Sought {
                    want: Want::Model,
                    variant: Some(variant),
                    every_part: true,
                };
                hub.pull_sought(&reference, sought, &mut on)?.1
            }
            None => hub.pull(&reference, &select, &mut on)?,
        };
        heard?;
        let folder = match &self.output {
            Some(folder) => {
                pulled.export(folder, self.force)?;
                folder.clone()
            }
            None => pulled.folder.clone(),
        };
        Ok((pulled, folder))
    }

    fn reference(&self) -> Result<Reference> {
        let mut reference = Reference::parse(&self.repo)?;
        if let Some(kind) = self.kind {
            reference.kind = kind;
        }
        if let Some(revision) = &self.revision {
            let checked = Reference::parse(&format!("{}@{revision}", reference.page()))?;
            reference = reference.at(&checked.revision);
        }
        Ok(reference)
    }
}
