//! PEFT's folders as adapters: the configuration field by field, the tensors as they are under other names.

use super::fields::{Kind, check};
use super::flags::by_flags;
use super::{PREFIX, PeftFolder, refuse};
use crate::adapters::Config;
use crate::adapters::folder::{AdapterFolder, Meta, VERSION};
use crate::adapters::methods::MethodConfig;
use crate::adapters::methods::lora::{Lora, Names, Targets};
use crate::adapters::methods::prefix_tuning::{FLAT, PrefixTuning};
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
    TableA,
    TableB,
    Tokens,
}

/// Ends of PEFT's keys behind a module's path, and our names of them.
const PARTS: [(&str, Part, &str); 12] = [
    (".lora_A.weight", Part::A, "lora_A"),
    (".lora_B.weight", Part::B, "lora_B"),
    (".lora_B.bias", Part::BBias, "lora_bias"),
    (".lora_magnitude_vector", Part::Magnitude, "m.weight"),
    (".lora_magnitude_vector.weight", Part::Magnitude, "m.weight"),
    (".ia3_l", Part::Scale, "lora_B"),
    (".vera_lambda_b", Part::LambdaB, "vera_lambda_b"),
    (".vera_lambda_d", Part::LambdaD, "vera_lambda_d"),
    (".lora_embedding_A", Part::TableA, "lora_embedding_A"),
    (".lora_embedding_B", Part::TableB, "lora_embedding_B"),
    (
        ".token_adapter.trainable_tokens_delta",
        Part::Tokens,
        TOKENS,
    ),
    (".trainable_tokens_delta", Part::Tokens, TOKENS),
];

/// Rows of an embedding table.
const TOKENS: &str = "trainable_tokens_delta";

