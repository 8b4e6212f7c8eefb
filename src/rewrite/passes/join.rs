//! An encoder and a decoder, each in a file of its own, as one graph.
//!
//! Optimum exports an encoder-decoder as `encoder_model.onnx` and `decoder_model.onnx`. The pass puts the encoder's nodes in front of the
//! decoder's: what the encoder makes is what the decoder attends to. Graph inputs get the names that they have in an export of both:
//! the decoder's tokens become `decoder_input_ids`. Modules of an encoder that was exported alone get the path that they have in the
//! model, so that the parameters of adapters have the names of the whole model. Outputs are the decoder's, its caches apart.

use crate::diag::Diagnostic;
use crate::infer::Verified;
use crate::ir::{Adopted, Dim, Graph, GraphPort, Spot, Type, TypeKind, Val, ValueId, contract};
use crate::rewrite::{Pass, PassCx, PassError, Uses};
use rustc_hash::FxHashMap;

/// Puts an encoder in front of the decoder that is rewritten.
#[derive(Clone, Debug)]
pub(crate) struct Join {
    /// The encoder.
    pub encoder: Verified,
}

fn refused(what: impl Into<String>) -> Diagnostic {
    Diagnostic::error("join", what).help(
        "the files of one export are expected, as Optimum writes them; or export encoder and decoder as one graph",
    )
}

/// Names of the decoder's inputs, and what they are called where there is an encoder too.
const OF_DECODER: [(&str, &str); 4] = [
    (contract::INPUT_IDS, contract::DECODER_INPUT_IDS),
    (contract::ATTENTION_MASK, contract::DECODER_ATTENTION_MASK),
    ("inputs_embeds", "decoder_inputs_embeds"),
    (contract::POSITION_IDS, "decoder_position_ids"),
];

impl Pass for Join {
    fn name(&self) -> &'static str {
        "join"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        self.check_versions(cx)?;
        rename_inputs(cx)?;
        let g = &cx.model().graph;
        let encoder = &self.encoder.model().graph;
        let input = |name: &str| g.find(name).filter(|v| g.is_input(*v));
        let states = input(contract::ENCODER_HIDDEN_STATES).ok_or_else(|| {
            let name = contract::ENCODER_HIDDEN_STATES;
            refused(format!("the decoder has no input `{name}`"))
        })?;
        let mut patch = cx.patch("encoder", None);
        let b = patch.builder();
        b.set_spot(Some(Spot::Front));
        let mut given: FxHashMap<ValueId, Val> = FxHashMap::default();
        for port in encoder.inputs() {
            let name = encoder.name_of(port.value);
            let known = port.ty.as_ref().or(encoder.value(port.value).ty.as_ref());
            let ty: Type = known.cloned().ok_or_else(|| {
                refused(format!(
                    "the type of the encoder's input `{name}` is not declared"
                ))
            })?;
            if g.find(name).is_some() {
                let what = format!("encoder and decoder both have a value `{name}`");
                return Err(refused(what).into());
            }
            given.insert(port.value, b.graph_input(name, apart(ty, g)));
        }
        let path = path_of(g, encoder);
        let adopted = Adopted {
            graph: encoder,
            taken: &|name| g.find(name).is_some(),
            attrs: None,
            rename: &|name| path.of(name),
        };
        b.adopt(&adopted, &mut given);
        let made = hidden_states(encoder).and_then(|v| given.get(&v).copied());
        let made = made.ok_or_else(|| {
            refused(format!(
                "the encoder has no output `{}`",
                contract::LAST_HIDDEN_STATE
            ))
        })?;
        let mut fed = vec![(states, made)];
        if let Some(mask) = input(contract::ENCODER_ATTENTION_MASK) {
            let own = encoder.find(contract::ATTENTION_MASK);
            match own.and_then(|v| given.get(&v).copied()) {
                Some(own) => fed.push((mask, own)),
                None => patch.rename(mask.into(), contract::ATTENTION_MASK),
            }
        }
        for (old, new) in &fed {
            patch.redirect(*old, *new, Uses::All);
        }
        for (old, _) in fed {
            patch.remove_value(old);
        }
        for port in g.outputs() {
            if g.name_of(port.value).starts_with(contract::PRESENT) {
                patch.remove_output(port.value);
            }
        }
        for (domain, version) in &self.encoder.model().opset_imports {
            patch.import(domain, *version);
        }
        cx.commit(patch)?;
        Ok(())
    }
}

