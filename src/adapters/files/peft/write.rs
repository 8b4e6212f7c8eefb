//! Adapters as PEFT's folders.

use super::flags::{Role, linears, locate};
use super::{PREFIX, PeftFolder, floats, refuse, typed};
use crate::adapters::average::Blocks;
use crate::adapters::base::{self, Base};
use crate::adapters::folder::AdapterFolder;
use crate::adapters::methods::MethodConfig;
use crate::adapters::methods::lora::{Lora, Names, TokenIndices};
use crate::adapters::methods::prefix_tuning::PrefixTuning;
use crate::adapters::methods::prompt_tuning::{BEFORE_POSITIONS, PromptTuning};
use crate::adapters::naming::belongs;
use crate::error::Result;
use crate::ir::TensorData;
use crate::select::Interface;
use indexmap::IndexMap;
use serde_json::{Map, Value, json};

/// An adapter of AdapterHub's as one of PEFT's.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for what PEFT cannot say with the same numbers.
pub(crate) fn to_peft(adapter: &AdapterFolder) -> Result<PeftFolder> {
    if let Some(folder) = as_learned(adapter)? {
        return Ok(folder);
    }
    let Some(MethodConfig::Lora(lora)) = adapter.config.only() else {
        return Err(refuse(
            format!(
                "`{}` is {}, which PEFT does not have in this form",
                adapter.name,
                adapter.config.architecture()
            ),
            "LoRA and (IA)³ can be converted",
        ));
    };
    if lora.targets.is_some() {
        return Ok(as_it_was(adapter, lora));
    }
    if lora.use_gating {
        return Err(refuse(
            format!("`{}` is gated, which PEFT's LoRA is not", adapter.name),
            "LoRA without `use_gating` can be converted",
        ));
    }
    if lora.use_dora == Some(true) {
        return Err(refuse(
            format!(
                "`{}` is DoRA: PEFT takes the norm of W + alpha/r·BA and does not scale the bias, AdapterHub takes that of W + BA and does",
                adapter.name
            ),
            "fold it into the base weights: `rewrite merge`",
        ));
    }
    let scale = lora.composition_mode == "scale";
    let mut out = PeftFolder {
        config: Map::new(),
        tensors: IndexMap::new(),
    };
    let mut ranks: IndexMap<String, usize> = IndexMap::new();
    for (key, b) in &adapter.weights.tensors {
        if !belongs(key, &adapter.name) {
            continue;
        }
        let mark = format!(".loras.{}.", adapter.name);
        let Some((module, suffix)) = key.split_once(&*mark) else {
            return Err(refuse(
                format!("`{key}` is a parameter that PEFT does not have"),
                "LoRA and (IA)³ can be converted",
            ));
        };
        match suffix {
            "lora_B" if scale => {
                let l = scale_vector(adapter, lora, module, b)?;
                out.tensors
                    .insert(format!("{PREFIX}{module}.ia3_l").into(), l);
                ranks.insert(module.to_owned(), 1);
            }
            "lora_B" => {
                let Some(a) = adapter
                    .weights
                    .tensors
                    .get(&*format!("{module}{mark}lora_A"))
                else {
                    return Err(refuse(
                        format!("`{module}` has no `lora_A`"),
                        "the file is not complete",
                    ));
                };
                let (rank, a, b) = low_rank(adapter, lora, module, a, b)?;
                out.tensors
                    .insert(format!("{PREFIX}{module}.lora_A.weight").into(), a);
                out.tensors
                    .insert(format!("{PREFIX}{module}.lora_B.weight").into(), b);
                ranks.insert(module.to_owned(), rank);
            }
            "lora_A" => {}
            _ => {
                return Err(refuse(
                    format!("`{key}` is a parameter that PEFT does not have"),
                    "LoRA and (IA)³ can be converted",
                ));
            }
        }
    }
    if ranks.is_empty() {
        return Err(refuse(
            format!("`{}` has no parameters", adapter.name),
            "the weights and the name in adapter_config.json differ",
        ));
    }
    out.tensors.sort_unstable_keys();
    out.config = peft_config(adapter, lora, scale, &ranks)?;
    Ok(out)
}

