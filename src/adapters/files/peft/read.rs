//! PEFT's folders as adapters: the configuration field by field, the tensors as they are under other names.

use super::fields::{Kind, check};
use super::flags::by_flags;
use super::{PREFIX, PeftFolder, refuse};
use crate::adapters::Config;
use crate::adapters::folder::{AdapterFolder, Meta, VERSION};
use crate::adapters::methods::MethodConfig;
use crate::adapters::methods::lora::{Lora, Targets};
use crate::adapters::methods::prompt_tuning::{BEFORE_POSITIONS, PromptTuning};
use crate::adapters::plan::check_name;
use crate::adapters::store::Weights;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::TensorData;
use crate::select::Interface;
use indexmap::IndexMap;
use serde_json::{Map, Number, Value};

/// What a key of PEFT's file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    A,
    B,
    BBias,
    Magnitude,
    Scale,
    LambdaB,
    LambdaD,
    SharedA,
    SharedB,
}

/// Ends of PEFT's keys behind a module's path, and our names of them.
const PARTS: [(&str, Part, &str); 8] = [
    (".lora_A.weight", Part::A, "lora_A"),
    (".lora_B.weight", Part::B, "lora_B"),
    (".lora_B.bias", Part::BBias, "lora_bias"),
    (".lora_magnitude_vector", Part::Magnitude, "m.weight"),
    (".lora_magnitude_vector.weight", Part::Magnitude, "m.weight"),
    (".ia3_l", Part::Scale, "lora_B"),
    (".vera_lambda_b", Part::LambdaB, "vera_lambda_b"),
    (".vera_lambda_d", Part::LambdaD, "vera_lambda_d"),
];

/// A module's parameter in PEFT's file, by our name.
pub(super) struct Entry<'p> {
    /// Path of the module.
    pub(super) module: String,
    /// Name inside the module.
    pub(super) name: &'static str,
    /// What it is.
    pub(super) part: Part,
    /// The elements.
    pub(super) tensor: &'p TensorData,
}

