//! Representation fine-tuning: the hidden state behind a layer is changed at the first and last positions of each text. Wu et al. 2024.
//!
//! `Φ(h) = h + Rᵀ·(f(W·h + b) - R·h)`; LoReFT keeps the rows of `R` orthonormal, NoReFT does not, DiReFT leaves `- R·h` out. The change
//! is computed at all positions and chosen by position: with a rank of a few this costs less than gathering and scattering, and it has
//! no data-dependent indices. With a cache, positions count from the beginning of the text and not from the last step.
//!
//! `R = (base·Q)ᵀ`, where the columns of `Q` come from a product of Householder reflections of the parameter (torch's
//! `parametrizations.orthogonal`), each times the integer part of the parameter's diagonal.

use super::detail::Detail;
use super::{Known, Method, Preset, act, dict, preset, torch_dtype};
use crate::adapters::param::{Init, ParamSpec, Size};
use crate::adapters::place::{
    At, BuildCx, Exchanged, Given, Params, Place, Stacking, State, Surroundings,
};
use crate::diag::Diagnostic;
use crate::ir::{DType, TensorData, Val};
use crate::select::{Family, Layer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `ReftConfig` and the classes derived from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[expect(clippy::struct_field_names, reason = "AdapterHub's field names")]
pub(crate) struct Reft {
    /// Always `reft`.
    #[serde(default = "architecture")]
    pub architecture: String,
    /// `all`, or layer ids.
    pub layers: Layers,
    /// Number of positions at the beginning of each text.
    pub prefix_positions: usize,
    /// Number of positions at its end.
    pub suffix_positions: usize,
    /// Rank.
    pub r: usize,
    /// Whether the projection has orthonormal rows.
    pub orthogonality: bool,
    /// Whether beginning and end share their parameters.
    #[serde(default)]
    pub tied_weights: bool,
    /// Whether the projection of the state itself is taken away. The library forgets this one when it saves: absent means true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subtract_projection: Option<bool>,
    /// Dropout on the changed state while training.
    #[serde(default = "dropout")]
    pub dropout: f64,
    /// Activation of the learned source.
    #[serde(default)]
    pub non_linearity: Option<String>,
    /// Element type of the parameters, a torch name.
    #[serde(default)]
    pub dtype: Option<String>,
    /// Whether the adapter is active at all.
    #[serde(default = "yes")]
    pub output_reft: bool,
    /// Seed of the initial values; 0 counts as none.
    #[serde(default)]
    pub init_weights_seed: Option<i64>,
    /// Keys of other versions.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

fn architecture() -> String {
    "reft".into()
}
fn dropout() -> f64 {
    0.05
}
fn yes() -> bool {
    true
}

/// Which layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Layers {
    /// `all`.
    All(String),
    /// These.
    Some(Vec<usize>),
}

impl Reft {
    /// `LoReftConfig`.
    pub(crate) fn loreft() -> Self {
        Reft {
            architecture: architecture(),
            layers: Layers::All("all".into()),
            prefix_positions: 3,
            suffix_positions: 0,
            r: 1,
            orthogonality: true,
            tied_weights: false,
            subtract_projection: None,
            dropout: dropout(),
            non_linearity: None,
            dtype: None,
            output_reft: true,
            init_weights_seed: None,
            extra: Map::new(),
        }
    }

    /// `NoReftConfig`.
    pub(crate) fn noreft() -> Self {
        Reft {
            orthogonality: false,
            ..Self::loreft()
        }
    }

    /// `DiReftConfig`.
    pub(crate) fn direft() -> Self {
        Reft {
            subtract_projection: Some(false),
            ..Self::noreft()
        }
    }
}

impl Known for Reft {
    const NAME: &'static str = "reft";
    const SOURCE: &'static str = include_str!("reft.rs");

    fn presets() -> Vec<Preset> {
        vec![
            preset("loreft", || Self::loreft().into()),
            preset("noreft", || Self::noreft().into()),
            preset("direft", || Self::direft().into()),
        ]
    }

    fn family(&self) -> Family {
        Family::Reft
    }

    fn stacking(&self, _: &Place<'_>) -> Result<Stacking<Self>, &'static str> {
        Err("it changes positions that it chooses by the length of each text")
    }

    fn exchanged(
        &self,
        place: &Place<'_>,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Exchanged<Self>, &'static str> {
        let used = |unit: &usize| self.positions(*unit).iter().any(|n| *n > 0);
        let mut own = Vec::new();
        for unit in (0..self.units()).filter(used) {
            let name = format!("units.{unit}");
            for inner in ["learned_source.weight", "learned_source.bias"] {
                let suffix = format!("{name}.{inner}");
                let value = p.get(&suffix);
                own.push(Given::new(suffix, value));
            }
            // What is orthonormal was made so by training; computing it again takes as many steps as its rank.
            let projection = format!("{name}.projection.weight");
            let rows = if self.orthogonality {
                cx.b.transpose(self.columns(&name, place, p, cx), &[1, 0])
            } else {
                p.get(&projection)
            };
            own.push(Given::new(projection, rows));
        }
        let config = Reft {
            orthogonality: false,
            dropout: 0.0,
            r: 1,
            layers: Layers::All("all".into()),
            init_weights_seed: None,
            dtype: None,
            extra: Map::new(),
            ..self.clone()
        };
        Ok(Exchanged {
            config,
            detail: place.detail.clone(),
            own,
            shared: Vec::new(),
        })
    }

    fn extra(&self) -> &Map<String, Value> {
        &self.extra
    }
}

impl Method for Reft {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn to_dict(&self) -> Value {
        dict(self)
    }

    fn reads_whole_rows(&self) -> Option<&'static str> {
        Some("positions are counted from the end of the text")
    }

    fn validate(&self) -> Result<(), Diagnostic> {
        act::check(self.non_linearity.as_deref())?;
        torch_dtype(self.dtype.as_deref())?;
        let bad = |message: String, help: &str| {
            Err(Diagnostic::error("config-value", message).help(help))
        };
        if self.r == 0 {
            return bad("`r` is 0".into(), "it must be at least 1");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad(
                format!("`dropout` is {}", self.dropout),
                "it must be at least 0 and below 1",
            );
        }
        match &self.layers {
            Layers::All(word) if word != "all" => bad(
                format!("`layers` is `{word}`"),
                "use 'all' or a list of layer ids",
            ),
            Layers::All(_) | Layers::Some(_) => Ok(()),
        }
    }

    fn seed(&self) -> Option<i64> {
        self.init_weights_seed
    }

    fn dtype(&self) -> Result<DType, Diagnostic> {
        // Reflections need the precision; the library keeps the projection in f32 as well.
        if self.orthogonality {
            return Ok(DType::Float);
        }
        torch_dtype(self.dtype.as_deref())
    }

    fn notes(&self, around: &Surroundings<'_, '_>, _: &[Place<'_>]) -> Vec<Diagnostic> {
        if self.subtract_projection != Some(false) || around.has.is_some() {
            return Vec::new();
        }
        let what = format!(
            "`{}` does not subtract the projection, which the Adapters library forgets when it reads a file: it would compute another ReFT",
            around.name
        );
        vec![Diagnostic::warning("beyond-library", what)]
    }

    fn places<'s>(&self, around: &Surroundings<'_, 's>) -> Result<Vec<Place<'s>>, Diagnostic> {
        if !self.output_reft {
            return Ok(Vec::new());
        }
        let wanted = |l: &Layer| match &self.layers {
            Layers::All(_) => true,
            Layers::Some(ids) => ids.contains(&l.index),
        };
        let hidden = around.selection.hidden_size;
        let width = |l: &Layer| around.width(l.output).unwrap_or(hidden);
        let least = around.selection.layers.iter().map(width).min();
        let width_least = least.unwrap_or(hidden);
        if self.orthogonality && self.r >= width_least {
            return Err(Diagnostic::error(
                "reft-rank",
                format!(
                    "`r` is {} and the hidden state has {width_least} channels",
                    self.r
                ),
            )
            .help("an orthonormal projection needs a smaller rank"));
        }
        let layers = around.selection.layers.iter().filter(|l| wanted(l));
        Ok(layers
            .map(|layer| {
                let scope = around.scope(&format!("{}.reft_layer", layer.path), "refts");
                let place = Place::new(At::Layer(layer), Some(layer.index), "output_reft", scope);
                let apart = around.route.counts_positions_apart();
                place.with(Detail::Hidden {
                    width: width(layer),
                    own_positions: apart && layer.stack > 0,
                })
            })
            .collect())
    }

    fn params(&self, place: &Place<'_>) -> Result<Vec<ParamSpec>, Diagnostic> {
        let d = &Size::new("d", place.detail.hidden().map_or(0, |h| h.0));
        let r = &Size::free("r", self.r);
        let mut out = Vec::new();
        for unit in 0..self.units() {
            let name = |inner: &str| format!("units.{unit}.{inner}");
            let mut specs = vec![
                ParamSpec::new(name("learned_source.weight"), &[r, d], Init::linear(d)),
                ParamSpec::new(name("learned_source.bias"), &[r], Init::linear(d)),
            ];
            if self.orthogonality {
                specs.push(ParamSpec::new(
                    name(ORIGINAL),
                    &[r, d],
                    Init::NegativeIdentity,
                ));
                specs.push(
                    ParamSpec::new(name(BASE), &[d, d], Init::Orthogonal { columns: self.r })
                        .frozen(),
                );
            } else {
                specs.push(ParamSpec::new(
                    name("projection.weight"),
                    &[r, d],
                    Init::linear(d),
                ));
            }
            // The library makes a unit for each end, wanted or not.
            let used = self.positions(unit).iter().any(|n| *n > 0);
            out.extend(specs.into_iter().map(|s| if used { s } else { s.idle() }));
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
        let At::Layer(layer) = &place.at else {
            return Err(Diagnostic::error(
                "place",
                "ReFT changes the output of layers only",
            ));
        };
        let b = cx.b;
        let x = cx.up(state.x);
        let own = place.detail.hidden().is_some_and(|h| h.1);
        let text = Text::new(layer, own, x, cx);
        let mut y = x;
        // All units read the state as it was; the end of the text wins where both reach.
        for unit in 0..self.units() {
            let [first, last] = self.positions(unit);
            let chosen = match (first, last) {
                (0, 0) => continue,
                (n, 0) => text.first(n, cx),
                (0, n) => text.last(n, cx),
                (n, m) => b.op("Or", &[text.first(n, cx), text.last(m, cx)], &[]),
            };
            let changed = self.unit(unit, place, x, p, cx);
            y = b.op("Where", &[chosen, changed, y], &[]);
        }
        Ok(State { x: y, ..state })
    }

    fn reopen(&self, _: &Place<'_>, state: State, closed: Val, _: &BuildCx<'_>) -> Option<State> {
        Some(State { x: closed, ..state })
    }

    fn close(
        &self,
        _: &Place<'_>,
        state: State,
        _: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Val, Diagnostic> {
        Ok(cx.down(state.x))
    }
}

const ORIGINAL: &str = "projection.parametrizations.weight.original";
const BASE: &str = "projection.parametrizations.weight.0.base";

impl Reft {
    fn units(&self) -> usize {
        if self.tied_weights { 1 } else { 2 }
    }

    /// How many first and last positions a unit changes.
    fn positions(&self, unit: usize) -> [usize; 2] {
        match (self.tied_weights, unit) {
            (true, _) => [self.prefix_positions, self.suffix_positions],
            (false, 0) => [self.prefix_positions, 0],
            (false, _) => [0, self.suffix_positions],
        }
    }

    /// `Φ` at all positions.
    fn unit(
        &self,
        unit: usize,
        place: &Place<'_>,
        x: Val,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Val {
        let b = cx.b;
        let name = format!("units.{unit}");
        let mut source = act::apply(
            b,
            self.non_linearity.as_deref(),
            cx.linear(x, p, &format!("{name}.learned_source")),
        );
        // `[d, r]` and its transpose.
        let (columns, rows) = if self.orthogonality {
            let columns = self.columns(&name, place, p, cx);
            (columns, b.transpose(columns, &[1, 0]))
        } else {
            let rows = p.get(&format!("{name}.projection.weight"));
            (b.transpose(rows, &[1, 0]), rows)
        };
        if self.subtract_projection != Some(false) {
            source = b.sub(source, b.matmul(x, columns));
        }
        let changed = b.add(x, b.matmul(source, rows));
        cx.dropout(changed, self.dropout)
    }

    /// `base·Q·diag(int(diagonal))`: orthonormal columns, `[d, r]`.
    fn columns(&self, name: &str, place: &Place<'_>, p: &Params<'_>, cx: &BuildCx<'_>) -> Val {
        let b = cx.b;
        let (d, r) = (place.detail.hidden().map_or(0, |h| h.0), self.r);
        let x = b.transpose(p.get(&format!("{name}.{ORIGINAL}")), &[1, 0]);
        let identity = cx.once(&format!("identity {d} {r}"), || {
            let values: Vec<f32> = (0..d * r)
                .map(|i| f32::from(u8::from(i / r == i % r)))
                .collect();
            b.constant(TensorData::from_f32([d as u64, r as u64], &values))
        });
        let below = b.op("Trilu", &[x, b.int(-1)], &[("upper", 0i64.into())]);
        let v = b.add(below, identity);
        let mut q = identity;
        for i in (0..r as i64).rev() {
            let column = b.slice(v, 1, i, i + 1);
            let tau = b.div(
                b.scalar(2.0),
                b.reduce_sum(b.mul(column, column), &[0], true),
            );
            let along = b.matmul(b.transpose(column, &[1, 0]), q);
            q = b.sub(q, b.mul(b.mul(column, tau), along));
        }
        let diagonal = b.reduce_sum(b.mul(x, identity), &[0], true);
        let signs = b.cast(b.cast(diagonal, DType::Int64), b.float());
        b.matmul(p.get(&format!("{name}.{BASE}")), b.mul(q, signs))
    }
}

/// Whether a position that is not padding has another example here than there: `[B, S, 1]`.
fn others(here: Val, there: Val, cx: &BuildCx<'_>) -> Val {
    let b = cx.b;
    let same = b.op("Equal", &[here, there], &[]);
    let padding = b.op("Equal", &[here, b.int(0)], &[]);
    let out = b.op("Or", &[same, padding], &[]);
    b.unsqueeze(b.op("Not", &[out], &[]), &[2])
}

/// Positions of a batch of texts, by the attention mask that the model gets; without one, every text fills its row.
struct Text {
    key: String,
    /// Position of each hidden state: `[1, S]`.
    positions: Val,
    /// Number of hidden states: `[1, 1]`.
    size: Val,
    /// First position of each text, `[B, 1]`, and the one behind its last.
    begin: Val,
    end: Val,
    /// The example of each position, where a row has several: `[B, S]`.
    segments: Option<Val>,
}

impl Text {
    fn new(layer: &Layer, own: bool, hidden: Val, cx: &BuildCx<'_>) -> Self {
        let b = cx.b;
        let key = format!("text {}", layer.stack);
        let make = |name: &str, f: &dyn Fn() -> Val| cx.once(&format!("{key} {name}"), f);
        let size = make("size", &|| {
            b.reshape(b.slice(b.shape(hidden), 0, 1, 2), b.ints(&[1, 1]))
        });
        let mask = if own { cx.decoder_mask() } else { cx.mask() };
        let mask_size = mask.map(|m| {
            make("mask size", &|| {
                b.reshape(b.slice(b.shape(m), 0, 1, 2), b.ints(&[1, 1]))
            })
        });
        let count = |n: Val| {
            let n = b.reshape(n, b.ints(&[]));
            b.unsqueeze(b.op("Range", &[b.int(0), n, b.int(1)], &[]), &[0])
        };
        let positions = make("positions", &|| match mask_size {
            // With a cache the mask is longer: the states are those of the last positions.
            Some(n) if layer.stack == 0 || own => b.add(count(size), b.sub(n, size)),
            Some(_) | None => count(size),
        });
        let (begin, end) = match (mask, mask_size) {
            (Some(mask), Some(n)) => {
                let real = make("real", &|| {
                    b.op("Equal", &[b.cast(mask, DType::Int64), b.int(1)], &[])
                });
                let begin = make("begin", &|| {
                    let first = b.op("Where", &[real, count(n), n], &[]);
                    b.reduce("ReduceMin", first, &[1], true)
                });
                let end = make("end", &|| {
                    b.add(begin, b.reduce_sum(b.cast(real, DType::Int64), &[1], true))
                });
                (begin, end)
            }
            _ => (make("begin", &|| b.ints(&[0])), size),
        };
        Text {
            key,
            positions,
            size,
            begin,
            end,
            segments: cx.segments().filter(|_| layer.stack == 0),
        }
    }

    /// `n` positions of padding for each row.
    fn nothing(&self, n: usize, cx: &BuildCx<'_>) -> Val {
        let b = cx.b;
        let rows = self.segments.map(|s| b.slice(b.shape(s), 0, 0, 1));
        let shape: Vec<Val> = rows.into_iter().chain([b.ints(&[n as i64])]).collect();
        b.op("Expand", &[b.int(0), b.concat(&shape, 0)], &[])
    }

    /// Whether a position is among the first `n` of its text: `[B, S, 1]`.
    fn first(&self, n: usize, cx: &BuildCx<'_>) -> Val {
        let b = cx.b;
        cx.once(&format!("{} first {n}", self.key), || {
            if let Some(own) = self.segments {
                // The one `n` positions before is of another example.
                let before = b.slice(b.concat(&[self.nothing(n, cx), own], 1), 1, 0, -(n as i64));
                return others(own, before, cx);
            }
            let end = b.add(self.begin, b.int(n as i64));
            self.between(self.begin, end, cx)
        })
    }

    /// Whether a position is among the last `n` of its text: `[B, S, 1]`.
    fn last(&self, n: usize, cx: &BuildCx<'_>) -> Val {
        let b = cx.b;
        cx.once(&format!("{} last {n}", self.key), || {
            if let Some(own) = self.segments {
                let after = b.concat(&[own, self.nothing(n, cx)], 1);
                return others(own, b.slice(after, 1, n as i64, i64::MAX), cx);
            }
            let n = b.op("Min", &[self.size, b.int(n as i64)], &[]);
            self.between(b.sub(self.end, n), self.end, cx)
        })
    }

    fn between(&self, begin: Val, end: Val, cx: &BuildCx<'_>) -> Val {
        let b = cx.b;
        let behind = b.op("GreaterOrEqual", &[self.positions, begin], &[]);
        let before = b.op("Less", &[self.positions, end], &[]);
        b.unsqueeze(b.op("And", &[behind, before], &[]), &[2])
    }
}
