//! The ONNX project's own cases: one node each, inputs and what it makes of them.
//!
//! `fixtures/node` holds one for each operator. With `ONNX_NODE_CASES` naming the folder that
//! `python -m onnx.backend.test.cmd_tools generate-data -o FOLDER` writes (its `node`), all of them are run, those of types that are
//! not computed with aside; `ONNX_NODE_REPORT` names a file for what fails and why.

use super::support::fixture;
use onnx_graft::infer::Verified;
use onnx_graft::ir::{DType, Model, Type, TypeKind};
use onnx_graft::onnx;
use onnx_graft::runtime::value::{Value, Weight};
use onnx_graft::runtime::{CompileOptions, Feeds, Plan};
use onnx_graft_kernels::team::{Team, map};
use std::collections::BTreeMap;
use std::path::Path;

/// The files of a case, by their path in its folder.
type Files = BTreeMap<String, Vec<u8>>;

/// Cases whose results are random: only type and shape are compared.
const RANDOM: [&str; 6] = [
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
];

/// What became of a case.
enum Verdict {
    Passed,
    Failed(String),
    /// It has values of a type that is not computed with.
    Foreign,
}

fn carried(dtype: DType) -> bool {
    dtype.is_float()
        || matches!(
            dtype,
            DType::Uint8
                | DType::Int8
                | DType::Uint16
                | DType::Int16
                | DType::Int32
                | DType::Int64
                | DType::Uint32
                | DType::Uint64
                | DType::Bool
        )
}

fn is_foreign(model: &Model) -> bool {
    let g = &model.graph;
    let ports = g.inputs().iter().chain(g.outputs());
    ports
        .map(|p| p.ty.as_ref().or(g.value(p.value).ty.as_ref()))
        .any(|ty| match ty.map(|t: &Type| &t.kind) {
            Some(TypeKind::Tensor { dtype, .. }) => !carried(*dtype),
            Some(TypeKind::Other) => true,
            None => false,
        })
}

fn tensor(bytes: &[u8]) -> Result<Value, String> {
    let data = onnx::tensor(bytes.to_vec().into()).map_err(|e| e.to_string())?;
    let weight = Weight::new(&data, &candle_core::Device::Cpu).map_err(|e| e.to_string())?;
    weight.value().map_err(|e| e.to_string())
}

/// Tensors of a data set, in order.
fn numbered<'a>(
    files: &'a Files,
    set: &'a str,
    what: &'a str,
) -> impl Iterator<Item = &'a Vec<u8>> {
    (0..).map_while(move |i| files.get(&format!("{set}/{what}_{i}.pb")))
}

/// The distance that two results may have: rounding of sums in single precision, and half a step of narrower types.
fn close(want: f64, found: f64, dtype: DType) -> bool {
    if want.is_nan() || found.is_nan() {
        return want.is_nan() == found.is_nan();
    }
    let relative = match dtype {
        DType::Bfloat16 => 1e-2,
        DType::Float16 => 2e-3,
        _ => 1e-3,
    };
    // Infinities are near themselves only.
    want.to_bits() == found.to_bits() || (want - found).abs() <= 1e-5 + relative * want.abs()
}

fn doubles(v: &Value) -> Result<Vec<f64>, String> {
    if v.dtype().is_float() {
        let v = v.to_f32().map_err(|e| e.to_string())?;
        return Ok(v.into_iter().map(f64::from).collect());
    }
    let v = v.to_ints().map_err(|e| e.to_string())?;
    Ok(v.into_iter().map(|x| x as f64).collect())
}

fn compare(name: &str, want: &Value, found: &Value, random: bool) -> Result<(), String> {
    if want.dtype() != found.dtype() || want.dims() != found.dims() {
        return Err(format!(
            "`{name}` is {}{:?}, expected {}{:?}",
            found.dtype(),
            found.dims(),
            want.dtype(),
            want.dims()
        ));
    }
    if random {
        return Ok(());
    }
    let (a, b) = (doubles(want)?, doubles(found)?);
    let off: Vec<usize> = (0..a.len())
        .filter(|&i| !close(a[i], b[i], want.dtype()))
        .collect();
    match off.first() {
        None => Ok(()),
        Some(&i) => Err(format!(
            "`{name}`: {} of {} differ, at {i} {} and not {}",
            off.len(),
            a.len(),
            b[i],
            a[i]
        )),
    }
}

