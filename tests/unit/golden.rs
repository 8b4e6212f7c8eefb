//! Golden snapshots: what an interface selects, which parameters an adapter has, and how the graph changes.
//!
//! A case is `tests/golden/<case>.json`; its snapshots are `tests/golden/snapshots/<case>.<view>.snap`. Regenerate them with
//! `INSTA_UPDATE=always cargo test --lib golden`, read the difference, and commit it with its cause.

use onnx_graft::adapters::{AdapterStore, Setup, spec};
use onnx_graft::infer::Verified;
use onnx_graft::select::Interface;
use onnx_graft::{Attach, api};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    fixture: PathBuf,
    interface: PathBuf,
    adapter: String,
    views: Vec<View>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum View {
    Sites,
    Params,
    Diff,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The names of the files in a folder that end so, without the ending.
fn stems(folder: &Path, ending: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .filter_map(|e| {
            let name = e.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(ending).map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}

fn case(name: &str) -> Case {
    let text = fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Name and shape of every parameter, and what distinguishes it.
fn params(model: &Verified) -> String {
    let mut text = String::new();
    for (name, p) in AdapterStore::from_model(model.model()).iter() {
        let role = match (p.trainable, p.decay) {
            (true, true) => "",
            (true, false) => " no decay",
            (false, _) => " frozen",
        };
        text += &format!("{name} {:?}{role}\n", p.tensor.dims);
    }
    text
}

#[test]
fn snapshots() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(folder().join("snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for name in stems(&folder(), ".json") {
        let case = case(&name);
        let base = api::open(fixtures.join(&case.fixture)).unwrap();
        let interface = Interface::read(&fixtures.join(&case.interface)).unwrap();
        let adapter = spec::parse(&case.adapter).unwrap().load().unwrap();
        let setup = Setup::Single(adapter.name.clone());
        let adapted = Attach::to(base.clone())
            .interface(&interface)
            .adapters(vec![adapter])
            .active(setup)
            .seed(0)
            .run()
            .unwrap();
        for view in case.views {
            let text = match view {
                View::Sites => adapted.selection.explain(&base.model().graph).to_string(),
                View::Params => params(&adapted.model),
                View::Diff => api::diff(&base, &adapted.model).to_string(),
            };
            let view = format!("{view:?}").to_lowercase();
            settings.bind(|| insta::assert_snapshot!(format!("{name}.{view}"), text));
        }
    }
}

#[test]
fn every_snapshot_has_a_case() {
    let found: BTreeSet<String> = stems(&folder().join("snapshots"), ".snap")
        .into_iter()
        .collect();
    let mut wanted = BTreeSet::new();
    for name in stems(&folder(), ".json") {
        for view in case(&name).views {
            wanted.insert(format!("{name}.{}", format!("{view:?}").to_lowercase()));
        }
    }
    assert_eq!(found, wanted);
}
