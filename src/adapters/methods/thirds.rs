//! Thirds of a fused projection, which the Adapters library takes for its queries, keys and values.

use crate::adapters::place::Surroundings;
use crate::diag::Diagnostic;
use crate::select::QkvLayout;

/// What is to be known where they are not, for an adapter of so many of the three.
pub(super) fn note(around: &Surroundings<'_, '_>, wanted: usize) -> Option<Diagnostic> {
    if wanted == 0 {
        return None;
    }
    let layers = around.selection.layers.iter();
    let mut sites = layers.flat_map(|l| l.self_attn.iter().chain(&l.cross_attn));
    let other = sites.find(|a| match &a.qkv_layout {
        Some(QkvLayout::Blocks { q, k, v }) => around.foreign && (q != k || k != v),
        Some(QkvLayout::Interleaved { .. }) => wanted < 3 && !around.by_columns,
        Some(QkvLayout::Unknown) => wanted < 3,
        None => false,
    })?;
    let what = format!(
        "`{}` adapts thirds of `{}`, as the Adapters library does; they are not its queries, keys and values",
        around.name,
        other.qkv.as_ref().map_or(&*other.path, |s| &*s.path)
    );
    let help = "`attn_matrices=['q','k','v']` adapts all of it";
    Some(Diagnostic::warning("compat-thirds", what).help(help))
}

/// What is to be known of a fresh adapter of so many of the three that goes by the true columns: the library would not.
pub(super) fn beyond(around: &Surroundings<'_, '_>, wanted: usize) -> Option<Diagnostic> {
    if wanted == 0 || around.has.is_some() {
        return None;
    }
    let layers = around.selection.layers.iter();
    let mut sites = layers.flat_map(|l| l.self_attn.iter().chain(&l.cross_attn));
    let other = sites.find(|a| match &a.qkv_layout {
        Some(QkvLayout::Blocks { q, k, v }) => !around.foreign && (q != k || k != v),
        Some(QkvLayout::Interleaved { .. }) => around.by_columns,
        Some(QkvLayout::Unknown) | None => false,
    })?;
    let what = format!(
        "`{}` adapts the queries, keys and values in `{}`, where the Adapters library takes thirds: it would load the file as something else",
        around.name,
        other.qkv.as_ref().map_or(&*other.path, |s| &*s.path)
    );
    Some(Diagnostic::warning("beyond-library", what))
}
