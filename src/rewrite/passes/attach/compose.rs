//! Composition: what a setup makes of what flows through a place, recursively over its tree.
//!
//! Each node of the tree is one function from [`State`] to [`State`]. A composition that copies, cuts or joins what flows gets a
//! function of its own here, as [`Composer::stack`] and [`Composer::multi_task`] are.

use super::blocks::{self, Cut};
use super::tasks::{Origin, Picker, no_batch, one_length};
use crate::adapters::methods::MethodConfig;
use crate::adapters::place::{At, BuildCx, Params, State, Tasks, wider};
use crate::adapters::plan::Part;
use crate::adapters::plan::setup::shares;
use crate::adapters::{Adapter, Param, Setup, param_stamps};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind};
use crate::ir::contract::{self, stamp};
use crate::ir::{Builder, Metadata, Val, ValueId};
use crate::rewrite::PassError;
use rustc_hash::FxHashMap;
use std::cell::RefCell;

/// Composes adapters, and makes their parameters when they are used first.
pub(super) struct Composer<'w> {
    /// The adapters.
    pub adapters: &'w [Adapter],
    /// Their parameters.
    pub params: FxHashMap<&'w str, &'w Param>,
    /// Parameters that are in the graph.
    pub values: FxHashMap<String, ValueId>,
    /// How often a scope was used for names.
    pub scopes: RefCell<FxHashMap<String, usize>>,
}

