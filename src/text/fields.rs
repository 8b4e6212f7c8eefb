//! The kinds of values that `tokenizer_config.json` and its companions hold: a value of another kind is an error, not left out.

use super::settings::{Files, MORE, content};
use serde_json::Value;

/// What a field may hold; null besides, where it says so.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Flag,
    FlagOrNull,
    Side,
    Text,
    Number,
    Token,
    Tokens,
    /// Tokens by their roles, or a list of them.
    Roles,
    /// Tokens by their ids.
    Ids,
    Templates,
}

const FIELDS: [(&str, Kind); 29] = [
    ("bos_token", Kind::Token),
    ("eos_token", Kind::Token),
    ("unk_token", Kind::Token),
    ("sep_token", Kind::Token),
    ("pad_token", Kind::Token),
    ("cls_token", Kind::Token),
    ("mask_token", Kind::Token),
    (MORE, Kind::Tokens),
    ("extra_special_tokens", Kind::Roles),
    ("added_tokens_decoder", Kind::Ids),
    ("chat_template", Kind::Templates),
    ("padding_side", Kind::Side),
    ("truncation_side", Kind::Side),
    ("tokenizer_class", Kind::Text),
    ("src_lang", Kind::Text),
    ("tgt_lang", Kind::Text),
    ("language", Kind::Text),
    ("task", Kind::Text),
    ("model_max_length", Kind::Number),
    ("extra_ids", Kind::Number),
    ("offset", Kind::Number),
    ("add_bos_token", Kind::FlagOrNull),
    ("add_eos_token", Kind::FlagOrNull),
    ("add_prefix_space", Kind::FlagOrNull),
    ("do_lower_case", Kind::FlagOrNull),
    ("strip_accents", Kind::FlagOrNull),
    ("tokenize_chinese_chars", Kind::FlagOrNull),
    ("split_special_tokens", Kind::Flag),
    ("legacy_behaviour", Kind::FlagOrNull),
];

impl Kind {
    fn holds(self, value: &Value) -> bool {
        let null_or = |holds: bool| holds || value.is_null();
        let token = |t: &Value| content(t).is_some();
        match self {
            Kind::Flag => value.is_boolean(),
            Kind::FlagOrNull => null_or(value.is_boolean()),
            Kind::Side => ["left", "right"].iter().any(|s| value == s),
            Kind::Text => null_or(value.is_string()),
            Kind::Number => null_or(value.is_number()),
            Kind::Token => null_or(token(value)),
            Kind::Tokens => null_or(value.as_array().is_some_and(|l| l.iter().all(token))),
            Kind::Roles => match value {
                Value::Array(list) => list.iter().all(token),
                Value::Object(named) => named.values().all(token),
                _ => value.is_null(),
            },
            Kind::Ids => value.as_object().is_some_and(|ids| {
                let id = |(id, t): (&String, &Value)| {
                    id.parse::<u32>().is_ok() && t.is_object() && token(t)
                };
                ids.iter().all(id)
            }),
            Kind::Templates => null_or(match value {
                Value::String(_) => true,
                Value::Object(named) => named.values().all(Value::is_string),
                Value::Array(list) => list
                    .iter()
                    .all(|t| t["name"].is_string() && t["template"].is_string()),
                Value::Null | Value::Bool(_) | Value::Number(_) => false,
            }),
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Kind::Flag => "true or false",
            Kind::FlagOrNull => "true, false or null",
            Kind::Side => "\"left\" or \"right\"",
            Kind::Text => "a text",
            Kind::Number => "a number",
            Kind::Token => "a token, or an object with its `content`",
            Kind::Tokens => "a list of tokens",
            Kind::Roles => "tokens by their names",
            Kind::Ids => "objects with a `content` by their ids",
            Kind::Templates => {
                "a template, or a list of templates, each with `name` and `template`"
            }
        }
    }
}

/// What is wrong with the files beside a tokenizer: the file, and what is found and expected there.
pub(super) fn wrong(files: &Files) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    let named = [
        ("tokenizer_config.json", &files.config),
        ("special_tokens_map.json", &files.special),
    ];
    for (file, value) in named {
        if !value.is_object() && !value.is_null() {
            out.push((file, "the file is no JSON object".to_owned()));
        }
        for (key, kind) in FIELDS {
            let found = value.get(key).filter(|v| !kind.holds(v));
            out.extend(found.map(|v| {
                let v = v.to_string();
                let short: String = v.chars().take(60).collect();
                let dots = if short.len() < v.len() { "…" } else { "" };
                (
                    file,
                    format!("`{key}` is {short}{dots}, expected {}", kind.expected()),
                )
            }));
        }
    }
    let ids = files.added.as_object();
    let good = ids.is_some_and(|ids| ids.values().all(Value::is_u64));
    if !good && !files.added.is_null() {
        out.push((
            "added_tokens.json",
            "expected ids by their tokens".to_owned(),
        ));
    }
    out
}
