//! PEFT's choice of modules: which linears are adapted, with which rank and scale, and which stored parameters go along.
//!
//! The fields have PEFT's names and meaning (`LoraConfig`, `IA3Config`, `VeraConfig`). A configuration with `target_modules` is PEFT's,
//! in what it chooses and in what it computes; without, none of these fields counts.

use super::Lora;
use crate::diag::Diagnostic;
use crate::fence;
use fancy_regex::Regex;
use indexmap::IndexMap;
use rustc_hash::FxHashSet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The shorthand for all linears but the head.
const ALL_LINEAR: &str = "all-linear";

/// Heads that `all-linear` leaves out, at the top of the model.
const HEADS: [&str; 2] = ["score", "classifier"];

/// One text, or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Names {
    /// A regular expression for a whole path, or a name with a meaning of its own.
    One(String),
    /// Names: each a path or its end.
    Many(Vec<String>),
}

/// One number, or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Indices {
    /// One.
    One(usize),
    /// Several.
    Many(Vec<usize>),
}

/// Ids of tokens, in the table of the words or by table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum TokenIndices {
    /// In the table of the words.
    Words(Vec<usize>),
    /// By the end of a table's path.
    Of(#[schemars(with = "BTreeMap<String, Vec<usize>>")] IndexMap<String, Vec<usize>>),
}

/// PEFT's fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Targets {
    /// The modules to adapt, as in PEFT: a list of paths or their ends, a regular expression for whole paths, or `all-linear`. The
    /// choice by parts (`selfattn_lora`, `attn_matrices`, …) does not count then, and what is computed is PEFT's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<Names>,
    /// Modules to leave out: a list of paths or their ends, or a regular expression for whole paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Names>,
    /// Layers to adapt, by their number in the path; all without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<Indices>,
    /// Name of the list of layers in paths, for `layers_to_transform`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers_pattern: Option<Names>,
    /// Other ranks: from the end of a path, or a regular expression for it, to the rank.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    #[schemars(with = "BTreeMap<String, usize>")]
    pub rank_pattern: IndexMap<String, usize>,
    /// Other values of `alpha`: from the end of a path, or a regular expression for it, to the value.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    #[schemars(with = "BTreeMap<String, f64>")]
    pub alpha_pattern: IndexMap<String, f64>,
    /// Whether the scale is `alpha / √r` (Kalajdzievski 2023).
    #[serde(skip_serializing_if = "is_false")]
    pub use_rslora: bool,
    /// Of (IA)³: the chosen modules that are scaled at their input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feedforward_modules: Option<Names>,
    /// Biases of the base model that the adapter has its own values of: `none`, `all`, or `lora_only` for those of the chosen modules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bias: Option<String>,
    /// Whether `B` has a bias.
    #[serde(skip_serializing_if = "is_false")]
    pub lora_bias: bool,
    /// Tokens whose rows of the embedding table the adapter has its own values of: ids in the table of the words, or a map from the
    /// ends of paths to ids. A head that shares the table has them, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trainable_token_indices: Option<TokenIndices>,
    /// Modules of the base model that the adapter has its own values of: ends of paths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Modules whose weights lie in the file as well, and are not trained: what PEFT's `save_embedding_layers` writes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub save_embedding_layers: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_false(b: &bool) -> bool {
    !b
}

impl Lora {
    /// The scale of a module's change of this rank, by the module's path.
    ///
    /// # Errors
    /// Patterns that cannot be read.
    pub(crate) fn scale_of(&self, path: &str, rank: usize) -> crate::error::Result<f32> {
        let wrong = |d| crate::error::Error::new(crate::error::ErrorKind::Method, d);
        if !self.targets.is_some() {
            return Ok(self.scale());
        }
        let chosen = self.targets.compiled().map_err(wrong)?;
        Ok(chosen.scale(path, self.alpha.as_f64().unwrap_or(1.0), rank))
    }