/// The same in files of prompts and prefixes, whose model is not wrapped again.
const LEARNED_PREFIX: &str = "base_model.";

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
        Kind::PromptTuning | Kind::PrefixTuning => {
            let (config, tensors) = learned(kind, peft, name)?;
            (config, tensors, false)
        }
        Kind::Lora | Kind::Ia3 | Kind::Vera | Kind::TrainableTokens => {
            let mut lora = lora(kind, &peft.config)?;
            let (entries, stored) = sorted(peft)?;
            let plain = stored.is_empty() && kind != Kind::Vera;
            let flagged = match interface {
                Some(interface) if plain => by_flags(&lora, &entries, name, interface)?,
                Some(_) | None => None,
            };
            if let Some((lora, tensors)) = flagged {
                (Config::one(lora), tensors, true)
            } else {
                let mut tensors = named(&entries, name)?;
                for (key, tensor) in stored {
                    let key = own_parameter(&mut lora.targets, &key, name);
                    tensors.insert(key.into(), tensor.clone());
                }
                (Config::one(lora), tensors, false)
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
        config,
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

/// What a configuration of PEFT's says without weights: a fresh adapter.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for what is not understood, and for prompts and prefixes, which are nothing without weights.
pub(crate) fn config_alone(config: &Map<String, Value>) -> Result<Config> {
    match check(config)? {
        kind @ (Kind::Lora | Kind::Ia3 | Kind::Vera | Kind::TrainableTokens) => {
            lora(kind, config).map(Config::one)
        }
        Kind::PromptTuning | Kind::PrefixTuning => Err(refuse(
            "a prompt or a prefix of PEFT's is what its weights are",
            "give the folder with the weights; a fresh one is prompt_tuning or prefix_tuning_flat",
        )),
    }
}

/// The configuration with PEFT's own choice of modules.
pub(super) fn lora(kind: Kind, config: &Map<String, Value>) -> Result<Lora> {
    let get = |key: &str| config.get(key).filter(|v| !v.is_null());
    let number = |key: &str| get(key).and_then(|v| v.as_number().cloned());
    let float = |key: &str| get(key).and_then(Value::as_f64).unwrap_or(0.0);
    let flag = |key: &str| get(key).and_then(Value::as_bool).unwrap_or(false);
    let base = match kind {
        Kind::Ia3 => Lora::ia3(),
        Kind::Vera => Lora::vera(),
        Kind::Lora | Kind::PromptTuning | Kind::PrefixTuning | Kind::TrainableTokens => {
            Lora::lora()
        }
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
        "trainable_token_indices",
    ] {
        if let Some(value) = get(key) {
            fields.insert(key.into(), value.clone());
        }
    }
    if kind == Kind::TrainableTokens {
        fields = tokens(get("token_indices"), get("target_modules"));
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
    if matches!(kind, Kind::Lora | Kind::Vera) {
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
        Kind::Ia3 | Kind::PromptTuning | Kind::PrefixTuning | Kind::TrainableTokens => {}
    }
    let method: MethodConfig = out.clone().into();
    method
        .validate()
        .map_err(|d| Error::new(ErrorKind::Unsupported, d))?;
    Ok(out)
}

/// The fields of `TrainableTokensConfig`, as those of a LoRA that adapts nothing else.
fn tokens(ids: Option<&Value>, names: Option<&Value>) -> Map<String, Value> {
    let ids = ids.cloned().unwrap_or_else(|| Value::Array(Vec::new()));
    let names: Vec<&str> = match names {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one],
        Some(many) => {
            let many = many.as_array().into_iter().flatten();
            many.filter_map(Value::as_str).collect()
        }
    };
    let value = if names.is_empty() {
        ids
    } else {
        let of = names.into_iter().map(|n| (n.to_owned(), ids.clone()));
        Value::Object(of.collect())
    };
    Map::from_iter([("trainable_token_indices".to_owned(), value)])
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
            None if ["lora_", "ia3_", "vera_", "trainable_tokens"]
                .iter()
                .any(|m| rest.contains(m)) =>
            {
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
            Part::Tokens => format!("{}.token_adapters.{name}.{}", e.module, e.name),
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
            if !targets.kept(module) {
                targets.save_embedding_layers.push(module.to_owned());
            }
            module.to_owned()
        }
    };
    let inner = key[outer.len()..].trim_start_matches('.');
    format!("{outer}.modules_to_save.{name}.{inner}")
}

/// Learned positions: a prompt in front of the embedded input, or a prefix in front of the keys and values of every attention. Modules
/// that are saved along (a head) are a second member.
fn learned(
    kind: Kind,
    peft: &PeftFolder,
    name: &str,
) -> Result<(Config, IndexMap<Box<str>, TensorData>)> {
    let wrong = |key: &str, t: &TensorData| {
        refuse(
            format!("`{key}` {:?} is no parameter of a prompt", t.dims),
            "the file holds `prompt_embeddings`, and modules that were saved along",
        )
    };
    let mut saved = Targets {
        target_modules: Some(Names::Many(Vec::new())),
        ..Targets::default()
    };
    let get = |key: &str| peft.config.get(key).filter(|v| !v.is_null());
    if let Some(names) = get("modules_to_save") {
        saved.modules_to_save = serde_json::from_value(names.clone())
            .map_err(|e| refuse(e.to_string(), "the configuration is not right"))?;
    }
    let (mut own, mut tensors) = (None, IndexMap::new());
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    for (key, tensor) in &peft.tensors {
        if let ("prompt_embeddings", [rows, width]) = (&**key, &tensor.dims[..]) {
            own = Some((tensor, [size(*rows), size(*width)]));
            continue;
        }
        let inner = key.strip_prefix(LEARNED_PREFIX);
        let inner = inner.ok_or_else(|| wrong(key, tensor))?;
        let module = inner.rsplit_once('.').map_or(inner, |(m, _)| m);
        if saved.saved(module).is_none() {
            return Err(wrong(key, tensor));
        }
        let key = own_parameter(&mut saved, inner, name);
        tensors.insert(key.into(), tensor.clone());
    }
    let Some((tensor, [rows, width])) = own else {
        return Err(refuse(
            "the file has no `prompt_embeddings`",
            "it is not complete",
        ));
    };
    let both = get("num_transformer_submodules").and_then(Value::as_u64) > Some(1);
    let method: MethodConfig = if kind == Kind::PromptTuning {
        let key = format!("prompt_tuning.prompt_tunings.{name}.prompt_embedding.weight");
        tensors.insert(key.into(), tensor.clone());
        let config = PromptTuning {
            prompt_length: if both { rows / 2 } else { rows },
            combine: BEFORE_POSITIONS.into(),
            decoder_prompt: both,
            ..PromptTuning::default()
        };
        config.into()
    } else {
        let key = format!("prefix_tuning.prefix_tunings.{name}.self_prefix.{FLAT}");
        let flat = reshaped(tensor, &[tensor.dims.iter().product()]);
        tensors.insert(key.into(), flat);
        if width == 0 || rows == 0 {
            return Err(wrong("prompt_embeddings", tensor));
        }
        let config = PrefixTuning {
            flat: true,
            prefix_length: rows,
            encoder_prefix: false,
            cross_prefix: false,
            shift_positions: true,
            num_layers: get("num_layers").and_then(Value::as_u64).map(size),
            every_other: both,
            ..PrefixTuning::default()
        };
        config.into()
    };
    let config = if saved.modules_to_save.is_empty() {
        Config::one(method)
    } else {
        let heads = Lora {
            targets: saved,
            ..Lora::lora()
        };
        Config::union(vec![method, heads.into()])
    };
    Ok((config, tensors))
}
