//! Layer ids that configurations name: they must be layers of the model.

use crate::adapters::methods::MethodConfig;
use crate::diag::Diagnostic;
use crate::select::Selection;
use serde_json::Value;

/// Fields that hold layer ids: lists, or the keys of a map with a `default`.
const FIELDS: [&str; 3] = ["leave_out", "layers", "reduction_factor"];

/// What a configuration says of layers that the model does not have. Layers count over all stacks, as the library counts them.
pub(in crate::adapters) fn beyond(
    method: &MethodConfig,
    selection: &Selection,
) -> Option<Diagnostic> {
    let count = selection.layers.iter().map(|l| l.index + 1).max()?;
    let dict = method.to_dict();
    let uncounted = selection.uncounted;
    let outside = |text: &String| uncounted || !text.parse::<usize>().is_ok_and(|id| id < count);
    for field in FIELDS {
        let named: Vec<String> = match &dict[field] {
            Value::Array(ids) => ids.iter().map(ToString::to_string).collect(),
            Value::Object(map) => map.keys().filter(|k| *k != "default").cloned().collect(),
            _ => Vec::new(),
        };
        let wrong: Vec<String> = named.into_iter().filter(outside).collect();
        if wrong.is_empty() {
            continue;
        }
        if uncounted {
            let what = format!(
                "`{field}` names layers by their number in the whole model, and this graph holds one part of it"
            );
            return Some(Diagnostic::error("layer-id", what).help(
                "put the model's config.json beside it, which says how many layers the encoder has",
            ));
        }
        let many = if wrong.len() == 1 { "layer" } else { "layers" };
        let what = format!(
            "`{field}` names the {many} {}, and the model has {count} layers",
            wrong.join(", ")
        );
        let help = format!("layers are numbered from 0 to {}", count - 1);
        let finding = Diagnostic::error("layer-id", what);
        let stacks = selection.layers.iter().map(|l| l.stack).max().unwrap_or(0);
        return Some(finding.help(if stacks > 0 {
            format!("{help}, the encoder's first and then the decoder's")
        } else {
            help
        }));
    }
    None
}
