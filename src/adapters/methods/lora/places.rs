//! Where LoRA attaches: by the library's flags, or by PEFT's `target_modules`.

use super::targets::Chosen;
use super::{Form, Lora};
use crate::adapters::Route;
use crate::adapters::methods::detail::{Columns, Detail, Greatest, Target};
use crate::adapters::methods::thirds;
use crate::adapters::place::{At, Place, Surroundings};
use crate::analyze::view::tensor;
use crate::diag::{Diagnostic, nearest};
use crate::select::{
    AttentionSite, Layer, LinearModule, LinearSite, ParameterSite, QkvLayout, Role,
};
use rustc_hash::FxHashSet;

/// AdapterHub has no key for places that PEFT's fields choose; this one is PEFT's.
const LOCATION: &str = "target_modules";

/// The same of stored parameters.
const SAVED: &str = "modules_to_save";

impl Lora {
    fn attention<'s>(
        &self,
        a: &'s AttentionSite,
        around: &Surroundings<'_, 's>,
        add: &mut impl FnMut(&'s LinearSite, Detail),
    ) -> Result<(), Diagnostic> {
        let separate = [("q", &a.q), ("k", &a.k), ("v", &a.v)];
        let mut taken: Vec<&str> = Vec::new();
        for (_, site) in separate.into_iter().filter(|(m, _)| self.wants(m)) {
            // One projection may make keys and values (a latent's), and is adapted once.
            if let Some(site) = site.as_ref().filter(|s| !taken.contains(&&*s.path)) {
                taken.push(&site.path);
                add(site, Detail::None);
            }
        }
        if let Some(site) = &a.qkv
            && ["q", "k", "v"].iter().any(|m| self.wants(m))
        {
            let columns = self.columns(a, site, around)?;
            add(site, Detail::Columns(columns));
        }
        if let Some(site) = &a.o
            && self.wants("o")
        {
            // Files of the library may name `o`, and have no parameters for it.
            let scope = around.scope(&site.path, "loras");
            if around.has.is_none_or(|has| has(&scope)) {
                add(site, Detail::None);
            }
        }
        Ok(())
    }

    /// Which columns of a fused projection are whose: as the graph says, or in thirds, for a file that was made so.
    fn columns(
        &self,
        a: &AttentionSite,
        site: &LinearSite,
        around: &Surroundings<'_, '_>,
    ) -> Result<Columns, Diagnostic> {
        let refused = |what: String, help: &str| {
            Err(Diagnostic::error("qkv-columns", what)
                .at(site.path.to_string())
                .help(help))
        };
        let third = site.d_out / 3;
        let all = ["q", "k", "v"].iter().all(|m| self.wants(m));
        let (widths, order) = match &a.qkv_layout {
            Some(QkvLayout::Blocks { q, k, v }) if !around.foreign || third * 3 != site.d_out => {
                ([*q, *k, *v], None)
            }
            Some(QkvLayout::Interleaved { widths, order }) if around.by_columns => {
                (*widths, Some(order.clone()))
            }
            Some(QkvLayout::Unknown) | None if around.by_columns && around.has.is_some() => {
                return refused(
                    "the adapter was made for the columns of q, k and v, which cannot be told in this graph".into(),
                    "export the model as for the training, or name the projection in `target_modules`",
                );
            }
            Some(QkvLayout::Unknown) | None if around.has.is_none() && !all => {
                return refused(
                    "which of its columns are q, k and v cannot be told".into(),
                    "adapt all of it: `attn_matrices=['q','k','v']`, or PEFT's `target_modules`",
                );
            }
            // The library cuts into thirds whatever the order and the widths of the columns are.
            Some(_) | None => ([third, third, site.d_out - 2 * third], None),
        };
        Ok(Columns { widths, order })
    }

