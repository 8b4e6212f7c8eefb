//! PEFT's adapters as ONNX Runtime loads them, and back, by the names that Olive gives: `PATH.lora_A.weight` as `[in, r]`,
//! `PATH.lora_B.weight` as `[r, out]` with the scale in it.
//!
//! Other tools write such files as well. Those of onnxruntime-genai's model builder call an attention `attn`, and put the operator into
//! the name: both are understood.

use super::fields::{Kind, check};
use super::read::lora;
use super::{PREFIX, PeftFolder, floats, refuse, typed};
use crate::adapters::onnx_adapter::OnnxAdapter;
use crate::adapters::param::exchanged;
use crate::error::Result;
use crate::ir::TensorData;
use indexmap::IndexMap;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The ends of names: of `A`, of `B`, and of the vector of (IA)³.
const ENDS: [(&str, Part); 5] = [
    (".lora_A.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_A.MatMul.weight", Part::A),
    (".lora_B.MatMul.weight", Part::B),
    (".ia3_l", Part::Vector),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    A,
    B,
    Vector,
}

/// The adapter as ONNX Runtime loads it.
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::error::ErrorKind::Unsupported): what is neither LoRA nor (IA)³ of linears.
pub(crate) fn to_served(peft: &PeftFolder) -> Result<OnnxAdapter> {
    let kind = check(&peft.config)?;
    let help = "a graph made for it takes it: `rewrite export-adapter`";
    if !matches!(kind, Kind::Lora | Kind::Ia3) {
        return Err(refuse(
            "only LoRA and (IA)³ have names that other tools know",
            help,
        ));
    }
    let lora = lora(kind, &peft.config)?;
    let mut tensors = IndexMap::new();
    for (key, tensor) in &peft.tensors {
        let inner = key.strip_prefix(PREFIX).unwrap_or(key);
        let Some((path, part)) = parted(inner) else {
            let found = format!("`{key}` has no place in an adapter file of ONNX Runtime");
            return Err(refuse(found, help));
        };
        let tensor = match part {
            Part::Vector => tensor.clone(),
            Part::A => transposed(tensor, 1.0, path)?,
            Part::B => {
                let rank = tensor.dims.last().copied().unwrap_or(1) as usize;
                transposed(tensor, lora.scale_of(path, rank)?, path)?
            }
        };
        tensors.insert(inner.into(), tensor);
    }
    Ok(OnnxAdapter {
        adapter_version: 1,
        model_version: 1,
        tensors,
    })
}

/// The adapter of a file as one of PEFT's.
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::error::ErrorKind::Unsupported): parameters that are neither LoRA's nor (IA)³'s, or quantized.
pub(crate) fn from_served(file: &OnnxAdapter) -> Result<PeftFolder> {
    let mut modules: BTreeMap<String, BTreeMap<Part, &TensorData>> = BTreeMap::new();
    for (name, tensor) in &file.tensors {
        let Some((path, part)) = parted(name) else {
            let help = if name.contains(".quant.") {
                "it is quantized: export it again in floats"
            } else {
                "files with `….lora_A.weight` and `….lora_B.weight`, or `….ia3_l`, can be converted; others belong to the graph that they were exported with"
            };
            let found = format!("`{name}` is no parameter of LoRA or (IA)³");
            return Err(refuse(found, help));
        };
        let path = own_path(path);
        modules.entry(path).or_default().insert(part, tensor);
    }
    let mut out = PeftFolder {
        config: Map::new(),
        tensors: IndexMap::new(),
    };
    let mut ranks: BTreeMap<&str, u64> = BTreeMap::new();
    for (path, parts) in &modules {
        let get = |part: Part| parts.get(&part).copied();
        let key = |end: &str| -> Box<str> { format!("{PREFIX}{path}{end}").into() };
        match (get(Part::A), get(Part::B), get(Part::Vector)) {
            (Some(a), Some(b), None) => {
                let (inner, other) = (a.dims.last(), b.dims.first());
                let Some(rank) = inner.filter(|r| other == Some(r)) else {
                    let found = format!(
                        "`{path}` has matrices of {:?} and {:?}, whose ranks differ",
                        a.dims, b.dims
                    );
                    return Err(refuse(found, "the file is damaged, or of another layout"));
                };
                ranks.insert(path, *rank);
                out.tensors
                    .insert(key(".lora_A.weight"), transposed(a, 1.0, path)?);
                out.tensors
                    .insert(key(".lora_B.weight"), transposed(b, 1.0, path)?);
            }
            (None, None, Some(vector)) => {
                out.tensors.insert(key(".ia3_l"), vector.clone());
            }
            _ => {
                let found =
                    format!("`{path}` has one of LoRA's two matrices, or more than one method");
                return Err(refuse(found, "the file is not complete"));
            }
        }
    }
    if modules.is_empty() || (!ranks.is_empty() && ranks.len() < modules.len()) {
        let found = "the file holds no adapter of one method";
        return Err(refuse(found, "give a file of LoRA or of (IA)³ alone"));
    }
    let paths: Vec<&str> = modules.keys().map(String::as_str).collect();
    // A vector of the input lies in a row, one of the output in a column.
    let in_a_row = |parts: &BTreeMap<Part, &TensorData>| {
        let vector = parts.get(&Part::Vector);
        vector.is_some_and(|v| matches!(v.dims[..], [1, n] if n > 1))
    };
    let inner = modules.iter().filter(|(_, parts)| in_a_row(parts));
    let inner: Vec<&str> = inner.map(|(path, _)| path.as_str()).collect();
    out.config = config(&paths, &inner, &ranks);
    Ok(out)
}

