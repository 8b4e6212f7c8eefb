//! What the tokenizer classes of Transformers do beside a `tokenizer.json`: a table that is made from them
//! (`fixtures/make_classes.py`). A class whose ids that file does not decide is refused by name.

use super::settings::content;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    serde_json::from_str(include_str!("classes.json")).expect("invariant: the table is made by us")
});

/// The class that does nothing: what the file says is all.
static PLAIN: LazyLock<Class> = LazyLock::new(Class::default);

#[derive(Deserialize)]
struct Table {
    models: BTreeMap<String, String>,
    slow: Vec<String>,
    classes: BTreeMap<String, Class>,
}

/// One class.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Class {
    /// The tokens that it names by itself, by their roles.
    tokens: Map<String, Value>,
    /// Its additional special tokens.
    more: Vec<Value>,
    place: Place,
    /// Pads to the left where the configuration does not say.
    pub(super) left: bool,
    /// Whether `add_bos_token` and `add_eos_token` are set where the configuration does not say.
    pub(super) flags: [bool; 2],
    /// What becomes of `add_prefix_space`.
    pub(super) space: Space,
    /// `add_prefix_space` also reaches pre-tokenizers inside a sequence.
    pub(super) nested: bool,
    pub(super) does: Does,
    /// The token in whose place a text is filled in: the class takes a text with it apart, where the configuration names no other.
    pub(super) fill: Option<String>,
    refused: Option<String>,
}

/// Where a class puts its additional tokens when the configuration has some.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Place {
    /// Nowhere: they stand for themselves.
    #[default]
    Without,
    Front,
    Behind,
}

/// What a class makes of `add_prefix_space`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Space {
    /// False where it is not set.
    #[default]
    False,
    /// Nothing where it is not set; where it is, the class converts a sentencepiece model.
    Null,
    /// Always false.
    Unseen,
}

/// What a class changes by its settings.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Does {
    #[default]
    Alone,
    /// A post-processor from `add_bos_token` and `add_eos_token`.
    Flags,
    /// BERT's normalizer.
    Bert,
    /// The same, but not its flag for Chinese characters.
    Cased,
    /// A post-processor from `src_lang`.
    Language,
    /// Tokens `<extra_id_N>`.
    T5,
    /// Tokens `<unk_N>`.
    Pegasus,
}

/// The class of a tokenizer, and its name without the ending `Fast`: that of its own configuration, of the model's, or of the model
/// type. A tokenizer without any is as its file says.
///
/// # Errors
/// A class whose ids its `tokenizer.json` does not decide.
pub(super) fn find(config: &Value, model: &Value) -> Result<(&'static Class, String), String> {
    let named = [config, model];
    let named = named.iter().find_map(|f| f["tokenizer_class"].as_str());
    let kind = model["model_type"].as_str().unwrap_or_default();
    let usual = TABLE.models.get(kind).map(String::as_str);
    let Some(name) = named.or(usual) else {
        return Ok((&PLAIN, String::new()));
    };
    let short = name.strip_suffix("Fast").unwrap_or(name);
    // The last one is the name that Transformers 5 writes for the first.
    if ["PreTrainedTokenizer", "TokenizersBackend"].contains(&short) {
        return Ok((&PLAIN, short.to_owned()));
    }
    let why = match TABLE.classes.get(short) {
        Some(Class {
            refused: Some(why), ..
        }) => why.as_str(),
        Some(class) => return Ok((class, short.to_owned())),
        None if TABLE.slow.iter().any(|s| s == name) => {
            "Transformers has it as Python code alone, which does not read tokenizer.json"
        }
        None => {
            "Transformers has none of this name, so what it does beside tokenizer.json is not known"
        }
    };
    Err(format!(
        "the tokenizer's class `{name}` is not supported: {why}"
    ))
}

impl Class {
    /// A configuration with what the class adds to it where it says nothing.
    ///
    /// # Errors
    /// Additional tokens that the class itself refuses.
    pub(super) fn complete(&self, config: &mut Map<String, Value>) -> Result<(), String> {
        for (role, usual) in &self.tokens {
            match (config.get(role), usual) {
                (None, _) => {
                    config.insert(role.clone(), usual.clone());
                }
                // The class makes its own kind of token of a text.
                (Some(Value::String(text)), Value::Object(flags)) => {
                    let mut token = flags.clone();
                    token.insert("content".into(), text.as_str().into());
                    config.insert(role.clone(), token.into());
                }
                (Some(_), _) => {}
            }
        }
        let key = "additional_special_tokens";
        let given = config.get(key).and_then(Value::as_array).cloned();
        let number =
            |key: &str, usual: u64| config.get(key).and_then(Value::as_u64).unwrap_or(usual);
        let all = match self.does {
            Does::T5 => extra_ids(given, number("extra_ids", 100))?,
            Does::Pegasus => unknowns(given, number("offset", 103)),
            Does::Alone | Does::Flags | Does::Bert | Does::Cased | Does::Language => {
                self.with_own(given)
            }
        };
        if !all.is_empty() {
            config.insert(key.to_owned(), all.into());
        }
        Ok(())
    }

    fn with_own(&self, own: Option<Vec<Value>>) -> Vec<Value> {
        let Some(own) = own else {
            return self.more.clone();
        };
        let (mut all, rest) = match self.place {
            Place::Without => return own,
            Place::Front => (self.more.clone(), own),
            Place::Behind => (own, self.more.clone()),
        };
        for token in rest {
            // A token with flags is another one than its text.
            if !all.contains(&token) {
                all.push(token);
            }
        }
        all
    }
}

fn extra_ids(own: Option<Vec<Value>>, count: u64) -> Result<Vec<Value>, String> {
    let ids = (0..count).map(|i| json!(format!("<extra_id_{i}>")));
    let Some(mut own) = own else {
        return Ok(ids.collect());
    };
    let is_id = |t: &&Value| content(t).is_some_and(|t| t.contains("<extra_id_"));
    match own.iter().filter(is_id).count() as u64 {
        0 => own.extend(ids),
        n if count > 0 && n != count => {
            return Err(format!(
                "`extra_ids` is {count}, and `additional_special_tokens` has {n} tokens `<extra_id_…>`"
            ));
        }
        _ => {}
    }
    Ok(own)
}

fn unknowns(own: Option<Vec<Value>>, offset: u64) -> Vec<Value> {
    let first = json!("<mask_1>");
    let (mut all, rest) = match own {
        None => (vec![first], 2..offset),
        Some(mut own) => {
            if !own.iter().any(|t| content(t) == content(&first)) {
                own.insert(0, first);
            }
            let from = own.len() as u64;
            (own, from..offset.saturating_sub(1))
        }
    };
    all.extend(rest.map(|i| json!(format!("<unk_{i}>"))));
    all
}
