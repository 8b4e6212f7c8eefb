//! The base weight of a linear, as methods that read or replace it see it.

use crate::adapters::place::BuildCx;
use crate::diag::Diagnostic;
use crate::ir::Val;
use crate::select::{Layout, LinearSite, WeightForm};

/// The base weight as a matrix in the parameters' element type.
pub(super) fn base_weight(site: &LinearSite, cx: &BuildCx<'_>) -> Result<Val, Diagnostic> {
    let tensor = cx.graph.value(site.weight.value).tensor.as_ref();
    let (WeightForm::Float, Some(tensor), None) = (&site.weight.form, tensor, site.column) else {
        return Err(Diagnostic::error(
            "weight-form",
            format!("the weight of `{}` is not stored as a float matrix of its own", site.path),
        )
        .help("DoRA and merging read the weight itself; use LoRA on quantized or fused projections, or export the model in floats"));
    };
    let weight = cx.up(Val::Old(site.weight.value));
    if tensor.dims.len() == 2 {
        return Ok(weight);
    }
    let (d_in, d_out) = (site.d_in as i64, site.d_out as i64);
    let dims = match site.weight.layout {
        Layout::OutIn => [d_out, d_in],
        Layout::InOut => [d_in, d_out],
    };
    Ok(cx.b.reshape(weight, cx.b.ints(&dims)))
}

/// A merged matrix in the type and shape that the base weight is stored in.
pub(super) fn stored_form(site: &LinearSite, weight: Val, cx: &BuildCx<'_>) -> Val {
    let tensor = cx.graph.value(site.weight.value).tensor.as_ref();
    let dims = tensor.map(|t| t.dims.clone()).unwrap_or_default();
    let weight = cx.down(weight);
    if dims.len() == 2 {
        return weight;
    }
    let dims: Vec<i64> = dims.iter().map(|d| *d as i64).collect();
    cx.b.reshape(weight, cx.b.ints(&dims))
}
