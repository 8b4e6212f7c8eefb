//! Embedding tables: LoRA of a table, and rows that the adapter has its own values of, as PEFT has them.
//!
//! * LoRA: `y = E[i] + (alpha/r)·B·A[:, i]`, with `A: [r, rows]` and `B: [width, r]`;
//! * trainable tokens: `y = T[j]` where `i` is the token of row `j`, `E[i]` elsewhere. A head that shares the table has `T` in the columns
//!   of these tokens.

use super::targets::{Chosen, TokenIndices};
use super::{Form, Lora};
use crate::adapters::methods::detail::{Detail, Target, Tokens};
use crate::adapters::methods::{Fold, Merged};
use crate::adapters::param::{Init, ParamSpec, Size};
use crate::adapters::place::{At, BuildCx, Params, Place, State, Surroundings};
use crate::analyze::through::Through;
use crate::diag::Diagnostic;
use crate::ir::{Val, contract};
use crate::select::{Layout, LinearSite, TableSite};

/// AdapterHub has no key for it; this is PEFT's.
const TOKENS: &str = "trainable_token_indices";

/// The rows of the tokens, in the order of their list.
const DELTA: &str = "trainable_tokens_delta";
const A: &str = "lora_embedding_A";
const B: &str = "lora_embedding_B";

/// Rows of a table that are compared to find out that a head shares it.
const COMPARED: usize = 256;

/// Whether a place is one of this file's.
pub(super) fn is_one(place: &Place<'_>) -> bool {
    matches!(place.at, At::Table(_)) || place.detail.tokens().is_some()
}

