//! What `tokenizer_config.json` and its older companions change of a `tokenizer.json`, as Transformers' fast tokenizers apply it.
//!
//! * classes that make their post-processor anew from `add_bos_token` and `add_eos_token`, whatever the file has (Llama's and its kin);
//! * BERT's classes, whose `do_lower_case`, `strip_accents` and `tokenize_chinese_chars` go before the file's normalizer;
//! * `add_prefix_space`, for a pre-tokenizer that has it;
//! * `added_tokens_decoder`, or `added_tokens.json`, and special tokens that the file does not list as added ones.

use serde_json::{Map, Value, json};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

/// Classes that add the tokens for begin and end by flags: name, the flags' defaults, and the tokens of both.
const BY_FLAGS: [(&str, [bool; 2], [&str; 2]); 4] = [
    ("LlamaTokenizer", [true, false], ["<s>", "</s>"]),
    ("GemmaTokenizer", [true, false], ["<bos>", "<eos>"]),
    (
        "CohereTokenizer",
        [true, false],
        ["<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"],
    ),
    (
        "GPTNeoXTokenizer",
        [false, false],
        ["<|endoftext|>", "<|endoftext|>"],
    ),
];

/// Classes with BERT's normalizer.
const LIKE_BERT: [&str; 9] = [
    "BertTokenizer",
    "ConvBertTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "FunnelTokenizer",
    "LayoutLMTokenizer",
    "LxmertTokenizer",
    "MobileBertTokenizer",
    "SqueezeBertTokenizer",
];

/// The class of a model type, where the tokenizer's configuration names none.
const OF_MODELS: [(&str, &str); 12] = [
    ("bert", "BertTokenizer"),
    ("cohere", "CohereTokenizer"),
    ("distilbert", "DistilBertTokenizer"),
    ("electra", "ElectraTokenizer"),
    ("gemma", "GemmaTokenizer"),
    ("gemma2", "GemmaTokenizer"),
    ("gemma3_text", "GemmaTokenizer"),
    ("gpt_neox", "GPTNeoXTokenizer"),
    ("llama", "LlamaTokenizer"),
    ("mistral", "LlamaTokenizer"),
    ("mixtral", "LlamaTokenizer"),
    ("mobilebert", "MobileBertTokenizer"),
];

/// The files beside a `tokenizer.json`, as far as they are there.
pub(super) struct Files {
    /// `tokenizer_config.json`.
    pub(super) config: Value,
    /// `special_tokens_map.json`.
    pub(super) special: Value,
    /// `added_tokens.json`.
    pub(super) added: Value,
    /// `config.json`.
    pub(super) model: Value,
}

impl Files {
    /// The class, without the ending `Fast`.
    fn class(&self) -> &str {
        let named = [&self.config, &self.model];
        let named = named.iter().find_map(|f| f["tokenizer_class"].as_str());
        if let Some(name) = named {
            return name.strip_suffix("Fast").unwrap_or(name);
        }
        let kind = self.model["model_type"].as_str().unwrap_or_default();
        let found = OF_MODELS.iter().find(|(m, _)| *m == kind);
        found.map_or("", |(_, class)| class)
    }

    /// The configuration; where it does not list the added tokens, the older files complete it.
    pub(super) fn whole(&self) -> Map<String, Value> {
        let mut out = self.config.as_object().cloned().unwrap_or_default();
        if !out.contains_key("added_tokens_decoder") {
            for (key, value) in self.special.as_object().into_iter().flatten() {
                if key == "additional_special_tokens" {
                    let mut all = out
                        .get(key)
                        .and_then(Value::as_array)
                        .cloned()
                        .unwrap_or_default();
                    for token in value.as_array().into_iter().flatten() {
                        if !all.iter().any(|t| content(t) == content(token)) {
                            all.push(token.clone());
                        }
                    }
                    out.insert(key.clone(), all.into());
                } else {
                    out.insert(key.clone(), value.clone());
                }
            }
        }
        if let Some((_, _, [bos, eos])) = BY_FLAGS.iter().find(|(c, ..)| *c == self.class()) {
            for (role, token) in [("bos_token", bos), ("eos_token", eos)] {
                out.entry(role).or_insert_with(|| json!(token));
            }
        }
        out
    }
}

/// A token, written as itself or as an `AddedToken` object.
pub(super) fn content(token: &Value) -> Option<&str> {
    match token {
        Value::Object(o) => o.get("content")?.as_str(),
        other => other.as_str(),
    }
}

/// Applies the configuration; `roles` are the keys of single special tokens.
///
/// # Errors
/// Flags that ask for a token that there is not.
pub(super) fn apply(
    inner: &mut Tokenizer,
    files: &Files,
    config: &Map<String, Value>,
    roles: &[&str],
) -> Result<(), String> {
    add_tokens(inner, files, config, roles)?;
    let class = files.class();
    prefix_space(inner, class, config);
    if LIKE_BERT.contains(&class) {
        normalizer(inner, config)?;
    }
    match BY_FLAGS.iter().find(|(c, ..)| *c == class) {
        Some((_, defaults, _)) => post_processor(inner, *defaults, config),
        None => Ok(()),
    }
}