/// An adapter of PEFT's. With the interface of its model it becomes one that the Adapters library can load, where that can be said.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for fields, values and keys that are not understood, all together.
pub(crate) fn from_peft(
    peft: &PeftFolder,
    name: &str,
    interface: Option<&Interface>,
) -> Result<AdapterFolder> {
    check_name(name)?;
    let kind = check(&peft.config)?;
    let (config, tensors, library) = match kind {
        Kind::PromptTuning => {
            let (config, tensors) = prompt(peft, name)?;
            (config, tensors, false)
        }
        Kind::Lora | Kind::Ia3 | Kind::Vera => {
            let mut lora = lora(kind, &peft.config)?;
            let (entries, stored) = sorted(peft)?;
            let plain = stored.is_empty() && kind != Kind::Vera;
            let flagged = match interface {
                Some(interface) if plain => by_flags(&lora, &entries, name, interface)?,
                Some(_) | None => None,
            };
            if let Some((lora, tensors)) = flagged {
                (lora.into(), tensors, true)
            } else {
                let mut tensors = named(&entries, name)?;
                for (key, tensor) in stored {
                    let key = own_parameter(&mut lora.targets, &key, name);
                    tensors.insert(key.into(), tensor.clone());
                }
                (lora.into(), tensors, false)
            }
        }
    };
    let mut tensors: IndexMap<Box<str>, TensorData> = tensors;
    tensors.sort_unstable_keys();
    let mut notes = Vec::new();
    if !library {
        notes.push(
            Diagnostic::warning(
                "beyond-library",
                format!("`{name}` says more than the Adapters library can: this program attaches it as PEFT does"),
            )
            .help("PEFT loads the folder that it came from; `rewrite adapter convert --to peft` makes it again"),
        );
    }
    let text = |key: &str| {
        let text = peft.config.get(key).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    Ok(AdapterFolder {
        name: name.to_owned(),
        config: Config::One(config),
        meta: Meta {
            model_name: text("base_model_name_or_path"),
            model_type: interface
                .and_then(|i| i.model_type.clone())
                .unwrap_or_default(),
            version: Some(VERSION.into()),
            ..Meta::default()
        },
        weights: Weights {
            adapter: name.into(),
            tensors,
        },
        interface: interface.map(Interface::to_json),
        notes,
    })
}

/// The configuration with PEFT's own choice of modules.
fn lora(kind: Kind, config: &Map<String, Value>) -> Result<Lora> {
    let get = |key: &str| config.get(key).filter(|v| !v.is_null());
    let number = |key: &str| get(key).and_then(|v| v.as_number().cloned());
    let float = |key: &str| get(key).and_then(Value::as_f64).unwrap_or(0.0);
    let flag = |key: &str| get(key).and_then(Value::as_bool).unwrap_or(false);
    let base = match kind {
        Kind::Ia3 => Lora::ia3(),
        Kind::Vera => Lora::vera(),
        Kind::Lora | Kind::PromptTuning => Lora::lora(),
    };
    let mut fields = Map::new();
    for key in [
        "target_modules",
        "exclude_modules",
        "modules_to_save",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "feedforward_modules",
    ] {
        if let Some(value) = get(key) {
            fields.insert(key.into(), value.clone());
        }
    }
    let mut targets: Targets = serde_json::from_value(Value::Object(fields))
        .map_err(|e| refuse(e.to_string(), "the configuration is not right"))?;
    if !targets.is_some() {
        return Err(refuse(
            "`target_modules` is missing",
            "PEFT writes the names that it chose; the configuration is not complete",
        ));
    }
    targets.use_rslora = flag("use_rslora");
    targets.lora_bias = flag("lora_bias");
    let bias = get("bias").and_then(Value::as_str).unwrap_or("none");
    targets.bias = match bias {
        "none" => None,
        "vera_only" => Some("lora_only".into()),
        other => Some(other.to_owned()),
    };
    let mut out = Lora { targets, ..base };
    if kind != Kind::Ia3 {
        let r = get("r").and_then(Value::as_u64);
        let r = r.and_then(|r| usize::try_from(r).ok());
        out.r = r.ok_or_else(|| refuse("`r` is missing", "the configuration is not complete"))?;
    }
    match kind {
        Kind::Lora => {
            out.alpha = number("lora_alpha").unwrap_or_else(|| 8.into());
            out.dropout = float("lora_dropout");
            out.use_dora = Some(flag("use_dora"));
        }
        Kind::Vera => {
            // The scale of VeRA is in its vectors.
            out.alpha = Number::from(out.r);
            out.dropout = float("vera_dropout");
            out.vera_d = Number::from_f64(get("d_initial").and_then(Value::as_f64).unwrap_or(0.1));
        }
        Kind::Ia3 | Kind::PromptTuning => {}
    }
    let method: MethodConfig = out.clone().into();
    method
        .validate()
        .map_err(|d| Error::new(ErrorKind::Unsupported, d))?;
    Ok(out)
}

/// The file's parameters: those of adapted modules, and the base model's own, by their names in the state dict.
#[expect(clippy::type_complexity, reason = "two lists, told apart")]
fn sorted(peft: &PeftFolder) -> Result<(Vec<Entry<'_>>, Vec<(String, &TensorData)>)> {
    let (mut entries, mut stored, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    for (key, tensor) in &peft.tensors {
        let shared = [
            ("base_model.vera_A", Part::SharedA, "lora_A"),
            ("base_model.vera_B", Part::SharedB, "lora_B"),
        ];
        if let Some((_, part, name)) = shared.into_iter().find(|(k, ..)| *k == &**key) {
            entries.push(Entry {
                module: String::new(),
                name,
                part,
                tensor,
            });
            continue;
        }
        // The frozen copy, which some versions write along with the biases.
        if key.contains(".original_module.") {
            continue;
        }
        let Some(rest) = key.strip_prefix(PREFIX) else {
            wrong.push(unknown(key));
            continue;
        };
        // Some writers leave the name of the adapter in.
        let rest = rest.replace(".default.", ".");
        let rest = rest.strip_suffix(".default").unwrap_or(&rest);
        if rest.contains(".lora_embedding_") {
            wrong.push(
                Diagnostic::error("peft-key", format!("`{key}` is LoRA of an embedding table"))
                    .help("adapters of linears can be attached; fold this one into the base model with PEFT (`merge_and_unload`)"),
            );
            continue;
        }
        if rest.contains(".token_adapter.") {
            wrong.push(
                Diagnostic::error("peft-key", format!("`{key}` holds rows of the embedding table"))
                    .help("`trainable_token_indices` cannot be attached; fold them into the base model with PEFT (`merge_and_unload`)"),
            );
            continue;
        }
        let found = PARTS
            .iter()
            .find_map(|(end, part, name)| Some((rest.strip_suffix(end)?, *part, *name)));
        match found {
            Some((module, part, name)) => entries.push(Entry {
                module: module.to_owned(),
                name,
                part,
                tensor,
            }),
            None if ["lora_", "ia3_", "vera_"].iter().any(|m| rest.contains(m)) => {
                wrong.push(unknown(key));
            }
            None => {
                let plain = rest.replace(".base_layer.", ".");
                stored.push((plain.replace(".modules_to_save.", "."), tensor));
            }
        }
    }
    if entries.is_empty() && wrong.is_empty() {
        return Err(refuse("the file has no parameters", "it is not complete"));
    }
    if wrong.is_empty() {
        Ok((entries, stored))
    } else {
        Err(Error::many(ErrorKind::Unsupported, wrong))
    }
}

fn unknown(key: &str) -> Diagnostic {
    Diagnostic::error(
        "peft-key",
        format!("`{key}` is no parameter of LoRA, (IA)³ or VeRA"),
    )
}

/// The tensors under our names. They are what they were, up to an axis of size 1.
fn named(entries: &[Entry<'_>], name: &str) -> Result<IndexMap<Box<str>, TensorData>> {
    let mut out = IndexMap::new();
    let has = |part: Part| entries.iter().any(|e| e.part == part);
    if has(Part::LambdaB) && !(has(Part::SharedA) && has(Part::SharedB)) {
        return Err(refuse(
            "the file has no `vera_A` and `vera_B`",
            "save it with `save_projection=True`: the random matrices are those of torch's generator",
        ));
    }
    for e in entries {
        let key = match e.part {
            Part::SharedA | Part::SharedB => format!("shared_parameters.{name}.{}", e.name),
            _ => format!("{}.loras.{name}.{}", e.module, e.name),
        };
        let tensor = match (e.part, &e.tensor.dims[..]) {
            (Part::Magnitude, [n]) => reshaped(e.tensor, &[*n, 1]),
            _ => e.tensor.clone(),
        };
        out.insert(key.into(), tensor);
    }
    Ok(out)
}

fn reshaped(tensor: &TensorData, dims: &[u64]) -> TensorData {
    let mut out = tensor.clone();
    out.dims = dims.into();
    out
}

/// The key of a parameter of the base model that the adapter has its own values of; its module is named in `modules_to_save`.
fn own_parameter(targets: &mut Targets, key: &str, name: &str) -> String {
    let (module, suffix) = key.rsplit_once('.').unwrap_or(("", key));
    let biases = suffix == "bias" && targets.bias.is_some();
    let outer = match targets.saved(module) {
        Some(outer) => outer.to_owned(),
        None if biases => module.to_owned(),
        None => {
            // Embeddings and heads are also in a file whose configuration does not name them.
            targets.modules_to_save.push(module.to_owned());
            module.to_owned()
        }
    };
    let inner = key[outer.len()..].trim_start_matches('.');
    format!("{outer}.modules_to_save.{name}.{inner}")
}

/// A prompt in front of the embedded input.
fn prompt(peft: &PeftFolder, name: &str) -> Result<(MethodConfig, IndexMap<Box<str>, TensorData>)> {
    let count = |key: &str| peft.config.get(key).and_then(Value::as_u64);
    if count("num_transformer_submodules").is_some_and(|n| n > 1) {
        return Err(refuse(
            "`num_transformer_submodules` is 2: encoder and decoder have a prompt each",
            "prompts of models with one stack can be attached",
        ));
    }
    let mut out = IndexMap::new();
    let mut length = 0;
    for (key, tensor) in &peft.tensors {
        let ("prompt_embeddings", [rows, _]) = (&**key, &tensor.dims[..]) else {
            return Err(refuse(
                format!("`{key}` {:?} is no parameter of a prompt", tensor.dims),
                "the file holds `prompt_embeddings` alone",
            ));
        };
        length = usize::try_from(*rows).unwrap_or(0);
        let key = format!("prompt_tuning.prompt_tunings.{name}.prompt_embedding.weight");
        out.insert(key.into(), tensor.clone());
    }
    let config = PromptTuning {
        prompt_length: length,
        combine: BEFORE_POSITIONS.into(),
        ..PromptTuning::default()
    };
    Ok((config.into(), out))
}
