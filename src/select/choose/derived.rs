//! Parameters that an export holds in another form under their own names.
//!
//! The norms of some families multiply with `1 + weight`. Where a graph holds the parameter itself, an addition reads it; the
//! onnxruntime-genai builder stores the sum, under the parameter's name, and the norm's operator reads that.

use super::scene::Scene;
use crate::ir::ValueId;
use crate::select::ParameterSite;

/// Model types whose norms multiply with `1 + weight`.
const ONE_MORE: [&str; 10] = [
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "nemotron",
    "paligemma",
    "qwen3_next",
    "recurrent_gemma",
    "shieldgemma2",
    "t5gemma",
];

impl Scene<'_> {
    /// Marks the weights of norms that hold, or may hold, `1 + weight` instead of the parameter.
    pub(super) fn mark_derived(&self, parameters: &mut [ParameterSite]) {
        if !self.adds_one() {
            return;
        }
        let weights = parameters.iter_mut();
        for p in weights.filter(|p| &*p.name == "weight" && p.dims.len() == 1) {
            p.derived |= self.is_multiplied(p.stored);
        }
    }

    /// Whether the norms may multiply with `1 + weight`: the model's type says so; or the builder wrote the graph, which says no type, and
    /// the type is not known, or rows of embeddings are multiplied with √width, as Gemma's are.
    fn adds_one(&self) -> bool {
        let known = self.interface.model_type.as_deref();
        match known {
            Some(t) if ONE_MORE.contains(&t) => true,
            Some(_) => self.view.renames && self.widens_rows(),
            None => self.view.renames,
        }
    }

    fn widens_rows(&self) -> bool {
        let lookups = self.view.order.iter();
        let mut lookups = lookups.filter(|n| self.view.is(**n, "Gather"));
        lookups.any(|&n| {
            let table = self.view.inputs(n).first().copied().flatten();
            let table = table.and_then(|v| self.view.tensor(v));
            let Some([_, width]) = table.map(|t| &*t.dims) else {
                return false;
            };
            let rows = self.view.graph.output(n, 0);
            let factor = rows.and_then(|rows| self.factor(rows));
            // The builder rounds to two places, and half precision to three digits.
            factor.is_some_and(|f| (f / (*width as f32).sqrt() - 1.0).abs() < 0.01)
        })
    }

    /// The number that a value is multiplied with.
    fn factor(&self, v: ValueId) -> Option<f32> {
        self.view.readers(v).into_iter().find_map(|n| {
            let mut inputs = self.view.inputs(n).into_iter().flatten();
            let number =
                inputs.find_map(|v| self.view.constant(v).filter(|t| t.count() == Some(1)));
            let by = number.and_then(|t| t.to_f32()?.first().copied());
            by.filter(|_| self.view.is(n, "Mul"))
        })
    }

    /// Whether anything reads a value, through casts, but an addition.
    fn is_multiplied(&self, v: ValueId) -> bool {
        self.view
            .readers(v)
            .into_iter()
            .any(|n| match self.view.op(n) {
                "Add" => false,
                "Cast" => {
                    let out = self.view.out(n);
                    out.is_some_and(|out| self.is_multiplied(out))
                }
                _ => true,
            })
    }
}
