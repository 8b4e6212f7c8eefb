//! The base weight of a linear, as methods that read or replace it see it.

use crate::adapters::place::BuildCx;
use crate::diag::Diagnostic;
use crate::ir::{Val, ValueId};
use crate::select::{Layout, LinearSite, WeightForm};

/// The base weight as a matrix in the parameters' element type: the site's columns of it.
pub(super) fn base_weight(site: &LinearSite, cx: &BuildCx<'_>) -> Result<Val, Diagnostic> {
    let Some(dims) = dims(site, cx) else {
        return Err(Diagnostic::error(
            "weight-form",
            format!("the weight of `{}` is not stored as a float matrix of its own", site.path),
        )
        .help("DoRA reads the weight itself: merge it (`rewrite merge`), use LoRA on quantized or fused projections, or export the model in floats"));
    };
    let whole = matrix(site, &dims, cx);
    let Some(first) = site.column else {
        return Ok(whole);
    };
    let (first, width) = (first as i64, site.d_out as i64);
    Ok(cx.b.slice(whole, out_axis(site), first, first + width))
}

/// A merged matrix in the type and shape that the base weight is stored in, or that its codes stand for.
pub(super) fn stored_form(site: &LinearSite, weight: Val, cx: &BuildCx<'_>) -> Val {
    let dims = dims(site, cx).unwrap_or_default();
    let weight = match site.column {
        None => weight,
        Some(_) => among(site, weight, matrix(site, &dims, cx), out_axis(site), cx),
    };
    let weight = cx.down(weight);
    if dims.len() == 2 {
        return weight;
    }
    let dims: Vec<i64> = dims.iter().map(|d| *d as i64).collect();
    cx.b.reshape(weight, cx.b.ints(&dims))
}

/// The base bias in the parameters' element type: the site's columns of it.
pub(super) fn base_bias(site: &LinearSite, bias: ValueId, cx: &BuildCx<'_>) -> Val {
    let whole = cx.up(Val::Old(bias));
    let Some(first) = site.column else {
        return whole;
    };
    let (first, width) = (first as i64, site.d_out as i64);
    cx.b.slice(whole, -1, first, first + width)
}

/// A merged bias in the type and shape that the base bias is stored in.
pub(super) fn stored_bias(site: &LinearSite, new: Val, bias: ValueId, cx: &BuildCx<'_>) -> Val {
    cx.down(match site.column {
        None => new,
        Some(_) => among(site, new, cx.up(Val::Old(bias)), -1, cx),
    })
}

/// Shape of the weight as floats, where it can be had: stored so, or while it is opened to have something folded in.
fn dims(site: &LinearSite, cx: &BuildCx<'_>) -> Option<Box<[u64]>> {
    match (&cx.opened, &site.weight.form, site.column) {
        (Some(opened), ..) => opened.get(&site.weight.value).cloned(),
        (None, WeightForm::Float, None) => {
            let tensor = cx.graph.value(site.weight.value).tensor.as_ref();
            tensor.map(|t| t.dims.clone())
        }
        _ => None,
    }
}

/// The whole weight as a matrix.
fn matrix(site: &LinearSite, dims: &[u64], cx: &BuildCx<'_>) -> Val {
    let weight = cx.up(Val::Old(site.weight.value));
    if dims.len() == 2 {
        return weight;
    }
    let d_in = site.d_in as i64;
    let dims = match site.weight.layout {
        Layout::OutIn => [-1, d_in],
        Layout::InOut => [d_in, -1],
    };
    cx.b.reshape(weight, cx.b.ints(&dims))
}

fn out_axis(site: &LinearSite) -> i64 {
    match site.weight.layout {
        Layout::OutIn => 0,
        Layout::InOut => 1,
    }
}

/// The site's columns in their place among all.
fn among(site: &LinearSite, own: Val, whole: Val, axis: i64, cx: &BuildCx<'_>) -> Val {
    let (b, first) = (cx.b, site.column.unwrap_or(0) as i64);
    let behind = b.slice(whole, axis, first + site.d_out as i64, i64::MAX);
    match first {
        0 => b.concat(&[own, behind], axis),
        _ => b.concat(&[b.slice(whole, axis, 0, first), own, behind], axis),
    }
}
