//! Prompt tuning: learned positions in front of the embedded input. Lester et al. 2021.
//!
//! `[prompt, E]`, or `[E₀, prompt, E₁ …]`, for the embeddings' output `E: [batch, sequence, d]` and the parameter `prompt: [P, d]`. All
//! that follows has `P` positions more, its outputs too. The prompt is always attended to; positions that the model counts behind the
//! embeddings (rotary ones) count it, positions inside the embeddings do not.

use super::detail::Detail;
use super::{Known, Method, Preset, dict, preset};
use crate::adapters::param::{Init, ParamSpec, Size};
use crate::adapters::place::{
    At, BuildCx, Exchanged, Params, Place, Stacking, State, Surroundings,
};
use crate::analyze::attention::copy;
use crate::analyze::sequence::{Longer, Meaning, alike};
use crate::analyze::through::Through;
use crate::diag::{Diagnostic, nearest};
use crate::ir::{NodeId, Spot, Val, ValueId, contract};
use crate::select::Family;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;

/// `PromptTuningConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub(crate) struct PromptTuning {
    /// Always `prompt_tuning`.
    pub architecture: String,
    /// Number of learned positions.
    pub prompt_length: usize,
    /// `random_uniform` or `from_string`.
    pub prompt_init: String,
    /// The text for `from_string`.
    pub prompt_init_text: Option<String>,
    /// `prefix`, or `prefix_after_bos`; `prefix_before_positions` is PEFT's: in front of the words' embeddings, before positions are
    /// embedded, and padding is hidden from the prompt as it is from the words. PEFT gives the model embeddings and no token ids: the
    /// mask alone says what is padding, and a padding token that it shows has a position like any other.
    pub combine: String,
    /// Whether there are as many learned positions for the decoder of an encoder-decoder. They have no effect, as in PEFT.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub decoder_prompt: bool,
    /// Seed of the initial values.
    pub init_weights_seed: Option<i64>,
    /// Keys of other versions.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for PromptTuning {
    fn default() -> Self {
        PromptTuning {
            architecture: "prompt_tuning".into(),
            prompt_length: 10,
            prompt_init: "random_uniform".into(),
            prompt_init_text: None,
            combine: "prefix".into(),
            decoder_prompt: false,
            init_weights_seed: None,
            extra: Map::new(),
        }
    }
}

impl Known for PromptTuning {
    const NAME: &'static str = "prompt_tuning";
    const SOURCE: &'static str = include_str!("prompt_tuning.rs");

    fn presets() -> Vec<Preset> {
        vec![preset("prompt_tuning", || Self::default().into())]
    }

    fn family(&self) -> Family {
        Family::PromptTuning
    }

    fn stacking(&self, _: &Place<'_>) -> Result<Stacking<Self>, &'static str> {
        Err("a prompt makes all samples longer")
    }

    fn exchanged(
        &self,
        _: &Place<'_>,
        _: &Params<'_>,
        _: &BuildCx<'_>,
    ) -> Result<Exchanged<Self>, &'static str> {
        Err("a prompt makes the sequence longer, and masks, positions and outputs with it")
    }

    fn extra(&self) -> &Map<String, Value> {
        &self.extra
    }
}

impl Method for PromptTuning {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn to_dict(&self) -> Value {
        dict(self)
    }

