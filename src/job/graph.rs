//! A picture of a model file, with adapters that it has or that are attached to be looked at.

use super::attach::AdapterSettings;
use super::check::{ensure_absent, keep, usage, write_file};
use super::event::OnEvent;
use super::open;
use crate::api;
use crate::error::Result;
use crate::picture::Picture;
use std::path::{Path, PathBuf};

/// Draws a model by module.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub(crate) struct Graph {
    /// The ONNX file.
    pub model: PathBuf,
    /// Adapters to attach first (default: none).
    pub adapters: AdapterSettings,
    /// Where the picture goes; its name says the format.
    pub output: Option<PathBuf>,
    /// Whether an existing picture is replaced.
    pub force: bool,
}

/// What a picture is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Svg,
    Html,
    Dot,
}

impl Format {
    /// By the ending of a file's name.
    fn of(path: &Path) -> Result<Format> {
        let ending = path.extension().and_then(|e| e.to_str());
        match ending.map(str::to_ascii_lowercase).as_deref() {
            Some("svg") => Ok(Format::Svg),
            Some("html" | "htm") => Ok(Format::Html),
            Some("dot" | "gv") => Ok(Format::Dot),
            _ => Err(usage(
                format!("{} does not say what kind of picture it is", path.display()),
                "give a file that ends in .svg, .html or .dot",
            )),
        }
    }
}

/// Seed of adapters that are attached to be looked at.
const SEED: u64 = 42;

impl Graph {
    /// A job with the command's defaults.
    pub(crate) fn new(model: impl Into<PathBuf>) -> Self {
        Graph {
            model: model.into(),
            adapters: AdapterSettings::default(),
            output: None,
            force: false,
        }
    }

    /// Makes the picture, and writes it where a file is named.
    ///
    /// # Errors
    /// A file that says no format or is there already; a model or an adapter that cannot be read, or that do not fit.
    pub(crate) fn run(&self, events: OnEvent<'_>) -> Result<Picture> {
        if let Some(output) = &self.output {
            Format::of(output)?;
            keep(output, [&*self.model])?;
            ensure_absent(output, self.force)?;
        }
        let model = open(&self.model, events)?;
        let named = !self.adapters.adapters.is_empty() || self.adapters.active.is_some();
        let picture = if named {
            let adapted = self
                .adapters
                .attach(model, &self.model, SEED, true, events)?;
            Picture::of(&api::shown(adapted.model)?, Some(&adapted.selection))?
        } else {
            let model = api::shown(model)?;
            // Roles are for those who have an interface; the picture does without.
            let interface = match &self.adapters.interface {
                Some(_) => Some(self.adapters.interface(&self.model, &model)?),
                None => api::find_interface(&model, Some(&self.model)).ok(),
            };
            let selection = interface.map(|i| i.select(&model));
            let selection = match self.adapters.interface {
                Some(_) => selection.transpose()?,
                None => selection.and_then(Result::ok),
            };
            Picture::of(&model, selection.as_ref())?
        };
        let name = self.model.file_name().map(|n| n.to_string_lossy());
        let picture = picture.titled(&name.unwrap_or_default());
        if let Some(output) = &self.output {
            let text = match Format::of(output)? {
                Format::Svg => picture.svg(),
                Format::Html => picture.html(),
                Format::Dot => picture.dot(),
            };
            write_file(output, text.as_bytes())?;
        }
        Ok(picture)
    }
}
