//! The formats that adapters are written in: AdapterHub's folders, PEFT's, or both beside each other.

use super::check::{exists, usage};
use super::event::{OnEvent, warn};
use crate::adapters::folder::{self, AdapterFolder, StagedAdapter, WriteOptions};
use crate::adapters::peft::{self, PeftFolder};
use crate::diag::Diagnostic;
use crate::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What is behind an adapter's name in the name of PEFT's folder, where both formats are written.
const BESIDE: &str = "-peft";

/// Formats that adapters are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SaveFormat {
    /// The Adapters library's: NAME/.
    #[default]
    Adapterhub,
    /// Hugging Face PEFT's: NAME/.
    Peft,
    /// Both: NAME/ and NAME-peft/.
    Both,
}

/// An adapter in the formats that were asked for.
pub(super) struct Saved {
    adapterhub: Option<(PathBuf, AdapterFolder)>,
    peft: Option<(PathBuf, PeftFolder)>,
}

impl SaveFormat {
    /// The folders of an adapter whose own is `at`.
    pub(super) fn places(self, at: &Path) -> Vec<PathBuf> {
        let mut beside = at.as_os_str().to_owned();
        beside.push(BESIDE);
        match self {
            SaveFormat::Adapterhub | SaveFormat::Peft => vec![at.to_owned()],
            SaveFormat::Both => vec![at.to_owned(), beside.into()],
        }
    }

    /// Refuses adapters whose folders would be one.
    pub(super) fn check_names(self, names: &[String]) -> Result<()> {
        let both = self == SaveFormat::Both;
        let meets = |n: &&String| names.iter().any(|m| format!("{m}{BESIDE}") == **n);
        match names.iter().find(meets).filter(|_| both) {
            Some(name) => Err(usage(
                format!(
                    "--format both: `{name}` is the folder that another adapter's copy for PEFT goes to"
                ),
                "give it another name: --adapter NAME=SPEC",
            )),
            None => Ok(()),
        }
    }

    /// The adapter in these formats.
    ///
    /// # Errors
    /// What PEFT cannot say with the same numbers.
    pub(super) fn of(self, adapter: AdapterFolder, at: &Path) -> Result<Saved> {
        let peft = (self != SaveFormat::Adapterhub)
            .then(|| peft::to_peft(&adapter))
            .transpose()
            .map_err(|e| e.within(format!("--format {}", self.name())))?;
        let mut places = self.places(at).into_iter();
        let adapterhub = (self != SaveFormat::Peft).then_some(adapter);
        Ok(Saved {
            adapterhub: adapterhub.and_then(|a| Some((places.next()?, a))),
            peft: peft.and_then(|p| Some((places.next()?, p))),
        })
    }

    fn name(self) -> &'static str {
        match self {
            SaveFormat::Adapterhub => "adapterhub",
            SaveFormat::Peft => "peft",
            SaveFormat::Both => "both",
        }
    }

    /// Says that PEFT's form of an adapter goes without the head that is saved beside AdapterHub's.
    pub(super) fn say_headless(self, name: &str, events: OnEvent<'_>) -> Result<()> {
        if self == SaveFormat::Adapterhub {
            return Ok(());
        }
        let found = format!("the head of `{name}` is not written in PEFT's format");
        let found = Diagnostic::warning("head-ignored", found);
        warn(
            events,
            &[found.help("--format adapterhub keeps it beside the adapter")],
        )
    }
}

impl Saved {
    /// Refuses folders that are there, and files in their places.
    pub(super) fn check(&self, force: bool) -> Result<()> {
        let adapterhub = self.adapterhub.iter().map(|(at, _)| at);
        for at in adapterhub.chain(self.peft.iter().map(|(at, _)| at)) {
            folder::free(at)?;
            if !force && folder::is_saved(at) {
                return Err(exists(at));
            }
        }
        Ok(())
    }

    /// The folders, put together beside their places. `more` writes what else belongs into one; it gets whether that is AdapterHub's.
    pub(super) fn staged(
        &self,
        force: bool,
        more: &dyn Fn(&Path, bool) -> Result<()>,
    ) -> Result<Vec<StagedAdapter>> {
        let options = WriteOptions::default();
        let mut out = Vec::new();
        if let Some((at, adapter)) = &self.adapterhub {
            let place = StagedAdapter::new(at, force)?;
            adapter.write(place.path(), options)?;
            more(place.path(), true)?;
            out.push(place);
        }
        if let Some((at, adapter)) = &self.peft {
            let place = StagedAdapter::new(at, force)?;
            adapter.write(place.path(), options)?;
            more(place.path(), false)?;
            out.push(place);
        }
        Ok(out)
    }
}
