//! `com.microsoft::DecoderMaskedMultiHeadAttention` (1): `MultiHeadAttention` for one more position, over a cache that may be a buffer
//! of which only the beginning is filled. Beam search (`beam_width`, `cache_indirection`) has no definition.

use super::kit::{Defined, Inferred, MS, no_gradient};
use super::{ExpandCx, GradError, InferCx, OpDef};
use crate::ir::{Attr, DType, OpId, Sym, Val};

pub(super) const OPS: &[OpDef] = &[OpDef::new("DecoderMaskedMultiHeadAttention", 1..=11, infer)
    .in_domain(MS)
    .outputs(1..=4)
    .defined_by(expand)];

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let width = match (cx.input(1), cx.dims(2)) {
        (None, _) => cx
            .dims(0)
            .and_then(|d| d.last())
            .map(|s| cx.floor_div(s, &Sym::from(3))),
        (_, Some([_, _, w])) => Some(w.clone()),
        (_, Some([_, h, _, w])) => h.mul(w),
        _ => None,
    };
    let dims = cx.dims_vec(0).filter(|d| d.len() == 3).map(|mut d| {
        d[2] = width.unwrap_or_else(|| cx.unknown());
        d
    });
    cx.set(0, cx.dtype(0), dims);
    let shared = cx.node.int("past_present_share_buffer", 0) != 0;
    for (slot, past) in [(1, 5), (2, 6)] {
        let present = cx.dims_vec(past).map(|mut d| {
            if !shared && d.len() == 4 {
                d[2] = cx.unknown();
            }
            d
        });
        cx.set(slot, cx.dtype(past), present);
    }
    Ok(())
}

fn expand(cx: &ExpandCx<'_>) -> Defined {
    let (b, node) = (cx.b, cx.node());
    if cx.optional(8).is_some() || cx.optional(9).is_some() {
        return no_gradient("no definition of beam search (beam_width, cache_indirection)");
    }
    if cx.has_output(3) {
        return no_gradient("no definition of the scores (output 3)");
    }
    let shared = node.int("past_present_share_buffer", 0) != 0;
    let rank = |slot: usize| cx.fact(slot).rank();
    // Keys of four axes are those of another sequence: there is no cache to be longer.
    let own = rank(1) != Some(4);
    let filled = match cx.optional(7).filter(|_| shared && own) {
        Some(n) => Some(b.reshape(b.cast(n, DType::Int64), b.ints(&[1]))),
        None if shared && own => {
            return no_gradient("past_sequence_length is absent, of a shared buffer");
        }
        None => None,
    };
    let part = |v: Val, from: Val, to: Val| b.op("Slice", &[v, from, to, b.ints(&[2])], &[]);
    let cache = |slot: usize| -> Option<Val> {
        let past = cx.optional(slot)?;
        Some(match filled {
            Some(n) => part(past, b.ints(&[0]), n),
            None => past,
        })
    };
    let ins = [
        Some(cx.input(0)?),
        cx.optional(1),
        cx.optional(2),
        cx.optional(10),
        cx.optional(3),
        cx.optional(4),
        cache(5),
        cache(6),
    ];
    let ins = &ins[..ins.iter().rposition(Option::is_some).map_or(0, |i| i + 1)];
    let names = ["num_heads", "mask_filter_value", "scale"];
    let attrs: Vec<(&str, Attr)> = names
        .into_iter()
        .filter_map(|name| Some((name, node.attrs.get(name)?.clone())))
        .collect();
    let outs = if cx.has_output(1) || cx.has_output(2) {
        3
    } else {
        1
    };
    let made = b.node_n(OpId::new(MS, "MultiHeadAttention"), ins, &attrs, outs);
    let whole = |slot: usize, past: usize| -> Result<Option<Val>, GradError> {
        let Some(new) = made.get(slot).copied() else {
            return Ok(None);
        };
        let Some(n) = filled else {
            return Ok(Some(new));
        };
        // What follows in the buffer stays.
        let next = b.add(n, b.ints(&[1]));
        let rest = part(cx.input(past)?, next, b.ints(&[i64::MAX]));
        Ok(Some(b.concat(&[new, rest], 2)))
    };
    Ok(vec![Some(made[0]), whole(1, 5)?, whole(2, 6)?])
}