    fn reads_whole_rows(&self) -> Option<&'static str> {
        Some("a prompt stands in front of the sequence")
    }

    fn validate(&self) -> Result<(), Diagnostic> {
        if self.prompt_length == 0 {
            return Err(Diagnostic::error("config-value", "`prompt_length` is 0")
                .help("it must be at least 1"));
        }
        one_of(
            "combine",
            &self.combine,
            &["prefix", AFTER_BOS, BEFORE_POSITIONS],
        )?;
        one_of(
            "prompt_init",
            &self.prompt_init,
            &["random_uniform", FROM_STRING],
        )?;
        if self.prompt_init == FROM_STRING && self.prompt_init_text.is_none() {
            return Err(Diagnostic::error(
                "config-value",
                "`prompt_init` is `from_string`, and there is no `prompt_init_text`",
            )
            .help("give the text, or use `random_uniform`"));
        }
        Ok(())
    }

    fn seed(&self) -> Option<i64> {
        self.init_weights_seed
    }

    fn opens_attention(&self) -> bool {
        true
    }

    fn elsewhere(&self) -> Vec<(&'static str, &'static str)> {
        vec![
            (
                LOCATION,
                "attention mask, positions and token types behind the embeddings, which grow with it",
            ),
            (
                LOCATION,
                "masks with rows for the queries, all alike (BERT's), which hide nothing from the prompt",
            ),
        ]
    }

    fn places<'s>(&self, around: &Surroundings<'_, 's>) -> Result<Vec<Place<'s>>, Diagnostic> {
        if self.prompt_init == FROM_STRING && around.has.is_none() {
            return Err(Diagnostic::error(
                "prompt-init",
                "`from_string` starts from the embeddings of a text, and the graph has no tokenizer",
            )
            .help("start from `prompt_init=\"random_uniform\"`, or give a folder that the library saved: its prompt is used as it is"));
        }
        // An encoder-decoder embeds twice; the prompt stands in front of what the encoder reads.
        let Some(site) = around.selection.embeddings.first() else {
            return Err(Diagnostic::error(
                "site-missing",
                "a prompt stands behind the embeddings, which this graph does not have",
            )
            .help("export the model from its token ids"));
        };
        let hidden = around.selection.hidden_size;
        let early = self.combine == BEFORE_POSITIONS;
        let embedded = if early {
            words(contract::INPUT_IDS, around)?
        } else {
            site.output
        };
        let mut longer = Longer::find(around.view(), embedded, hidden)
            .map_err(|d| d.at(site.path.to_string()))?;
        if let Some(ids) = around.graph.find(contract::INPUT_IDS).filter(|_| early) {
            longer = longer.without_ids(around.view(), ids);
        }
        let base = &around.selection.base_prefix;
        let scope = around.scope(&format!("{base}prompt_tuning"), "prompt_tunings");
        let detail = Detail::Width(longer.width);
        let place = |at| Place::new(at, None, LOCATION, &*scope).with(detail.clone());
        let mut out = vec![place(At::Sequence(Arc::new(longer.clone())))];
        if !early {
            let detail = Detail::Shown {
                width: longer.width,
                value: around.route.prompt_mask(),
            };
            let masks = masks(around).into_iter();
            out.extend(masks.map(|m| place(At::Mask(m)).with(detail.clone())));
        }
        Ok(out)
    }

    fn params(&self, place: &Place<'_>) -> Result<Vec<ParamSpec>, Diagnostic> {
        let prompts = Size::from(1 + usize::from(self.decoder_prompt));
        let length = Size::new("prompt_length", self.prompt_length).times(&prompts);
        let d = Size::new("d", place.detail.width().unwrap_or_default());
        Ok(vec![ParamSpec::new(
            WEIGHT,
            &[&length, &d],
            Init::Uniform { bound: 0.5 },
        )])
    }

    fn step(
        &self,
        place: &Place<'_>,
        state: State,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<State, Diagnostic> {
        cx.whole_rows.set(Some(
            "a prompt stands in front of a row, not of each of its examples",
        ));
        let b = cx.b;
        let longer = match &place.at {
            At::Sequence(longer) => longer,
            At::Mask(_) => {
                let x = self.unmasked(state.x, place.detail.shown(), cx);
                return Ok(State { x, ..state });
            }
            _ => {
                return Err(Diagnostic::error(
                    "place",
                    "a prompt stands behind the embeddings only",
                ));
            }
        };
        self.grow(longer, cx);
        let x = state.x;
        let (n, d) = (self.prompt_length as i64, longer.width as i64);
        let batch = b.slice(b.shape(x), 0, 0, 1);
        let shape = b.concat(&[batch, b.ints(&[n, d])], 0);
        let mut prompt = cx.down(p.get(WEIGHT));
        if self.decoder_prompt {
            prompt = b.slice(prompt, 0, 0, n);
        }
        let prompt = b.op("Expand", &[prompt, shape], &[]);
        let x = if self.combine == AFTER_BOS {
            let (first, rest) = (b.slice(x, 1, 0, 1), b.slice(x, 1, 1, i64::MAX));
            b.concat(&[first, prompt, rest], 1)
        } else {
            b.concat(&[prompt, x], 1)
        };
        Ok(State { x, ..state })
    }

    fn close(
        &self,
        _: &Place<'_>,
        state: State,
        _: &Params<'_>,
        _: &BuildCx<'_>,
    ) -> Result<Val, Diagnostic> {
        Ok(state.x)
    }
}

const LOCATION: &str = "prompt";
const AFTER_BOS: &str = "prefix_after_bos";
pub(crate) const BEFORE_POSITIONS: &str = "prefix_before_positions";
const FROM_STRING: &str = "from_string";
const WEIGHT: &str = "prompt_embedding.weight";

fn one_of(field: &str, found: &str, known: &[&str]) -> Result<(), Diagnostic> {
    if known.contains(&found) {
        return Ok(());
    }
    let mut d = Diagnostic::error("config-value", format!("`{field}` is `{found}`"));
    if let Some(near) = nearest(found, known.iter().copied()) {
        d = d.note(format!("the nearest one is `{near}`"));
    }
    Err(d.help(format!("use {}", known.join(" or "))))
}

/// What the module makes that looks the words up: rows of a table, by the token ids themselves.
fn words(input: &str, around: &Surroundings<'_, '_>) -> Result<ValueId, Diagnostic> {
    let graph = around.graph;
    let ids = graph.find(input);
    let found = graph.nodes().find(|n| {
        let slot = |i: usize| graph.input(*n, i);
        let table = slot(0).is_some_and(|v| graph.value(v).tensor.is_some());
        let by = slot(1).map(|v| Through::LAID_OUT.source(graph, v));
        &*graph.node(*n).op.op_type == "Gather" && table && by.is_some() && by == ids
    });
    let tables = &around.selection.tables;
    let scaled = |n: NodeId| tables.iter().find(|t| t.node == n)?.scaled;
    let made = found.and_then(|n| scaled(n).or_else(|| graph.output(n, 0)));
    made.ok_or_else(|| {
        Diagnostic::error(
            "site-missing",
            format!("no table of words is looked up by `{input}`: there is nothing that the prompt could stand in front of"),
        )
        .help("export the model from its token ids")
    })
}

