//! An adapter method of your own: a learned vector that is added to what linears make, attached, saved, read again and stripped.
//!
//! `cargo run --example method`

use onnx_graft::adapters::method::{
    At, BuildCx, Init, Method, ParamSpec, Params, Place, Size, State, Surroundings,
};
use onnx_graft::adapters::{Adapter, AdapterFolder, Config, WriteOptions};
use onnx_graft::ir::Val;
use onnx_graft::{Attach, Diagnostic, Result};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// `y = W·x + b + scale·v` at the query projections, with the vector `v` learned.
#[derive(Debug)]
struct Shift {
    scale: f32,
}

impl Method for Shift {
    fn name(&self) -> &'static str {
        "shift"
    }

    fn to_dict(&self) -> Value {
        json!({ "architecture": self.name(), "scale": self.scale })
    }

    fn places<'s>(&self, around: &Surroundings<'_, 's>) -> Result<Vec<Place<'s>>, Diagnostic> {
        let layers = around.selection.layers.iter();
        let places = layers.filter_map(|layer| {
            let query = layer.self_attn.as_ref()?.q.as_ref()?;
            let scope = around.scope(&query.path, "shifts");
            let at = At::Linear(query);
            Some(Place::new(at, Some(layer.index), "shift", scope))
        });
        Ok(places.collect())
    }

    fn params(&self, place: &Place<'_>) -> Result<Vec<ParamSpec>, Diagnostic> {
        let width = place.linear().map_or(0, |site| site.d_out);
        let size = Size::new("out", width);
        Ok(vec![ParamSpec::new("shift", &[&size], Init::Zeros)])
    }

    fn step(
        &self,
        _: &Place<'_>,
        state: State,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<State, Diagnostic> {
        let shift = cx.b.scale(p.get("shift"), self.scale);
        let delta = state.delta.map_or(shift, |d| cx.b.add(d, shift));
        Ok(State {
            delta: Some(delta),
            ..state
        })
    }

    fn close(
        &self,
        _: &Place<'_>,
        state: State,
        _: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Val, Diagnostic> {
        let delta = state.delta;
        Ok(delta.map_or(state.out, |d| cx.b.add(state.out, cx.down(d))))
    }
}

/// Makes the method from the dictionary that a folder holds.
#[expect(clippy::unnecessary_wraps, reason = "the form of a reader of folders")]
fn read(dict: &Value) -> Result<Config> {
    let scale = dict["scale"].as_f64().unwrap_or(1.0) as f32;
    let shift: Arc<dyn Method> = Arc::new(Shift { scale });
    Ok(Config::custom(shift))
}

fn main() -> Result<()> {
    let path = Path::new("fixtures/qwen3/model.onnx");
    let base = onnx_graft::open(path)?;

    let config = read(&json!({ "scale": 0.5 }))?;
    let adapter = Adapter::fresh("mine", config.clone());
    let attach = Attach::to(base.clone()).from_file(path);
    let adapted = attach.adapters([adapter]).run()?;
    let store = adapted.store();
    let parameters: Vec<&str> = store.iter().map(|(name, _)| name).collect();
    let _ = writeln!(std::io::stdout(), "{}", parameters.join("\n"));
    assert_eq!(parameters.len(), adapted.selection.layers.len());

    let folder = adapted.folder("mine", &store.of("mine"))?;
    let out = tempfile::tempdir().map_err(|e| onnx_graft::Error::io(path, "no folder", e))?;
    let saved = out.path().join("mine");
    folder.write(&saved, WriteOptions::default())?;
    assert!(
        AdapterFolder::read(&saved).is_err(),
        "the method is not known"
    );
    let again = AdapterFolder::read_with(&saved, &read)?;
    assert_eq!(again.config, config);

    let stripped = onnx_graft::strip(adapted.model, None)?;
    let [left, before] = [stripped.model(), base.model()].map(onnx_graft::ir::text::print);
    assert_eq!(left, before);
    Ok(())
}
