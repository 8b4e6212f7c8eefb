//! Modules of the base model that an adapter has its own values of, beside what its methods adapt.

use super::{Lora, Names, Targets};
use crate::adapters::Config;
use crate::adapters::methods::MethodConfig;
use crate::adapters::place::Place;
use crate::diag::Diagnostic;
use crate::select::ParameterSite;

impl Config {
    /// The same configuration with its own values of these modules, trained or `frozen`, and what says which parameters that concerns.
    pub(crate) fn saving(&self, modules: &[String], frozen: bool) -> (Config, Targets) {
        let mut methods = self.methods().to_vec();
        let targeted = |m: &MethodConfig| matches!(m, MethodConfig::Lora(l) if l.targets.is_some());
        if !methods.iter().any(targeted) {
            let none = Targets {
                target_modules: Some(Names::Many(Vec::new())),
                ..Targets::default()
            };
            let lora = Lora {
                targets: none,
                ..Lora::lora()
            };
            methods.push(lora.into());
        }
        let mut targets = methods.iter_mut().filter_map(|m| match m {
            MethodConfig::Lora(l) if l.targets.is_some() => Some(&mut l.targets),
            _ => None,
        });
        let mut own = Targets::default();
        if let Some(targets) = targets.next() {
            let list = if frozen {
                &mut targets.save_embedding_layers
            } else {
                &mut targets.modules_to_save
            };
            list.extend(modules.iter().cloned());
            own = targets.clone();
        }
        let config = match <[MethodConfig; 1]>::try_from(methods) {
            Ok([one]) => Config::one(one),
            Err(several) => Config::union(several),
        };
        (config, own)
    }
}

impl Targets {
    /// The name that a stored parameter has among the weights of an adapter that has its own values of it.
    pub(crate) fn key(&self, site: &ParameterSite, adapter: &str) -> Option<String> {
        let kept = self.kept(&site.module).then_some(&*site.module);
        let outer = self.saved(&site.module).or(kept)?;
        let inner = site.module[outer.len()..].trim_start_matches('.');
        let dot = if inner.is_empty() { "" } else { "." };
        Some(format!(
            "{outer}.modules_to_save.{adapter}.{inner}{dot}{}",
            site.name
        ))
    }
}

/// Refuses a parameter that the graph holds in another form than the state dict.
pub(super) fn derived(site: &ParameterSite, place: &Place<'_>) -> Diagnostic {
    let parameter = format!("{}.{}", site.module, site.name);
    Diagnostic::error(
        "parameter-derived",
        format!("the graph does not hold `{parameter}` itself, or may not: a constant that was made of it stands for it"),
    )
    .at(place.scope.clone())
    .help("norms of Gemma and Nemotron multiply with 1 + weight, and exporters store the sum: leave the norm out of `modules_to_save`, or export with torch and without constant folding; of a graph of the onnxruntime-genai builder, the `model_type` of the interface (without --interface: of `config.json` or `genai_config.json` beside the model) says whether it is such a model")
}