    /// Feed-forward linears under `intermediate_lora` and `output_lora`.
    fn feed_forward<'s>(
        layer: &'s Layer,
        around: &Surroundings<'_, 's>,
    ) -> [Option<&'s LinearSite>; 2] {
        let (up, down) = (layer.intermediate.as_ref(), layer.output_proj.as_ref());
        if around.route.swaps_feed_forward() {
            [down, up]
        } else {
            [up, down]
        }
    }

    /// The places that the library's flags name.
    pub(super) fn by_parts<'s>(
        &self,
        around: &Surroundings<'_, 's>,
    ) -> Result<Vec<Place<'s>>, Diagnostic> {
        let mut out: Vec<Place<'s>> = Vec::new();
        for layer in &around.selection.layers {
            if self.leave_out.contains(&layer.index) {
                continue;
            }
            let mut push = |site: &'s LinearSite, detail: Detail, location| {
                let scope = around.scope(&site.path, "loras");
                out.extend(site.calls().map(|call| {
                    let place = Place::new(At::Linear(call), Some(layer.index), location, &*scope);
                    place.with(detail.clone())
                }));
            };
            if self.selfattn_lora {
                for a in layer.self_attn.iter().chain(&layer.cross_attn) {
                    self.attention(a, around, &mut |site, detail| {
                        push(site, detail, "selfattn_lora");
                    })?;
                }
            }
            let [intermediate, output] = Self::feed_forward(layer, around);
            for (on, site, location) in [
                (self.intermediate_lora, intermediate, "intermediate_lora"),
                (self.output_lora, output, "output_lora"),
            ] {
                if let (true, Some(site)) = (on, site) {
                    push(site, Detail::None, location);
                }
            }
        }
        if self.form() == Form::Vera {
            if let Some(place) = out.iter().find(|p| p.detail.columns().is_some()) {
                return Err(Diagnostic::error(
                    "vera-fused",
                    "VeRA shares its matrices between linears of one shape",
                )
                .at(place.scope.clone())
                .help("this projection is q, k and v in one; use lora, dora or ia3"));
            }
            let max = |f: fn(&LinearSite) -> usize| {
                out.iter()
                    .filter_map(Place::linear)
                    .map(f)
                    .max()
                    .unwrap_or(0)
            };
            let greatest = Greatest {
                d_out: max(|s| s.d_out),
                d_in: max(|s| s.d_in),
            };
            for place in &mut out {
                place.detail = Detail::Greatest(greatest);
            }
        }
        Ok(out)
    }

    /// The places that PEFT's fields name. Those of a saved adapter are where its file has parameters, too: the model that it was made
    /// for may have held this one as a part.
    pub(super) fn targeted<'s>(
        &self,
        around: &Surroundings<'_, 's>,
    ) -> Result<Vec<Place<'s>>, Diagnostic> {
        let chosen = self.targets.compiled()?;
        let modules = &around.selection.modules;
        let none = self.targets.target_modules.is_some() && self.targets.adapts_none();
        let wanted: Vec<&LinearModule> = modules
            .iter()
            .filter(|_| !none)
            .filter(|m| m.layer.is_none_or(|l| !self.leave_out.contains(&l)))
            .filter(|m| is_wanted(m, &chosen, around))
            .collect();
        let mut out = self.tables(&chosen, around)?;
        let has_none = wanted.is_empty() && out.is_empty();
        if has_none && !self.targets.adapts_none() && !around.is_a_part() {
            return Err(unmatched(&chosen, modules));
        }
        let max = |f: fn(&LinearSite) -> usize| wanted.iter().map(|m| f(&m.site)).max();
        let shared = (self.form() == Form::Vera).then(|| Greatest {
            d_out: max(|s| s.d_out).unwrap_or(0),
            d_in: max(|s| s.d_in).unwrap_or(0),
        });
        for module in wanted {
            let path = &*module.site.path;
            let rank = chosen.rank(path, self.r);
            let alpha = self.alpha.as_f64().unwrap_or(1.0);
            let input = self.form() == Form::Scale && chosen.scales_input(path);
            let target = Target {
                rank,
                scale: chosen.scale(path, alpha, rank),
                shared,
            };
            let scope = around.scope(path, "loras");
            out.extend(module.site.calls().map(|call| {
                let at = if input {
                    At::Input(call)
                } else {
                    At::Linear(call)
                };
                let place = Place::new(at, module.layer, LOCATION, &*scope);
                place.with(Detail::Target(target))
            }));
        }
        let adapted: FxHashSet<&str> = out
            .iter()
            .filter(|p| p.detail.target().is_some())
            .filter_map(|p| Some(&*p.linear()?.path))
            .collect();
        let stored = around.selection.parameters.iter();
        let stored: Vec<Place<'s>> = stored
            .filter_map(|p| self.stored(p, &adapted, around))
            .collect();
        out.extend(stored);
        Ok(out)
    }

    /// The place of a stored parameter that the adapter has its own values of.
    fn stored<'s>(
        &self,
        site: &'s ParameterSite,
        adapted: &FxHashSet<&str>,
        around: &Surroundings<'_, 's>,
    ) -> Option<Place<'s>> {
        if site.nodes.is_empty() && around.has.is_none() {
            // Nothing reads it.
            return None;
        }
        let is_bias = &*site.name == "bias";
        let of_bias = match self.targets.bias.as_deref() {
            Some("all") => is_bias,
            Some("lora_only") => is_bias && adapted.contains(&*site.module),
            Some(_) | None => false,
        };
        let outer = self.targets.saved(&site.module);
        let kept = self.targets.kept(&site.module);
        let outer = outer.or((of_bias || kept).then_some(&*site.module))?;
        let inner = site.module[outer.len()..].trim_start_matches('.');
        let name = if inner.is_empty() {
            site.name.to_string()
        } else {
            format!("{inner}.{}", site.name)
        };
        let scope = around.scope(outer, SAVED);
        if is_made_up(site, around)
            && around
                .has
                .is_some_and(|has| !has(&format!("{scope}.{name}")))
        {
            return None;
        }
        let place = Place::new(At::Parameter(site), None, SAVED, scope);
        Some(place.with(Detail::Stored(name.into())))
    }

    /// What is to be known of these places.
    pub(super) fn remarks(
        &self,
        around: &Surroundings<'_, '_>,
        places: &[Place<'_>],
    ) -> Vec<Diagnostic> {
        let name = around.name;
        let mut out: Vec<Diagnostic> = swapped(around, places).into_iter().collect();
        if let Ok(chosen) = self.targets.compiled()
            && self.targets.is_some()
            && !around.is_a_part()
        {
            let tables = around.selection.tables.iter().map(|t| &*t.path);
            let paths = around.selection.modules.iter().map(|m| &*m.site.path);
            let paths = paths.chain(tables);
            for entry in chosen.unmatched(&paths) {
                out.push(
                    Diagnostic::warning(
                        "target-unmatched",
                        format!(
                            "`{name}`: `{entry}` of `target_modules` is the name of no linear here"
                        ),
                    )
                    .help("`rewrite inspect` shows the modules of the graph"),
                );
            }
            return out;
        }
        let wanted = ["q", "k", "v"].iter().filter(|m| self.wants(m)).count();
        out.extend(thirds::note(
            around,
            if self.selfattn_lora { wanted } else { 0 },
        ));
        out.extend(thirds::beyond(
            around,
            if self.selfattn_lora { wanted } else { 0 },
        ));
        if self.dora() && around.has.is_none() {
            out.push(Diagnostic::warning(
                "beyond-library",
                format!("`{name}` is DoRA, which the Adapters library does not know: it would load the file as plain LoRA or VeRA"),
            ).help("`rewrite adapter convert --to peft` makes a file that PEFT reads"));
        }
        let fresh = *around.route == Route::Plugin && around.has.is_none();
        if fresh && !places.is_empty() && self.selfattn_lora && self.wants("o") {
            out.push(Diagnostic::warning(
                "beyond-library",
                format!("`{name}` adapts `o`, which the Adapters library does not: it would ignore these parameters"),
            ));
        }
        out
    }
}

