//! Parameters that the tasks of a `MultiTask` setup have together: AdapterHub's `share_parameters`.
//!
//! The parameter keeps the name of the first task; in the files of the others it has theirs, so that every folder is complete. Its
//! values are those of the first task that comes from a file, or the first one's initial values. Nothing in a file says whether tasks
//! share: those that come from files do where they have the same values, and fresh ones do.

use crate::adapters::Adapter;
use crate::adapters::naming::renamed;
use crate::adapters::plan::{Part, Plan};
use crate::adapters::setup::Setup;
use crate::diag::Diagnostic;
use rustc_hash::FxHashMap;

/// A shared parameter, found under the name of the first task that has it.
struct Shared {
    name: String,
    /// The adapter whose values it has.
    from: usize,
}

impl Plan<'_> {
    /// Makes what the tasks of the setup have together one parameter. Linear in the number of parameters for each task.
    ///
    /// # Errors
    /// Tasks whose parameters differ in shape.
    pub(crate) fn share(&mut self, adapters: &[Adapter], setup: &Setup) -> Result<(), Diagnostic> {
        for tasks in setup.multi_tasks() {
            let names = tasks.iter().flat_map(Setup::names);
            let order: Vec<usize> = names
                .filter_map(|n| adapters.iter().position(|a| a.name == n))
                .collect();
            let mut shared: FxHashMap<String, Shared> = FxHashMap::default();
            for &task in &order {
                self.join(adapters, task, &mut shared)?;
            }
        }
        Ok(())
    }

    /// One task's parameters: shared from now on, or those that are shared already.
    fn join(
        &mut self,
        adapters: &[Adapter],
        task: usize,
        shared: &mut FxHashMap<String, Shared>,
    ) -> Result<(), Diagnostic> {
        let store = &mut self.store;
        for part in self.parts.iter_mut().filter(|p| p.adapter == task) {
            for at in 0..part.own.len() {
                let (suffix, own) = part.own[at].clone();
                if !part.method.task_shared().contains(&&*suffix) {
                    continue;
                }
                // Names differ in the adapter's only.
                let key = renamed(&own, &adapters[task].name, "");
                let Some(there) = shared.get_mut(&key) else {
                    let from = Shared {
                        name: own,
                        from: task,
                    };
                    shared.insert(key, from);
                    continue;
                };
                // A module that is called twice.
                let Some(mine) = store.get(&own).map(|p| p.tensor.clone()) else {
                    part.own[at].1.clone_from(&there.name);
                    continue;
                };
                let Some(kept) = store.get(&there.name).cloned() else {
                    continue;
                };
                let saved = |a: usize| adapters[a].weights.is_some();
                let alike = kept.tensor.dims == mine.dims && kept.tensor.dtype == mine.dtype;
                match (saved(there.from), saved(task)) {
                    // They were not trained with these together.
                    (true, true) if !alike || kept.tensor.bytes() != mine.bytes() => continue,
                    _ if !alike => return Err(misfit(adapters, there.from, part, &suffix)),
                    (false, true) => {
                        let param = crate::adapters::Param {
                            tensor: mine,
                            ..kept
                        };
                        store.insert(&there.name, param);
                        there.from = task;
                    }
                    _ => {}
                }
                part.own[at].1.clone_from(&there.name);
                store.unite(&there.name, &own);
            }
        }
        Ok(())
    }
}

fn misfit(adapters: &[Adapter], first: usize, part: &Part<'_>, suffix: &str) -> Diagnostic {
    let (first, second) = (&adapters[first].name, &adapters[part.adapter].name);
    Diagnostic::error(
        "tasks-shape",
        format!("the tasks `{first}` and `{second}` have `{suffix}` together, in different shapes"),
    )
    .at(part.place.scope.clone())
    .help("give all tasks the same `r`, `n_up_projection` and `dtype`")
}
