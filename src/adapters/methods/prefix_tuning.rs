//! Prefix tuning: keys and values put in front of those of every attention. Li and Liang 2021.
//!
//! `T = act(wte·W₁ᵀ + b₁)·W₂ᵀ + b₂`, or the parameter itself when flat: `[P, layers · 2 · kv_heads · head]`, for each location (encoder,
//! cross, self) one table with the keys and values of all its layers. Attention is `softmax([Q·T_kᵀ, Q·Kᵀ + mask])·[T_v, V]`: positions
//! of a prefix are never masked, carry no position and no rotation. Gate: keys and values times `mean σ(W·x + b)` over the positions
//! of what enters the attention.

use super::detail::{Detail, Pool};
use super::{GATE, Known, Method, Preset, act, dict, preset};
use crate::adapters::naming::{Route, nameless, scope};
use crate::adapters::param::{Init, ParamSpec, Size};
use crate::adapters::place::{
    At, BuildCx, Exchanged, Given, Params, Place, Stacking, State, Surroundings,
};
use crate::analyze::attention::{AttentionCore, HeadAxis, RelativeBias, Step, copy};
use crate::analyze::positions;
use crate::diag::Diagnostic;
use crate::ir::{Builder, DType, NodeId, Spot, Val, ValueId};
use crate::select::{AttentionSite, Family, Layer};
use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

mod longer;

use longer::{Length, longer_rows, repeated, reshaped, with_values, within};

/// `PrefixTuningConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "the fields are AdapterHub's")]
pub(crate) struct PrefixTuning {
    /// Always `prefix_tuning`.
    pub architecture: String,
    /// Prefixes in the encoder.
    pub encoder_prefix: bool,
    /// Prefixes in cross-attention.
    pub cross_prefix: bool,
    /// Layers without a prefix.
    pub leave_out: Vec<usize>,
    /// Whether the prefixes are parameters themselves instead of a small network's output.
    pub flat: bool,
    /// Number of positions of a prefix.
    pub prefix_length: usize,
    /// Width of the small network.
    pub bottleneck_size: usize,
    /// Its activation.
    pub non_linearity: Option<String>,
    /// Dropout on the prefixes while training.
    pub dropout: f64,
    /// Whether a learned gate scales the prefixes.
    pub use_gating: bool,
    /// Whether keys and values share the gate.
    pub shared_gating: bool,
    /// Whether positions are counted behind the prefix, as PEFT does: the prefix is a cache there. The Adapters library counts from 0.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shift_positions: bool,
    /// Number of layers whose prefixes the parameter holds, if there are more of them than layers with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_layers: Option<usize>,
    /// Whether layer `i` has the entries `4i` and `4i + 1` of the keys and values of all layers, counted around, as in PEFT's prefix of
    /// an encoder-decoder (`num_transformer_submodules` is 2 there).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub every_other: bool,
    /// Seed of the initial values.
    pub init_weights_seed: Option<i64>,
    /// Keys of other versions.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for PrefixTuning {
    fn default() -> Self {
        PrefixTuning {
            architecture: "prefix_tuning".into(),
            encoder_prefix: true,
            cross_prefix: true,
            leave_out: Vec::new(),
            flat: false,
            prefix_length: 30,
            bottleneck_size: 512,
            non_linearity: Some("tanh".into()),
            dropout: 0.0,
            use_gating: false,
            shared_gating: true,
            shift_positions: false,
            num_layers: None,
            every_other: false,
            init_weights_seed: None,
            extra: Map::new(),
        }
    }
}

impl Known for PrefixTuning {
    const NAME: &'static str = "prefix_tuning";
    const SOURCE: &'static str = include_str!("prefix_tuning.rs");

    fn presets() -> Vec<Preset> {
        vec![
            preset("prefix_tuning", || Self::default().into()),
            preset("prefix_tuning_flat", || {
                let flat = PrefixTuning {
                    flat: true,
                    ..Self::default()
                };
                flat.into()
            }),
        ]
    }

    fn family(&self) -> Family {
        Family::PrefixTuning
    }