/// Whether a parameter of a norm is the exporter's: operators ask for a weight, and some for a bias, where the module has none.
fn is_made_up(site: &ParameterSite, around: &Surroundings<'_, '_>) -> bool {
    let own = format!("{}.{}", site.module, site.name);
    let neutral: f32 = if &*site.name == "bias" { 0.0 } else { 1.0 };
    let values = || tensor(around.graph, site.stored)?.to_f32();
    around.graph.find(&own).is_none()
        && site.dims.len() == 1
        && values().is_some_and(|v| v.iter().all(|x| x.to_bits() == neutral.to_bits()))
}

/// Whether the fields choose a module, or the adapter's file has parameters of it.
fn is_wanted(module: &LinearModule, chosen: &Chosen<'_>, around: &Surroundings<'_, '_>) -> bool {
    let path = &*module.site.path;
    let held = || {
        around
            .has
            .is_some_and(|has| has(&around.scope(path, "loras")))
    };
    chosen.wants(path, module.site.role == Role::Head) || held()
}

/// `target_modules` names nothing here.
fn unmatched(chosen: &Chosen<'_>, modules: &[LinearModule]) -> Diagnostic {
    let mut ends: Vec<&str> = modules
        .iter()
        .map(|m| m.site.path.rsplit('.').next().unwrap_or(&m.site.path))
        .collect();
    ends.sort_unstable();
    ends.dedup();
    let found = format!(
        "`target_modules` = {} matches no linear of this model",
        chosen.text()
    );
    let mut found = Diagnostic::error("target-modules", found);
    if let Some(near) = nearest(&chosen.text(), ends.iter().copied()) {
        found = found.note(format!("the nearest name is `{near}`"));
    }
    found.help(match &*ends {
        [] => "the graph carries no module names; name the parts in an interface, and choose by attn_matrices".to_owned(),
        _ => format!("linears here end in: {}", ends.join(", ")),
    })
}

/// What is to be known where the library takes the feed-forward block's linears for each other.
pub(in crate::adapters::methods) fn swapped(
    around: &Surroundings<'_, '_>,
    places: &[Place<'_>],
) -> Option<Diagnostic> {
    let concerned = |p: &Place<'_>| matches!(p.location, "intermediate_lora" | "output_lora");
    (around.route.swaps_feed_forward() && places.iter().any(concerned)).then(|| {
        Diagnostic::warning(
            "compat-swapped-feed-forward",
            format!("`{}`: intermediate_lora is the down projection and output_lora the up projection, as in the library's own class for this model", around.name),
        )
    })
}
