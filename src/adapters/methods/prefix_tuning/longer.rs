//! What a prefix makes longer: scores, values and shapes, by a number of positions that is known or comes with the parameters.

use crate::adapters::place::BuildCx;
use crate::analyze::attention::{AttentionCore, HeadAxis};
use crate::ir::{Builder, DType, NodeId, Val, ValueId};
use rustc_hash::FxHashMap;

/// Number of positions of a prefix.
#[derive(Clone, Copy, Debug)]
pub(super) enum Length {
    /// That of the configuration.
    Known(i64),
    /// That of the parameters that come: `[1]`.
    Given(Val),
}

impl Length {
    /// The number: `[1]`.
    pub(super) fn vector(self, b: &Builder) -> Val {
        match self {
            Length::Known(n) => b.ints(&[n]),
            Length::Given(n) => n,
        }
    }

    /// A shape with the number between others.
    pub(super) fn between(self, b: &Builder, before: &[i64], behind: &[i64]) -> Val {
        match self {
            Length::Known(n) => b.ints(&[before, &[n], behind].concat()),
            Length::Given(n) => {
                let mut parts = vec![n, b.ints(behind)];
                if !before.is_empty() {
                    parts.insert(0, b.ints(before));
                }
                b.concat(&parts, 0)
            }
        }
    }
}

/// The value in a shape in which the number stands; one that comes with the parameters may be 0.
pub(super) fn reshaped(b: &Builder, x: Val, shape: Val, length: Length) -> Val {
    match length {
        Length::Known(_) => b.reshape(x, shape),
        Length::Given(_) => b.op("Reshape", &[x, shape], &[("allowzero", 1i64.into())]),
    }
}

/// `[batch or 1, kv_heads, P, head]` with every head as often as queries share it.
pub(super) fn repeated(core: &AttentionCore, prefix: Val, length: Length, cx: &BuildCx<'_>) -> Val {
    let group = core.heads / core.kv_heads;
    if group == 1 {
        return prefix;
    }
    let b = cx.b;
    let copies = b.ints(&[1, 1, group as i64, 1, 1]);
    let spread = b.op("Expand", &[b.unsqueeze(prefix, &[2]), copies], &[]);
    let heads = core.heads as i64;
    let rest = [core.head as i64];
    let shape = match length {
        Length::Known(_) => length.between(b, &[-1, heads], &rest),
        // What is empty does not say how many there are.
        Length::Given(_) => {
            let rows = b.slice(b.shape(spread), 0, 0, 1);
            b.concat(&[rows, length.between(b, &[heads], &rest)], 0)
        }
    };
    reshaped(b, spread, shape, length)
}

/// A reshape of what the scores become, for rows that are longer than the shape says: whatever that was made of, the last axis is that
/// of the keys. With the value that it takes the place of.
pub(super) fn longer_rows(
    n: NodeId,
    map: &FxHashMap<ValueId, Val>,
    cx: &BuildCx<'_>,
) -> Option<(ValueId, Val)> {
    let (b, graph) = (cx.b, cx.graph);
    if !graph.node(n).op.is_onnx("Reshape") {
        return None;
    }
    let x = *map.get(&graph.input(n, 0)?)?;
    let leading = b.slice(cx.current(graph.input(n, 1)?), 0, 0, -1);
    let keys = b.slice(b.shape(x), 0, -1, i64::MAX);
    let shape = b.concat(&[leading, keys], 0);
    Some((graph.output(n, 0)?, b.reshape(x, shape)))
}

/// Scores of a prefix `[…, queries, P]` that leaves a window: position `j` of it is seen by the query `i` behind it if `P + i - j` is
/// less than the window.
pub(super) fn within(
    window: u64,
    own: Val,
    (length, dtype): (Length, DType),
    cx: &BuildCx<'_>,
) -> Val {
    let b = cx.b;
    let rows = b.squeeze(b.slice(b.shape(own), 0, -2, -1), &[0]);
    let queries = b.op("Range", &[b.int(0), rows, b.int(1)], &[]);
    let window = i64::try_from(window).unwrap_or(i64::MAX / 2);
    let bounds = match length {
        Length::Known(n) => {
            let bounds: Vec<i64> = (0..n).map(|j| window - n + j).collect();
            b.ints(&bounds)
        }
        Length::Given(n) => {
            let first = b.sub(b.int(window), b.squeeze(n, &[0]));
            b.op("Range", &[first, b.int(window), b.int(1)], &[])
        }
    };
    let seen = b.op("Less", &[b.unsqueeze(queries, &[1]), bounds], &[]);
    b.op("Where", &[seen, own, b.scalar_of(f32::MIN, dtype)], &[])
}

/// Values of the prefix in front of the others.
pub(super) fn with_values(
    core: &AttentionCore,
    prefix: Val,
    values: Val,
    length: Length,
    cx: &BuildCx<'_>,
) -> Val {
    let b = cx.b;
    let size = length.between(b, &[], &[core.head as i64]);
    let prefix = cx.down(match core.value_heads {
        HeadAxis::Kv | HeadAxis::Grouped => prefix,
        HeadAxis::Query | HeadAxis::Flat => repeated(core, prefix, length, cx),
    });
    let shape = b.shape(values);
    let prefix = match core.value_heads {
        HeadAxis::Query | HeadAxis::Kv => {
            let shape = b.concat(&[b.slice(shape, 0, 0, 2), size], 0);
            b.op("Expand", &[prefix, shape], &[])
        }
        HeadAxis::Grouped => {
            let shape = b.concat(&[b.slice(shape, 0, 0, 3), size], 0);
            b.op("Expand", &[b.unsqueeze(prefix, &[2]), shape], &[])
        }
        HeadAxis::Flat => {
            let rows = b.slice(shape, 0, 0, 1);
            let heads = b.ints(&[core.heads as i64]);
            let batch = b.op("Div", &[rows, heads], &[]);
            let full = b.concat(&[batch, heads, size], 0);
            let flat = match length {
                Length::Known(_) => length.between(b, &[-1], &[core.head as i64]),
                Length::Given(_) => b.concat(&[rows, size], 0),
            };
            reshaped(b, b.op("Expand", &[prefix, full], &[]), flat, length)
        }
    };
    b.concat(&[prefix, values], -2)
}