fn run(model: &Verified, files: &Files, random: bool) -> Result<(), String> {
    let g = &model.model().graph;
    let plan = Plan::compile(model, &CompileOptions::default()).map_err(|e| e.to_string())?;
    for set in (0..).map(|i| format!("test_data_set_{i}")) {
        if !files.keys().any(|f| f.starts_with(&set)) {
            break;
        }
        let mut feeds = Feeds::new();
        for (port, bytes) in g.inputs().iter().zip(numbered(files, &set, "input")) {
            feeds.insert(g.name_of(port.value), tensor(bytes)?);
        }
        let outs = plan.run(&feeds).map_err(|e| e.to_string())?;
        for (port, bytes) in g.outputs().iter().zip(numbered(files, &set, "output")) {
            let name = g.name_of(port.value);
            let found = &outs.get(name).ok_or("an output is missing")?.0;
            compare(name, &tensor(bytes)?, found, random)?;
        }
    }
    Ok(())
}

/// The operator that a case is about, and what became of it.
fn judge(name: &str, files: &Files) -> (String, Verdict) {
    let source = onnx::ExternalSource::none();
    let bytes = files.get("model.onnx").cloned().unwrap_or_default();
    let model = match onnx::read(bytes.into(), &source) {
        Ok(m) => m,
        Err(e) => return ("?".into(), Verdict::Failed(format!("read: {e}"))),
    };
    let g = &model.graph;
    let op = g
        .nodes()
        .next()
        .map_or_else(|| "?".into(), |n| g.node(n).op.to_string());
    if is_foreign(&model) {
        return (op, Verdict::Foreign);
    }
    let random = g.nodes().any(|n| RANDOM.contains(&&*g.node(n).op.op_type))
        || name.contains("training_dropout");
    let done = Verified::check(model)
        .map_err(|r| format!("verify: {:?}", r.findings))
        .and_then(|m| run(&m, files, random));
    match done {
        Ok(()) => (op, Verdict::Passed),
        Err(e) => (op, Verdict::Failed(e)),
    }
}

/// The cases of a folder.
fn unpacked(folder: &Path) -> BTreeMap<String, Files> {
    let mut cases: BTreeMap<String, Files> = BTreeMap::new();
    let list = |folder: &Path| -> Vec<std::path::PathBuf> {
        std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect()
    };
    let name = |p: &Path| p.file_name().unwrap().to_string_lossy().into_owned();
    for case in list(folder) {
        let files = cases.entry(name(&case)).or_default();
        for path in list(&case) {
            if path.is_file() {
                files.insert(name(&path), std::fs::read(path).unwrap());
                continue;
            }
            for file in list(&path) {
                let inside = format!("{}/{}", name(&path), name(&file));
                files.insert(inside, std::fs::read(file).unwrap());
            }
        }
    }
    cases
}

/// The cases among the fixtures: files as tensors of bytes.
fn packed() -> BTreeMap<String, Files> {
    let bytes = std::fs::read(fixture("node/cases.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut cases: BTreeMap<String, Files> = BTreeMap::new();
    for (path, view) in file.tensors() {
        let (case, inside) = path.split_once('/').unwrap();
        let files = cases.entry(case.to_owned()).or_default();
        files.insert(inside.to_owned(), view.data().to_vec());
    }
    cases
}

#[test]
fn node_cases_of_the_onnx_project_pass() {
    let all = std::env::var_os("ONNX_NODE_CASES");
    let cases = all.as_ref().map_or_else(packed, |f| unpacked(Path::new(f)));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let judged: Vec<(String, String, Verdict)> = Team::new(cores).unwrap().run(|| {
        map(cases, |(name, files)| {
            let (op, verdict) = judge(&name, &files);
            (name, op, verdict)
        })
    });
    let mut failed: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let (mut passed, mut foreign) = (0, 0);
    for (name, op, verdict) in &judged {
        match verdict {
            Verdict::Passed => passed += 1,
            Verdict::Foreign => foreign += 1,
            Verdict::Failed(why) => {
                failed.entry(op).or_default().push(format!("{name}: {why}"));
            }
        }
    }
    let count: usize = failed.values().map(Vec::len).sum();
    let mut text = format!("{passed} passed, {count} failed, {foreign} of other types\n");
    for (op, lines) in &failed {
        text += &format!("\n{op}: {}\n", lines.len());
        for line in lines {
            text += &format!("    {line}\n");
        }
    }
    if let Some(path) = std::env::var_os("ONNX_NODE_REPORT") {
        std::fs::write(path, &text).unwrap();
    }
    assert!(passed > 0 && failed.is_empty(), "{text}");
}