/// PEFT's factors of a linear: one for a fused projection too, block-diagonal.
fn low_rank(
    adapter: &AdapterFolder,
    lora: &Lora,
    module: &str,
    a: &TensorData,
    b: &TensorData,
) -> Result<(usize, TensorData, TensorData)> {
    told(adapter, module)?;
    let on = enabled(lora);
    if let (3, Some(once)) = (on.len(), thrice_the_same(a, lora.r)) {
        return Ok((lora.r, once, b.clone()));
    }
    let blocks = Blocks::of(module, a, b, lora.r, adapter.meta.hidden_size)?;
    if blocks.count == 1 && !fused(adapter, module) {
        return Ok((lora.r, a.clone(), b.clone()));
    }
    if blocks.count != on.len() {
        return Err(refuse(
            format!("`{module}` has {} blocks for {}", blocks.count, on.len()),
            "the file is not of this configuration",
        ));
    }
    let (rank, d) = (lora.r * blocks.count, blocks.d_out);
    let values = floats(b, module)?;
    let mut full = vec![0f32; 3 * d * rank];
    for (block, third) in on.iter().enumerate() {
        for row in 0..d {
            let from = (block * d + row) * lora.r;
            let to = (third * d + row) * rank + block * lora.r;
            full[to..to + lora.r].copy_from_slice(&values[from..from + lora.r]);
        }
    }
    let full = typed(&[3 * d as u64, rank as u64], &full, b)?;
    Ok((rank, a.clone(), full))
}

/// The block of an `A` that consists of three equal ones: the projection was PEFT's, and is one linear there.
fn thrice_the_same(a: &TensorData, rank: usize) -> Option<TensorData> {
    let [rows, columns] = a.dims[..] else {
        return None;
    };
    let whole = a.bytes()?;
    let third = whole.len() / 3;
    let same = rows == 3 * rank as u64
        && whole[..third] == whole[third..2 * third]
        && whole[..third] == whole[2 * third..];
    same.then(|| TensorData::raw(a.dtype, [rank as u64, columns], whole.slice(..third)))
}

/// The vector of (IA)³ with `alpha` in it, and ones in a fused projection's other columns.
fn scale_vector(
    adapter: &AdapterFolder,
    lora: &Lora,
    module: &str,
    b: &TensorData,
) -> Result<TensorData> {
    let alpha = lora.alpha.as_f64().unwrap_or(1.0) as f32;
    let values: Vec<f32> = floats(b, module)?.into_iter().map(|x| alpha * x).collect();
    if !fused(adapter, module) {
        return typed(&b.dims, &values, b);
    }
    told(adapter, module)?;
    let on = enabled(lora);
    let hidden = adapter.meta.hidden_size.unwrap_or(0) as usize;
    if on.is_empty() || values.len() != on.len() * hidden {
        return Err(refuse(
            format!(
                "the columns of the fused projection `{module}` cannot be told apart from the file"
            ),
            "only projections of three equal thirds can be converted",
        ));
    }
    let mut full = vec![1f32; 3 * hidden];
    for (block, third) in on.iter().enumerate() {
        full[third * hidden..(third + 1) * hidden]
            .copy_from_slice(&values[block * hidden..(block + 1) * hidden]);
    }
    typed(&[3 * hidden as u64, 1], &full, b)
}

/// Which thirds of a fused projection are adapted.
fn enabled(lora: &Lora) -> Vec<usize> {
    let on = |m: &str| lora.attn_matrices.iter().any(|x| x == m);
    ["q", "k", "v"]
        .iter()
        .enumerate()
        .filter(|(_, m)| on(m))
        .map(|(i, _)| i)
        .collect()
}

