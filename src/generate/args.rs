//! How to generate, with the names and meanings of Hugging Face's `GenerationConfig`.

use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::options;
use crate::select::beside;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// One token id, or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Ids {
    /// One.
    One(i64),
    /// Several.
    Many(Vec<i64>),
}

impl Ids {
    /// All of them.
    pub(crate) fn list(&self) -> &[i64] {
        match self {
            Ids::One(id) => std::slice::from_ref(id),
            Ids::Many(ids) => ids,
        }
    }
}

/// How to generate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GenerationArguments {
    /// Largest number of tokens to generate; the prompt is not counted.
    pub max_new_tokens: usize,
    /// Smallest number of tokens to generate: until then no token ends the text.
    pub min_new_tokens: usize,
    /// Draws the next token by its probability; otherwise the most probable one is taken, and the next four options have no effect.
    pub do_sample: bool,
    /// Number that logits are divided by before a token is drawn.
    pub temperature: f64,
    /// Number of most probable tokens that one is drawn from; 0 draws from all.
    pub top_k: usize,
    /// Probability that the most probable tokens, from which one is drawn, have together.
    pub top_p: f64,
    /// Share of the most probable token's probability that a token must have to be drawn.
    pub min_p: Option<f64>,
    /// Number that logits of tokens that the text has already are divided by, or multiplied by where they are negative.
    pub repetition_penalty: f64,
    /// Texts that end the generation; what is printed ends in front of them.
    pub stop_strings: Vec<String>,
    /// Token ids that end the generation (default: those of the model).
    pub eos_token_id: Option<Ids>,
    /// Token id that an encoder-decoder's text begins with (default: that of the model).
    pub decoder_start_token_id: Option<i64>,
    /// Number of texts for each prompt.
    pub num_return_sequences: usize,
    /// Keeps keys and values of the text instead of computing them again for every token.
    pub use_cache: bool,
    /// Number of prompts that are computed together.
    pub batch_size: usize,
    /// Seed of the tokens that are drawn.
    pub seed: u64,
    /// Leaves special tokens out of the text.
    pub skip_special_tokens: bool,
}

impl options::Options for GenerationArguments {
    const ALIASES: &'static [(&'static str, &'static str)] = &[("stop", "stop_strings")];

    fn wrong(&self) -> Vec<Diagnostic> {
        self.ranges()
    }
}

impl Default for GenerationArguments {
    fn default() -> Self {
        GenerationArguments {
            max_new_tokens: 256,
            min_new_tokens: 0,
            do_sample: false,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: None,
            repetition_penalty: 1.0,
            stop_strings: Vec::new(),
            eos_token_id: None,
            decoder_start_token_id: None,
            num_return_sequences: 1,
            use_cache: true,
            batch_size: 8,
            seed: 42,
            skip_special_tokens: true,
        }
    }
}

impl GenerationArguments {
    /// The arguments of a `generation_config.json`, with the given ones over it.
    pub(crate) fn over(config: &Map<String, Value>, given: Map<String, Value>) -> Result<Self> {
        let mut fields = config.clone();
        let mut own = options::take::<Self>(&mut fields);
        if let Some(stop) = own.get_mut("stop_strings").filter(|s| s.is_string()) {
            *stop = Value::Array(vec![stop.take()]);
        }
        own.retain(|_, v| !v.is_null());
        own.extend(given);
        options::read(own)
    }

    /// Checks ranges and combinations; every violation is reported.
    pub(crate) fn validate(&self) -> Result<()> {
        let checks = [
            (
                self.min_new_tokens <= self.max_new_tokens,
                "min_new_tokens",
                "at most `max_new_tokens`",
            ),
            (
                !self.do_sample || (self.temperature > 0.0 && self.temperature.is_finite()),
                "temperature",
                "above 0; for the most probable token leave `do_sample` out",
            ),
            (
                self.do_sample || self.num_return_sequences <= 1,
                "num_return_sequences",
                "1 unless `do_sample` is on: they would all be the same",
            ),
        ];
        let mut found = self.ranges();
        found.extend(broken(&checks));
        if found.is_empty() {
            Ok(())
        } else {
            Err(Error::many(ErrorKind::Run, found))
        }
    }

    fn ranges(&self) -> Vec<Diagnostic> {
        let share = |x: f64| (0.0..=1.0).contains(&x);
        broken(&[
            (self.max_new_tokens > 0, "max_new_tokens", "at least 1"),
            (
                self.temperature >= 0.0 && self.temperature.is_finite(),
                "temperature",
                "a number of at least 0",
            ),
            (
                share(self.top_p) && self.top_p > 0.0,
                "top_p",
                "above 0 and at most 1",
            ),
            (self.min_p.is_none_or(share), "min_p", "between 0 and 1"),
            (
                self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
                "repetition_penalty",
                "above 0",
            ),
            (
                self.stop_strings.iter().all(|s| !s.is_empty()),
                "stop_strings",
                "texts that are not empty",
            ),
            (
                self.num_return_sequences > 0,
                "num_return_sequences",
                "at least 1",
            ),
            (self.batch_size > 0, "batch_size", "at least 1"),
        ])
    }
}

