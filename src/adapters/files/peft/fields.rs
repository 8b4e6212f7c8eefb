//! The fields of PEFT's configurations: which ones are understood, and with which values.
//!
//! It is a list of what is allowed. A field or a value that is not on it may change the numbers, and is refused by its name; only an
//! unknown field that is off (`null`, `false`, empty) is passed over.

use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use serde_json::{Map, Value};

/// Methods of PEFT's that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Lora,
    Ia3,
    Vera,
    PromptTuning,
    PrefixTuning,
    TrainableTokens,
}

impl Kind {
    /// The value of `peft_type`.
    pub(super) const ALL: [(&'static str, Kind); 6] = [
        ("LORA", Kind::Lora),
        ("IA3", Kind::Ia3),
        ("VERA", Kind::Vera),
        ("PROMPT_TUNING", Kind::PromptTuning),
        ("PREFIX_TUNING", Kind::PrefixTuning),
        ("TRAINABLE_TOKENS", Kind::TrainableTokens),
    ];
}

/// What a field may be.
#[derive(Clone, Copy)]
enum Takes {
    /// Anything: it says nothing of the numbers.
    Any,
    Flag,
    /// A whole number of at least 1.
    Count,
    Number,
    /// A text or a list of texts, or null.
    Names,
    /// A list of texts, or null.
    List,
    /// A whole number or a list of them, or null.
    Indices,
    /// A map from texts to numbers, or null.
    Numbers,
    /// One of these texts.
    Word(&'static [&'static str]),
    /// Only what switches it off: the reason why.
    Off(&'static str),
    /// A list of token ids, a map from names to such lists, or null.
    Tokens,
    /// `init_lora_weights`.
    Initial,
}

type Row = (&'static str, Takes);

const COMMON: [Row; 9] = [
    ("auto_mapping", Takes::Any),
    ("base_model_name_or_path", Takes::Any),
    ("inference_mode", Takes::Any),
    ("peft_type", Takes::Any),
    ("peft_version", Takes::Any),
    ("revision", Takes::Any),
    ("runtime_config", Takes::Any),
    ("task_type", Takes::Any),
    ("fan_in_fan_out", Takes::Any),
];

const TUNER: [Row; 3] = [
    ("target_modules", Takes::Names),
    ("exclude_modules", Takes::Names),
    ("modules_to_save", Takes::List),
];

const LAYERS: [Row; 2] = [
    ("layers_to_transform", Takes::Indices),
    ("layers_pattern", Takes::Names),
];

const LORA: [Row; 28] = [
    ("r", Takes::Count),
    ("lora_alpha", Takes::Number),
    ("lora_dropout", Takes::Number),
    ("bias", Takes::Word(&["none", "all", "lora_only"])),
    ("use_rslora", Takes::Flag),
    ("use_dora", Takes::Flag),
    ("lora_bias", Takes::Flag),
    ("rank_pattern", Takes::Numbers),
    ("alpha_pattern", Takes::Numbers),
    ("init_lora_weights", Takes::Initial),
    ("ensure_weight_tying", Takes::Any),
    ("eva_config", Takes::Any),
    ("megatron_core", Takes::Any),
    ("qalora_group_size", Takes::Any),
    (
        "megatron_config",
        Takes::Off("it belongs to Megatron's own layers"),
    ),
    (
        "loftq_config",
        Takes::Off("LoftQ changes the base model's weights"),
    ),
    (
        "corda_config",
        Takes::Off("CorDA changes the base model's weights"),
    ),
    (
        "lora_ga_config",
        Takes::Off("LoRA-GA changes the base model's weights"),
    ),
    (
        "use_qalora",
        Takes::Off("QA-LoRA pools the input in groups"),
    ),
    (
        "layer_replication",
        Takes::Off("the layers of the model are other ones"),
    ),
    (
        "alora_invocation_tokens",
        Takes::Off("it acts on a part of the sequence alone"),
    ),
    ("trainable_token_indices", Takes::Tokens),
    (
        "target_parameters",
        Takes::Off("parameters that are no linear's are not adapted"),
    ),
    ("velora_config", Takes::Off("it is another method")),
    ("monteclora_config", Takes::Off("it is another method")),
    ("use_bdlora", Takes::Off("it is another method")),
    (
        "arrow_config",
        Takes::Off("it routes among several adapters"),
    ),
    ("kasa_config", Takes::Off("it is another method")),
];

const IA3: [Row; 2] = [
    ("feedforward_modules", Takes::Names),
    ("init_ia3_weights", Takes::Any),
];

const VERA: [Row; 7] = [
    ("r", Takes::Count),
    ("projection_prng_key", Takes::Any),
    ("save_projection", Takes::Flag),
    ("vera_dropout", Takes::Number),
    ("d_initial", Takes::Number),
    ("bias", Takes::Word(&["none", "all", "vera_only"])),
    ("init_weights", Takes::Any),
];

const LEARNED: [Row; 6] = [
    ("modules_to_save", Takes::List),
    ("num_virtual_tokens", Takes::Count),
    ("token_dim", Takes::Any),
    ("num_transformer_submodules", Takes::Any),
    ("num_attention_heads", Takes::Any),
    ("num_layers", Takes::Any),
];

/// The network that makes a prefix is not in the file: PEFT saves what it makes.
const PREFIX: [Row; 3] = [
    ("encoder_hidden_size", Takes::Any),
    ("prefix_projection", Takes::Flag),
    ("init_weights", Takes::Any),
];

const TOKENS: [Row; 3] = [
    ("token_indices", Takes::Tokens),
    ("target_modules", Takes::Names),
    ("init_weights", Takes::Any),
];

const PROMPT: [Row; 4] = [
    ("prompt_tuning_init", Takes::Any),
    ("prompt_tuning_init_text", Takes::Any),
    ("tokenizer_name_or_path", Takes::Any),
    ("tokenizer_kwargs", Takes::Any),
];

/// The method, after every field was looked at.
///
/// # Errors
/// [`ErrorKind::Unsupported`] with all fields and values that are not understood.
pub(super) fn check(config: &Map<String, Value>) -> Result<Kind> {
    let found = config.get("peft_type").and_then(Value::as_str);
    let kind = Kind::ALL.iter().find(|(name, _)| Some(*name) == found);
    let Some((_, kind)) = kind else {
        let names: Vec<&str> = Kind::ALL.iter().map(|(n, _)| *n).collect();
        return Err(Error::new(
            ErrorKind::Unsupported,
            Diagnostic::error(
                "peft-type",
                format!("`peft_type` is `{}`", found.unwrap_or_default()),
            )
            .help(format!("{} are understood", names.join(", "))),
        ));
    };
    let rows: Vec<&[Row]> = match kind {
        Kind::Lora => vec![&COMMON, &TUNER, &LAYERS, &LORA],
        Kind::Ia3 => vec![&COMMON, &TUNER, &IA3],
        Kind::Vera => vec![&COMMON, &TUNER, &LAYERS, &VERA],
        Kind::PromptTuning => vec![&COMMON, &LEARNED, &PROMPT],
        Kind::PrefixTuning => vec![&COMMON, &LEARNED, &PREFIX],
        Kind::TrainableTokens => vec![&COMMON, &TOKENS],
    };
    let wrong: Vec<Diagnostic> = config
        .iter()
        .filter_map(|(key, value)| {
            let row = rows.iter().flat_map(|r| r.iter()).find(|(k, _)| k == key);
            match row {
                Some((_, takes)) => refusal(key, value, *takes),
                None if off(value) => None,
                None => Some(
                    Diagnostic::error(
                        "peft-field",
                        format!("`{key}` is {value}, and this program does not know the field"),
                    )
                    .help("it may change the numbers; if it does not, take it out of adapter_config.json"),
                ),
            }
        })
        .collect();
    if wrong.is_empty() {
        Ok(*kind)
    } else {
        Err(Error::many(ErrorKind::Unsupported, wrong))
    }
}

/// Whether a value switches its field off.
fn off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::String(s) => s == "none",
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// Whether a value is a list of token ids.
fn ids(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|a| a.iter().all(Value::is_u64))
}

fn refusal(key: &str, value: &Value, takes: Takes) -> Option<Diagnostic> {
    let texts = |v: &Value| {
        let all = v.as_array();
        all.is_some_and(|a| a.iter().all(Value::is_string))
    };
    let wanted = match takes {
        Takes::Any => return None,
        Takes::Flag if value.is_boolean() || value.is_null() => return None,
        Takes::Count if value.as_u64().is_some_and(|n| n > 0) => return None,
        Takes::Number if value.is_number() => return None,
        Takes::Names if value.is_null() || value.is_string() || texts(value) => return None,
        Takes::List if value.is_null() || texts(value) => return None,
        Takes::Indices if value.is_null() || value.is_u64() => return None,
        Takes::Indices
            if value
                .as_array()
                .is_some_and(|a| a.iter().all(Value::is_u64)) =>
        {
            return None;
        }
        Takes::Numbers if value.is_null() => return None,
        Takes::Numbers
            if value
                .as_object()
                .is_some_and(|o| o.values().all(Value::is_number)) =>
        {
            return None;
        }
        Takes::Word(words) if value.as_str().is_some_and(|w| words.contains(&w)) => return None,
        Takes::Off(_) if off(value) => return None,
        Takes::Initial => return initial(key, value),
        Takes::Tokens if value.is_null() || ids(value) => return None,
        Takes::Tokens if value.as_object().is_some_and(|o| o.values().all(ids)) => {
            return None;
        }
        Takes::Tokens => "a list of token ids, or a map from names to such lists".to_owned(),
        Takes::Flag => "true or false".to_owned(),
        Takes::Count => "a whole number of at least 1".to_owned(),
        Takes::Number => "a number".to_owned(),
        Takes::Names => "a text or a list of texts".to_owned(),
        Takes::List => "a list of texts".to_owned(),
        Takes::Indices => "a whole number or a list of them".to_owned(),
        Takes::Numbers => "a map from names to numbers".to_owned(),
        Takes::Word(words) => words.join(", "),
        Takes::Off(why) => {
            let found = format!("`{key}` is {value}, which cannot be attached: {why}");
            return Some(Diagnostic::error("peft-field", found).help(
                "fold the adapter into the base model with PEFT (`merge_and_unload`), and export that",
            ));
        }
    };
    let found = format!("`{key}` is {value}, expected {wanted}");
    Some(Diagnostic::error("peft-field", found))
}

/// How `A` and `B` began. Some ways take what they put there out of the base weights.
fn initial(key: &str, value: &Value) -> Option<Diagnostic> {
    const KEEP: [&str; 3] = ["gaussian", "eva", "orthogonal"];
    let kept = match value {
        Value::Bool(_) | Value::Null => true,
        Value::String(word) => KEEP.contains(&&**word),
        Value::Number(_) | Value::Array(_) | Value::Object(_) => false,
    };
    (!kept).then(|| {
        Diagnostic::error(
            "peft-field",
            format!("`{key}` is {value}: the adapter was trained on base weights that were changed at the start"),
        )
        .note("PEFT repeats the change when it loads such a folder; on the plain base weights the numbers are wrong")
        .help("save it with PEFT's `path_initial_model_for_weight_conversion`, which makes it an ordinary LoRA")
    })
}