/// Whether a module is a fused projection of q, k and v, by the interface or the model type.
fn fused(adapter: &AdapterFolder, module: &str) -> bool {
    let interface = interface(adapter);
    let path = interface
        .as_ref()
        .and_then(|i| i.fields.attn_qkv_proj.get(0));
    path.is_some_and(|p| module.ends_with(&format!(".{p}")))
}

/// Refuses a packed projection whose columns of q, k and v its model alone tells.
fn told(adapter: &AdapterFolder, module: &str) -> Result<()> {
    if !fused(adapter, module) || !Base::recorded(&adapter.meta.extra).by_columns() {
        return Ok(());
    }
    Err(refuse(
        format!(
            "`{module}` holds q, k and v head by head, and the file does not say in which columns"
        ),
        "merge the adapter into its model, or train with `target_modules`",
    ))
}

fn interface(adapter: &AdapterFolder) -> Option<Interface> {
    match &adapter.interface {
        Some(text) => Interface::parse(text, "adapter_interface.json").ok(),
        None => Interface::builtin(&adapter.meta.model_type)?.ok(),
    }
}

/// An adapter with PEFT's own choice of modules.
fn as_it_was(adapter: &AdapterFolder, lora: &Lora) -> PeftFolder {
    let mut out = PeftFolder {
        config: Map::new(),
        tensors: IndexMap::new(),
    };
    let (loras, saved) = (
        format!(".loras.{}.", adapter.name),
        format!(".modules_to_save.{}.", adapter.name),
    );
    let shared = format!("shared_parameters.{}.", adapter.name);
    let tokens = format!(".token_adapters.{}.", adapter.name);
    let alone = lora.targets.target_modules.is_none();
    let scale = lora.composition_mode == "scale";
    for (key, tensor) in &adapter.weights.tensors {
        let (key, tensor) = if let Some((module, name)) = key.split_once(&*loras) {
            let name = match name {
                "lora_B" if scale => "ia3_l",
                "lora_A" => "lora_A.weight",
                "lora_B" => "lora_B.weight",
                "lora_bias" => "lora_B.bias",
                "m.weight" => "lora_magnitude_vector",
                other => other,
            };
            let flat = name == "lora_magnitude_vector";
            let mut tensor = tensor.clone();
            if flat {
                tensor.dims = [tensor.dims.iter().product()].into();
            }
            (format!("{PREFIX}{module}.{name}"), tensor)
        } else if let Some((_, name)) = key.split_once(&*shared) {
            let name = if name == "lora_A" { "vera_A" } else { "vera_B" };
            (format!("base_model.{name}"), tensor.clone())
        } else if let Some((module, name)) = key.split_once(&*tokens) {
            let inner = if alone { "" } else { "token_adapter." };
            (format!("{PREFIX}{module}.{inner}{name}"), tensor.clone())
        } else if let Some((module, name)) = key.split_once(&*saved) {
            // What a linear with LoRA has itself lies in what LoRA wraps.
            let wrapped = format!("{module}{loras}");
            let mut keys = adapter.weights.tensors.keys();
            let inner = match name {
                "bias" | "weight" if keys.any(|k| k.starts_with(&*wrapped)) => "base_layer.",
                _ => "",
            };
            (format!("{PREFIX}{module}.{inner}{name}"), tensor.clone())
        } else {
            continue;
        };
        out.tensors.insert(key.into(), tensor);
    }
    out.tensors.sort_unstable_keys();
    out.config = targeted_config(adapter, lora, scale);
    out
}