impl Lora {
    /// The look-ups in embedding tables that PEFT's fields name.
    pub(super) fn tables<'s>(
        &self,
        chosen: &Chosen<'_>,
        around: &Surroundings<'_, 's>,
    ) -> Result<Vec<Place<'s>>, Diagnostic> {
        let mut out = self.of_tokens(around)?;
        let tables = &around.selection.tables;
        if self.form() == Form::LowRank
            && let Some(of) = tables
                .iter()
                .find(|t| shared(&t.path).is_some_and(|p| chosen.wants_table(&p)))
            && around.has.is_none()
        {
            let path = shared(&of.path).unwrap_or_default();
            let found = format!(
                "`{path}` is not called in PEFT's model: its encoder and decoder hold the table themselves"
            );
            return Err(Diagnostic::error("target-modules", found)
                .help("LoRA there would change nothing; use `trainable_token_indices`, or `modules_to_save`"));
        }
        for table in tables {
            let path = &*table.path;
            if shared(path).is_some() && path.ends_with("shared") {
                continue;
            }
            let scope = around.scope(path, "loras");
            let held = around.has.is_some_and(|has| has(&scope));
            if self.form() != Form::LowRank || !(chosen.wants_table(path) || held) {
                continue;
            }
            if path.ends_with("embed_positions") {
                let found = format!(
                    "`{path}` is looked up by positions here, and by another argument of its module in PEFT"
                );
                return Err(Diagnostic::error("target-modules", found)
                    .help("leave it out with `exclude_modules`; PEFT passes the module's first argument on, a mask or token ids"));
            }
            if self.dora() || self.targets.lora_bias {
                let found = format!(
                    "`{path}` is an embedding table, which has no DoRA and no bias of `B` here"
                );
                return Err(Diagnostic::error("target-modules", found)
                    .help("leave it out with `exclude_modules`"));
            }
            if out.iter().any(|p| p.target() == table.output) {
                let found = format!("`{path}` has trainable tokens and LoRA");
                return Err(Diagnostic::error("target-modules", found)
                    .help("PEFT wraps a table once; use one of the two"));
            }
            let rank = chosen.rank(path, self.r);
            let scale = chosen.scale(path, self.alpha.as_f64().unwrap_or(1.0), rank);
            let target = Target {
                rank,
                scale,
                shared: None,
            };
            let place = Place::new(At::Table(table), None, "target_modules", scope);
            out.push(place.with(Detail::Target(target)));
        }
        Ok(out)
    }

    /// The tables with trainable tokens, and the heads that share them.
    fn of_tokens<'s>(&self, around: &Surroundings<'_, 's>) -> Result<Vec<Place<'s>>, Diagnostic> {
        let tables = &around.selection.tables;
        let named: Vec<(Vec<&'s TableSite>, &Vec<usize>, &str)> =
            match &self.targets.trainable_token_indices {
                None => return Ok(Vec::new()),
                Some(TokenIndices::Words(ids)) => {
                    let words = tables.iter().filter(|t| reads_ids(t, around));
                    vec![(words.collect(), ids, "")]
                }
                Some(TokenIndices::Of(map)) => map
                    .iter()
                    .flat_map(|(end, ids)| {
                        let tables = ending(end, tables).into_iter();
                        tables.map(move |t| (t, ids, end.as_str()))
                    })
                    .collect(),
            };
        let mut out = Vec::new();
        for (tables, ids, end) in named {
            let Some(first) = tables.first() else {
                return Err(no_table(end, around));
            };
            if let Some(id) = ids.iter().find(|id| **id >= first.rows) {
                let found = format!(
                    "`trainable_token_indices` has the token {id}, and `{}` has {} rows",
                    first.path, first.rows
                );
                return Err(Diagnostic::error("token-index", found)
                    .help("the adapter belongs to a model with a larger vocabulary"));
            }
            // PEFT wraps all modules that a tied table was given to, and writes the rows for the first.
            let given = shared(&first.path);
            let path = given.as_deref().filter(|p| is_given(p, first, around));
            let scope = around.scope(path.unwrap_or(&first.path), "token_adapters");
            let mut tables = tables.clone();
            if path.is_some() {
                tables = around
                    .selection
                    .tables
                    .iter()
                    .filter(|t| t.value == first.value)
                    .collect();
            }
            let head = shares(first, ids, around)?;
            let mut scopes = vec![scope.clone()];
            if let Some(head) = head {
                // `TrainableTokensModel` writes them for the head again, `LoraModel` does not.
                let again = around.scope(&head.path, "token_adapters");
                let alone = self.targets.target_modules.is_none();
                if around.has.map_or(alone, |has| has(&again)) {
                    scopes.push(again);
                }
            }
            let detail = Detail::Tokens(Tokens {
                ids: ids.as_slice().into(),
                width: first.width,
                table: first.value,
                scopes: scopes.into(),
            });
            let place = |at| Place::new(at, None, TOKENS, &*scope).with(detail.clone());
            out.extend(tables.iter().map(|t| place(At::Table(t))));
            out.extend(head.map(|h| place(At::Linear(h))));
        }
        Ok(out)
    }

    /// The parameters at a place of this file.
    pub(super) fn table_params(&self, place: &Place<'_>) -> Option<Vec<ParamSpec>> {
        if let Some(tokens) = place.detail.tokens() {
            let (n, d) = (
                Size::new("tokens", tokens.ids.len()),
                Size::new("d", tokens.width),
            );
            let init = Init::Rows {
                table: tokens.table,
                rows: tokens.ids.clone(),
            };
            let spec = ParamSpec::new(DELTA, &[&n, &d], init);
            return Some(vec![spec.within(&tokens.scopes)]);
        }
        let At::Table(site) = place.at else {
            return None;
        };
        let r = &self.rank_at(place);
        let (rows, d) = (
            &Size::new("vocabulary", site.rows),
            &Size::new("d", site.width),
        );
        Some(vec![
            ParamSpec::new(A, &[r, rows], Init::Zeros),
            ParamSpec::new(B, &[d, r], Init::Normal { std: 1.0 }),
        ])
    }

    /// What a place of this file makes.
    pub(super) fn table_step(
        &self,
        place: &Place<'_>,
        state: State,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Option<State> {
        let b = cx.b;
        let out = match (&place.at, place.detail.tokens()) {
            (At::Table(_), Some(tokens)) => rows_of(tokens, state, p.get(DELTA), cx),
            (At::Linear(site), Some(tokens)) => {
                let own = b.linear_t(cx.up(state.x), p.get(DELTA));
                let both = b.concat(&[state.out, cx.down(own)], -1);
                let columns = b.ints(&columns(tokens, site.d_out));
                b.op("Gather", &[both, columns], &[("axis", (-1i64).into())])
            }
            (At::Table(_), None) => {
                let table = b.transpose(p.get(A), &[1, 0]);
                let rows = b.op("Gather", &[table, state.x], &[("axis", 0i64.into())]);
                let change = b.scale(b.linear_t(rows, p.get(B)), self.scale_at(place));
                b.add(state.out, cx.down(change))
            }
            _ => return None,
        };
        Some(State { out, ..state })
    }

    /// The table with the change in it.
    pub(super) fn table_merge(
        &self,
        place: &Place<'_>,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
        fold: Fold,
    ) -> Result<Merged, Diagnostic> {
        let b = cx.b;
        let weight = match (&place.at, place.detail.tokens()) {
            (_, Some(_)) if fold == Fold::Out => {
                return Err(Diagnostic::error(
                    "reset-parameter",
                    "the base model's own rows are not known any more",
                )
                .at(place.scope.clone())
                .help("keep the base model's file: nothing else brings its weights back"));
            }
            (At::Table(site), Some(tokens)) => {
                let table = cx.up(Val::Old(site.value));
                replaced(tokens, table, p.get(DELTA), cx)
            }
            (At::Linear(site), Some(tokens)) => {
                let weight = super::base_weight(site, cx)?;
                let flip = |v: Val| match site.weight.layout {
                    Layout::OutIn => v,
                    Layout::InOut => b.transpose(v, &[1, 0]),
                };
                let weight = flip(replaced(tokens, flip(weight), p.get(DELTA), cx));
                return Ok(Merged::product(super::stored_form(site, weight, cx), None));
            }
            (At::Table(site), None) => {
                let change = b.matmul(
                    b.transpose(p.get(A), &[1, 0]),
                    b.transpose(p.get(B), &[1, 0]),
                );
                let change = b.scale(change, self.scale_at(place));
                let table = cx.up(Val::Old(site.value));
                match fold {
                    Fold::In => b.add(table, change),
                    Fold::Out => b.sub(table, change),
                }
            }
            _ => return Err(Diagnostic::error("place", "this is no embedding table")),
        };
        Ok(Merged::product(cx.down(weight), None))
    }
}

/// What a table gives where some tokens have rows of their own.
fn rows_of(tokens: &Tokens, state: State, own: Val, cx: &BuildCx<'_>) -> Val {
    let b = cx.b;
    let ids: Vec<i64> = tokens.ids.iter().map(|i| *i as i64).collect();
    let ids = b.op("CastLike", &[b.ints(&ids), state.x], &[]);
    // `[…, tokens]`: at most one of them is the position's.
    let same = b.op("Equal", &[b.unsqueeze(state.x, &[-1]), ids], &[]);
    let same = b.cast(same, b.float());
    let any = b.reduce_sum(same, &[-1], true);
    let any = b.op("Greater", &[any, b.scalar(0.5)], &[]);
    b.op(
        "Where",
        &[any, cx.down(b.matmul(same, own)), state.out],
        &[],
    )
}

/// For each column of a head, where it stands among all columns and, behind them, those of the tokens.
fn columns(tokens: &Tokens, width: usize) -> Vec<i64> {
    let mut out: Vec<i64> = (0..width as i64).collect();
    for (at, &id) in tokens.ids.iter().enumerate() {
        out[id] = (width + at) as i64;
    }
    out
}

/// A table with other rows at the tokens.
fn replaced(tokens: &Tokens, table: Val, own: Val, cx: &BuildCx<'_>) -> Val {
    let b = cx.b;
    let ids: Vec<i64> = tokens.ids.iter().map(|i| *i as i64).collect();
    b.op(
        "ScatterND",
        &[table, b.unsqueeze(b.ints(&ids), &[1]), own],
        &[],
    )
}

/// Refuses an end of a path that names no table: a linear, or nothing.
fn no_table(end: &str, around: &Surroundings<'_, '_>) -> Diagnostic {
    let mut linears = around.selection.modules.iter().map(|m| &*m.site.path);
    let linear = linears.find(|p| !end.is_empty() && p.ends_with(end));
    let found = match linear {
        Some(path) => format!(
            "`trainable_token_indices` names `{path}`, which is a linear: rows of a head alone are not attached"
        ),
        None => "`trainable_token_indices` names no embedding table of this graph".to_owned(),
    };
    let help = match linear {
        Some(_) => {
            "name the table, whose rows a head that shares it has too; or save the whole head: `modules_to_save`"
        }
        None => "`rewrite inspect` shows the modules; export the model from its token ids",
    };
    Diagnostic::error("site-missing", found).help(help)
}

/// Model types whose embeddings are others than the module `shared` that PEFT wraps: their class looks words up elsewhere.
const UNWRAPPED: [&str; 1] = ["marian"];

/// Why trainable tokens have no effect in PEFT.
pub(super) fn idle_in(trains: bool, model_type: &str) -> Option<Diagnostic> {
    let idle = trains && UNWRAPPED.contains(&model_type);
    let found = format!(
        "`trainable_token_indices` in a model of the type `{model_type}`: PEFT wraps the module `shared`, which the model never calls, so that the rows change nothing there"
    );
    idle.then(|| {
        Diagnostic::error("trainable-tokens", found)
            .help("leave them out, or save the whole tables: `modules_to_save`")
    })
}

/// Whether a table is looked up by the token ids themselves.
fn reads_ids(table: &TableSite, around: &Surroundings<'_, '_>) -> bool {
    let graph = around.graph;
    graph.find(contract::INPUT_IDS) == Some(Through::LAID_OUT.source(graph, table.ids))
}

/// The path of the module `shared` of an encoder-decoder, of whose table this one is: exporters call it by what looks rows up,
/// `encoder.embed_tokens` or `encoder.shared`.
fn shared(path: &str) -> Option<String> {
    let (outer, last) = path.rsplit_once('.')?;
    let (model, part) = outer.rsplit_once('.').unwrap_or(("", outer));
    let fits = ["encoder", "decoder"].contains(&part) && ["embed_tokens", "shared"].contains(&last);
    let dot = if model.is_empty() { "" } else { "." };
    fits.then(|| format!("{model}{dot}shared"))
}

/// The tables that a path's end names, by their modules: every module has its own rows. None at all is one empty list.
fn ending<'s>(end: &str, tables: &'s [TableSite]) -> Vec<Vec<&'s TableSite>> {
    let named = |t: &&TableSite| {
        let given = shared(&t.path);
        t.path.ends_with(end) || given.is_some_and(|p| p.ends_with(end))
    };
    let mut out: Vec<Vec<&TableSite>> = Vec::new();
    for t in tables.iter().filter(named) {
        let alike = |o: &TableSite| {
            let given = shared(&t.path);
            o.path == t.path || (o.value == t.value && given.is_some() && given == shared(&o.path))
        };
        match out.iter_mut().find(|g| g.iter().any(|o| alike(o))) {
            Some(group) => group.push(t),
            None => out.push(vec![t]),
        }
    }
    if out.is_empty() {
        out.push(Vec::new());
    }
    out
}

