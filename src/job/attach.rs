//! Which interface reads a model, and which adapters it gets.

use super::check::ARGUMENTS;
use super::event::{OnEvent, warn};
use crate::adapters::head::Head;
use crate::adapters::{Adapter, Setup, spec};
use crate::api::{self, Adapted};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::contract;
use crate::select::{Interface, infer_interface};
use std::path::Path;

/// The interface and the adapters that a job or a command names.
#[derive(Clone, Debug, Default)]
pub(crate) struct AdapterSettings {
    /// File or name of the interface. Without it, the one beside the model, or of the graph.
    pub(crate) interface: Option<String>,
    /// Adapters, each as `SPEC` or `NAME=SPEC`. Without any, the first method that the interface lists.
    pub(crate) adapters: Vec<String>,
    /// How the adapters are composed. Without it, all are active, one behind the other.
    pub(crate) active: Option<String>,
}

impl AdapterSettings {
    /// The interface that is named, or the one of the model beside it, or of the graph.
    pub(crate) fn interface(&self, path: &Path, model: &Verified) -> Result<Interface> {
        if let Some(name) = &self.interface {
            return Interface::resolve(name);
        }
        if let Some(found) = Interface::detect(path)? {
            return Ok(found);
        }
        infer_interface(model).map(|p| p.interface).map_err(|e| {
            let d = Diagnostic::error("interface-unknown", "no interface was given, and none could be found")
                .help("give one: --interface qwen3, or --interface adapter_interface.json (`rewrite interface list`)");
            Error::new(ErrorKind::Interface, d).with_source(e)
        })
    }

    /// The adapters that are named; the first method of the interface, without any.
    pub(crate) fn load(&self, interface: &Interface) -> Result<Vec<Adapter>> {
        if self.adapters.is_empty() {
            return Ok(vec![Adapter::default_of(interface)?]);
        }
        self.adapters
            .iter()
            .map(|text| spec::parse(text)?.load())
            .collect()
    }

    /// How adapters are composed.
    pub(crate) fn setup(&self, adapters: &[Adapter]) -> Result<Setup> {
        let names: Vec<&str> = adapters.iter().map(|a| &*a.name).collect();
        let Some(text) = &self.active else {
            return Ok(api::stacked(names.into_iter().map(str::to_owned)));
        };
        let checked = |s: Setup| s.check(&names).map(|()| s);
        Setup::parse(text).and_then(checked).map_err(|d| {
            let d = Diagnostic {
                code: ARGUMENTS,
                message: format!("--active: {}", d.message),
                ..d
            };
            Error::new(ErrorKind::Invalid, d)
        })
    }

    /// Attaches the adapters, with the head that was saved with one of them where the graph has none.
    pub(crate) fn attach(
        &self,
        model: Verified,
        path: &Path,
        seed: u64,
        training: bool,
        events: OnEvent<'_>,
    ) -> Result<Adapted> {
        let interface = self.interface(path, &model)?;
        let adapters = self.load(&interface)?;
        let setup = self.setup(&adapters)?;
        let names: Vec<String> = adapters.iter().map(|a| a.name.clone()).collect();
        let mut adapted = api::attach(model, &interface, adapters, setup, seed, training)?;
        if let Some(head) = self.saved_head(&names)?
            && adapted.model.model().graph.find(contract::LOGITS).is_none()
        {
            adapted.model = api::attach_head(adapted.model, head, seed, training)?;
        }
        warn(events, &adapted.warnings)?;
        Ok(adapted)
    }

    /// Names of the classes of the head that the adapters' folders hold, in the order of their ids.
    pub(crate) fn saved_classes(&self) -> Result<Option<Vec<String>>> {
        let ids = self
            .saved_head(&self.adapters)?
            .and_then(|h| h.config.label2id);
        Ok(ids.map(|ids| in_order(ids.into_iter())))
    }

    /// The head in the folder of the first adapter that has one.
    pub(crate) fn saved_head(&self, names: &[String]) -> Result<Option<Head>> {
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
    pub(crate) fn task_count(&self) -> Option<usize> {
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