/// Path of the module, and what of it a name is.
fn parted(name: &str) -> Option<(&str, Part)> {
    let found = ENDS
        .iter()
        .find_map(|(end, part)| Some((name.strip_suffix(end)?, *part)));
    found.filter(|(path, _)| !path.is_empty())
}

/// The path in the model itself: what onnxruntime-genai's builder calls `layers.0.attn.q_proj` is `layers.0.self_attn.q_proj` there.
fn own_path(path: &str) -> String {
    let linear = path.rsplit('.').next().unwrap_or_default();
    let built = path.starts_with("model.layers.") && linear.ends_with("_proj");
    match path
        .strip_suffix(linear)
        .and_then(|p| p.strip_suffix(".attn."))
    {
        Some(layer) if built => format!("{layer}.self_attn.{linear}"),
        Some(_) | None => path.to_owned(),
    }
}

/// The matrix with its axes exchanged, times a factor.
fn transposed(tensor: &TensorData, factor: f32, module: &str) -> Result<TensorData> {
    let [rows, columns] = tensor.dims[..] else {
        let found = format!("a parameter of `{module}` has the shape {:?}", tensor.dims);
        return Err(refuse(found, "LoRA of linears has matrices"));
    };
    let values = exchanged(&floats(tensor, module)?, [rows as usize, columns as usize]);
    let values: Vec<f32> = values.into_iter().map(|v| v * factor).collect();
    typed(&[columns, rows], &values, tensor)
}

/// PEFT's configuration. The scale is in the weights: `lora_alpha` is the rank.
fn config(paths: &[&str], inner: &[&str], ranks: &BTreeMap<&str, u64>) -> Map<String, Value> {
    let mut out = Map::new();
    let mut set = |key: &str, value: Value| {
        out.insert(key.into(), value);
    };
    set("base_model_name_or_path", Value::Null);
    set("inference_mode", json!(true));
    set("target_modules", json!(targets(paths)));
    let Some(most) = most_common(ranks.values()) else {
        set("peft_type", json!("IA3"));
        set("feedforward_modules", json!(targets(inner)));
        return out;
    };
    let other = ranks.iter().filter(|(_, r)| **r != most);
    let pattern: Map<String, Value> = other.map(|(p, r)| ((*p).to_owned(), json!(r))).collect();
    set("peft_type", json!("LORA"));
    set("r", json!(most));
    set("lora_alpha", json!(most));
    set("lora_dropout", json!(0.0));
    set("bias", json!("none"));
    set("alpha_pattern", Value::Object(pattern.clone()));
    set("rank_pattern", Value::Object(pattern));
    out
}

/// The number that stands there most often.
fn most_common<'n>(numbers: impl Iterator<Item = &'n u64>) -> Option<u64> {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for n in numbers {
        *counts.entry(*n).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(n, count)| (*count, *n));
    most.map(|(n, _)| n)
}