/// A prompt that stands where PEFT puts it, or a prefix that positions are counted behind, with the modules that are saved along.
fn as_learned(adapter: &AdapterFolder) -> Result<Option<PeftFolder>> {
    let (method, heads) = match adapter.config.methods() {
        [method] => (method, None),
        [method, MethodConfig::Lora(heads)] if heads.targets.is_some() => (method, Some(heads)),
        _ => return Ok(None),
    };
    let (mut config, prompt) = match method {
        MethodConfig::PromptTuning(prompt) if prompt.combine == BEFORE_POSITIONS => {
            let tensor = learned_tensor(adapter, "prompt_tuning.")?;
            (prompt_config(adapter, prompt, tensor), tensor.clone())
        }
        MethodConfig::PrefixTuning(prefix) if prefix.shift_positions && prefix.flat => {
            let mut tensor = learned_tensor(adapter, "prefix_tuning.")?.clone();
            let rows = prefix.prefix_length as u64;
            let all = tensor.dims.iter().product::<u64>();
            if rows == 0 || all % rows != 0 {
                return Err(refuse(
                    format!(
                        "the prefix of `{}` has {all} elements for {rows} positions",
                        adapter.name
                    ),
                    "the file is not of this configuration",
                ));
            }
            tensor.dims = [rows, all / rows].into();
            (prefix_config(adapter, prefix), tensor)
        }
        _ => return Ok(None),
    };
    let mut tensors: IndexMap<Box<str>, TensorData> =
        IndexMap::from_iter([("prompt_embeddings".into(), prompt)]);
    if let Some(heads) = heads {
        config.insert(
            "modules_to_save".into(),
            json!(heads.targets.modules_to_save),
        );
        let saved = format!(".modules_to_save.{}.", adapter.name);
        for (key, tensor) in &adapter.weights.tensors {
            if let Some((module, name)) = key.split_once(&*saved) {
                let key = format!("base_model.{module}.{name}");
                tensors.insert(key.into(), tensor.clone());
            }
        }
        tensors.sort_unstable_keys();
    }
    Ok(Some(PeftFolder { config, tensors }))
}

fn prompt_config(
    adapter: &AdapterFolder,
    prompt: &PromptTuning,
    tensor: &TensorData,
) -> Map<String, Value> {
    let mut config = learned(adapter, "PROMPT_TUNING", prompt.prompt_length);
    for (key, value) in [
        ("token_dim", json!(tensor.dims.get(1))),
        (
            "num_transformer_submodules",
            json!(1 + u8::from(prompt.decoder_prompt)),
        ),
        ("prompt_tuning_init", json!("RANDOM")),
        ("prompt_tuning_init_text", Value::Null),
        ("tokenizer_name_or_path", Value::Null),
    ] {
        config.insert(key.into(), value);
    }
    config
}

fn prefix_config(adapter: &AdapterFolder, prefix: &PrefixTuning) -> Map<String, Value> {
    let mut config = learned(adapter, "PREFIX_TUNING", prefix.prefix_length);
    for (key, value) in [
        ("encoder_hidden_size", json!(adapter.meta.hidden_size)),
        ("num_layers", json!(prefix.num_layers)),
        (
            "num_transformer_submodules",
            json!(1 + u8::from(prefix.every_other)),
        ),
        ("prefix_projection", json!(false)),
        ("token_dim", Value::Null),
    ] {
        config.insert(key.into(), value);
    }
    config
}

/// The learned positions of an adapter.
fn learned_tensor<'a>(adapter: &'a AdapterFolder, within: &str) -> Result<&'a TensorData> {
    let mut tensors = adapter.weights.tensors.iter();
    let own = tensors.find(|(k, _)| belongs(k, &adapter.name) && k.contains(within));
    own.map(|(_, tensor)| tensor).ok_or_else(|| {
        refuse(
            format!("`{}` has no parameters", adapter.name),
            "the weights and the name in adapter_config.json differ",
        )
    })
}

/// What the configurations of PEFT's prompts and prefixes say.
fn learned(adapter: &AdapterFolder, kind: &str, length: usize) -> Map<String, Value> {
    let mut config = common(adapter);
    config.shift_remove("fan_in_fan_out");
    for (key, value) in [
        ("peft_type", json!(kind)),
        ("num_virtual_tokens", json!(length)),
        ("num_attention_heads", Value::Null),
        ("num_layers", Value::Null),
    ] {
        config.insert(key.into(), value);
    }
    config
}

