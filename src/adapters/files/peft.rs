//! PEFT's adapter folders (`adapter_config.json` with `peft_type`, `adapter_model.safetensors`), to and from AdapterHub's.
//!
//! What both can say is converted so that the numbers stay: LoRA, also on fused projections, and (IA)³. Everything else is refused
//! with the reason; nothing is approximated. In particular DoRA is refused: PEFT takes the norm with the scale, and leaves the bias
//! out of it.

use crate::adapters::average::Blocks;
use crate::adapters::folder::{
    AdapterFolder, Meta, VERSION, WriteOptions, object, read_file, read_safetensors,
    to_safetensors, write_files,
};
use crate::adapters::methods::MethodConfig;
use crate::adapters::methods::lora::Lora;
use crate::adapters::naming::belongs;
use crate::adapters::plan::check_name;
use crate::adapters::store::{Weights, convert};
use crate::adapters::{Config, config::json, torch};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::TensorData;
use crate::select::Interface;
use indexmap::{IndexMap, IndexSet};
use serde_json::{Map, Number, Value, json};
use std::fs;
use std::path::Path;

/// Names of the files.
pub(crate) mod file {
    /// Configuration.
    pub(crate) const CONFIG: &str = "adapter_config.json";
    /// Weights, safetensors.
    pub(crate) const SAFETENSORS: &str = "adapter_model.safetensors";
    /// Weights, torch.
    pub(crate) const TORCH: &str = "adapter_model.bin";
}

/// What stands before a module's path in PEFT's keys.
const PREFIX: &str = "base_model.model.";

/// An adapter as PEFT saves it.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftFolder {
    /// The configuration, with at least `peft_type`.
    pub config: Map<String, Value>,
    /// The weights, by the names of the file.
    pub tensors: IndexMap<Box<str>, TensorData>,
}

/// Whether a folder is one of PEFT's.
pub(crate) fn is_peft(folder: &Path) -> bool {
    let text = fs::read_to_string(folder.join(file::CONFIG)).unwrap_or_default();
    object(&text).is_ok_and(|map| map.contains_key("peft_type"))
}

impl PeftFolder {
    /// Reads a folder.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when a file is missing, [`ErrorKind::Method`] and [`ErrorKind::Decode`] when one is not understood.
    pub fn read(folder: &Path) -> Result<PeftFolder> {
        let path = folder.join(file::CONFIG);
        let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "cannot be read", e))?;
        let config = object(&text).map_err(|e| e.within(path.display().to_string()))?;
        if !config.contains_key("peft_type") {
            return Err(refuse(
                "the configuration has no `peft_type`",
                "this is not a folder of PEFT's",
            ));
        }
        let (safe, bin) = (folder.join(file::SAFETENSORS), folder.join(file::TORCH));
        let tensors = if safe.exists() {
            read_safetensors(&read_file(&safe)?)
                .map_err(|e| e.within(safe.display().to_string()))?
        } else {
            torch::read(&read_file(&bin)?).map_err(|e| e.within(bin.display().to_string()))?
        };
        Ok(PeftFolder { config, tensors })
    }

    /// Writes the folder, as [`AdapterFolder::write`] does.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], also when a file is there and `force` is not set.
    pub fn write(&self, folder: &Path, options: WriteOptions) -> Result<()> {
        let config = json::pretty(&Value::Object(self.config.clone()));
        let files = [
            (file::SAFETENSORS, to_safetensors(&self.tensors)?),
            (file::CONFIG, config.into_bytes()),
        ];
        write_files(folder, &files, options.force)
    }
}

fn refuse(what: impl Into<String>, help: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        Diagnostic::error("convert", what).help(help),
    )
}