impl Join {
    /// Both files are of one version of each operator set.
    fn check_versions(&self, cx: &PassCx<'_>) -> Result<(), Diagnostic> {
        for (domain, version) in &self.encoder.model().opset_imports {
            if let Some(other) = cx.model().opset(domain).filter(|v| v != version) {
                let name = if domain.is_empty() { "ai.onnx" } else { domain };
                return Err(refused(format!(
                    "the encoder imports {name} {version} and the decoder {other}"
                )));
            }
        }
        Ok(())
    }
}

fn rename_inputs(cx: &mut PassCx<'_>) -> Result<(), PassError> {
    let g = &cx.model().graph;
    let mut patch = cx.patch("inputs of the decoder", None);
    for (old, new) in OF_DECODER {
        if let Some(v) = g.find(old).filter(|v| g.is_input(*v)) {
            patch.rename(v.into(), new);
        }
    }
    cx.commit(patch)?;
    Ok(())
}

/// A type of an encoder's input. A length that the decoder's own inputs call by the same name is another length.
fn apart(mut ty: Type, decoder: &Graph) -> Type {
    let own = decoder.inputs().iter();
    let own = own.filter(|p| {
        OF_DECODER
            .iter()
            .any(|(_, n)| decoder.name_of(p.value) == *n)
    });
    let dims = |p: &GraphPort| {
        p.ty.as_ref()
            .and_then(Type::dims)
            .unwrap_or_default()
            .to_vec()
    };
    let lengths: Vec<Dim> = own.flat_map(|p| dims(p).into_iter().skip(1)).collect();
    if let TypeKind::Tensor {
        dims: Some(dims), ..
    } = &mut ty.kind
    {
        for dim in dims.iter_mut().skip(1) {
            if matches!(dim, Dim::Symbol(_)) && lengths.contains(dim) {
                *dim = Dim::Unknown;
                ty.exact = None;
            }
        }
    }
    ty
}

/// What an encoder makes: its output of that name, or its only one.
fn hidden_states(encoder: &Graph) -> Option<ValueId> {
    let named = encoder.find(contract::LAST_HIDDEN_STATE);
    let only = || match encoder.outputs() {
        [one] => Some(one.value),
        _ => None,
    };
    named.filter(|v| encoder.is_output(*v)).or_else(only)
}

/// Where the modules of an encoder stand in the whole model.
#[derive(Debug, Default)]
struct Path {
    /// In front of names of nodes, `/model/encoder`; empty where they have it.
    scope: String,
    /// In front of names of parameters, `model.encoder.`.
    module: String,
}

impl Path {
    fn of(&self, name: &str) -> String {
        if self.scope.is_empty() {
            name.to_owned()
        } else if name.starts_with('/') {
            format!("{}{name}", self.scope)
        } else if name.contains('.') && !name.contains([':', '/']) {
            format!("{}{name}", self.module)
        } else {
            name.to_owned()
        }
    }
}

/// The path that a decoder's own modules have, with `encoder` in the place of `decoder`.
fn path_of(decoder: &Graph, encoder: &Graph) -> Path {
    fn scopes(g: &Graph) -> impl Iterator<Item = &str> {
        g.nodes()
            .map(|n| &*g.node(n).name)
            .filter(|n| n.starts_with('/'))
    }
    if scopes(encoder).any(|n| n.contains("/encoder/")) {
        return Path::default();
    }
    let found = scopes(decoder).find_map(|n| n.split_once("/decoder/"));
    found.map_or_else(Path::default, |(before, _)| Path {
        scope: format!("{before}/encoder"),
        module: format!("{}.encoder.", before.replace('/', "."))
            .trim_start_matches('.')
            .to_owned(),
    })
}

#[cfg(test)]
mod tests;
