//! Parameters that the tasks of a `MultiTask` setup have together: AdapterHub's `share_parameters`.
//!
//! The parameter keeps the name of the first task; in the files of the others it has theirs, so that every folder is complete. Its
//! values are those of the first task that comes from a file, or the first one's initial values. Sharing is a matter of the setup:
//! nothing in a file says it, and it is made again whenever the setup is attached.

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
            let mut apart: Vec<(usize, usize)> = Vec::new();
            for &task in &order {
                self.join(adapters, task, &mut shared, &mut apart)?;
            }
            apart.sort_unstable();
            apart.dedup();
            let notes = apart.iter().map(|&(kept, lost)| {
                let (kept, lost) = (&adapters[kept].name, &adapters[lost].name);
                Diagnostic::warning(
                    "tasks-differ",
                    format!("`{kept}` and `{lost}` were not trained with shared parameters; as tasks of one setup they have those of `{kept}`"),
                )
                .help("to run them as they were saved, attach one at a time")
            });
            self.notes.extend(notes);
        }
        Ok(())
    }

    /// One task's parameters: shared from now on, or those that are shared already.
    fn join(
        &mut self,
        adapters: &[Adapter],
        task: usize,
        shared: &mut FxHashMap<String, Shared>,
        apart: &mut Vec<(usize, usize)>,
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
                part.own[at].1.clone_from(&there.name);
                // A module that is called twice.
                let Some(mine) = store.get(&own).map(|p| p.tensor.clone()) else {
                    continue;
                };
                let Some(kept) = store.get(&there.name).cloned() else {
                    continue;
                };
                if kept.tensor.dims != mine.dims || kept.tensor.dtype != mine.dtype {
                    return Err(misfit(adapters, there.from, part, &suffix));
                }
                let saved = |a: usize| adapters[a].weights.is_some();
                match (saved(there.from), saved(task)) {
                    (false, true) => {
                        let param = crate::adapters::Param {
                            tensor: mine,
                            ..kept
                        };
                        store.insert(&there.name, param);
                        there.from = task;
                    }
                    (true, true) if kept.tensor.bytes() != mine.bytes() => {
                        apart.push((there.from, task));
                    }
                    _ => {}
                }
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
