//! Adapters of one linear that stand one behind the other: `Stack(a, b)`, and merging both.
//!
//! In the library the second one reads what the first one made, and only what the last one makes is added: `y = W·x + ΔB·ΔA·x`. That has
//! a meaning where the linear is square, and the library stops with an error elsewhere, as it does for fused projections. There, and for
//! adapters with PEFT's `target_modules` whatever the shape is, each one reads what the linear reads, and the changes are added.

use crate::adapters::place::{BuildCx, Place, State};
use crate::ir::{Builder, Val};
use crate::select::Layout;

/// Whether an adapter reads what the one before it made.
pub(in crate::adapters::methods) fn chains(place: &Place<'_>) -> bool {
    let own = place.detail.target().is_none() && place.detail.columns().is_none();
    own && place.linear().is_some_and(|site| site.d_in == site.d_out)
}

/// What the adapter reads.
pub(in crate::adapters::methods) fn read(place: &Place<'_>, state: State, cx: &BuildCx<'_>) -> Val {
    let before = state.delta.filter(|_| chains(place));
    cx.up(before.unwrap_or(state.x))
}

/// The change that all adapters so far make, of what the last one makes.
pub(in crate::adapters::methods) fn joined(
    place: &Place<'_>,
    state: State,
    own: Val,
    cx: &BuildCx<'_>,
) -> Val {
    match state.delta {
        Some(before) if !chains(place) => cx.b.add(cx.up(before), own),
        Some(_) | None => own,
    }
}

/// The change that is in a place's value already, as what an adapter behind it reads.
pub(in crate::adapters::methods) fn reopened(state: State, closed: Val, cx: &BuildCx<'_>) -> State {
    let change = cx.b.sub(cx.up(closed), cx.up(state.out));
    State {
        delta: Some(change),
        ..state
    }
}

/// The same of changes of a stored weight.
pub(in crate::adapters::methods) fn merged(
    place: &Place<'_>,
    below: Option<Val>,
    own: Val,
    layout: Layout,
    b: &Builder,
) -> Val {
    match (below, layout) {
        (None, _) => own,
        (Some(below), _) if !chains(place) => b.add(below, own),
        (Some(below), Layout::OutIn) => b.matmul(own, below),
        (Some(below), Layout::InOut) => b.matmul(below, own),
    }
}
