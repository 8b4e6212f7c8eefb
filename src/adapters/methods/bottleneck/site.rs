//! Where a bottleneck sits: what it reads, what its residual is and what it replaces, by the route of the file.

use super::Bottleneck;
use crate::adapters::naming::{Route, Sublayer};
use crate::adapters::place::{SublayerSite, Surroundings};
use crate::analyze::residual;
use crate::diag::Diagnostic;
use crate::ir::ValueId;
use crate::select::{Layer, NormSite};

impl Bottleneck {
    /// The place behind a sublayer of a layer; `None` where the layer has no such sublayer.
    pub(super) fn site<'s>(
        &self,
        around: &Surroundings<'_, 's>,
        layer: &'s Layer,
        which: Sublayer,
    ) -> Result<Option<SublayerSite<'s>>, Diagnostic> {
        let (last, value, residual) = match which {
            Sublayer::Attention => {
                let Some(attention) = &layer.self_attn else {
                    return Ok(None);
                };
                (
                    attention.o.as_ref(),
                    Some(attention.output),
                    layer.pre_self_attn,
                )
            }
            Sublayer::Cross => {
                let Some(attention) = &layer.cross_attn else {
                    return Ok(None);
                };
                (
                    attention.o.as_ref(),
                    Some(attention.output),
                    layer.pre_cross_attn,
                )
            }
            Sublayer::Output => (layer.output_proj.as_ref(), layer.ffn_output, layer.pre_ffn),
        };
        let site = match (last, value) {
            (Some(linear), _) => Some((linear.output, Some(linear.anchor))),
            (None, Some(v)) => Some((v, around.graph.producer(v).map(|p| p.0))),
            (None, None) => None,
        };
        let Some((output, Some(anchor))) = site else {
            return Err(Diagnostic::error(
                "site-missing",
                format!(
                    "layer {} has no output that a bottleneck could sit behind",
                    layer.index
                ),
            )
            .at(layer.path.to_string())
            .help("see `rewrite inspect` for what the interface resolves to"));
        };
        let beside = beside(around, layer, which);
        let residual = match beside {
            Some(_) => layer.pre_self_attn.or(Some(layer.input)),
            None => residual,
        };
        if self.is_parallel && residual.is_none() {
            return Err(Diagnostic::error(
                "residual-missing",
                format!("a parallel bottleneck reads the residual, and layer {} names none here", layer.index),
            )
            .at(layer.path.to_string())
            .help("set `layer_pre_ffn` (or `layer_pre_self_attn`) in the interface, or leave the place out"));
        }
        let native = matches!(around.route, Route::Native { .. });
        let joint = residual.and_then(|r| residual::joint(around.view(), output, Some(r)));
        // A norm in front of the named module may have changed what is really added.
        let (joint, residual) = match joint {
            None if native && !around.route.runs_side_by_side() => {
                match residual::joint(around.view(), output, None) {
                    Some(found) => (Some(found), Some(found.residual)),
                    None => (None, residual),
                }
            }
            found => (found, residual),
        };
        // The library's own classes own the residual's addition: `o` is what is added. Through an interface it is what the linear makes.
        let branch = joint.filter(|_| native).map_or(output, |j| j.branch);
        let moved = around.graph.producer(branch).map(|p| p.0);
        let mut site = SublayerSite {
            which,
            output: branch,
            residual,
            norm: late_norm_layer(around, layer, which),
            width: around.width(output).unwrap_or(around.selection.hidden_size),
            anchor: moved.filter(|_| branch != output).unwrap_or(anchor),
            beside,
            stream: None,
            rejoins: false,
        };
        let swapped = which == Sublayer::Attention && around.route.swaps_attention();
        if self.original_ln_after && !swapped {
            return Ok(Some(site));
        }
        let own = norm_of(layer, which).map(|n| n.output);
        let whole = beside.map(|_| layer.output);
        let sum = whole.or_else(|| joint.map(|j| j.sum));
        let stream = if self.original_ln_after {
            sum
        } else {
            own.or(sum)
        };
        let Some(stream) = stream else {
            return Err(Diagnostic::error(
                "stream-missing",
                format!(
                    "no addition of the residual was found behind the sublayer of layer {}",
                    layer.index
                ),
            )
            .at(layer.path.to_string())
            .help(if swapped {
                "the library's own class for this model adapts that addition; export the model without fused operators"
            } else {
                "`original_ln_after=False` replaces what that addition makes"
            }));
        };
        if swapped && let Some(entering) = residual {
            site.residual = Some(branch);
            site.output = entering;
        }
        site.rejoins = self.original_ln_after;
        site.stream = Some(stream);
        Ok(Some(site))
    }
}

/// The other sublayer's output, which the library's class adds to the residual of this one.
fn beside(around: &Surroundings<'_, '_>, layer: &Layer, which: Sublayer) -> Option<ValueId> {
    let together = around.route.runs_side_by_side() && which == Sublayer::Output;
    let attention = layer.self_attn.as_ref().filter(|_| together)?;
    Some(attention.o.as_ref().map_or(attention.output, |o| o.output))
}

/// The norm behind a sublayer.
fn norm_of(layer: &Layer, which: Sublayer) -> Option<&NormSite> {
    match which {
        Sublayer::Attention => layer.ln_1.as_ref(),
        Sublayer::Cross => layer.ln_cross.as_ref(),
        Sublayer::Output => layer.ln_2.as_ref(),
    }
}

/// The norm that the library applies in front of the adapter. Through an interface it is that of the last layer, in every layer: the
/// look-up is bound to a loop variable. Saved adapters were trained with that, so it is what they mean.
fn late_norm_layer<'s>(
    around: &Surroundings<'_, 's>,
    layer: &'s Layer,
    which: Sublayer,
) -> Option<&'s NormSite> {
    let layers = &around.selection.layers;
    let one_stack = layers.iter().all(|l| l.stack == 0);
    let bound = match layers.last() {
        Some(last) if around.route.binds_norms_late() && one_stack => last,
        _ => layer,
    };
    if which == Sublayer::Cross && around.route.binds_norms_late() {
        return None;
    }
    norm_of(bound, which)
}
