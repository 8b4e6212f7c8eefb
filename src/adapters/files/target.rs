//! What an adapter's file says of the model that it was made for, and what of it contradicts the model that it meets.
//!
//! Weights are compared in [`base`](super::base). Here it is words: the width, the model's type and the interface. A wrong width cannot
//! be meant; the others are said, as names differ between libraries where models do not.

use crate::adapters::methods::MethodConfig;
use crate::adapters::{Adapter, Route};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::select::{Family, Interface, Selection};

/// What a file says; nothing for a fresh adapter.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Target {
    /// Width of the model.
    pub(crate) hidden_size: Option<u64>,
    /// Its `model_type`; empty where it is not said.
    pub(crate) model_type: String,
    /// The text of the interface beside the adapter.
    pub(crate) interface: Option<String>,
}

/// The model that an adapter meets.
pub(crate) struct Met<'a> {
    pub(crate) selection: &'a Selection,
    pub(crate) interface: &'a Interface,
    /// Its `model_type`; empty where it is not known.
    pub(crate) model_type: &'a str,
}

impl Met<'_> {
    /// What contradicts the model in words that may be meant.
    ///
    /// # Errors
    /// What cannot be meant, of all adapters.
    pub(crate) fn check(&self, adapters: &[Adapter]) -> Result<Vec<Diagnostic>> {
        let width = |a: &Adapter| self.width(&format!("`{}`", a.name), &a.target);
        let mut wrong: Vec<Diagnostic> = adapters.iter().filter_map(width).collect();
        let methods = adapters.iter().flat_map(|a| a.config.methods());
        wrong.extend(methods.filter_map(|m| m.idle_in(self.model_type)));
        if !wrong.is_empty() {
            return Err(Error::many(ErrorKind::Method, wrong));
        }
        let said = |a: &Adapter| {
            let kind = self.kind(&format!("`{}`", a.name), &a.target);
            [kind, self.names(a), self.method(a)]
        };
        Ok(adapters.iter().flat_map(said).flatten().collect())
    }

    /// Why adapters do not fit: where the weights of one that says to be for models of another type are not those that this model asks
    /// for, that is the reason, and not each of their names.
    pub(crate) fn explain(&self, adapters: &[Adapter], e: Error) -> Error {
        let unfit = |d: &Diagnostic| {
            matches!(
                d.code,
                "weights-missing" | "weights-extra" | "weights-shape"
            )
        };
        let kind = |a: &Adapter| self.kind(&format!("`{}`", a.name), &a.target);
        let other = adapters
            .iter()
            .filter(|a| a.weights.is_some())
            .find_map(kind);
        let (Some(other), [first, rest @ ..]) = (other, e.findings()) else {
            return e;
        };
        if !unfit(first) || !rest.iter().all(unfit) {
            return e;
        }
        let count = rest.len() + 1;
        let found = Diagnostic::error("model-differs", other.message)
            .note(format!("{count} of its parameters do not fit; the first: {}", first.message))
            .help("give the model that it was trained on; where the file's `model_type` is wrong, mend it in adapter_config.json");
        Error::new(e.kind(), found)
    }

    /// What contradicts the model in what a head's file says of it; `what` is the head. Its model's type is not said twice where its
    /// adapter's file has the same.
    ///
    /// # Errors
    /// What cannot be meant.
    pub(crate) fn check_head(
        &self,
        what: &str,
        target: &Target,
        adapter: Option<&Adapter>,
    ) -> Result<Option<Diagnostic>> {
        if let Some(width) = self.width(what, target) {
            return Err(Error::new(ErrorKind::Method, width));
        }
        let said = adapter.is_some_and(|a| a.target.model_type == target.model_type);
        Ok(self.kind(what, target).filter(|_| !said))
    }

    fn width(&self, what: &str, target: &Target) -> Option<Diagnostic> {
        let there = target.hidden_size?;
        let selection = self.selection;
        // A model of several towers has several; its file says one of them.
        let reads = selection
            .layers
            .iter()
            .filter_map(|l| l.intermediate.as_ref());
        let makes = selection
            .layers
            .iter()
            .filter_map(|l| l.output_proj.as_ref());
        let mut widths = reads.map(|l| l.d_in).chain(makes.map(|l| l.d_out));
        let here = selection.hidden_size as u64;
        if here == 0 || here == there || widths.any(|w| w as u64 == there) {
            return None;
        }
        let message = format!(
            "{what} was made for a model of width {there} (`hidden_size`), and this one is {here} wide"
        );
        Some(
            Diagnostic::error("model-differs", message)
                .help("give the model that it was trained on"),
        )
    }

    fn kind(&self, what: &str, target: &Target) -> Option<Diagnostic> {
        let (there, here) = (&*target.model_type, self.model_type);
        // The parts of a model are called after it: `clip`, `clip_text_model`.
        let part = |whole: &str, of: &str| {
            whole
                .strip_prefix(of)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        };
        if there.is_empty() || here.is_empty() || part(there, here) || part(here, there) {
            return None;
        }
        let message =
            format!("{what} was made for a model of the type `{there}`, and this one is `{here}`");
        Some(
            Diagnostic::warning("model-differs", message)
                .help("where its parameters fit, it is attached all the same"),
        )
    }

    fn names(&self, adapter: &Adapter) -> Option<Diagnostic> {
        let text = adapter.target.interface.as_deref()?;
        let there = Interface::parse(text, "adapter_interface.json").ok()?;
        let [there, here] = [&there, self.interface].map(|i| i.resolved(self.selection));
        let pairs = there.fields.paths().into_iter().zip(here.fields.paths());
        let stacks = there.stacks().max(here.stacks());
        let differ = pairs.filter(|((_, a), (_, b))| {
            (0..stacks).any(|s| matches!((a.get(s), b.get(s)), (Some(a), Some(b)) if a != b))
        });
        let lines: Vec<String> = differ
            .map(|((field, a), (_, b))| {
                let first = |p: &crate::select::PerStack| p.get(0).unwrap_or_default().to_owned();
                format!(
                    "`{}` is \"{}\" there, \"{}\" here",
                    field.name(),
                    first(a),
                    first(b)
                )
            })
            .collect();
        if lines.is_empty() {
            return None;
        }
        let message = format!(
            "the interface beside `{}` names other modules than the one in use",
            adapter.name
        );
        Some(
            Diagnostic::warning("interface-differs", message)
                .note(lines.join(", "))
                .help("`--interface FOLDER/adapter_interface.json` takes the adapter's own"),
        )
    }

    /// A method that the interface does not list; of a saved adapter, whoever saved it could use it.
    fn method(&self, adapter: &Adapter) -> Option<Diagnostic> {
        let listed = &self.interface.fields.adapter_methods;
        let families: Vec<Family> = listed.iter().filter_map(|w| Family::of(w)).collect();
        // The library's own classes do not ask the interface.
        if families.is_empty() || adapter.weights.is_some() || adapter.route != Route::Plugin {
            return None;
        }
        let mut own = adapter
            .config
            .methods()
            .iter()
            .filter_map(MethodConfig::family);
        let other = own.find(|f| !families.contains(f))?;
        let message = format!(
            "`{}` is of the family `{}`, which the interface does not list",
            adapter.name,
            other.name()
        );
        Some(
            Diagnostic::warning("interface-method", message)
                .note(format!("`adapter_methods` of {}: {}", self.interface.source, listed.join(", ")))
                .help("the Adapters library may refuse it for this model; extend `adapter_methods` where it is meant"),
        )
    }
}