    /// The configuration of a combination of adapters that has this rank everywhere, and the scale 1.
    ///
    /// # Errors
    /// Adapters that choose their modules in different ways.
    pub(crate) fn combined(all: &[&Lora], rank: usize) -> crate::error::Result<Lora> {
        let Some((first, rest)) = all.split_first() else {
            return Ok(Lora::default());
        };
        let mut out = Lora {
            r: rank,
            alpha: rank.into(),
            ..(*first).clone()
        };
        out.targets.rank_pattern.clear();
        out.targets.alpha_pattern.clear();
        out.targets.use_rslora = false;
        let places = |l: &Lora| Lora {
            dropout: first.dropout,
            init_weights: first.init_weights.clone(),
            r: rank,
            alpha: rank.into(),
            targets: Targets::default(),
            ..l.clone()
        };
        for other in rest {
            let names = match (&out.targets.target_modules, &other.targets.target_modules) {
                (Some(Names::Many(a)), Some(Names::Many(b))) => {
                    let more = b.iter().filter(|n| !a.contains(n));
                    Some(Names::Many(a.iter().chain(more).cloned().collect()))
                }
                (Some(Names::One(a)), Some(Names::One(b))) if a == b => Some(Names::One(a.clone())),
                (Some(Names::One(a)), Some(Names::One(b))) if !is_all(a) && !is_all(b) => {
                    Some(Names::One(format!("({a})|({b})")))
                }
                (None, None) if places(first) == places(other) => None,
                _ => {
                    let found = "the adapters choose their modules in different ways";
                    let d = Diagnostic::error("weighted-modules", found).help(
                        "combine adapters of the same parts, or of lists in `target_modules`",
                    );
                    return Err(crate::error::Error::new(crate::error::ErrorKind::Method, d));
                }
            };
            out.targets.target_modules = names;
        }
        Ok(out)
    }
}

/// The fields, ready to ask.
pub(crate) struct Chosen<'t> {
    targets: &'t Targets,
    whole: Option<Regex>,
    excluded: Option<Regex>,
    scaled_in: Option<Regex>,
    lists: Vec<Regex>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl Targets {
    /// Whether the choice of modules is PEFT's.
    pub(crate) fn is_some(&self) -> bool {
        self.target_modules.is_some() || self.trainable_token_indices.is_some()
    }

    /// Whether no linear is to be adapted: the fields name tokens and modules to save alone.
    pub(crate) fn adapts_none(&self) -> bool {
        match &self.target_modules {
            None => true,
            Some(Names::Many(all)) => all.is_empty(),
            Some(Names::One(_)) => false,
        }
    }

    /// Reads the regular expressions.
    ///
    /// # Errors
    /// One that cannot be read; values that cannot work.
    pub(crate) fn compiled(&self) -> Result<Chosen<'_>, Diagnostic> {
        if !["none", "all", "lora_only"].contains(&self.bias.as_deref().unwrap_or("none")) {
            let value = self.bias.as_deref().unwrap_or_default();
            let found = Diagnostic::error("config-value", format!("`bias` is `{value}`"));
            return Err(found.help("use none, all or lora_only"));
        }
        if let Some((key, _)) = self.rank_pattern.iter().find(|(_, r)| **r == 0) {
            let found = format!("`rank_pattern` gives `{key}` the rank 0");
            return Err(Diagnostic::error("config-value", found).help("it must be at least 1"));
        }
        let tokens: Vec<&Vec<usize>> = match &self.trainable_token_indices {
            None => Vec::new(),
            Some(TokenIndices::Words(ids)) => vec![ids],
            Some(TokenIndices::Of(map)) => map.values().collect(),
        };
        for ids in tokens {
            let mut each = FxHashSet::default();
            let again = ids.iter().find(|id| !each.insert(**id));
            if let Some(id) = again {
                let found = format!("`trainable_token_indices` has the token {id} twice");
                return Err(Diagnostic::error("config-value", found).help("name each token once"));
            }
        }
        let whole = |field: &str, names: &Option<Names>| match names {
            Some(Names::One(text)) if field != "target_modules" || !is_all(text) => {
                regex(field, &format!("^(?:{text})$")).map(Some)
            }
            Some(Names::One(_) | Names::Many(_)) | None => Ok(None),
        };
        let lists = match &self.layers_pattern {
            None => Vec::new(),
            Some(Names::One(one)) if one.is_empty() => Vec::new(),
            Some(Names::One(one)) => vec![one.as_str()],
            Some(Names::Many(all)) => all.iter().map(String::as_str).collect(),
        };
        let list = |p: &str| regex("layers_pattern", &format!(r"^(?:|.*?\.){p}\.(?<idx>\d+)\."));
        let end = |field: &str, key: &str| regex(field, &format!(r"^(?:.*\.)?(?:{key})$"));
        Ok(Chosen {
            targets: self,
            whole: whole("target_modules", &self.target_modules)?,
            excluded: whole("exclude_modules", &self.exclude_modules)?,
            scaled_in: whole("feedforward_modules", &self.feedforward_modules)?,
            lists: lists.into_iter().map(list).collect::<Result<_, _>>()?,
            ranks: patterns(&self.rank_pattern, |k| end("rank_pattern", k))?,
            alphas: patterns(&self.alpha_pattern, |k| end("alpha_pattern", k))?,
        })
    }

    /// The module that `modules_to_save` names and a module is, or is a part of.
    pub(crate) fn saved<'m>(&self, module: &'m str) -> Option<&'m str> {
        let ends = module.match_indices('.').map(|(at, _)| at);
        let outer = ends.chain([module.len()]).map(|end| &module[..end]);
        let named = |m: &&str| self.modules_to_save.iter().any(|s| m.ends_with(s.as_str()));
        outer.into_iter().find(named)
    }

    /// Whether the weights of a module lie in the file without being trained.
    pub(crate) fn kept(&self, module: &str) -> bool {
        let within = |outer: &str, path: &str| {
            let rest = outer.strip_suffix(path);
            rest.is_some_and(|r| r.is_empty() || r.ends_with('.'))
        };
        let mut kept = self.save_embedding_layers.iter();
        kept.any(|m| within(m, module) || within(module, m))
    }
}