fn targeted_config(adapter: &AdapterFolder, lora: &Lora, scale: bool) -> Map<String, Value> {
    let t = &lora.targets;
    let vera = lora.vera_d.is_some() || lora.vera_b.is_some();
    let mut out = common(adapter);
    if let (None, Some(tokens)) = (&t.target_modules, &t.trainable_token_indices) {
        out.insert("peft_type".into(), json!("TRAINABLE_TOKENS"));
        out.insert("init_weights".into(), json!(true));
        let whole = |name: &str| {
            let scope = format!("{name}.token_adapters.");
            let mut keys = adapter.weights.tensors.keys();
            keys.any(|k| k.starts_with(&*scope))
        };
        let (ids, names) = match tokens {
            TokenIndices::Words(ids) => (Some(ids), Value::Null),
            // PEFT takes a text as an expression for a whole path, and writes the table's as one.
            TokenIndices::Of(map) => match map.iter().next() {
                Some((name, ids)) if map.len() == 1 && whole(name) => (Some(ids), json!(name)),
                first => (first.map(|f| f.1), json!(map.keys().collect::<Vec<_>>())),
            },
        };
        out.insert("token_indices".into(), json!(ids));
        out.insert("target_modules".into(), json!(names));
        return out;
    }
    out.insert("target_modules".into(), json!(t.target_modules));
    out.insert("exclude_modules".into(), json!(t.exclude_modules));
    let saved = (!t.modules_to_save.is_empty()).then_some(&t.modules_to_save);
    out.insert("modules_to_save".into(), json!(saved));
    if scale {
        out.insert("peft_type".into(), json!("IA3"));
        let inner = t.feedforward_modules.clone();
        let inner = inner.unwrap_or(Names::Many(Vec::new()));
        out.insert("feedforward_modules".into(), json!(inner));
        out.insert("init_ia3_weights".into(), json!(true));
        return out;
    }
    out.insert("r".into(), json!(lora.r));
    out.insert("layers_to_transform".into(), json!(t.layers_to_transform));
    out.insert("layers_pattern".into(), json!(t.layers_pattern));
    let bias = t.bias.as_deref().unwrap_or("none");
    if vera {
        let bias = if bias == "lora_only" {
            "vera_only"
        } else {
            bias
        };
        for (key, value) in [
            ("peft_type", json!("VERA")),
            ("bias", json!(bias)),
            ("vera_dropout", json!(lora.dropout)),
            ("d_initial", json!(lora.vera_d)),
            ("projection_prng_key", json!(0)),
            ("save_projection", json!(true)),
            ("init_weights", json!(true)),
        ] {
            out.insert(key.into(), value);
        }
        return out;
    }
    for (key, value) in [
        ("peft_type", json!("LORA")),
        ("bias", json!(bias)),
        ("lora_alpha", json!(lora.alpha)),
        ("lora_dropout", json!(lora.dropout)),
        ("rank_pattern", json!(t.rank_pattern)),
        ("alpha_pattern", json!(t.alpha_pattern)),
        ("use_rslora", json!(t.use_rslora)),
        ("use_dora", json!(lora.use_dora == Some(true))),
        ("lora_bias", json!(t.lora_bias)),
        ("trainable_token_indices", json!(t.trainable_token_indices)),
        ("init_lora_weights", json!(true)),
    ] {
        out.insert(key.into(), value);
    }
    out
}