/// Adds the tokens that the configuration lists and the file does not, then the special tokens among them.
fn add_tokens(
    inner: &mut Tokenizer,
    files: &Files,
    config: &Map<String, Value>,
    roles: &[&str],
) -> Result<(), String> {
    let single = roles.iter().filter_map(|r| config.get(*r));
    let more = config
        .get("additional_special_tokens")
        .and_then(Value::as_array);
    let special: Vec<&Value> = single.chain(more.into_iter().flatten()).collect();
    let is_special = |text: &str| special.iter().any(|t| content(t) == Some(text));
    let mut listed: Vec<(u64, AddedToken)> = Vec::new();
    if let Some(decoder) = config
        .get("added_tokens_decoder")
        .and_then(Value::as_object)
    {
        for (id, token) in decoder {
            if let (Ok(id), Some(token)) = (id.parse(), added(token, is_special)) {
                listed.push((id, token));
            }
        }
    } else {
        for (text, id) in files.added.as_object().into_iter().flatten() {
            let token =
                AddedToken::from(text.as_str(), is_special(text)).normalized(!is_special(text));
            listed.extend(id.as_u64().map(|id| (id, token)));
        }
    }
    listed.sort_by_key(|(id, _)| *id);
    let there: Vec<AddedToken> = inner.get_added_tokens_decoder().into_values().collect();
    let same = |a: &AddedToken, b: &AddedToken| {
        a.content == b.content
            && (a.single_word, a.lstrip, a.rstrip, a.normalized, a.special)
                == (b.single_word, b.lstrip, b.rstrip, b.normalized, b.special)
    };
    let mut new: Vec<AddedToken> = listed.into_iter().map(|(_, t)| t).collect();
    new.retain(|t| !there.iter().any(|o| same(o, t)));
    for token in special {
        let known = |list: &[AddedToken]| list.iter().any(|t| Some(&*t.content) == content(token));
        if !known(&there) && !known(&new) {
            new.extend(added(token, |_| true));
        }
    }
    if !new.is_empty() {
        inner
            .add_tokens(new)
            .map_err(|e| format!("its added tokens cannot be added: {e}"))?;
    }
    Ok(())
}

fn added(token: &Value, is_special: impl Fn(&str) -> bool) -> Option<AddedToken> {
    let text = content(token)?;
    let flag = |key: &str| token.get(key).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false) || is_special(text);
    let out = AddedToken::from(text, special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false));
    Some(out.normalized(flag("normalized").unwrap_or(!special)))
}

/// `add_prefix_space`, which is false where it is not said.
fn prefix_space(inner: &mut Tokenizer, class: &str, config: &Map<String, Value>) {
    let wanted = match config.get("add_prefix_space") {
        Some(Value::Bool(b)) => *b,
        Some(_) => return,
        // Llama's class hands null on, which no pre-tokenizer takes.
        None if class == "LlamaTokenizer" => return,
        None => false,
    };
    let state = inner
        .get_pre_tokenizer()
        .and_then(|p| serde_json::to_value(p).ok());
    let Some(Value::Object(mut state)) = state else {
        return;
    };
    if state
        .get("add_prefix_space")
        .is_none_or(|have| *have == wanted)
    {
        return;
    }
    state.insert("add_prefix_space".into(), wanted.into());
    if let Ok(changed) = serde_json::from_value::<PreTokenizerWrapper>(Value::Object(state)) {
        inner.with_pre_tokenizer(Some(changed));
    }
}