/// Masks that have rows for the queries, all alike: the library lets a prompt look at padding there.
fn masks(around: &Surroundings<'_, '_>) -> Vec<ValueId> {
    let mut out: Vec<ValueId> = Vec::new();
    let stack = around.selection.layers.iter().filter(|l| l.stack == 0);
    for site in stack.filter_map(|l| l.self_attn.as_ref()) {
        // Where the core is not to be found, the grown mask hides padding from the prompt as well.
        let found = site.core(around.view());
        let masks = found.map(|c| c.masks.into_iter().chain(c.hidden).collect::<Vec<_>>());
        for mask in masks.unwrap_or_default() {
            if !out.contains(&mask) && alike(around.view(), mask) {
                out.push(mask);
            }
        }
    }
    out
}

impl PromptTuning {
    /// A mask `[…, queries, keys]` that hides nothing from the first queries, and none of the first keys from the others.
    fn unmasked(&self, mask: Val, shown: f32, cx: &BuildCx<'_>) -> Val {
        let b = cx.b;
        let n = self.prompt_length as i64;
        let all = |part: Val| {
            let value = b.op("CastLike", &[b.scalar(shown), mask], &[]);
            b.op("Expand", &[value, b.shape(part)], &[])
        };
        let rest = b.slice(mask, -2, n, i64::MAX);
        let keys = all(b.slice(rest, -1, 0, n));
        let rest = b.concat(&[keys, b.slice(rest, -1, n, i64::MAX)], -1);
        b.concat(&[all(b.slice(mask, -2, 0, n)), rest], -2)
    }

    /// Has everything behind the embeddings read inputs and shapes that are longer by the prompt.
    fn grow(&self, longer: &Longer, cx: &BuildCx<'_>) {
        let b = cx.b;
        let n = self.prompt_length as i64;
        let uses = |v: ValueId| longer.moved.iter().find(|(m, _)| *m == v);
        let mut map: FxHashMap<ValueId, Val> = FxHashMap::default();
        b.set_spot(Some(Spot::Front));
        for &(v, meaning) in &longer.inputs {
            let grown = self.input(cx.current(v), meaning, cx);
            if let Some((_, uses)) = uses(v) {
                cx.replace(v, grown, uses.clone());
            }
            map.insert(v, grown);
        }
        for &node in &longer.nodes {
            b.set_spot(Some(Spot::Behind(node)));
            copy(cx.graph, b, &[node], &mut map, &|v| cx.current(v));
            for (slot, v) in cx.graph.node_outputs(node).into_iter().enumerate() {
                let Some(v) = v else { continue };
                let (Some((_, uses)), Some(&made)) = (uses(v), map.get(&v)) else {
                    continue;
                };
                let made = if slot == 0 {
                    made
                } else {
                    b.unary("Identity", made)
                };
                cx.replace(v, made, uses.clone());
            }
        }
        b.set_spot(Some(Spot::Front));
        for shape in &longer.shapes {
            let more = |x: &i64| if *x == shape.length { x + n } else { *x };
            let numbers: Vec<i64> = shape.numbers.iter().map(more).collect();
            let constant = match *numbers {
                [one] if shape.scalar => b.int(one),
                _ => b.ints(&numbers),
            };
            let made = b.unary("Identity", constant);
            cx.replace(shape.value, made, shape.uses.clone());
        }
        b.set_spot(None);
    }

    /// An input for more positions.
    fn input(&self, x: Val, meaning: Meaning, cx: &BuildCx<'_>) -> Val {
        let b = cx.b;
        let n = self.prompt_length as i64;
        let batch = b.slice(b.shape(x), 0, 0, 1);
        let shape = b.concat(&[batch, b.ints(&[n])], 0);
        let like = |v: Val| b.op("CastLike", &[v, x], &[]);
        let spread = |v: Val| b.op("Expand", &[v, shape], &[]);
        match meaning {
            Meaning::Mask => b.concat(&[spread(like(b.int(1))), x], 1),
            Meaning::Token => b.concat(&[spread(b.slice(x, 1, 0, 1)), x], 1),
            Meaning::Untold => {
                let none = like(b.int(-1));
                b.concat(&[spread(none), b.op("Expand", &[none, b.shape(x)], &[])], 1)
            }
            Meaning::Position => {
                let steps: Vec<i64> = (0..n).collect();
                let moved = b.add(x, like(b.ints(&[n])));
                b.concat(&[spread(like(b.ints(&steps))), moved], 1)
            }
        }
    }
}