/// Whether the encoder and the decoder look rows up in one table.
fn is_given(path: &str, table: &TableSite, around: &Surroundings<'_, '_>) -> bool {
    let tables = &around.selection.tables;
    let alike = |t: &&TableSite| t.value == table.value && shared(&t.path).as_deref() == Some(path);
    tables.iter().filter(alike).any(|t| t.path != table.path)
}

/// The head, where it has the same weight as a table: stored once, or twice by the exporter.
fn shares<'s>(
    table: &TableSite,
    ids: &[usize],
    around: &Surroundings<'_, 's>,
) -> Result<Option<&'s LinearSite>, Diagnostic> {
    let Some(head) = &around.selection.output_embeddings else {
        return Ok(None);
    };
    if (head.d_out, head.d_in) != (table.rows, table.width) || !equal(table, head, ids, around) {
        return Ok(None);
    }
    if head.weight.bias.is_some() {
        let found = format!(
            "`{}` shares the table of the words and has a bias",
            head.path
        );
        return Err(Diagnostic::error("trainable-tokens", found).help(
            "PEFT loses the bias there; fold the tokens into the base model with PEFT (`merge_and_unload`)",
        ));
    }
    Ok(Some(head))
}

fn equal(
    table: &TableSite,
    head: &LinearSite,
    ids: &[usize],
    around: &Surroundings<'_, '_>,
) -> bool {
    if head.weight.value == table.value {
        return true;
    }
    let tensor = |v| around.graph.value(v).tensor.as_ref();
    let (Some(a), Some(b)) = (tensor(table.value), tensor(head.weight.value)) else {
        return false;
    };
    let (Some(bytes), Some(others)) = (a.bytes(), b.bytes()) else {
        return false;
    };
    let size = bytes.len() / (table.rows * table.width).max(1);
    if a.dtype != b.dtype || bytes.len() != others.len() || size == 0 {
        return false;
    }
    let step = (table.rows / COMPARED).max(1);
    let mut rows = (0..table.rows).step_by(step).chain(ids.iter().copied());
    rows.all(|row| {
        (0..table.width).all(|column| {
            let at = (row * table.width + column) * size;
            let other = match head.weight.layout {
                Layout::OutIn => at,
                Layout::InOut => (column * table.rows + row) * size,
            };
            bytes[at..at + size] == others[other..other + size]
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{idle_in, shared};

    #[test]
    fn marian_looks_words_up_elsewhere() {
        assert!(idle_in(true, "marian").is_some());
        assert!(idle_in(false, "marian").is_none());
        assert!(idle_in(true, "mbart").is_none());
    }

    #[test]
    fn the_table_of_an_encoder_decoder_is_its_shared_one() {
        assert_eq!(
            shared("model.encoder.embed_tokens").as_deref(),
            Some("model.shared")
        );
        assert_eq!(shared("decoder.shared").as_deref(), Some("shared"));
        assert_eq!(shared("model.embed_tokens"), None);
        assert_eq!(shared("model.decoder.embed_positions"), None);
    }
}
