//! Which base model an adapter belongs to: a fingerprint of the modules that it can adapt, by path and shape.
//!
//! It is the same for every export and every quantization of a model, and costs nothing: no weight is read. Models of one architecture
//! and size share it.

use crate::adapters::Adapter;
use crate::select::{AttentionSite, LinearSite, QkvLayout, Selection};
use serde_json::{Map, Value, json};

/// Our key in `adapter_config.json`; the Adapters library ignores it.
pub(crate) const KEY: &str = "onnx_graft";

/// What a fingerprint ends with where the columns of q, k and v lie head by head, and the adapter goes by them.
const COLUMNS: &str = "+columns";

/// Whether an adapter with this fingerprint goes by the columns of q, k and v, and not by thirds.
pub(crate) fn by_columns(fingerprint: &str) -> bool {
    fingerprint.ends_with(COLUMNS)
}

/// The fingerprint of a selection's base model.
pub(crate) fn fingerprint(selection: &Selection) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut line = |text: String| {
        hasher.update(text.as_bytes());
        hasher.update(b"\n");
    };
    line(format!("hidden {}", selection.hidden_size));
    for layer in &selection.layers {
        line(format!("layer {}", layer.index));
        let attention = layer.self_attn.iter().chain(&layer.cross_attn);
        let projections = attention.flat_map(|a| [&a.q, &a.k, &a.v, &a.qkv, &a.o]);
        let sites = projections.chain([&layer.intermediate, &layer.output_proj]);
        for LinearSite {
            path, d_in, d_out, ..
        } in sites.flatten()
        {
            let path = path.strip_prefix(&*selection.base_prefix).unwrap_or(path);
            line(format!("{path} {d_in} {d_out}"));
        }
    }
    let mut attentions = selection.layers.iter().filter_map(|l| l.self_attn.as_ref());
    let by_head = |a: &AttentionSite| matches!(a.qkv_layout, Some(QkvLayout::Interleaved { .. }));
    let suffix = if attentions.any(by_head) { COLUMNS } else { "" };
    format!("blake3:{}{suffix}", &hasher.finalize().to_hex()[..16])
}

/// Whether an adapter takes thirds of a fused projection for its queries, keys and values where they are other columns: a file of the
/// library's, or of ours that came from one.
pub(crate) fn keeps_thirds(adapter: &Adapter, selection: &Selection) -> bool {
    let (Some(_), base) = (&adapter.weights, adapter.base.as_deref()) else {
        return false;
    };
    let mut attentions = selection.layers.iter().filter_map(|l| l.self_attn.as_ref());
    attentions.any(|a| match &a.qkv_layout {
        Some(QkvLayout::Blocks { q, k, v }) => base.is_none() && (q != k || k != v),
        Some(QkvLayout::Interleaved { .. }) => !base.is_some_and(by_columns),
        Some(QkvLayout::Unknown) | None => false,
    })
}

/// What a file says of its base model.
pub(crate) fn recorded(extra: &Map<String, Value>) -> Option<Box<str>> {
    extra.get(KEY)?.get("base")?.as_str().map(Into::into)
}

/// Records the base model for a file.
pub(crate) fn record(extra: &mut Map<String, Value>, selection: &Selection) {
    extra.insert(KEY.into(), json!({ "base": fingerprint(selection) }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::plan::plan;
    use crate::adapters::{Adapter, Config};
    use crate::infer::Verified;
    use crate::select::Interface;
    use std::path::Path;

    fn open(arch: &str, file: &str) -> (Verified, Selection) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fixtures")
            .join(arch);
        let model = crate::onnx::open(folder.join(file)).unwrap();
        let model = Verified::check(model).unwrap();
        let interface = Interface::read(&folder.join("interface.json")).unwrap();
        let selection = interface.select(&model).unwrap();
        (model, selection)
    }

    #[test]
    fn exports_of_one_model_share_it_and_other_models_do_not() {
        let of = |arch, file| fingerprint(&open(arch, file).1);
        let qwen = of("qwen3", "model.onnx");
        assert_eq!(qwen, of("qwen3", "model.torchscript.onnx"));
        assert_eq!(qwen, of("qwen3", "extra/optimum.onnx"));
        assert_ne!(qwen, of("bert", "model.onnx"));
    }

    #[test]
    fn another_base_model_is_a_warning() {
        let (model, selection) = open("qwen3", "model.onnx");
        let codes = |base: &str| {
            let adapter = Adapter {
                base: Some(base.into()),
                ..Adapter::fresh("a", Config::parse("lora").unwrap())
            };
            let adapters = [adapter];
            let plan = plan(&adapters, &selection, &model, 0).unwrap();
            plan.notes.iter().map(|n| n.code).collect::<Vec<_>>()
        };
        assert_eq!(codes(&fingerprint(&selection)), [""; 0]);
        assert_eq!(codes("blake3:0"), ["base-differs"]);
    }
}