    fn stacking(&self, _: &Place<'_>) -> Result<Stacking<Self>, &'static str> {
        Err("prefixes make the keys and values of all samples longer")
    }

    fn exchanged(
        &self,
        place: &Place<'_>,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Exchanged<Self>, &'static str> {
        let Ok((core, pool)) = parts(place) else {
            return Err("it changes no attention");
        };
        if cx.b.opset() < 14 {
            return Err(
                "a prefix of no positions needs operators of version 14 or later: export the model again",
            );
        }
        if core.bias.is_some() {
            return Err(
                "a bias by relative position is computed for a prefix of a length that is known",
            );
        }
        let flat = if self.flat {
            p.get(FLAT)
        } else {
            let b = cx.b;
            b.reshape(self.generated(b, &|key| p.get(key)), b.ints(&[-1]))
        };
        let mut own = vec![Given::new(FLAT, flat)];
        let gates = ["weight", "bias"].map(|g| Some(Given::new(g, p.find(g)?)));
        own.extend(gates.into_iter().flatten());
        let config = PrefixTuning {
            flat: true,
            prefix_length: 1,
            bottleneck_size: 512,
            dropout: 0.0,
            init_weights_seed: None,
            leave_out: Vec::new(),
            extra: Map::new(),
            ..self.clone()
        };
        let name = cx.owner.borrow();
        let nameless = |scope: &String| {
            let full = nameless(&format!("{scope}."), &name);
            full.trim_end_matches('.').to_owned()
        };
        let pool = Pool {
            scopes: pool.scopes.iter().map(nameless).collect(),
            own: nameless(&pool.own),
            ..pool.clone()
        };
        Ok(Exchanged {
            config,
            detail: Detail::Pool(pool),
            own,
            shared: Vec::new(),
        })
    }

    fn extra(&self) -> &Map<String, Value> {
        &self.extra
    }
}

impl Method for PrefixTuning {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn to_dict(&self) -> Value {
        dict(self)
    }

    fn reads_whole_rows(&self) -> Option<&'static str> {
        self.use_gating.then_some(GATE)
    }

    fn validate(&self) -> Result<(), Diagnostic> {
        act::check(self.non_linearity.as_deref())?;
        let bad = |message: String, help: &str| {
            Err(Diagnostic::error("config-value", message).help(help))
        };
        if self.prefix_length == 0 {
            return bad("`prefix_length` is 0".into(), "it must be at least 1");
        }
        if self.bottleneck_size == 0 && !self.flat {
            return bad("`bottleneck_size` is 0".into(), "it must be at least 1");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad(
                format!("`dropout` is {}", self.dropout),
                "it must be at least 0 and below 1",
            );
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
        let encoder = (
            "encoder_prefix",
            "keys and values of an attention of the encoder, where a decoder follows it",
        );
        let cross = ("cross_prefix", "keys and values of a cross-attention");
        let all = [(self.encoder_prefix, encoder), (self.cross_prefix, cross)];
        all.into_iter()
            .filter_map(|(on, at)| on.then_some(at))
            .collect()
    }

    fn places<'s>(&self, around: &Surroundings<'_, 's>) -> Result<Vec<Place<'s>>, Diagnostic> {
        let all = attentions(around);
        if around.route.drops_uneven_bias() {
            self.check_even(&all)?;
        }
        let found: Vec<&Found<'_>> = all.iter().filter(|f| self.wants(f)).collect();
        // Layers of a location are numbered in the order of the model; calls of one layer share their number.
        let mut numbers: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
        for f in &found {
            let layers = numbers.entry((&*f.room, f.location)).or_default();
            if !layers.contains(&f.layer.index) {
                layers.push(f.layer.index);
            }
        }
        let encoder = if self.shift_positions {
            encoder(&all, around)?
        } else {
            FxHashSet::default()
        };
        let mut out = Vec::with_capacity(2 * found.len());
        for f in found {
            let layers = &numbers[&(&*f.room, f.location)];
            let parts = self.num_layers.unwrap_or(layers.len());
            if parts < layers.len() {
                return Err(Diagnostic::error(
                    "prefix-layers",
                    format!(
                        "the prefix has keys and values of {parts} layers, and the model has {}",
                        layers.len()
                    ),
                )
                .at(f.layer.path.to_string())
                .help("it belongs to a smaller model"));
            }
            let homes = homes(&all, &f.room, around);
            let core = Arc::new(f.site.core(around.view())?);
            let scope = format!("{}.{}", pooled(&f.module, around), f.location);
            // One place has the positions of the whole model counted behind the prefix.
            let positions = if self.shift_positions && out.is_empty() && core.bias.is_none() {
                positions::uses(around.view(), &encoder)?
            } else {
                Vec::new()
            };
            let window = if self.shift_positions {
                let masks = core.masks.iter().chain(&core.hidden).chain(&core.shown);
                let masks: Vec<ValueId> = masks.copied().collect();
                positions::seen(around.view(), &masks)?
            } else {
                None
            };
            let pool = Pool {
                window,
                positions: positions.into(),
                index: layers
                    .iter()
                    .position(|l| *l == f.layer.index)
                    .unwrap_or_default(),
                parts,
                width: around.width(f.layer.input),
                scopes: homes
                    .iter()
                    .map(|h| format!("{h}.{}", f.location))
                    .collect(),
                own: around.scope(&f.module, "prefix_gates"),
            };
            let at = At::Attention(core);
            let place = Place::new(at, Some(f.layer.index), f.location, scope);
            out.push(place.with(Detail::Pool(pool)));
        }
        Ok(out)
    }

    fn params(&self, place: &Place<'_>) -> Result<Vec<ParamSpec>, Diagnostic> {
        let (core, pool) = parts(place)?;
        let d = &Size::new("d", pool.width.unwrap_or(core.width));
        let length = &Size::free("prefix_length", self.prefix_length);
        let row = &Size::new("layers", pool.parts)
            .times(&Size::new("kv_heads", core.kv_heads))
            .times(&Size::new("head_size", core.head))
            .times(&Size::from(2));
        let start = Init::Normal { std: 1.0 };
        let mut out = if self.flat {
            vec![ParamSpec::new(FLAT, &[&length.times(row)], start)]
        } else {
            let inner = &Size::free("bottleneck_size", self.bottleneck_size);
            let first = Init::linear(d);
            let second = Init::linear(inner);
            let [table, w1, b1, w2, b2] = Self::NETWORK;
            vec![
                ParamSpec::new(table, &[length, d], start),
                ParamSpec::new(w1, &[inner, d], first.clone()),
                ParamSpec::new(b1, &[inner], first),
                ParamSpec::new(w2, &[row, inner], second.clone()),
                ParamSpec::new(b2, &[row], second),
            ]
        };
        for spec in &mut out {
            spec.scopes = pool.scopes.to_vec();
        }
        if self.use_gating {
            let own = std::slice::from_ref(&pool.own);
            let (n, d) = (&Size::from(self.gates()), &Size::new("d", core.width));
            let gates = [
                ParamSpec::new("weight", &[n, d], Init::bert()),
                ParamSpec::new("bias", &[n], Init::linear(d)),
            ];
            out.extend(gates.map(|g| g.within(own)));
        }
        Ok(out)
    }

    fn step(
        &self,
        place: &Place<'_>,
        state: State,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<State, Diagnostic> {
        let (core, pool) = parts(place)?;
        let b = cx.b;
        if core.bias.is_some() && state.delta.is_some() {
            return Err(Diagnostic::error(
                "prefix-stack",
                "two prefixes in front of a bias by relative position cannot be stacked",
            )
            .at(place.scope.clone())
            .help("attach one of them"));
        }
        if self.shift_positions {
            self.shift(place, p, cx)?;
        }
        let length = self.length(core, pool, p, cx);
        let table = self.table(core, pool, (state.x, length), p, cx);
        let gates = self
            .use_gating
            .then(|| cx.gate_of(state.x, p.get("weight"), p.get("bias")));
        // `[batch or 1, kv_heads, P, head]`.
        let prefix = |kind: usize| {
            let row = self.row(pool, kind) as i64;
            let prefix = b.squeeze(b.slice(table, 0, row, row + 1), &[0]);
            let Some(gates) = gates else { return prefix };
            let column = if kind == 0 {
                0
            } else {
                self.gates() as i64 - 1
            };
            let gate = b.slice(gates, 2, column, column + 1);
            b.mul(prefix, b.unsqueeze(gate, &[3]))
        };
        let (keys, values) = (prefix(0), prefix(1));
        let mixed = state.values.unwrap_or_else(|| cx.current(core.values));
        Ok(State {
            out: self.with_scores(core, (keys, length), state.out, pool.window, cx)?,
            values: Some(with_values(core, values, mixed, length, cx)),
            delta: Some(keys),
            ..state
        })
    }

    fn close(
        &self,
        place: &Place<'_>,
        state: State,
        _: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Val, Diagnostic> {
        let (core, _) = parts(place)?;
        let mut map = FxHashMap::from_iter([(core.scores, state.out)]);
        map.extend(state.values.map(|v| (core.values, v)));
        for &n in &core.tail {
            match longer_rows(n, &map, cx) {
                Some((old, new)) => {
                    map.insert(old, new);
                }
                None => copy(cx.graph, cx.b, &[n], &mut map, &|v| cx.current(v)),
            }
        }
        Ok(map.get(&core.output).copied().unwrap_or(state.out))
    }
}

/// Name of prefixes that are parameters themselves.
pub(crate) const FLAT: &str = "control_trans";

/// An attention of the model.
struct Found<'s> {
    layer: &'s Layer,
    site: &'s AttentionSite,
    location: &'static str,
    module: String,
    /// Path of the model that holds the pool.
    room: String,
}

/// All attentions, in the order of the model.
fn attentions<'s>(around: &Surroundings<'_, 's>) -> Vec<Found<'s>> {
    let layers = &around.selection.layers;
    let two_stacks = around.selection.lacks_a_stack()
        || layers.iter().any(|l| l.stack > 0 || l.cross_attn.is_some());
    let encoder = |l: &Layer| two_stacks && l.stack == 0 && l.cross_attn.is_none();
    let mut out = Vec::new();
    for layer in layers {
        let sites = [(&layer.self_attn, false), (&layer.cross_attn, true)];
        for (site, cross) in sites {
            let Some(site) = site else { continue };
            let Some(module) = Route::prefix(site) else {
                continue;
            };
            let location = around.route.prefix_location(layer, encoder(layer), cross);
            out.push(Found {
                layer,
                site,
                location,
                module,
                room: around.route.room(around.selection, layer),
            });
        }
    }
    out
}

/// Nodes that the encoder is made of: all that the values of cross-attentions are made of.
fn encoder(
    all: &[Found<'_>],
    around: &Surroundings<'_, '_>,
) -> Result<FxHashSet<NodeId>, Diagnostic> {
    let mut values = Vec::new();
    for f in all.iter().filter(|f| f.location == "cross_prefix") {
        values.push(f.site.core(around.view())?.values);
    }
    Ok(positions::makers(around.view(), &values))
}

/// Module of the pool's copy in an attention, for the adapter.
fn pooled(module: &str, around: &Surroundings<'_, '_>) -> String {
    around.scope(&format!("{module}.pool"), "prefix_tunings")
}

/// All modules that hold the adapter's pool: one in each attention of the model, and the pool itself.
fn homes(all: &[Found<'_>], room: &str, around: &Surroundings<'_, '_>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let own = scope(
        &format!("{room}prefix_tuning"),
        "prefix_tunings",
        around.name,
    );
    let here = all.iter().filter(|f| f.room == room);
    for home in here.map(|f| pooled(&f.module, around)).chain([own]) {
        if !out.contains(&home) {
            out.push(home);
        }
    }
    out
}

fn parts<'p>(place: &'p Place<'_>) -> Result<(&'p AttentionCore, &'p Pool), Diagnostic> {
    match (&place.at, place.detail.pool()) {
        (At::Attention(core), Some(pool)) => Ok((core, pool)),
        _ => Err(Diagnostic::error(
            "place",
            "prefix tuning changes the core of attentions only",
        )),
    }
}

impl PrefixTuning {
    fn wants(&self, f: &Found<'_>) -> bool {
        let on = match f.location {
            "encoder_prefix" => self.encoder_prefix,
            "cross_prefix" => self.cross_prefix,
            _ => true,
        };
        on && !self.leave_out.contains(&f.layer.index)
    }

    /// The parameters of the network that makes the prefixes.
    pub(crate) const NETWORK: [&'static str; 5] = [
        "wte.weight",
        "control_trans.0.weight",
        "control_trans.0.bias",
        "control_trans.2.weight",
        "control_trans.2.bias",
    ];

    /// What that network makes: `[P, layers · 2 · kv_heads · head]`.
    pub(crate) fn generated(&self, b: &Builder, get: &dyn Fn(&str) -> Val) -> Val {
        let [table, w1, b1, w2, b2] = Self::NETWORK;
        let inner = b.add(b.linear_t(get(table), get(w1)), get(b1));
        let inner = act::apply(b, self.non_linearity.as_deref(), inner);
        b.add(b.linear_t(inner, get(w2)), get(b2))
    }

    /// How long the prefix is.
    fn length(
        &self,
        core: &AttentionCore,
        pool: &Pool,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Length {
        if !cx.sizes_vary {
            return Length::Known(self.prefix_length as i64);
        }
        let row = pool.parts * 2 * core.kv_heads * core.head;
        let all = cx.b.shape(p.get(FLAT));
        Length::Given(cx.b.div(all, cx.b.ints(&[row as i64])))
    }

    /// Has everything that reads positions read them behind the prefix, where this is the place that says where.
    fn shift(&self, place: &Place<'_>, p: &Params<'_>, cx: &BuildCx<'_>) -> Result<(), Diagnostic> {
        let (core, pool) = parts(place)?;
        let b = cx.b;
        for (v, uses) in &*pool.positions {
            if cx.current(*v) != Val::Old(*v) {
                return Err(Diagnostic::error(
                    "prefix-stack",
                    "two prefixes that positions are counted behind cannot be stacked",
                )
                .at(place.scope.clone())
                .help("attach one of them"));
            }
            b.set_spot(Some(match cx.graph.producer(*v) {
                Some((n, _)) => Spot::Behind(n),
                None => Spot::Front,
            }));
            let length = self.length(core, pool, p, cx).vector(b);
            let length = b.op("CastLike", &[length, Val::Old(*v)], &[]);
            let moved = b.add(Val::Old(*v), length);
            cx.replace(*v, moved, uses.clone());
        }
        b.set_spot(None);
        Ok(())
    }

    /// Refuses prefixes in some self-attentions of a stack and not in others.
    fn check_even(&self, all: &[Found<'_>]) -> Result<(), Diagnostic> {
        let own = |f: &&Found<'_>| f.location != "cross_prefix";
        let own: Vec<&Found<'_>> = all.iter().filter(own).collect();
        let differs = |w: &&[&Found<'_>]| {
            w[0].layer.stack == w[1].layer.stack && self.wants(w[0]) != self.wants(w[1])
        };
        let Some(&[_, f]) = own.windows(2).find(differs) else {
            return Ok(());
        };
        Err(Diagnostic::error(
            "prefix-uneven",
            "`leave_out` gives some layers of a stack prefixes and others none: the Adapters library's class drops the bias by relative position there",
        )
        .at(f.layer.path.to_string())
        .help("leave out whole stacks, or none of their layers"))
    }

    /// Where the keys (0) or values (1) of a layer are among all of the table.
    fn row(&self, pool: &Pool, kind: usize) -> usize {
        if self.every_other {
            (4 * pool.index + kind) % (2 * pool.parts)
        } else {
            2 * pool.index + kind
        }
    }

    fn gates(&self) -> usize {
        if self.shared_gating { 1 } else { 2 }
    }

    /// The prefixes of all layers of the location: `[parts · 2, batch or 1, kv_heads, P, head]`.
    fn table(
        &self,
        core: &AttentionCore,
        pool: &Pool,
        (x, length): (Val, Length),
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Val {
        let key = format!("prefixes {}", pool.scopes.first().map_or("", |s| s));
        cx.once(&key, || {
            let b = cx.b;
            let flat = if self.flat {
                p.get(FLAT)
            } else {
                self.generated(b, &|key| p.get(key))
            };
            let sizes = [pool.parts * 2, core.kv_heads, core.head].map(|n| n as i64);
            let mut table = reshaped(b, flat, length.between(b, &[1], &sizes), length);
            if cx.training && self.dropout > 0.0 {
                // Every text of a batch loses other numbers.
                let batch = b.slice(b.shape(x), 0, 0, 1);
                let shape = b.concat(&[batch, b.ints(&[1, 1, 1, 1])], 0);
                table = cx.dropout(b.op("Expand", &[table, shape], &[]), self.dropout);
            }
            b.transpose(table, &[2, 0, 3, 1, 4])
        })
    }

    /// The bias by relative position for keys behind `length` others: `[…, queries, length + keys]`. Masks are zero there.
    ///
    /// The library counts the queries from 0 and so has the keys move away from them; where positions are counted behind the prefix, both
    /// move, and the prefix is further and further behind.
    fn longer_bias(&self, bias: &RelativeBias, cx: &BuildCx<'_>) -> Result<Val, Diagnostic> {
        let b = cx.b;
        let length = self.prefix_length as i64;
        let (first, moved) = if self.shift_positions {
            (-length, 0)
        } else {
            (0, length)
        };
        let distance = cx.current(bias.distance);
        let steps: Vec<i64> = (first..first + length).collect();
        let like = |v: Val| b.op("CastLike", &[v, distance], &[]);
        let first = b.add(b.slice(distance, 1, 0, 1), like(b.ints(&steps)));
        let rest = b.add(distance, like(b.ints(&[moved])));
        let mut map = FxHashMap::from_iter([(bias.distance, b.concat(&[first, rest], 1))]);
        for &mask in &bias.masks {
            let now = cx.current(mask);
            let size = b.ints(&[length]);
            let shape = b.concat(&[b.slice(b.shape(now), 0, 0, -1), size], 0);
            let zero = b.op("CastLike", &[b.scalar(0.0), now], &[]);
            let zeros = b.op("Expand", &[zero, shape], &[]);
            map.insert(mask, b.concat(&[zeros, now], -1));
        }
        copy(cx.graph, b, &bias.nodes, &mut map, &|v| cx.current(v));
        map.get(&bias.value).copied().ok_or_else(|| {
            Diagnostic::error(
                "relative-bias",
                "the bias by relative position cannot be computed again",
            )
        })
    }

    /// Scores of the prefix in front of the others: `[queries·prefixᵀ, scores]`.
    fn with_scores(
        &self,
        core: &AttentionCore,
        (prefix, length): (Val, Length),
        scores: Val,
        window: Option<u64>,
        cx: &BuildCx<'_>,
    ) -> Result<Val, Diagnostic> {
        let b = cx.b;
        let bias = match &core.bias {
            None => None,
            Some(bias) => {
                let whole = cx.once_or(
                    &format!(
                        "bias {} {} {}",
                        bias.value.index(),
                        self.prefix_length,
                        self.shift_positions
                    ),
                    || self.longer_bias(bias, cx),
                )?;
                Some((bias, whole))
            }
        };
        let float = b.float();
        let cast = |v: Val, from: DType, to: DType| if from == to { v } else { b.cast(v, to) };
        let dtype = core.dtype.unwrap_or(cx.base);
        let mut queries = cast(cx.current(core.queries), dtype, float);
        let mut keys = match core.query_heads {
            HeadAxis::Grouped => prefix,
            HeadAxis::Query | HeadAxis::Kv | HeadAxis::Flat => repeated(core, prefix, length, cx),
        };
        if core.query_heads == HeadAxis::Grouped {
            keys = b.unsqueeze(keys, &[2]);
        }
        if core.query_heads == HeadAxis::Flat {
            let rest = b.slice(b.shape(queries), 0, 1, 3);
            let shape = b.concat(&[b.ints(&[-1, core.heads as i64]), rest], 0);
            queries = b.reshape(queries, shape);
        }
        let perm: &[i64] = if core.query_heads == HeadAxis::Grouped {
            &[0, 1, 2, 4, 3]
        } else {
            &[0, 1, 3, 2]
        };
        let mut own = cast(b.matmul(queries, b.transpose(keys, perm)), float, dtype);
        let mut now = dtype;
        let mut in_rows = core.query_heads == HeadAxis::Flat;
        for step in &core.then {
            match *step {
                Step::Mul(v) => own = b.mul(own, cx.current(v)),
                Step::Div(v) => own = b.div(own, cx.current(v)),
                Step::Scale(x) => own = b.mul(own, b.scalar_of(x, now)),
                Step::Tanh => own = b.unary("Tanh", own),
                Step::Cast(to) => {
                    own = cast(own, now, to);
                    now = to;
                }
                Step::Reshape => in_rows = true,
                Step::Bias => {
                    if let Some((_, whole)) = bias {
                        own = b.add(own, b.slice(whole, -1, 0, self.prefix_length as i64));
                    }
                }
            }
        }
        if in_rows {
            let leading = b.slice(b.shape(scores), 0, 0, -1);
            let shape = b.concat(&[leading, length.vector(b)], 0);
            own = reshaped(b, own, shape, length);
        }
        if let Some(window) = window {
            own = within(window, own, (length, now), cx);
        }
        let mut others = scores;
        if let Some((bias, whole)) = bias {
            let moved = b.slice(whole, -1, self.prefix_length as i64, i64::MAX);
            let mut map = FxHashMap::from_iter([(bias.value, moved)]);
            copy(cx.graph, b, &bias.chain, &mut map, &|v| cx.current(v));
            others = map.get(&core.scores).copied().unwrap_or(scores);
        }
        Ok(b.concat(&[own, others], -1))
    }
}
