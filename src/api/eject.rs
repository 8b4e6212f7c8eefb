//! Prefixes without the network that makes them: the library's `eject_prefix_tuning`.

use crate::adapters::config::Members;
use crate::adapters::folder::AdapterFolder;
use crate::adapters::methods::MethodConfig;
use crate::adapters::methods::prefix_tuning::{FLAT, PrefixTuning};
use crate::adapters::{Config, naming};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::{Builder, DType, Model, TensorData, Type, TypeKind, Val};
use crate::runtime::{CompileOptions, Feeds, Plan};
use indexmap::IndexMap;

/// Computes the prefixes of a saved prefix tuning once, and stores them in the place of the network that makes them. The adapter
/// computes the same as before; its configuration says `flat`, so that the library reads it as what it is.
///
/// # Errors
/// [`ErrorKind::Method`]: an adapter without a prefix tuning, one that is flat already, weights that are missing or do not fit.
pub(crate) fn eject_prefix_tuning(folder: AdapterFolder) -> Result<AdapterFolder> {
    let AdapterFolder {
        name,
        config,
        mut weights,
        ..
    } = folder.clone();
    let prefixes = config.methods().iter().filter_map(|m| match m {
        MethodConfig::PrefixTuning(p) => Some(p),
        _ => None,
    });
    let Some(method) = prefixes.clone().find(|p| !p.flat).cloned() else {
        return Err(nothing(&name, prefixes.count() > 0));
    };
    let homes = homes(&weights.tensors, &name)?;
    let mut done: IndexMap<&str, TensorData> = IndexMap::new();
    for home in &homes {
        // The library stores one table under the names of all attentions that read it.
        let location = home.rsplit('.').next().unwrap_or_default();
        if !done.contains_key(location) {
            let flat = ejected(&method, home, &weights.tensors)?;
            done.insert(location, flat);
        }
    }
    for home in &homes {
        for key in PrefixTuning::NETWORK {
            weights.tensors.shift_remove(&*format!("{home}.{key}"));
        }
        let location = home.rsplit('.').next().unwrap_or_default();
        let flat = done[location].clone();
        weights
            .tensors
            .insert(format!("{home}.{FLAT}").into(), flat);
    }
    Ok(AdapterFolder {
        config: flattened(config),
        weights,
        ..folder
    })
}

fn nothing(name: &str, flat: bool) -> Error {
    let (message, help) = if flat {
        (
            format!("the prefixes of `{name}` are parameters already"),
            "use the folder as it is",
        )
    } else {
        (
            format!("`{name}` has no prefix tuning"),
            "only prefix tuning has a network that can be ejected",
        )
    };
    Error::new(
        ErrorKind::Method,
        Diagnostic::error("eject", message).help(help),
    )
}

/// The modules that hold the network, by the keys of a file.
fn homes(tensors: &IndexMap<Box<str>, TensorData>, name: &str) -> Result<Vec<String>> {
    let first = format!(".{}", PrefixTuning::NETWORK[0]);
    let homes: Vec<String> = tensors
        .keys()
        .filter(|k| naming::belongs(k, name))
        .filter_map(|k| k.strip_suffix(&first).map(str::to_owned))
        .collect();
    if homes.is_empty() {
        let finding = Diagnostic::error(
            "eject",
            format!("the file of `{name}` holds no {}", PrefixTuning::NETWORK[0]),
        );
        return Err(Error::new(
            ErrorKind::Method,
            finding.help("the weights belong to another configuration"),
        ));
    }
    Ok(homes)
}

/// The prefixes that the network in a module makes, in one row.
fn ejected(
    method: &PrefixTuning,
    home: &str,
    tensors: &IndexMap<Box<str>, TensorData>,
) -> Result<TensorData> {
    let missing: Vec<Diagnostic> = PrefixTuning::NETWORK
        .iter()
        .map(|key| format!("{home}.{key}"))
        .filter(|key| !tensors.contains_key(&**key))
        .map(|key| Diagnostic::error("weights-missing", format!("`{key}` is not in the file")))
        .collect();
    if !missing.is_empty() {
        return Err(Error::many(ErrorKind::Method, missing));
    }
    let b = Builder::new(17);
    let get = |key: &str| -> Val {
        let full = format!("{home}.{key}");
        let tensor = tensors[&*full].clone();
        let dtype = tensor.dtype;
        let v = b.initializer(&full, tensor);
        if dtype == DType::Float {
            v
        } else {
            b.cast(v, DType::Float)
        }
    };
    let flat = b.reshape(method.generated(&b, &get), b.ints(&[-1]));
    let undeclared = Type {
        kind: TypeKind::Tensor {
            dtype: DType::Float,
            dims: None,
        },
        exact: None,
    };
    let wrong = |e: String| Error::new(ErrorKind::Method, Diagnostic::error("eject", e).at(home));
    let graph = b
        .finish_graph("eject", &[(flat, FLAT, undeclared)])
        .map_err(|e| wrong(e.to_string()))?;
    let model = Model {
        graph,
        opset_imports: vec![("".into(), 17)],
        ir_version: 8,
        ..Model::default()
    };
    let verified = Verified::check(model).map_err(|r| Error::from(r).within(home))?;
    let plan = Plan::compile(&verified, &CompileOptions::default())?;
    let results = plan.run(&Feeds::new())?;
    let value = results
        .get(FLAT)
        .ok_or_else(|| wrong("nothing came out".into()))?;
    let numbers = value.to_f32().map_err(|e| wrong(e.to_string()))?;
    Ok(TensorData::from_f32([numbers.len() as u64], &numbers))
}

/// The configuration of an adapter whose prefixes are parameters.
fn flattened(config: Config) -> Config {
    let flat = |m: MethodConfig| match m {
        MethodConfig::PrefixTuning(p) => PrefixTuning { flat: true, ..p }.into(),
        other => other,
    };
    Config(match config.0 {
        Members::One(m) => Members::One(flat(m)),
        Members::Union(all) => Members::Union(all.into_iter().map(flat).collect()),
    })
}