/// An adapter of AdapterHub's as one of PEFT's.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for what PEFT cannot say with the same numbers.
pub(crate) fn to_peft(adapter: &AdapterFolder) -> Result<PeftFolder> {
    let Config::One(MethodConfig::Lora(lora)) = &adapter.config else {
        return Err(refuse(
            format!(
                "`{}` is {}, which PEFT does not have in this form",
                adapter.name,
                adapter.config.architecture()
            ),
            "LoRA and (IA)³ can be converted",
        ));
    };
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
    let blocks = Blocks::of(module, a, b, lora.r, adapter.meta.hidden_size)?;
    let on = enabled(lora);
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

fn interface(adapter: &AdapterFolder) -> Option<Interface> {
    match &adapter.interface {
        Some(text) => Interface::parse(text, "adapter_interface.json").ok(),
        None => Interface::builtin(&adapter.meta.model_type)?.ok(),
    }
}

fn floats(t: &TensorData, module: &str) -> Result<Vec<f32>> {
    t.to_f32().ok_or_else(|| {
        refuse(
            format!("a parameter of `{module}` is {}", t.dtype),
            "parameters are floats",
        )
    })
}

fn typed(dims: &[u64], values: &[f32], like: &TensorData) -> Result<TensorData> {
    convert(&TensorData::from_f32(dims, values), like.dtype).ok_or_else(|| {
        refuse(
            format!("a parameter cannot be {}", like.dtype),
            "parameters are floats",
        )
    })
}

fn peft_config(
    adapter: &AdapterFolder,
    lora: &Lora,
    scale: bool,
    ranks: &IndexMap<String, usize>,
) -> Result<Map<String, Value>> {
    let targets = targets(adapter, lora, &ranks.keys().map(String::as_str));
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
    let conv1d = m.model_type == "gpt2";
    let name = (!m.model_name.is_empty()).then_some(&m.model_name);
    let mut out = json!({
        "base_model_name_or_path": name, "bias": "none", "fan_in_fan_out": conv1d, "inference_mode": true,
        "modules_to_save": null, "peft_type": if scale { "IA3" } else { "LORA" }, "revision": null,
        "target_modules": targets, "task_type": task,
    });
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

/// What a linear is in AdapterHub's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Letter(char),
    Fused,
    Intermediate,
    Output,
}

/// The linears of a layer that an interface names, by their paths in the layer.
fn linears(interface: &Interface) -> Vec<(Role, String)> {
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
            out.extend(path.get(0).map(|p| (role, format!("{attention}.{p}"))));
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

/// An adapter of PEFT's as one of AdapterHub's, for a model that the interface describes.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for what AdapterHub cannot say with the same numbers, all modules that it cannot adapt together.
pub(crate) fn from_peft(
    peft: &PeftFolder,
    name: &str,
    interface: &Interface,
) -> Result<AdapterFolder> {
    check_name(name)?;
    let text = |key: &str| {
        peft.config
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let scale = match text("peft_type") {
        "LORA" => false,
        "IA3" => true,
        other => {
            return Err(refuse(
                format!("`peft_type` is `{other}`"),
                "LORA and IA3 can be converted",
            ));
        }
    };
    if interface.stacks() != 1 {
        return Err(refuse(
            "the interface has several stacks of layers",
            "adapters of models with one stack can be converted",
        ));
    }
    plain(&peft.config)?;
    let sorted = sorted_modules(peft, interface)?;
    let mut lora = if scale { Lora::ia3() } else { Lora::lora() };
    if !scale {
        ranked(&mut lora, &peft.config)?;
    }
    flags(&mut lora, &sorted)?;
    let mut tensors = IndexMap::new();
    for m in &sorted {
        let own = |suffix: &str| format!("{}.loras.{name}.{suffix}", m.path).into();
        if scale {
            let Some(l) = peft.tensors.get(&*format!("{PREFIX}{}.ia3_l", m.path)) else {
                continue;
            };
            if l.dims.len() != 2 || l.dims[1] != 1 {
                return Err(refuse(
                    format!("`{}` is scaled at its input ({:?})", m.path, l.dims),
                    "AdapterHub's (IA)³ scales outputs; modules in PEFT's `feedforward_modules` cannot be converted",
                ));
            }
            tensors.insert(own("lora_B"), l.clone());
            continue;
        }
        let get = |which: &str| {
            peft.tensors
                .get(&*format!("{PREFIX}{}.{which}.weight", m.path))
                .ok_or_else(|| {
                    refuse(
                        format!("`{}` has no `{which}`", m.path),
                        "the file is not complete",
                    )
                })
        };
        let (a, b) = (get("lora_A")?, get("lora_B")?);
        if a.dims.first() != Some(&(lora.r as u64)) || b.dims.get(1) != Some(&(lora.r as u64)) {
            return Err(refuse(
                format!(
                    "`{}` has factors {:?} and {:?}, and `r` is {}",
                    m.path, a.dims, b.dims, lora.r
                ),
                "AdapterHub's LoRA has one rank for all modules",
            ));
        }
        // Each block of a fused projection gets the whole `A`.
        tensors.insert(
            own("lora_A"),
            if m.role == Role::Fused {
                thrice(a, &m.path)?
            } else {
                a.clone()
            },
        );
        tensors.insert(own("lora_B"), b.clone());
    }
    tensors.sort_unstable_keys();
    let hidden = None;
    Ok(AdapterFolder {
        name: name.to_owned(),
        config: Config::One(lora.into()),
        meta: Meta {
            hidden_size: hidden,
            model_name: text("base_model_name_or_path").to_owned(),
            model_type: interface.model_type.clone().unwrap_or_default(),
            version: Some(VERSION.into()),
            ..Meta::default()
        },
        weights: Weights {
            adapter: name.into(),
            tensors,
        },
        interface: Some(interface.to_json()),
        notes: Vec::new(),
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

/// PEFT's fields that change the numbers, and that AdapterHub's LoRA does not have.
const CHANGING: [&str; 10] = [
    "alora_invocation_tokens",
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "use_dora",
];

/// Refuses what changes the numbers and has no field in AdapterHub's configuration.
fn plain(config: &Map<String, Value>) -> Result<()> {
    let empty = |v: &Value| match v {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::String(s) => s == "none",
        _ => false,
    };
    let found: Vec<Diagnostic> = CHANGING
        .into_iter()
        .filter_map(|key| config.get(key).filter(|v| !empty(v)).map(|v| (key, v)))
        // The file holds what it holds: exclusions have been applied when it was made.
        .filter(|(key, _)| *key != "exclude_modules")
        .map(|(key, v)| {
            Diagnostic::error(
                "convert",
                format!("`{key}` is {v}, which AdapterHub's LoRA does not have"),
            )
        })
        .collect();
    if found.is_empty() {
        Ok(())
    } else {
        Err(Error::many(ErrorKind::Unsupported, found))
    }
}

/// `r`, `alpha` and `dropout`.
fn ranked(lora: &mut Lora, config: &Map<String, Value>) -> Result<()> {
    let r = config.get("r").and_then(Value::as_u64).filter(|r| *r > 0);
    let r = r.ok_or_else(|| refuse("`r` is missing", "the configuration is not complete"))?;
    let alpha = match config.get("lora_alpha") {
        Some(Value::Number(n)) => n.clone(),
        _ => 8.into(),
    };
    lora.r = usize::try_from(r)
        .map_err(|_| refuse(format!("`r` is {r}"), "the configuration is not right"))?;
    // PEFT divides by √r with rsLoRA: alpha' / r = alpha / √r.
    lora.alpha = if config.get("use_rslora") == Some(&Value::Bool(true)) {
        let scaled = alpha.as_f64().unwrap_or(8.0) * (r as f64).sqrt();
        Number::from_f64(scaled).unwrap_or(alpha)
    } else {
        alpha
    };
    lora.dropout = config
        .get("lora_dropout")
        .and_then(Value::as_f64)
        .unwrap_or(0.0);
    Ok(())
}

/// An adapted module.
struct Adapted {
    path: String,
    layer: usize,
    role: Role,
}

/// The modules of the file with their layers and roles; those that the interface does not name are refused together.
fn sorted_modules(peft: &PeftFolder, interface: &Interface) -> Result<Vec<Adapted>> {
    const SUFFIXES: [&str; 3] = [".lora_A.weight", ".lora_B.weight", ".ia3_l"];
    let linears = linears(interface);
    let layers = interface
        .fields
        .model_layers
        .get(0)
        .unwrap_or_default()
        .to_owned();
    let mut modules: IndexSet<&str> = IndexSet::new();
    let mut found = Vec::new();
    for key in peft.tensors.keys() {
        let module = key
            .strip_prefix(PREFIX)
            .and_then(|k| SUFFIXES.iter().find_map(|s| k.strip_suffix(s)));
        match module {
            Some(m) => {
                modules.insert(m);
            }
            None => found.push(Diagnostic::error(
                "convert",
                format!("`{key}` is no parameter of LoRA or (IA)³"),
            )),
        }
    }
    let mut out = Vec::new();
    for path in modules {
        match locate(path, &layers, &linears) {
            Some((layer, role)) => out.push(Adapted {
                path: path.to_owned(),
                layer,
                role,
            }),
            None => found.push(
                Diagnostic::error("convert", format!("`{path}` is none of the linears that the interface names"))
                    .help("AdapterHub's LoRA adapts q, k, v, the feed-forward's up and down projections (and o, here)"),
            ),
        }
    }
    if out.is_empty() && found.is_empty() {
        return Err(refuse("the file has no parameters", "it is not complete"));
    }
    if found.is_empty() {
        Ok(out)
    } else {
        Err(Error::many(ErrorKind::Unsupported, found))
    }
}

/// Layer and role of a module: `….LAYERS.N.PATH`.
fn locate(path: &str, layers: &str, linears: &[(Role, String)]) -> Option<(usize, Role)> {
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

/// The flags of the configuration that give exactly these modules.
fn flags(lora: &mut Lora, modules: &[Adapted]) -> Result<()> {
    let has = |layer: usize, role: Role| modules.iter().any(|m| m.layer == layer && m.role == role);
    let roles: IndexSet<String> = modules.iter().map(|m| format!("{:?}", m.role)).collect();
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
    for role in all.into_iter().filter(|r| any(*r)) {
        let lacks = (0..=last).find(|l| !lora.leave_out.contains(l) && !has(*l, role));
        if let Some(layer) = lacks {
            return Err(refuse(
                format!(
                    "layer {layer} lacks what other layers adapt ({role:?} of {})",
                    roles.iter().cloned().collect::<Vec<_>>().join(", ")
                ),
                "AdapterHub's LoRA adapts the same linears in every layer that it does not leave out",
            ));
        }
    }
    lora.attn_matrices = if any(Role::Fused) {
        ["q", "k", "v"].map(str::to_owned).to_vec()
    } else {
        ['q', 'k', 'v', 'o']
            .into_iter()
            .filter(|c| any(Role::Letter(*c)))
            .map(String::from)
            .collect()
    };
    lora.selfattn_lora = !lora.attn_matrices.is_empty();
    lora.intermediate_lora = any(Role::Intermediate);
    lora.output_lora = any(Role::Output);
    Ok(())
}

#[cfg(test)]
mod tests;