impl Composer<'_> {
    /// Runs the composition on what flows through the place.
    pub(super) fn apply<'g, 's>(
        &self,
        setup: &Setup,
        at: Site<'g, 's>,
        state: State,
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<State, PassError> {
        match setup {
            Setup::Single(name) => self.single(name, at, state, cx, used),
            Setup::Stack(children) => self.stack(children, at, state, cx, used),
            Setup::Fuse { children, .. } => {
                let name = setup.fusion().unwrap_or_default();
                self.fuse(&name, children, (at, state), cx, used)
            }
            Setup::Parallel(children) => {
                let cut = Cut::channels(children.len());
                self.cut(children, &cut, (at, state), cx, used)
            }
            Setup::Split { children, splits } => {
                self.cut(children, &Cut::positions(splits), (at, state), cx, used)
            }
            Setup::BatchSplit {
                children,
                batch_sizes,
            } => {
                let cut = Cut::samples(batch_sizes);
                self.cut(children, &cut, (at, state), cx, used)
            }
            Setup::Average {
                children,
                weights,
                normalize_weights,
            } => {
                let given = weights.as_deref();
                let weights = shares(given, *normalize_weights, children.len());
                self.average(children, &weights, (at, state), cx, used)
            }
            Setup::MultiTask(tasks) => self.multi_task(tasks, at, state, cx, used),
        }
    }

    /// One adapter, where it is active.
    fn single<'g, 's>(
        &self,
        name: &str,
        at: Site<'g, 's>,
        state: State,
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<State, PassError> {
        let Some(part) = self.part(at, name) else {
            return Ok(state);
        };
        let last = self.enter(part, cx, used)?;
        let params = last.params();
        let state = part.method.step(&part.place, state, &params, cx)?;
        used.last = Some(last);
        Ok(state)
    }

    /// Each child reads what the one before it made.
    fn stack<'g, 's>(
        &self,
        children: &[Setup],
        at: Site<'g, 's>,
        state: State,
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<State, PassError> {
        let mut state = state;
        for child in children {
            if state.closed.is_some() && self.first_of(std::slice::from_ref(child), at).is_some() {
                state = reopened(state, used, cx)?;
            }
            state = self.apply(child, at, state, cx, used)?;
        }
        Ok(state)
    }

    /// The children mixed by a fusion: each on what the last one reads, and of each what it makes in front of its residual.
    fn fuse<'g, 's>(
        &self,
        name: &str,
        children: &[Setup],
        (at, state): (Site<'g, 's>, State),
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<State, PassError> {
        let here = |c: &Setup| -> Vec<&'g Part<'s>> {
            c.names()
                .into_iter()
                .filter_map(|n| self.part(at, n))
                .collect()
        };
        let children: Vec<Vec<&'g Part<'s>>> = children.iter().map(here).collect();
        let last = children.iter().filter_map(|c| c.last()).next_back();
        let Some(last) = last.copied() else {
            return Ok(state);
        };
        let place = &last.place;
        let (Some(fusion), Some(leader)) = (self.part(at, name), last.method.fusible()) else {
            return Err(no_fusion(last, name).into());
        };
        let b = cx.b;
        let computed = wider(last.method.dtype()?, cx.base);
        b.set_float(computed);
        b.set_stamp(stamped(name));
        b.set_scope(&self.fresh_scope(&format!("{}/input", fusion.place.scope)));
        let opened = leader.open(place, state, cx)?;
        let mut ups = Vec::with_capacity(children.len());
        for parts in children {
            let mut inner = State {
                x: opened.h,
                ..state
            };
            let Some((end, before)) = parts.split_last() else {
                continue;
            };
            for part in before {
                let entered = self.enter(part, cx, used)?;
                inner = part
                    .method
                    .step(&part.place, inner, &entered.params(), cx)?;
            }
            let Some(method) = end.method.fusible() else {
                return Err(no_fusion(end, name).into());
            };
            let entered = self.enter(end, cx, used)?;
            let h = if before.is_empty() {
                opened.h
            } else {
                method.open(&end.place, inner, cx)?.h
            };
            let up = method.branch(h, &entered.params(), cx);
            let made = b.float();
            ups.push(if made == computed {
                up
            } else {
                b.cast(up, computed)
            });
            used.last = Some(entered);
        }
        let entered = self.enter(fusion, cx, used)?;
        let mixed = fusion.method.mix(&opened, &ups, &entered.params(), cx);
        b.set_float(computed);
        let mixed = mixed.ok_or_else(|| no_fusion(last, name))?;
        if cx.shown.attentions {
            cx.show(contract::FUSION_ATTENTIONS, mixed.attention);
        }
        Ok(State {
            x: mixed.out,
            ..state
        })
    }

    fn part<'g, 's>(&self, at: Site<'g, 's>, name: &str) -> Option<&'g Part<'s>> {
        let named = |p: &&&Part<'_>| self.adapters[p.adapter].name == *name;
        at.group.iter().find(named).copied()
    }

    /// The first part of a child that is at the place.
    fn first_of<'g, 's>(&self, children: &[Setup], at: Site<'g, 's>) -> Option<&'g Part<'s>> {
        let mut names = children.iter().flat_map(Setup::names);
        names.find_map(|n| self.part(at, n))
    }

    /// Each child on its own part; the results one behind the other.
    fn cut<'g, 's>(
        &self,
        children: &[Setup],
        cut: &Cut,
        (at, state): (Site<'g, 's>, State),
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<State, PassError> {
        let Some(first) = self.first_of(children, at) else {
            return Ok(state);
        };
        let place = &first.place;
        cut.check(place, at.rank)?;
        let b = cx.b;
        b.set_scope(&self.fresh_scope(&format!("{}/{}", place.scope, cut.block)));
        let whole = blocks::reads_rows_by_number(place);
        // Where children run on all rows, what stands there is cut as theirs is: by the blocks around this one first.
        let (states, old) = if whole {
            let old = blocks::part_of(b, state.out, &used.path);
            (vec![state; children.len()], cut.parts(b, old))
        } else {
            let states = cut.states(b, state);
            let old = states.iter().map(|s| s.out).collect();
            (states, old)
        };
        let before = used.last.take();
        let mut own = Vec::with_capacity(children.len());
        for (i, ((child, state), old)) in children.iter().zip(states).zip(old).enumerate() {
            used.path.push((cut.clone(), i));
            used.last.clone_from(&before);
            let made = self.one(child, state, at, cx, used)?;
            used.path.pop();
            own.push(made.unwrap_or(old));
        }
        b.set_scope(&self.fresh_scope(&format!("{}/{}", place.scope, cut.block)));
        Ok(State {
            closed: Some(cut.join(b, &own)),
            ..state
        })
    }

    /// The weighted sum of what the children make of the place's value. Weights that do not add up to 1 weigh the children's changes.
    fn average<'g, 's>(
        &self,
        children: &[Setup],
        weights: &[f64],
        (at, state): (Site<'g, 's>, State),
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<State, PassError> {
        let Some(first) = self.first_of(children, at) else {
            return Ok(state);
        };
        let place = &first.place;
        let here = |c: &&Setup| self.first_of(std::slice::from_ref(c), at).is_some();
        if !place.kind().averages() && children.iter().filter(here).count() > 1 {
            return Err(blocks::no_average(place).into());
        }
        let states = vec![state; children.len()];
        let made = self.each(children, &states, at, cx, used)?;
        let b = cx.b;
        b.set_scope(&self.fresh_scope(&format!("{}/Average", place.scope)));
        let made = made.into_iter().zip(weights);
        let terms: Vec<(f64, Val)> = made.filter_map(|(v, w)| Some((*w, v?))).collect();
        let old = if blocks::reads_rows_by_number(place) {
            blocks::part_of(b, state.out, &used.path)
        } else {
            state.out
        };
        let mean = blocks::weighted_sum(b, &terms, old);
        Ok(State {
            closed: Some(mean),
            ..state
        })
    }

    /// What each child makes of its state; `None` of those that are not at the place.
    fn each<'g, 's>(
        &self,
        children: &[Setup],
        states: &[State],
        at: Site<'g, 's>,
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<Vec<Option<Val>>, PassError> {
        let before = used.last.take();
        let mut out = Vec::with_capacity(children.len());
        for (child, state) in children.iter().zip(states) {
            used.last.clone_from(&before);
            out.push(self.one(child, *state, at, cx, used)?);
        }
        Ok(out)
    }

    /// What one child of a block makes, as much of it as the child has; `None` where it is not at the place.
    fn one<'g, 's>(
        &self,
        child: &Setup,
        state: State,
        at: Site<'g, 's>,
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<Option<Val>, PassError> {
        let state = self.apply(child, at, state, cx, used)?;
        let made = closed(state, used.last.as_ref(), cx)?;
        let whole = |m: &Entered<'_, '_>| blocks::reads_rows_by_number(&m.part.place);
        // A block has cut what it made.
        let cut = child.is_bound() || !used.last.as_ref().is_some_and(whole);
        Ok(match made {
            Some(v) if !cut => Some(blocks::part_of(cx.b, v, &used.path)),
            made => made,
        })
    }

    /// Each sample its own child: together where the method can, and otherwise each child on all samples, of which every sample takes
    /// its own value.
    fn multi_task<'g, 's>(
        &self,
        tasks: &[Setup],
        at: Site<'g, 's>,
        state: State,
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<State, PassError> {
        let Some(first) = self.first_of(tasks, at) else {
            return Ok(state);
        };
        let place = &first.place;
        let rank = match (&place.at, at.rank) {
            (At::Sequence(_) | At::Mask(_), _) => return Err(one_length(place).into()),
            (_, Some(rank)) if rank > 2 => rank,
            (_, rank) => return Err(no_batch(place, rank, "MultiTask").into()),
        };
        let owner = &self.adapters[first.adapter].name;
        let origin = Origin {
            owner: contract::TASK_IDS,
            scope: self.fresh_scope(contract::TASK_IDS),
            stamp: stamped(owner),
        };
        let picker = Picker::new(tasks.len(), rank, origin, cx)?;
        if let Some(state) = self.together(tasks, at, state, (&picker, rank), cx, used)? {
            return Ok(state);
        }
        let states = vec![state; tasks.len()];
        let made = self.each(tasks, &states, at, cx, used)?;
        let values: Vec<Val> = made.into_iter().map(|v| v.unwrap_or(state.out)).collect();
        cx.b.set_scope(&self.fresh_scope(&format!("{}/tasks", place.scope)));
        Ok(State {
            closed: Some(picker.pick(&values, cx)?),
            ..state
        })
    }

    /// All tasks in one computation, where they are configurations of one method that can.
    fn together<'g, 's>(
        &self,
        tasks: &[Setup],
        at: Site<'g, 's>,
        state: State,
        (picker, rank): (&Picker, usize),
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<Option<State>, PassError> {
        let parts: Option<Vec<&'g Part<'s>>> = tasks
            .iter()
            .map(|t| match t {
                Setup::Single(n) => self
                    .part(at, n)
                    .filter(|p| !p.method.task_shared().is_empty()),
                Setup::Stack(_)
                | Setup::Fuse { .. }
                | Setup::Split { .. }
                | Setup::BatchSplit { .. }
                | Setup::Parallel(_)
                | Setup::Average { .. }
                | Setup::MultiTask(_) => None,
            })
            .collect();
        let Some(parts) = parts else {
            return Ok(None);
        };
        let entered = parts
            .into_iter()
            .map(|p| self.enter(p, cx, used))
            .collect::<Result<Vec<Entered<'_, '_>>, _>>()?;
        let configs: Vec<_> = entered.iter().map(|e| e.part.method).collect();
        let of: Vec<_> = entered
            .iter()
            .map(|e| (&e.part.place, e.params()))
            .collect();
        let shared = Tasks {
            ids: picker.ids,
            rank,
            of: &of,
        };
        let made = MethodConfig::step_tasks(&configs, state, &shared, cx)?;
        if made.is_some() {
            used.last = entered.into_iter().next_back();
        }
        Ok(made)
    }

    /// Makes the part's parameters, and names and stamps what follows as its own.
    fn enter<'g, 's>(
        &self,
        part: &'g Part<'s>,
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<Entered<'g, 's>, PassError> {
        let b = cx.b;
        let name = &self.adapters[part.adapter].name;
        let stored = part.method.dtype()?;
        let computed = wider(stored, cx.base);
        b.set_float(computed);
        cx.owner.borrow_mut().clone_from(name);
        b.set_scope(&self.fresh_scope(&part.place.scope));
        let mut fetch = |names: &[(String, String)]| -> Result<Vec<(String, Val)>, PassError> {
            names
                .iter()
                .map(|(suffix, full)| Ok((suffix.clone(), self.parameter(full, b, used)?)))
                .collect()
        };
        let mut shared = fetch(&part.shared)?;
        let mut own = fetch(&part.own)?;
        b.set_stamp(stamped(name));
        if stored != computed {
            for (_, v) in own.iter_mut().chain(&mut shared) {
                *v = b.cast(*v, computed);
            }
        }
        Ok(Entered { part, own, shared })
    }

    /// The scope, with a number when it was used before: a module that is called twice, an adapter that is inverted.
    pub(super) fn fresh_scope(&self, scope: &str) -> String {
        let mut scopes = self.scopes.borrow_mut();
        let count = scopes.entry(scope.to_owned()).or_insert(0);
        *count += 1;
        match *count {
            1 => scope.to_owned(),
            n => format!("{scope}/{n}"),
        }
    }

    fn parameter(
        &self,
        full: &str,
        b: &Builder,
        used: &mut Used<'_, '_>,
    ) -> Result<Val, PassError> {
        if let Some(id) = self.values.get(full) {
            return Ok(Val::Old(*id));
        }
        if let Some((_, v)) = used.made.iter().find(|(n, _)| n == full) {
            return Ok(*v);
        }
        let Some(param) = self.params.get(full) else {
            let finding = Diagnostic::error("param", format!("there is no parameter `{full}`"));
            return Err(Error::new(ErrorKind::Method, finding).into());
        };
        b.set_stamp(param_stamps(param));
        let v = b.initializer(full, param.tensor.clone());
        used.made.push((full.to_owned(), v));
        Ok(v)
    }
}

/// Parameters in the graph, by their names inside the module.
type Values = Vec<(String, Val)>;

/// The parts at one place.
#[derive(Clone, Copy)]
pub(super) struct Site<'g, 's> {
    pub group: &'g [&'g Part<'s>],
    /// Number of axes of what flows, where it is known.
    pub rank: Option<usize>,
}

/// An adapter at a place, with its parameters in the graph.
#[derive(Clone)]
pub(super) struct Entered<'g, 's> {
    part: &'g Part<'s>,
    own: Values,
    shared: Values,
}

impl Entered<'_, '_> {
    fn params(&self) -> Params<'_> {
        Params {
            own: &self.own,
            shared: &self.shared,
        }
    }
}

/// What a further adapter of a stack reads, behind a block that has ended the place.
fn reopened(state: State, used: &Used<'_, '_>, cx: &BuildCx<'_>) -> Result<State, Diagnostic> {
    let (Some(closed), Some(last)) = (state.closed, used.last.as_ref()) else {
        return Ok(state);
    };
    let part = last.part;
    let state = State {
        closed: None,
        ..state
    };
    let reopened = part.method.reopen(&part.place, state, closed, cx);
    reopened.ok_or_else(|| {
        let found = format!(
            "what `{}` makes at the end of a block cannot be taken further by another adapter of the stack",
            part.method.name()
        );
        Diagnostic::error("stack-behind", found)
            .at(part.place.scope.clone())
            .help("put what follows into the block: Average(Stack(a, c), Stack(b, c)) instead of Stack(Average(a, b), c)")
    })
}

/// What a fusion cannot mix.
fn no_fusion(part: &Part<'_>, fusion: &str) -> Diagnostic {
    let found = format!(
        "`{}` stands here, and the fusion `{fusion}` mixes bottlenecks behind attention and feed-forward blocks only",
        part.method.name()
    );
    Diagnostic::error("fusion-method", found)
        .at(part.place.scope.clone())
        .help("mix adapters such as seq_bn, double_seq_bn, par_bn or compacter; compose others with Stack, Average, Parallel or MultiTask")
}

/// What takes the place's value; `None` where no adapter has acted.
pub(super) fn closed(
    state: State,
    last: Option<&Entered<'_, '_>>,
    cx: &BuildCx<'_>,
) -> Result<Option<Val>, Diagnostic> {
    match (state.closed, last) {
        (Some(value), _) => Ok(Some(value)),
        (None, None) => Ok(None),
        (None, Some(e)) => {
            let place = &e.part.place;
            e.part.method.close(place, state, &e.params(), cx).map(Some)
        }
    }
}

/// What the adapters of one place have used so far.
#[derive(Default)]
pub(super) struct Used<'g, 's> {
    /// The last adapter.
    pub last: Option<Entered<'g, 's>>,
    /// Parameters made in this patch.
    pub made: Vec<(String, Val)>,
    /// The blocks around that cut, and which part each gives; the outermost first.
    pub path: Vec<(Cut, usize)>,
}

/// The stamp of an adapter's nodes.
pub(super) fn stamped(adapter: &str) -> Metadata {
    let mut stamps = Metadata::default();
    stamps.insert(stamp::ADAPTER.into(), adapter.into());
    stamps
}