/// `target_modules`: the last words of the paths where every layer has all of them, else the paths.
fn targets<'p>(paths: &[&'p str]) -> BTreeSet<&'p str> {
    let mut by_word: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for path in paths {
        let (_, word) = path.rsplit_once('.').unwrap_or(("", path));
        let layer = path.split('.').find(|p| p.parse::<usize>().is_ok());
        by_word
            .entry(word)
            .or_default()
            .insert(layer.unwrap_or_default());
    }
    let mut layers = by_word.values();
    let first = layers.next();
    if layers.all(|l| Some(l) == first) {
        return by_word.into_keys().collect();
    }
    paths.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> PeftFolder {
        let config = json!({
            "peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "bias": "none",
        });
        let Value::Object(config) = config else {
            panic!("an object");
        };
        let q = format!("{PREFIX}model.layers.0.self_attn.q_proj");
        let a = TensorData::from_f32([2, 3], &[1., 2., 3., 4., 5., 6.]);
        let b = TensorData::from_f32([1, 2], &[7., 8.]);
        let tensors = [("lora_A", a), ("lora_B", b)];
        let tensors = tensors.map(|(n, t)| (format!("{q}.{n}.weight").into(), t));
        PeftFolder {
            config,
            tensors: tensors.into_iter().collect(),
        }
    }

    /// Olive's names, axes and scale.
    #[test]
    fn the_scale_goes_into_the_second_matrix() {
        let served = to_served(&folder()).unwrap();
        let a = &served.tensors["model.layers.0.self_attn.q_proj.lora_A.weight"];
        assert_eq!(*a.dims, [3, 2]);
        assert_eq!(a.to_f32().unwrap(), [1., 4., 2., 5., 3., 6.]);
        let b = &served.tensors["model.layers.0.self_attn.q_proj.lora_B.weight"];
        assert_eq!(
            (&*b.dims, b.to_f32().unwrap()),
            (&[2, 1][..], vec![21., 24.])
        );
        let back = from_served(&served).unwrap();
        assert_eq!(back.config["lora_alpha"], back.config["r"]);
        assert_eq!(back.config["target_modules"], json!(["q_proj"]));
        assert_eq!(to_served(&back).unwrap(), served);
    }

    /// Names of onnxruntime-genai's model builder are those of the model.
    #[test]
    fn other_names_of_the_same_modules_are_understood() {
        let mut served = to_served(&folder()).unwrap();
        let renamed = served.tensors.into_iter().map(|(name, t)| {
            let name = name.replace("self_attn", "attn");
            (name.replace(".weight", ".MatMul.weight").into(), t)
        });
        served.tensors = renamed.collect();
        let back = from_served(&served).unwrap();
        assert!(back.tensors.keys().eq(folder().tensors.keys()));
    }

    /// A vector of what a linear reads lies in a row, and is PEFT's feed-forward one.
    #[test]
    fn rows_are_of_feed_forward_modules() {
        let vectors = [("mlp.down_proj", [1, 3]), ("self_attn.k_proj", [2, 1])];
        let tensors = vectors.map(|(path, dims)| {
            let n = dims.iter().product::<u64>() as usize;
            let tensor = TensorData::from_f32(dims, &vec![1.5; n]);
            (format!("model.layers.0.{path}.ia3_l").into(), tensor)
        });
        let served = OnnxAdapter {
            tensors: tensors.into_iter().collect(),
            ..OnnxAdapter::default()
        };
        let back = from_served(&served).unwrap();
        assert_eq!(back.config["feedforward_modules"], json!(["down_proj"]));
        assert_eq!(
            back.config["target_modules"],
            json!(["down_proj", "k_proj"])
        );
    }

    /// What is not complete, or of other methods, is refused by name.
    #[test]
    fn half_an_adapter_is_refused() {
        let whole = to_served(&folder()).unwrap();
        let mut half = whole.clone();
        half.tensors.pop();
        let found = from_served(&half).unwrap_err().to_string();
        assert!(
            found.contains("q_proj` has one of LoRA's two matrices"),
            "{found}"
        );
        let mut other = whole;
        let vector = TensorData::from_f32([1], &[1.]);
        other.tensors.insert("x.adapter_up.bias".into(), vector);
        let found = from_served(&other).unwrap_err().to_string();
        assert!(
            found.contains("`x.adapter_up.bias` is no parameter"),
            "{found}"
        );
    }
}