fn is_all(text: &str) -> bool {
    text.eq_ignore_ascii_case(ALL_LINEAR)
}

fn regex(field: &str, text: &str) -> Result<Regex, Diagnostic> {
    let none = |why: &dyn std::fmt::Display| {
        let message = format!("`{field}` is no regular expression: {why}");
        Diagnostic::error("config-value", message).note(text.to_owned())
    };
    let made = fence::guarded(|| Regex::new(text)).map_err(|f| none(&f))?;
    made.map_err(|e| none(&e))
}

fn patterns<V: Copy>(
    map: &IndexMap<String, V>,
    compile: impl Fn(&str) -> Result<Regex, Diagnostic>,
) -> Result<Vec<(Regex, V)>, Diagnostic> {
    map.iter().map(|(k, v)| Ok((compile(k)?, *v))).collect()
}

/// Whether one of these names is the path or its end.
fn ends(names: &[String], path: &str) -> bool {
    names.iter().any(|n| {
        path.strip_suffix(n.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

fn is_match(regex: &Regex, path: &str) -> bool {
    // An expression that gives up on a path does not match it.
    fence::guarded(|| regex.is_match(path)).is_ok_and(|found| found.unwrap_or(false))
}

impl Chosen<'_> {
    /// Whether the module of a linear is chosen. `head` says that it projects onto the vocabulary.
    pub(crate) fn wants(&self, path: &str, head: bool) -> bool {
        let t = self.targets;
        let named = |regex: &Option<Regex>, names: &Option<Names>| match (regex, names) {
            (Some(regex), _) => is_match(regex, path),
            (None, Some(Names::Many(all))) => ends(all, path),
            (None, Some(Names::One(_)) | None) => false,
        };
        if named(&self.excluded, &t.exclude_modules) || t.saved(path).is_some() {
            return false;
        }
        match &t.target_modules {
            Some(Names::One(text)) if is_all(text) => !head && !HEADS.contains(&path),
            Some(Names::Many(all)) if all.iter().any(|n| n == path) => true,
            Some(Names::Many(all)) => ends(all, path) && self.in_layers(path),
            Some(Names::One(_)) => named(&self.whole, &t.target_modules),
            None => false,
        }
    }

    /// Whether an embedding table is chosen: by its name, never as one of all linears.
    pub(crate) fn wants_table(&self, path: &str) -> bool {
        let all = matches!(&self.targets.target_modules, Some(Names::One(text)) if is_all(text));
        !all && self.wants(path, false)
    }

    /// Whether the number of the layer in a path is one of `layers_to_transform`.
    fn in_layers(&self, path: &str) -> bool {
        let wanted: &[usize] = match &self.targets.layers_to_transform {
            None => return true,
            Some(Indices::One(one)) => std::slice::from_ref(one),
            Some(Indices::Many(all)) if all.is_empty() => return true,
            Some(Indices::Many(all)) => all,
        };
        let index = if self.lists.is_empty() {
            let parts: Vec<&str> = path.split('.').collect();
            let inside = parts.get(1..parts.len().saturating_sub(1));
            inside.into_iter().flatten().find_map(|p| p.parse().ok())
        } else {
            self.lists.iter().find_map(|l| {
                let found = fence::guarded(|| l.captures(path)).ok()?.ok()??;
                found.name("idx")?.as_str().parse().ok()
            })
        };
        index.is_some_and(|i: usize| wanted.contains(&i))
    }

    /// Whether a chosen module of (IA)³ is scaled at its input.
    pub(crate) fn scales_input(&self, path: &str) -> bool {
        match (&self.scaled_in, &self.targets.feedforward_modules) {
            (Some(regex), _) => is_match(regex, path),
            (None, Some(Names::Many(all))) => ends(all, path),
            (None, Some(Names::One(_)) | None) => false,
        }
    }

    /// The rank at a module.
    pub(crate) fn rank(&self, path: &str, r: usize) -> usize {
        let found = self.ranks.iter().find(|(p, _)| is_match(p, path));
        found.map_or(r, |(_, r)| *r)
    }

    /// The scale at a module of this rank.
    pub(crate) fn scale(&self, path: &str, alpha: f64, rank: usize) -> f32 {
        let found = self.alphas.iter().find(|(p, _)| is_match(p, path));
        let alpha = found.map_or(alpha, |(_, a)| *a);
        let by = rank as f64;
        let by = if self.targets.use_rslora {
            by.sqrt()
        } else {
            by
        };
        (alpha / by) as f32
    }

    /// The names of a list that none of these paths has.
    pub(crate) fn unmatched<'p>(
        &self,
        paths: &(impl Iterator<Item = &'p str> + Clone),
    ) -> Vec<String> {
        let Some(Names::Many(all)) = &self.targets.target_modules else {
            return Vec::new();
        };
        let missing = |name: &&String| {
            let one = std::slice::from_ref(*name);
            !paths.clone().any(|p| ends(one, p))
        };
        all.iter().filter(missing).cloned().collect()
    }

    /// The field as it is written.
    pub(crate) fn text(&self) -> String {
        match &self.targets.target_modules {
            Some(Names::One(text)) => text.clone(),
            Some(Names::Many(all)) => format!("[{}]", all.join(", ")),
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(json: &str, paths: &[&'static str]) -> Vec<&'static str> {
        let targets: Targets = serde_json::from_str(json).unwrap();
        let compiled = targets.compiled().unwrap();
        let wanted = paths
            .iter()
            .copied()
            .filter(|p| compiled.wants(p, *p == "lm_head"));
        wanted.collect()
    }

    const PATHS: [&str; 6] = [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.experts.0.up_proj",
        "lm_head",
        "classifier",
    ];

    #[test]
    fn modules_are_chosen_as_peft_chooses_them() {
        let [q0, q1, gate, expert, head, classifier] = PATHS;
        for (json, want) in [
            (r#"{"target_modules": ["q_proj"]}"#, vec![q0, q1]),
            (r#"{"target_modules": ["proj"]}"#, vec![]),
            (
                r#"{"target_modules": "all-linear"}"#,
                vec![q0, q1, gate, expert],
            ),
            (
                r#"{"target_modules": ["lm_head", "classifier"]}"#,
                vec![head, classifier],
            ),
            (
                r#"{"target_modules": ".*\\.1\\..*"}"#,
                vec![q1, gate, expert],
            ),
            (
                r#"{"target_modules": "^(?!.*experts).*proj"}"#,
                vec![q0, q1, gate],
            ),
            (r#"{"target_modules": "q_proj"}"#, vec![]),
            (
                r#"{"target_modules": ["q_proj"], "layers_to_transform": 1}"#,
                vec![q1],
            ),
            // The first number of a path is the layer's.
            (
                r#"{"target_modules": ["up_proj"], "layers_to_transform": [0]}"#,
                vec![],
            ),
            (
                r#"{"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"}"#,
                vec![q0],
            ),
            (
                r#"{"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["h"]}"#,
                vec![],
            ),
            // A module that is named as a whole is chosen whatever its layer.
            (
                r#"{"target_modules": ["model.layers.0.self_attn.q_proj"], "layers_to_transform": [1]}"#,
                vec![q0],
            ),
            (
                r#"{"target_modules": ["q_proj", "gate_proj"], "exclude_modules": ["self_attn.q_proj"]}"#,
                vec![gate],
            ),
            (
                r#"{"target_modules": "all-linear", "exclude_modules": ".*self_attn.*", "modules_to_save": ["mlp"]}"#,
                vec![],
            ),
        ] {
            assert_eq!(chosen(json, &PATHS), want, "{json}");
        }
    }

    #[test]
    fn ranks_and_scales_follow_patterns() {
        let json = r#"{"target_modules": ["q_proj"], "use_rslora": true, "rank_pattern": {"layers.1.self_attn.q_proj": 4, "q_.*": 2},
                       "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 32}}"#;
        let targets: Targets = serde_json::from_str(json).unwrap();
        let chosen = targets.compiled().unwrap();
        let ranks = PATHS.map(|p| chosen.rank(p, 8));
        assert_eq!(ranks, [2, 4, 8, 8, 8, 8]);
        // `^` says that a path is whole.
        assert!((chosen.scale(PATHS[0], 16.0, 4) - 16.0).abs() < 1e-6);
        assert!((chosen.scale(PATHS[1], 16.0, 4) - 8.0).abs() < 1e-6);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (json, want) in [
            (
                r#"{"target_modules": "("}"#,
                "`target_modules` is no regular expression",
            ),
            (r#"{"bias": "some"}"#, "`bias` is `some`"),
            (r#"{"rank_pattern": {"q": 0}}"#, "the rank 0"),
        ] {
            let targets: Targets = serde_json::from_str(json).unwrap();
            let found = targets.compiled().err().unwrap().to_string();
            assert!(found.contains(want), "{found}");
        }
    }
}