/// BERT's normalizer with the configuration's flags.
fn normalizer(inner: &mut Tokenizer, config: &Map<String, Value>) -> Result<(), String> {
    let flag = |key: &str, default: Value| config.get(key).cloned().unwrap_or(default);
    let wanted = [
        ("lowercase", flag("do_lower_case", true.into())),
        ("strip_accents", flag("strip_accents", Value::Null)),
        (
            "handle_chinese_chars",
            flag("tokenize_chinese_chars", true.into()),
        ),
    ];
    let state = inner
        .get_normalizer()
        .and_then(|n| serde_json::to_value(n).ok());
    let Some(Value::Object(mut state)) = state else {
        return Ok(());
    };
    if wanted
        .iter()
        .all(|(key, value)| state.get(*key).is_none_or(|have| have == value))
    {
        return Ok(());
    }
    state.extend(wanted.map(|(key, value)| (key.to_owned(), value)));
    if let Ok(changed) = serde_json::from_value::<NormalizerWrapper>(Value::Object(state)) {
        inner
            .with_normalizer(Some(changed))
            .map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// The tokens in front of a text and behind it, by flags.
fn post_processor(
    inner: &mut Tokenizer,
    defaults: [bool; 2],
    config: &Map<String, Value>,
) -> Result<(), String> {
    let flag =
        |key: &str, default: bool| config.get(key).and_then(Value::as_bool).unwrap_or(default);
    let asked = [
        ("add_bos_token", "bos_token", defaults[0]),
        ("add_eos_token", "eos_token", defaults[1]),
    ];
    let mut tokens: Vec<(String, u32)> = Vec::new();
    let mut ends: Vec<Option<String>> = Vec::new();
    for (key, role, default) in asked {
        if !flag(key, default) {
            ends.push(None);
            continue;
        }
        let token = config.get(role).and_then(content);
        let found = token.and_then(|t| Some((t.to_owned(), inner.token_to_id(t)?)));
        let Some((text, id)) = found else {
            return Err(format!("`{key}` is set, and the tokenizer has no `{role}`"));
        };
        ends.push(Some(text.clone()));
        tokens.push((text, id));
    }
    let piece = |end: usize, kind: u8| {
        let token = ends[end].as_ref();
        token.map(|t| json!({"SpecialToken": {"id": t, "type_id": kind}}))
    };
    let text = |id: &str, kind: u8| json!({"Sequence": {"id": id, "type_id": kind}});
    let one = |id: &str, kind: u8| {
        let all = [piece(0, kind), Some(text(id, kind)), piece(1, kind)];
        all.into_iter().flatten().collect::<Vec<Value>>()
    };
    let special: Map<String, Value> = tokens
        .into_iter()
        .map(|(t, id)| (t.clone(), json!({"id": t, "ids": [id], "tokens": [t]})))
        .collect();
    let pair = [one("A", 0), one("B", 1)].concat();
    let state = json!({
        "single": one("A", 0),
        "pair": pair,
        "special_tokens": special,
    });
    let made = serde_json::from_value::<TemplateProcessing>(state).map_err(|e| e.to_string())?;
    inner.with_post_processor(Some(made));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Tokenizer;
    use serde_json::Value;
    use std::path::Path;

    /// Configurations and texts, against the ids of Transformers (`fixtures/make_tokenizers.py`).
    #[test]
    fn ids_are_those_of_transformers() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizer/settings.json");
        let cases: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let mut compared = 0;
        for (name, case) in cases.as_object().unwrap() {
            let folder = tempfile::tempdir().unwrap();
            let write = |file: &str, value: &Value| {
                std::fs::write(folder.path().join(file), value.to_string()).unwrap();
            };
            write("tokenizer.json", &case["tokenizer"]);
            for (file, value) in case["files"].as_object().unwrap() {
                write(file, value);
            }
            let tokenizer = Tokenizer::open(folder.path()).unwrap();
            for (text, ids) in case["ids"].as_object().unwrap() {
                let have = tokenizer.encode(text, true).unwrap();
                assert_eq!(serde_json::json!(have), *ids, "{name}: {text:?}");
                compared += 1;
            }
        }
        assert!(compared > 100, "{compared}");
    }

    /// Transformers takes `tool_use` where a conversation has tools, and the default one otherwise.
    #[test]
    fn templates_are_chosen_by_name() {
        use crate::text::ChatOptions;
        let folder = tempfile::tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizer");
        std::fs::copy(
            fixtures.join("tokenizer.json"),
            folder.path().join("tokenizer.json"),
        )
        .unwrap();
        let write = |templates: Value| {
            let config = serde_json::json!({ "chat_template": templates });
            let file = folder.path().join("tokenizer_config.json");
            std::fs::write(file, config.to_string()).unwrap();
            Tokenizer::open(folder.path()).unwrap()
        };
        let one = |name: &str| serde_json::json!({"name": name, "template": name});
        let tools = Value::Array(Vec::new());
        let rendered = |tokenizer: &Tokenizer, tools: Option<&Value>| {
            let options = ChatOptions {
                tools,
                ..ChatOptions::default()
            };
            let chat = tokenizer.chat_template().unwrap().render(&[], options);
            chat.map(|c| c.text).map_err(|e| e.to_string())
        };
        let all = write([one("default"), one("tool_use"), one("rag")].into());
        assert_eq!(rendered(&all, None).unwrap(), "default");
        assert_eq!(rendered(&all, Some(&tools)).unwrap(), "tool_use");
        assert!(all.named_template("rag").unwrap().is_some());
        let tools_alone = write([one("tool_use")].into());
        assert_eq!(rendered(&tools_alone, Some(&tools)).unwrap(), "tool_use");
        let error = rendered(&tools_alone, None).unwrap_err();
        assert!(error.contains("with tools alone"), "{error}");
        let neither = write([one("rag")].into());
        let error = neither.chat_template().unwrap_err().to_string();
        assert!(error.contains("of their names: rag"), "{error}");
    }
}