/// What all of PEFT's configurations say.
fn common(adapter: &AdapterFolder) -> Map<String, Value> {
    let m = &adapter.meta;
    let task = [
        ("ForCausalLM", "CAUSAL_LM"),
        ("LMHeadModel", "CAUSAL_LM"),
        ("ForSequenceClassification", "SEQ_CLS"),
        ("ForConditionalGeneration", "SEQ_2_SEQ_LM"),
        ("ForTokenClassification", "TOKEN_CLS"),
        ("ForQuestionAnswering", "QUESTION_ANS"),
    ];
    let task = task
        .iter()
        .find(|(end, _)| m.model_class.ends_with(end))
        .map(|(_, t)| *t);
    let name = (!m.model_name.is_empty()).then_some(&m.model_name);
    // The commit that was pulled, where the name is that of its repository.
    let pulled = m.extra.get(base::KEY).map(|own| &own["hub"]);
    let pulled = pulled.filter(|hub| hub["repo"].as_str() == Some(&m.model_name));
    let revision = pulled.map_or(Value::Null, |hub| hub["revision"].clone());
    let mut out = Map::new();
    for (key, value) in [
        ("base_model_name_or_path", json!(name)),
        ("fan_in_fan_out", json!(m.model_type == "gpt2")),
        ("inference_mode", json!(true)),
        ("revision", revision),
        ("task_type", json!(task)),
    ] {
        out.insert(key.into(), value);
    }
    out
}

fn peft_config(
    adapter: &AdapterFolder,
    lora: &Lora,
    scale: bool,
    ranks: &IndexMap<String, usize>,
) -> Result<Map<String, Value>> {
    let targets = targets(adapter, lora, &ranks.keys().map(String::as_str));
    let mut out = Value::Object(common(adapter));
    out["bias"] = json!("none");
    out["modules_to_save"] = Value::Null;
    out["peft_type"] = json!(if scale { "IA3" } else { "LORA" });
    out["target_modules"] = json!(targets);
    if scale {
        out["feedforward_modules"] = json!([]);
        out["init_ia3_weights"] = json!(true);
        out.as_object_mut().map(|o| o.shift_remove("bias"));
    } else {
        let common = ranks.values().next().copied().unwrap_or(lora.r);
        let alpha = |rank: usize| crate::adapters::average::scaled(&lora.alpha, rank, lora.r);
        let other = || ranks.iter().filter(|(_, r)| **r != common);
        out["r"] = json!(common);
        out["lora_alpha"] = json!(alpha(common));
        out["lora_dropout"] = json!(lora.dropout);
        out["init_lora_weights"] = json!(true);
        out["use_dora"] = json!(false);
        out["use_rslora"] = json!(false);
        out["layers_pattern"] = Value::Null;
        out["layers_to_transform"] = Value::Null;
        out["rank_pattern"] = other()
            .map(|(m, r)| (m.clone(), json!(r)))
            .collect::<Map<_, _>>()
            .into();
        out["alpha_pattern"] = other()
            .map(|(m, r)| (m.clone(), json!(alpha(*r))))
            .collect::<Map<_, _>>()
            .into();
    }
    match out {
        Value::Object(map) => Ok(map),
        _ => Err(refuse(
            "the configuration is no object",
            "this is a defect; please report it",
        )),
    }
}

/// `target_modules`: paths in the layer where they name the adapted modules and no others, full paths otherwise.
fn targets<'m>(
    adapter: &AdapterFolder,
    lora: &Lora,
    modules: &(impl Iterator<Item = &'m str> + Clone),
) -> Vec<String> {
    let full = || modules.clone().map(str::to_owned).collect();
    let (true, Some(interface)) = (lora.leave_out.is_empty(), interface(adapter)) else {
        return full();
    };
    let (layers, linears) = (
        interface.fields.model_layers.get(0).unwrap_or_default(),
        linears(&interface),
    );
    if interface.stacks() != 1
        || modules
            .clone()
            .any(|m| locate(m, layers, &linears).is_none())
    {
        return full();
    }
    let adapted = |path: &str| {
        modules.clone().any(|m| {
            m.ends_with(&format!(".{path}"))
                && locate(m, layers, &[(Role::Output, path.to_owned())]).is_some()
        })
    };
    let (wanted, others): (Vec<_>, Vec<_>) = linears
        .iter()
        .map(|(_, path)| path)
        .partition(|p| adapted(p));
    if others
        .iter()
        .any(|o| wanted.iter().any(|w| o.ends_with(&format!(".{w}"))))
    {
        return full();
    }
    wanted.into_iter().cloned().collect()
}
