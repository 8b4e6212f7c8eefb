//! Many adapters in one graph, of which the input `adapter_ids` chooses one for each sample, or none.
//!
//! At each place, adapters that have the same subgraph are one: their parameters are stacked in one tensor each, and every sample takes its
//! rows of them. So the number of nodes depends on how many kinds of adapters there are, and not on how many adapters. An adapter that is
//! not at a place has no row there; its samples keep what the base model made, bit by bit.

use super::compose::{Composer, Site, Used, stamped};
use super::tasks::{Origin, no_batch};
use crate::adapters::methods::MethodConfig;
use crate::adapters::place::{At, BuildCx, FACTOR, Params, Place, Stacking, State, wider};
use crate::adapters::plan::Part;
use crate::adapters::stacked::{Member, stacked};
use crate::adapters::{Param, naming};
use crate::diag::Diagnostic;
use crate::ir::Metadata;
use crate::ir::contract::{self, stamp};
use crate::ir::{Attr, DType, Dim, Graph, TensorData, Type, Val, ValueId};
use crate::rewrite::PassError;

/// Adapters with one subgraph at a place.
struct Kind<'g, 's> {
    config: MethodConfig,
    /// The place, with what they know of it in common.
    place: Place<'s>,
    /// One for each, in the order of their ids.
    parts: Vec<&'g Part<'s>>,
    /// The constant factor of each, where they have one.
    factors: Vec<f32>,
}

/// What each sample takes.
struct Chosen {
    /// Its row in tensors of a kind: `[batch]`.
    rows: Val,
    /// Whether it has an adapter of the kind: `[batch, 1, …]`.
    has: Val,
}