/// A finding for each check that does not hold: what must hold, the field, and what it must be.
fn broken(checks: &[(bool, &str, &str)]) -> Vec<Diagnostic> {
    let wrong = checks.iter().filter(|c| !c.0);
    let said = |(_, field, want): &(bool, &str, &str)| {
        Diagnostic::error("generation-argument", format!("`{field}` must be {want}"))
    };
    wrong.map(said).collect()
}

/// Fields of `GenerationConfig` that change the text and that are not followed here, with the value that changes nothing.
const NOT_FOLLOWED: [(&str, &str); 11] = [
    ("num_beams", "1"),
    ("no_repeat_ngram_size", "0"),
    ("encoder_no_repeat_ngram_size", "0"),
    ("encoder_repetition_penalty", "1.0"),
    ("typical_p", "1.0"),
    ("epsilon_cutoff", "0.0"),
    ("eta_cutoff", "0.0"),
    ("penalty_alpha", "0.0"),
    ("bad_words_ids", "null"),
    ("forced_bos_token_id", "null"),
    ("suppress_tokens", "null"),
];

/// What `generation_config.json` beside a model says, and what it says for the model from `config.json`: ids of special tokens and
/// lengths. Warns of fields that are not followed.
pub(crate) fn generation_config(model: &Path) -> Result<(Map<String, Value>, Vec<Diagnostic>)> {
    let mut fields = Map::new();
    let own = object(&beside(model, "config.json"))?;
    for key in ["eos_token_id", "decoder_start_token_id"] {
        let value = own.get(key).filter(|v| !v.is_null());
        fields.extend(value.map(|v| (key.to_owned(), v.clone())));
    }
    let path = beside(model, "generation_config.json");
    let config = object(&path)?;
    let mut warnings = Vec::new();
    for (key, neutral) in NOT_FOLLOWED {
        let Some(value) = config.get(key).filter(|v| !v.is_null()) else {
            continue;
        };
        let same = value.as_f64().is_some_and(|x| neutral.parse() == Ok(x));
        if !same && value != &Value::Array(Vec::new()) {
            let d = Diagnostic::warning(
                "generation-config",
                format!("`{key}` = {value} is not followed"),
            );
            warnings.push(d.at(path.display().to_string()));
        }
    }
    fields.extend(config.into_iter().filter(|(_, v)| !v.is_null()));
    Ok((fields, warnings))
}

fn object(path: &Path) -> Result<Map<String, Value>> {
    if !path.exists() {
        return Ok(Map::new());
    }
    let text = disk::text(path).map_err(|e| Error::io(path, "cannot read", e))?;
    serde_json::from_str(&text).map_err(|e| {
        let d =
            Diagnostic::error("generation-config", e.to_string()).at(path.display().to_string());
        Error::new(ErrorKind::Decode, d)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(v: &Value) -> Map<String, Value> {
        v.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn given_values_stand_over_the_configuration() {
        let config = map(&json!({
            "temperature": 0.6, "top_k": 20, "eos_token_id": [1, 2], "pad_token_id": null, "transformers_version": "4"
        }));
        let args = GenerationArguments::over(&config, map(&json!({"top_k": 3}))).unwrap();
        assert_eq!((args.temperature, args.top_k), (0.6, 3));
        assert_eq!(args.eos_token_id.unwrap().list(), [1, 2]);
    }

    #[test]
    fn every_violation_is_reported() {
        let bad = json!({"do_sample": true, "temperature": 0.0, "top_p": 1.5, "stop": [""]});
        let mut given = map(&bad);
        let given = options::take::<GenerationArguments>(&mut given);
        let args = GenerationArguments::over(&Map::new(), given).unwrap();
        let e = args.validate().unwrap_err().to_string();
        for field in ["`temperature`", "`top_p`", "`stop_strings`"] {
            assert!(e.contains(field), "{e}");
        }
    }

    #[test]
    fn what_is_not_followed_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"num_beams": 4, "typical_p": 1.0, "top_k": 7}"#;
        std::fs::write(dir.path().join("generation_config.json"), text).unwrap();
        let (fields, warnings) = generation_config(&dir.path().join("model.onnx")).unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].message.contains("num_beams"));
        assert_eq!(fields["top_k"], 7);
    }
}
