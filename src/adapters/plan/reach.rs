//! At how many places a fresh adapter would attach, without making its parameters.

use super::no_place;
use crate::adapters::Adapter;
use crate::adapters::place::Surroundings;
use crate::diag::Diagnostic;
use crate::infer::Verified;
use crate::select::Selection;

/// The number of places of a fresh adapter.
///
/// # Errors
/// What keeps it from attaching: a part that the model does not have, or has in another form; sizes that do not fit; no place at all.
pub(crate) fn places_of(
    adapter: &Adapter,
    selection: &Selection,
    model: &Verified,
) -> Result<usize, Diagnostic> {
    let around = Surroundings {
        selection,
        graph: &model.model().graph,
        route: &adapter.route,
        name: &adapter.name,
        has: None,
        foreign: false,
        by_columns: true,
        known: model,
        fused: &[],
    };
    let mut count = 0;
    for method in adapter.config.methods() {
        let places = method.places(&around)?;
        method.shared(&places)?;
        for place in &places {
            method.params(place)?;
        }
        count += places.len();
    }
    if count == 0 {
        return Err(no_place(&adapter.name));
    }
    Ok(count)
}
