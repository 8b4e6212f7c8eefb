//! Which interface reads a model, and which adapters it gets.

use super::event::{OnEvent, warn};
use crate::adapters::head::Head;
use crate::adapters::{Adapter, Setup, spec};
use crate::api::{self, Adapted, Attach};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::contract;
use crate::select::Interface;
use std::path::{Path, PathBuf};

/// The interface and the adapters that a job or a command names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdapterSettings {
    /// File or name of the interface (default: the one beside the model, or of the graph).
    pub interface: Option<String>,
    /// Adapters, each as `SPEC` or `NAME=SPEC` (default: the first method that the interface lists).
    pub adapters: Vec<String>,
    /// How the adapters are composed (default: all are active, one behind the other).
    pub active: Option<String>,
}

impl AdapterSettings {
    /// The interface that is named, or that of the model.
    ///
    /// # Errors
    /// [`ErrorKind::Interface`].
    pub(crate) fn interface(&self, path: &Path, model: &Verified) -> Result<Interface> {
        match &self.interface {
            Some(name) => Interface::resolve(name),
            None => api::find_interface(model, Some(path)),
        }
    }

    /// The adapters that are named; the first method of the interface, without any.
    pub(super) fn load(&self, interface: &Interface) -> Result<Vec<Adapter>> {
        if self.adapters.is_empty() {
            return Ok(vec![Adapter::default_of(interface)?]);
        }
        let load = |text: &String| spec::parse(text)?.load();
        self.adapters.iter().map(load).collect()
    }

    /// How adapters are composed.
    fn setup(&self, adapters: &[Adapter]) -> Result<Setup> {
        let names: Vec<&str> = adapters.iter().map(|a| &*a.name).collect();
        let Some(text) = &self.active else {
            return Ok(Setup::stack(names.into_iter().map(str::to_owned)));
        };
        let checked = |s: Setup| s.check(&names).map(|()| s);
        Setup::parse(text).and_then(checked).map_err(|d| {
            let message = format!("--active: {}", d.message);
            Error::new(ErrorKind::Usage, Diagnostic { message, ..d })
        })
    }

    /// What attaches the adapters to the model of a file, and their names.
    pub(super) fn builder(
        &self,
        model: Verified,
        interface: &Interface,
        path: &Path,
    ) -> Result<(Attach, Vec<String>)> {
        let adapters = self.load(interface)?;
        let setup = self.setup(&adapters)?;
        let names = adapters.iter().map(|a| a.name.clone()).collect();
        let attach = Attach::to(model).from_file(path).interface(interface);
        Ok((attach.adapters(adapters).active(setup), names))
    }

    /// Attaches the adapters by the interface that is named, or that of the model.
    pub(super) fn attach(
        &self,
        model: Verified,
        path: &Path,
        seed: u64,
        training: bool,
        events: OnEvent<'_>,
    ) -> Result<Adapted> {
        let interface = self.interface(path, &model)?;
        self.attach_by(&interface, model, path, seed, training, events)
    }

    /// Attaches the adapters, with the head that was saved with one of them where the graph has none.
    pub(super) fn attach_by(
        &self,
        interface: &Interface,
        model: Verified,
        path: &Path,
        seed: u64,
        training: bool,
        events: OnEvent<'_>,
    ) -> Result<Adapted> {
        let (attach, names) = self.builder(model, interface, path)?;
        let mut adapted = attach.seed(seed).training(training).run()?;
        (adapted.model, adapted.head) =
            self.with_head(&names, adapted.model, seed, training, events)?;
        warn(events, &adapted.warnings)?;
        Ok(adapted)
    }

    /// The model with the head that was saved with one of its adapters, and that head, where the graph has none.
    pub(super) fn with_head(
        &self,
        names: &[String],
        model: Verified,
        seed: u64,
        training: bool,
        events: OnEvent<'_>,
    ) -> Result<(Verified, Option<Head>)> {
        let Some(head) = self.saved_head(names)? else {
            return Ok((model, None));
        };
        if model.model().graph.find(contract::LOGITS).is_some() {
            let found = format!("the head that was saved with `{}` is not used", head.name);
            let found = Diagnostic::warning("head-ignored", found).help(
                "the graph has its own head; export the model without one to use the saved one",
            );
            warn(events, &[found])?;
            return Ok((model, None));
        }
        let model = api::attach_head(model, head.clone(), seed, training)?;
        Ok((model, Some(head)))
    }

    /// The folders that adapters are loaded from.
    pub(super) fn sources(&self) -> Vec<PathBuf> {
        let source = |text: &String| match spec::parse(text).ok()? {
            spec::Spec::Saved { folder, .. } => folder.canonicalize().ok(),
            spec::Spec::Fresh { .. } => None,
        };
        self.adapters.iter().filter_map(source).collect()
    }

    /// Names of the classes of the head that the adapters' folders hold, in the order of their ids.
    pub(super) fn saved_classes(&self) -> Result<Option<Vec<String>>> {
        let ids = self
            .saved_head(&self.adapters)?
            .and_then(|h| h.config.label2id);
        Ok(ids.map(|ids| in_order(ids.into_iter())))
    }

    /// The head in the folder of the first adapter that has one.
    fn saved_head(&self, names: &[String]) -> Result<Option<Head>> {
        for (text, name) in self.adapters.iter().zip(names) {
            let folder = text.split_once('=').map_or(text.as_str(), |(_, spec)| spec);
            for place in [text.as_str(), folder] {
                if Path::new(place).is_dir()
                    && let Some(head) = Head::read(Path::new(place), Some(name))?
                {
                    return Ok(Some(head));
                }
            }
        }
        Ok(None)
    }

    /// Number of tasks that the setup chooses from by `task_ids`.
    pub(super) fn task_count(&self) -> Option<usize> {
        let setup = Setup::parse(self.active.as_deref()?).ok()?;
        setup.multi_tasks().iter().map(|tasks| tasks.len()).min()
    }
}

/// Names in the order of their ids.
pub(super) fn in_order(ids: impl Iterator<Item = (String, i64)>) -> Vec<String> {
    let mut names: Vec<(i64, String)> = ids.map(|(name, id)| (id, name)).collect();
    names.sort_unstable();
    names.into_iter().map(|(_, name)| name).collect()
}
