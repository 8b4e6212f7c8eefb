//! Selection against the ground truth of the fixtures: `hooks.json` lists, for every place that an interface names, the values of
//! the graph that equal the tensor which the model's own module read or made.

use onnx_graft::infer::Verified;
use onnx_graft::ir::{Graph, ValueId};
use onnx_graft::select::{Interface, Layer, LinearSite, NormSite, Selection};
use serde_json::Value;
use std::path::Path;

/// One selected place: its name in `hooks.json`, side, value.
type Point = (String, &'static str, ValueId);

fn points(sel: &Selection) -> Vec<Point> {
    let mut out = Vec::new();
    for e in &sel.embeddings {
        out.push(("model_embeddings".to_owned(), "out", e.output));
    }
    for l in &sel.layers {
        layer_points(l, l.index, &mut out);
    }
    out
}

fn layer_points(l: &Layer, index: usize, out: &mut Vec<Point>) {
    let name = |field: &str| format!("layer.{index}.{field}");
    out.push((format!("layer.{index}"), "in", l.input));
    out.push((format!("layer.{index}"), "out", l.output));
    let mut linear = |field: String, site: &Option<LinearSite>| {
        if let Some(s) = site {
            out.push((field.clone(), "in", s.input));
            out.push((field, "out", s.output));
        }
    };
    for (field, attn) in [
        ("layer_self_attn", &l.self_attn),
        ("layer_cross_attn", &l.cross_attn),
    ] {
        let Some(a) = attn else { continue };
        linear(name(&format!("{field}.attn_q_proj")), &a.q);
        linear(name(&format!("{field}.attn_k_proj")), &a.k);
        linear(name(&format!("{field}.attn_v_proj")), &a.v);
        linear(name(&format!("{field}.attn_qkv_proj")), &a.qkv);
        linear(name(&format!("{field}.attn_o_proj")), &a.o);
    }
    linear(name("layer_intermediate_proj"), &l.intermediate);
    linear(name("layer_output_proj"), &l.output_proj);
    for (field, attn) in [
        ("layer_self_attn", &l.self_attn),
        ("layer_cross_attn", &l.cross_attn),
    ] {
        if let Some(a) = attn {
            out.push((name(field), "out", a.output));
        }
    }
    for (field, value) in [
        ("layer_pre_self_attn", l.pre_self_attn),
        ("layer_pre_cross_attn", l.pre_cross_attn),
        ("layer_pre_ffn", l.pre_ffn),
    ] {
        out.extend(value.map(|v| (name(field), "in", v)));
    }
    let mut norm = |field: &str, site: &Option<NormSite>| {
        if let Some(s) = site {
            out.push((name(field), "in", s.input));
            out.push((name(field), "out", s.output));
        }
    };
    norm("layer_ln_1", &l.ln_1);
    norm("layer_ln_cross", &l.ln_cross);
    norm("layer_ln_2", &l.ln_2);
}

/// What is wrong with one selected place, if anything is.
fn wrong(graph: &Graph, truth: &Value, point: &Point) -> Option<String> {
    let (name, side, value) = point;
    let have = graph.name_of(*value);
    let entry = truth.get(name)?;
    let sides: Vec<&Value> = match entry {
        Value::Array(calls) => calls.iter().map(|c| &c[*side]).collect(),
        one => vec![&one[*side]],
    };
    let listed = |side: &Value, key: &str| {
        side[key]
            .as_array()
            .is_some_and(|l| l.iter().any(|v| v == have))
    };
    let empty = |side: &Value| side["values"].as_array().is_none_or(Vec::is_empty);
    let fine = sides
        .iter()
        .any(|s| s.is_null() || listed(s, "values") || (empty(s) && listed(s, "reshaped")));
    (!fine).then(|| format!("{name} {side}: selected `{have}`, expected {sides:?}"))
}

/// Checks every graph of a folder; returns the number of places that were compared, and what is wrong.
fn check_folder(dir: &Path) -> (usize, Vec<String>) {
    let hooks: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("hooks.json")).unwrap()).unwrap();
    let (mut compared, mut findings) = (0, Vec::new());
    for (file, by_interface) in hooks.as_object().unwrap() {
        let path = dir.join(file);
        if !path.exists() {
            continue;
        }
        let model = onnx_graft::onnx::open(&path).unwrap();
        let verified = Verified::check(model)
            .unwrap_or_else(|r| panic!("{}: {:?}", path.display(), r.findings));
        for (name, truth) in by_interface.as_object().unwrap() {
            let interface = Interface::read(&dir.join(name)).unwrap();
            match interface.select(&verified) {
                Ok(sel) => {
                    let points = points(&sel);
                    let told = |p: &&Point| truth.get(&p.0).is_some();
                    compared += points.iter().filter(told).count();
                    let missing = truth
                        .as_object()
                        .unwrap()
                        .keys()
                        .filter(|k| !points.iter().any(|p| &p.0 == *k));
                    findings.extend(
                        missing
                            .map(|k| format!("{}: {name}: {k} was not selected", path.display())),
                    );
                    let bad = points
                        .iter()
                        .filter_map(|p| wrong(&verified.model().graph, truth, p));
                    findings.extend(bad.map(|b| format!("{}: {name}: {b}", path.display())));
                }
                Err(e) => findings.push(format!("{}: {name}: {e}", path.display())),
            }
        }
    }
    (compared, findings)
}

#[test]
fn every_place_is_the_value_that_the_module_read_or_made() {
    let root = std::env::var("ONNX_GRAFT_HOOKS").unwrap_or_else(|_| "fixtures".to_owned());
    let mut dirs: Vec<_> = std::fs::read_dir(root)
        .unwrap()
        .map(|d| d.unwrap().path())
        .filter(|d| d.join("hooks.json").exists())
        .collect();
    dirs.sort();
    assert!(!dirs.is_empty());
    let mut all = Vec::new();
    for dir in dirs {
        let (compared, findings) = check_folder(&dir);
        println!(
            "{}: {compared} places, {} wrong",
            dir.display(),
            findings.len()
        );
        all.extend(findings);
    }
    assert!(all.is_empty(), "{} findings\n{}", all.len(), all.join("\n"));
}
