//! The Adapters library's flags, where they say the same as PEFT's `target_modules`.

use super::read::{Entry, Part};
use super::{floats, typed};
use crate::adapters::methods::lora::{Lora, Names, Targets};
use crate::error::Result;
use crate::ir::TensorData;
use crate::select::Interface;
use indexmap::IndexMap;
use serde_json::Number;

/// Tensors by their names.
pub(super) type Tensors = IndexMap<Box<str>, TensorData>;

/// What a linear is in AdapterHub's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Letter(char),
    Fused,
    Intermediate,
    Output,
}

/// The linears of a layer that an interface names, by their paths in the layer.
pub(super) fn linears(interface: &Interface) -> Vec<(Role, String)> {
    let f = &interface.fields;
    let mut out = Vec::new();
    for attention in [&f.layer_self_attn, &f.layer_cross_attn] {
        let Some(attention) = attention.get(0) else {
            continue;
        };
        let projections = [
            (Role::Letter('q'), &f.attn_q_proj),
            (Role::Letter('k'), &f.attn_k_proj),
            (Role::Letter('v'), &f.attn_v_proj),
            (Role::Letter('o'), &f.attn_o_proj),
            (Role::Fused, &f.attn_qkv_proj),
        ];
        for (role, path) in projections {
            let path = path.get(0).map(|p| match attention {
                "" => p.to_owned(),
                attention => format!("{attention}.{p}"),
            });
            out.extend(path.map(|p| (role, p)));
        }
    }
    out.extend(
        f.layer_intermediate_proj
            .get(0)
            .map(|p| (Role::Intermediate, p.to_owned())),
    );
    out.extend(
        f.layer_output_proj
            .get(0)
            .map(|p| (Role::Output, p.to_owned())),
    );
    out
}

/// An adapted module.
struct Adapted<'e> {
    layer: usize,
    role: Role,
    entry: &'e Entry<'e>,
}

/// The configuration and the tensors by which the Adapters library says the same, where it can: the same linears in every layer, one
/// rank and one scale.
///
/// # Errors
/// Tensors that are no floats.
pub(super) fn by_flags(
    lora: &Lora,
    entries: &[Entry<'_>],
    name: &str,
    interface: &Interface,
) -> Result<Option<(Lora, Tensors)>> {
    let t = &lora.targets;
    let plain = Targets {
        target_modules: t.target_modules.clone(),
        exclude_modules: t.exclude_modules.clone(),
        feedforward_modules: t.feedforward_modules.clone(),
        use_rslora: t.use_rslora,
        ..Targets::default()
    };
    // A module that is named with its layer may be one of few; a regular expression may mean few.
    let by_end = match &t.target_modules {
        Some(Names::Many(names)) => names.iter().all(|n| {
            let mut parts = n.split('.');
            parts.all(|p| p.parse::<usize>().is_err())
        }),
        Some(Names::One(_)) | None => false,
    };
    if plain != *t || !by_end || lora.use_dora == Some(true) || interface.stacks() != 1 {
        return Ok(None);
    }
    let linears = linears(interface);
    let layers = interface.fields.model_layers.get(0).unwrap_or_default();
    let mut modules = Vec::with_capacity(entries.len());
    for entry in entries {
        let plain = matches!(entry.part, Part::A | Part::B)
            || (entry.part == Part::Scale && entry.tensor.dims.get(1) == Some(&1));
        let (true, Some((layer, role))) = (plain, locate(&entry.module, layers, &linears)) else {
            return Ok(None);
        };
        modules.push(Adapted { layer, role, entry });
    }
    let mut out = Lora {
        targets: Targets::default(),
        ..lora.clone()
    };
    if !flags(&mut out, &modules) {
        return Ok(None);
    }
    if t.use_rslora {
        // PEFT divides by √r with rsLoRA: alpha' / r = alpha / √r.
        let scaled = lora.alpha.as_f64().unwrap_or(8.0) * (lora.r as f64).sqrt();
        out.alpha = Number::from_f64(scaled).unwrap_or(out.alpha);
    }
    let mut tensors = IndexMap::new();
    for m in &modules {
        // Each block of a fused projection gets the whole `A`.
        let tensor = if m.role == Role::Fused && m.entry.part == Part::A {
            thrice(m.entry.tensor, &m.entry.module)?
        } else {
            m.entry.tensor.clone()
        };
        let key = format!("{}.loras.{name}.{}", m.entry.module, m.entry.name);
        tensors.insert(key.into(), tensor);
    }
    Ok(Some((out, tensors)))
}

/// Sets the flags of the configuration that give exactly these modules; whether there are such flags.
fn flags(lora: &mut Lora, modules: &[Adapted<'_>]) -> bool {
    let has = |layer: usize, role: Role| modules.iter().any(|m| m.layer == layer && m.role == role);
    let last = modules.iter().map(|m| m.layer).max().unwrap_or(0);
    let any = |role: Role| modules.iter().any(|m| m.role == role);
    lora.leave_out = (0..last)
        .filter(|l| !modules.iter().any(|m| m.layer == *l))
        .collect();
    let all = [
        Role::Letter('q'),
        Role::Letter('k'),
        Role::Letter('v'),
        Role::Letter('o'),
        Role::Fused,
        Role::Intermediate,
        Role::Output,
    ];
    let lacks = |role: &Role| (0..=last).any(|l| !lora.leave_out.contains(&l) && !has(l, *role));
    if all.iter().filter(|r| any(**r)).any(lacks) {
        return false;
    }
    let fused = if any(Role::Fused) {
        &['q', 'k', 'v'][..]
    } else {
        &[]
    };
    let letters = ['q', 'k', 'v', 'o'].into_iter();
    let on = letters.filter(|c| fused.contains(c) || any(Role::Letter(*c)));
    lora.attn_matrices = on.map(String::from).collect();
    lora.selfattn_lora = !lora.attn_matrices.is_empty();
    lora.intermediate_lora = any(Role::Intermediate);
    lora.output_lora = any(Role::Output);
    true
}

/// Layer and role of a module: `….LAYERS.N.PATH`.
pub(super) fn locate(
    path: &str,
    layers: &str,
    linears: &[(Role, String)],
) -> Option<(usize, Role)> {
    let inside = format!("{layers}.");
    path.match_indices(&*inside).find_map(|(at, mark)| {
        if at > 0 && path.as_bytes()[at - 1] != b'.' {
            return None;
        }
        let (index, rest) = path[at + mark.len()..].split_once('.')?;
        let layer = index.parse().ok()?;
        let (role, _) = linears.iter().find(|(_, p)| p == rest)?;
        Some((layer, *role))
    })
}

fn thrice(a: &TensorData, module: &str) -> Result<TensorData> {
    let values = floats(a, module)?;
    let mut dims = a.dims.clone();
    if let Some(rows) = dims.first_mut() {
        *rows *= 3;
    }
    typed(&dims, &[&*values, &*values, &*values].concat(), a)
}