impl Composer<'_> {
    /// What stands for a place's value where each sample has an adapter of its own; `opened` says what flows through a place before any.
    pub(super) fn tenants<'g, 's>(
        &self,
        at: Site<'g, 's>,
        opened: &dyn Fn(&Place<'_>) -> State,
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<Option<Val>, PassError> {
        let Some(first) = at.group.first() else {
            return Ok(None);
        };
        let rank = match at.rank {
            Some(rank) if rank > 2 => rank,
            rank => return Err(no_batch(&first.place, rank, contract::ADAPTER_IDS).into()),
        };
        let b = cx.b;
        let mut value = cx.current(first.place.target());
        for kind in self.kinds(at.group)? {
            let chosen = self.chosen(&kind, rank, cx)?;
            let adapter = &self.adapters[kind.parts[0].adapter].name;
            let scope = naming::renamed(
                &format!("{}.", kind.place.scope),
                adapter,
                contract::ADAPTER_IDS,
            );
            b.set_scope(&self.fresh_scope(scope.trim_end_matches('.')));
            b.set_stamp(stamped(contract::ADAPTER_IDS));
            let state = opened(&kind.place);
            let (own, shared) = self.gathered(&kind, rank, &chosen, cx, used)?;
            let p = Params {
                own: &own,
                shared: &shared,
            };
            let state = kind.config.step(&kind.place, state, &p, cx)?;
            let new = kind.config.close(&kind.place, state, &p, cx)?;
            value = b.op("Where", &[chosen.has, new, value], &[]);
        }
        Ok(Some(value))
    }

    /// The parts at a place by what they have in common.
    fn kinds<'g, 's>(&self, group: &'g [&'g Part<'s>]) -> Result<Vec<Kind<'g, 's>>, Diagnostic> {
        let mut out: Vec<Kind<'g, 's>> = Vec::new();
        for part in group.iter().copied() {
            let found = part.method.stacking(&part.place);
            let Stacking {
                common,
                detail,
                factor,
            } = found.map_err(|why| self.refused(part, why))?;
            let mut place = part.place.clone();
            place.detail = detail;
            let alike = |k: &&mut Kind<'g, 's>| {
                k.config == common
                    && k.place.detail == place.detail
                    && is_one_place(&k.place.at, &place.at)
                    && self.forms(k.parts[0]).eq(self.forms(part))
            };
            match out.iter_mut().find(alike) {
                Some(kind) => {
                    kind.parts.push(part);
                    kind.factors.extend(factor);
                }
                None => out.push(Kind {
                    config: common,
                    place,
                    parts: vec![part],
                    factors: factor.into_iter().collect(),
                }),
            }
        }
        Ok(out)
    }

    /// Names and types of the parameters that a part has, and their numbers of axes.
    fn forms<'p>(
        &'p self,
        part: &'p Part<'_>,
    ) -> impl Iterator<Item = (&'p str, Option<(DType, usize)>)> {
        let all = part.own.iter().chain(&part.shared);
        all.map(|(suffix, full)| {
            let tensor = self.params.get(&**full).map(|p| &p.tensor);
            (&**suffix, tensor.map(|t| (t.dtype, t.dims.len())))
        })
    }

    fn refused(&self, part: &Part<'_>, why: &str) -> Diagnostic {
        let name = &self.adapters[part.adapter].name;
        let found = format!(
            "`{name}` ({}) cannot be one of the adapters that `{}` chooses from: {why}",
            part.method.name(),
            contract::ADAPTER_IDS
        );
        Diagnostic::error("tenants-method", found)
            .at(part.place.scope.clone())
            .help("let the tasks of a setup choose between whole adapters: --active 'MultiTask(a, b)'")
    }

    /// The rows of a kind's parameters, `[batch, 1, …]` each: those of the place, and those that all places share.
    fn gathered<'g, 's>(
        &self,
        kind: &Kind<'g, 's>,
        rank: usize,
        chosen: &Chosen,
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<(Rows, Rows), PassError> {
        let b = cx.b;
        let first = kind.parts[0];
        let stored = first.method.dtype()?;
        let computed = wider(stored, cx.base);
        b.set_float(computed);
        let pick = |stack: Val, axes: usize, dtype: DType| {
            let axis = ("axis", Attr::from(0i64));
            let mut row = b.op("Gather", &[stack, chosen.rows], &[axis]);
            if dtype != computed {
                row = b.cast(row, computed);
            }
            b.mark_by_row(row, axes, rank);
            row
        };
        let mut rows = |of: &dyn Fn(&'g Part<'s>) -> &'g [(String, String)]| {
            let mut out = Rows::new();
            for (i, (suffix, full)) in of(first).iter().enumerate() {
                let names: Vec<&'g str> = kind.parts.iter().map(|p| &*of(p)[i].1).collect();
                let param = self.param(full)?;
                let stack = self.stack_of(kind, &names, rank, cx, used)?;
                if !param.idle {
                    let axes = param.tensor.dims.len();
                    out.push((suffix.clone(), pick(stack, axes, param.tensor.dtype)));
                }
            }
            Ok::<Rows, PassError>(out)
        };
        let mut own = rows(&|p| &p.own)?;
        let shared = rows(&|p| &p.shared)?;
        b.set_stamp(stamped(contract::ADAPTER_IDS));
        if kind.factors.len() == kind.parts.len() {
            let mut dims = vec![kind.factors.len() as u64];
            dims.resize(rank, 1);
            let all = b.constant(TensorData::from_f32(dims, &kind.factors));
            own.push((FACTOR.to_owned(), pick(all, 0, DType::Float)));
        }
        Ok((own, shared))
    }

    fn param(&self, full: &str) -> Result<&Param, Diagnostic> {
        let missing = || Diagnostic::error("param", format!("there is no parameter `{full}`"));
        self.params.get(full).copied().ok_or_else(missing)
    }

    /// The tensor that holds a parameter of all adapters of a kind; one that several places share is made once.
    fn stack_of<'g, 's>(
        &self,
        kind: &Kind<'g, 's>,
        names: &[&str],
        rank: usize,
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<Val, PassError> {
        let ids = kind.parts.iter().map(|p| p.adapter);
        let key = format!("{} of {:?}, rank {rank}", names[0], ids.collect::<Vec<_>>());
        if let Some(there) = self.values.get(&key) {
            return Ok(Val::Old(*there));
        }
        if let Some((_, there)) = used.made.iter().find(|(n, _)| *n == key) {
            return Ok(*there);
        }
        let members: Vec<Member<'_>> = kind
            .parts
            .iter()
            .zip(names)
            .map(|(part, name)| {
                Ok(Member {
                    id: part.adapter,
                    adapter: &self.adapters[part.adapter].name,
                    name,
                    param: self.param(name)?,
                })
            })
            .collect::<Result<_, Diagnostic>>()?;
        let Some((tensor, rows)) = stacked(&members, rank) else {
            let found = format!(
                "`{}` and its like of other adapters cannot be stacked for values of {rank} axes",
                names[0]
            );
            return Err(Diagnostic::error("tenants-shape", found).into());
        };
        let first = &members[0];
        let name = naming::renamed(first.name, first.adapter, contract::ADAPTER_IDS);
        let mut stamps = stamped(contract::ADAPTER_IDS);
        stamps.insert(stamp::ROWS.into(), rows.into());
        cx.b.set_stamp(stamps);
        let v = cx.b.initializer(&self.fresh_scope(&name), tensor);
        // Each of them is in the graph by now.
        let own = names.iter().map(|n| (*n).to_owned());
        used.made.extend(own.chain([key]).map(|n| (n, v)));
        Ok(v)
    }

    /// Which row each sample takes, and whether it takes one. Made once for all places with adapters of the same ids.
    fn chosen(
        &self,
        kind: &Kind<'_, '_>,
        rank: usize,
        cx: &BuildCx<'_>,
    ) -> Result<Chosen, Diagnostic> {
        let origin = Origin {
            owner: contract::ADAPTER_IDS,
            scope: self.fresh_scope(contract::ADAPTER_IDS),
            stamp: stamped(contract::ADAPTER_IDS),
        };
        let b = cx.b;
        let input = origin.once(cx, "input", || input(cx))?;
        let index = origin.once(cx, "index", || index(input, cx))?;
        let ids: Vec<usize> = kind.parts.iter().map(|p| p.adapter).collect();
        // Entry 0 is for samples without an adapter.
        let all = self.adapters.len() + 1;
        let look_up = |table: TensorData| {
            let axis = ("axis", Attr::from(0i64));
            b.op("Gather", &[b.constant(table), index], &[axis])
        };
        let rows = origin.once(cx, &format!("rows of {ids:?}"), || {
            let mut rows = vec![0i64; all];
            for (row, id) in (0..).zip(&ids) {
                rows[id + 1] = row;
            }
            Ok(look_up(TensorData::ints(&rows)))
        })?;
        let has = origin.once(cx, &format!("has of {ids:?}, rank {rank}"), || {
            let mut has = vec![0u8; all];
            for id in &ids {
                has[id + 1] = 1;
            }
            let mut dims = vec![all as u64];
            dims.resize(rank, 1);
            Ok(look_up(TensorData::raw(DType::Bool, dims, has.into())))
        })?;
        Ok(Chosen { rows, has })
    }
}

/// Parameters by their names inside the module.
type Rows = Vec<(String, Val)>;

/// Whether adapters at two places compute the same of the same values.
pub(super) fn is_one_place(a: &At<'_>, b: &At<'_>) -> bool {
    let same = |a: Option<ValueId>, b: Option<ValueId>| a == b;
    match (a, b) {
        (At::Linear(a), At::Linear(b)) | (At::Input(a), At::Input(b)) => {
            (a.input, a.output, a.anchor) == (b.input, b.output, b.anchor)
        }
        (At::Sublayer(a), At::Sublayer(b)) => {
            let norm = |n: Option<&crate::select::NormSite>| n.map(|n| n.output);
            (a.output, a.width, a.anchor, a.rejoins) == (b.output, b.width, b.anchor, b.rejoins)
                && same(a.residual, b.residual)
                && same(norm(a.norm), norm(b.norm))
                && same(a.beside, b.beside)
                && same(a.stream, b.stream)
        }
        (At::Layer(a), At::Layer(b)) => a.output == b.output,
        (At::Embeddings(a), At::Embeddings(b)) => a == b,
        (At::Parameter(a), At::Parameter(b)) => (a.value, &a.nodes) == (b.value, &b.nodes),
        (At::HeadInput(a), At::HeadInput(b)) => (a.input, a.output) == (b.input, b.output),
        (At::Attention(a), At::Attention(b)) => (a.output, a.scores) == (b.output, b.scores),
        _ => false,
    }
}

/// The graph input: `[batch]`, or one for all samples. It may be left out.
fn input(cx: &BuildCx<'_>) -> Result<Val, Diagnostic> {
    let name = contract::ADAPTER_IDS;
    if cx.graph.find(name).is_some() {
        let found = format!("the model has a value `{name}` already");
        return Err(Diagnostic::error("adapter-ids", found)
            .help("rename it: the adapter of each sample is told by an input of this name"));
    }
    let dim = Dim::Symbol("batch_or_one".into());
    let ty = Type::tensor(DType::Int64, vec![dim]);
    Ok(cx
        .b
        .optional_input(name, ty, TensorData::ints(&[-1]), Metadata::default()))
}

/// For each sample its id and 1, so 0 for none: `[batch]`. Ids below -1 become one that no table has, and looking it up is an error, as it is
/// for ids that are too large.
fn index(input: Val, cx: &BuildCx<'_>) -> Result<Val, Diagnostic> {
    let b = cx.b;
    let rows = Val::Old(batched(cx.graph)?);
    let batch = b.slice(b.shape(rows), 0, 0, 1);
    let next = b.add(input, b.ints(&[1]));
    let below = b.op("Less", &[input, b.ints(&[-1])], &[]);
    let index = b.op("Where", &[below, b.ints(&[i64::from(i32::MAX)]), next], &[]);
    // As many as there are samples: one id is for all of them, and any other number is an error.
    let each = b.op("Expand", &[index, batch], &[]);
    Ok(b.reshape(each, batch))
}

/// An input whose first axis is the batch.
fn batched(graph: &Graph) -> Result<ValueId, Diagnostic> {
    let stored = |v: ValueId| graph.value(v).tensor.is_some();
    let ports = || graph.inputs().iter().filter(|p| !stored(p.value));
    let named = |p: &&crate::ir::GraphPort| contract::ROWS.contains(&graph.name_of(p.value));
    let shaped = |p: &&crate::ir::GraphPort| {
        let dims = p.ty.as_ref().and_then(Type::dims);
        dims.is_some_and(|d| !d.is_empty())
    };
    let found = ports().find(named).or_else(|| ports().find(shaped));
    found.map(|p| p.value).ok_or_else(|| {
        Diagnostic::error(
            "adapter-ids",
            "the graph has no input with samples that could be told apart",
        )
        .help("export the model from its token ids or embeddings, with a batch axis")
    })
}
