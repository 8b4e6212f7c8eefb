//! What `tokenizer_config.json` and its older companions change of a `tokenizer.json`, as Transformers' fast tokenizers apply it.
//! Which class does what says `classes`.
//!
//! * classes that make their post-processor anew, whatever the file has: from `add_bos_token` and `add_eos_token` (Llama's and its kin),
//!   or from `src_lang` (translation);
//! * BERT's classes, whose `do_lower_case`, `strip_accents` and `tokenize_chinese_chars` go before the file's normalizer;
//! * `add_prefix_space`, for a pre-tokenizer that has it;
//! * `added_tokens_decoder`, or `added_tokens.json`, and special tokens: those that the file does not list as added ones, and those with
//!   flags, whose flags stand over the file's.

use super::classes::{self, Class, Does, Space};
use serde_json::{Map, Value, json};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

/// Ids in front of a text and behind it.
pub(super) type Ends = [Vec<u32>; 2];

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

/// A configuration as its class completes it.
pub(super) struct Settings {
    class: &'static Class,
    name: String,
    /// What `tokenizer_config.json` and the class say.
    pub(super) config: Map<String, Value>,
}

/// Roles that a tokenizer's configuration names a token for, in the order in which their tokens are added.
pub(super) const ROLES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

impl Files {
    /// The configuration; where it does not list the added tokens, the older files complete it, and the class everything. A role's token
    /// has the flags of `added_tokens_decoder`, or of the file itself where there is none; what these do not list is as it is written, and
    /// as the class makes it of a text.
    ///
    /// # Errors
    /// A class that is not supported.
    pub(super) fn settings(&self, inner: &Tokenizer) -> Result<Settings, String> {
        let (class, name) = classes::find(&self.config, &self.model)?;
        let mut config = self.config.as_object().cloned().unwrap_or_default();
        let decoder = config.get("added_tokens_decoder").cloned();
        let described: Vec<Value> = if let Some(decoder) = &decoder {
            let all = decoder.as_object().into_iter().flat_map(Map::values);
            all.cloned().collect()
        } else {
            self.older(&mut config);
            let all = inner.get_added_tokens_decoder().into_values();
            all.filter_map(|t| serde_json::to_value(t).ok()).collect()
        };
        for role in ROLES {
            let text = config.get(role).and_then(content);
            let found = described
                .iter()
                .rfind(|t| text.is_some() && content(t) == text);
            if let Some(token) = found {
                config.insert(role.to_owned(), token.clone());
            }
        }
        class.complete(&mut config)?;
        if let Some(padding) = inner.get_padding() {
            let pad = || Value::from(padding.pad_token.as_str());
            config.entry("pad_token").or_insert_with(pad);
        }
        // Transformers 5 writes them as a list.
        if let Some(Value::Array(extra)) = config.get("extra_special_tokens") {
            let all = [list(&config, MORE), extra.clone()].concat();
            config.insert(MORE.to_owned(), all.into());
        }
        Ok(Settings {
            class,
            name,
            config,
        })
    }

    /// Adds what `special_tokens_map.json` says; an object there is a special token.
    fn older(&self, config: &mut Map<String, Value>) {
        let special = |token: &Value| {
            let mut token = token.clone();
            if let Value::Object(flags) = &mut token {
                flags.insert("special".to_owned(), true.into());
            }
            token
        };
        for (key, value) in self.special.as_object().into_iter().flatten() {
            let value = if key == MORE && value.is_array() {
                let mut all = list(config, key);
                for token in value.as_array().into_iter().flatten().map(special) {
                    if !all.iter().any(|t| same(t, &token)) {
                        all.push(token);
                    }
                }
                all.into()
            } else {
                special(value)
            };
            config.insert(key.clone(), value);
        }
    }
}

/// The key of special tokens without a role.
pub(super) const MORE: &str = "additional_special_tokens";

fn list(config: &Map<String, Value>, key: &str) -> Vec<Value> {
    let list = config.get(key).and_then(Value::as_array);
    list.cloned().unwrap_or_default()
}

impl Settings {
    /// The token in whose place the class fills a text in.
    pub(super) fn fill(&self) -> Option<String> {
        match (&self.class.fill, self.config.get("fill_token")) {
            (Some(usual), None) => Some(usual.clone()),
            (Some(_), Some(own)) => content(own).map(str::to_owned),
            (None, _) => None,
        }
    }

    /// Whether padding goes to the left, where the configuration, the file or the class says so.
    pub(super) fn pads_left(&self, by_file: Option<bool>) -> Option<bool> {
        let side = self.config.get("padding_side").and_then(Value::as_str);
        side.map(|s| s == "left")
            .or(by_file)
            .or(self.class.left.then_some(true))
    }

    /// Special tokens that the configuration itself gives roles.
    pub(super) fn extra(&self) -> impl Iterator<Item = (&String, &str)> {
        let extra = self.config.get("extra_special_tokens");
        let named = extra.and_then(Value::as_object).into_iter().flatten();
        named.filter_map(|(role, token)| Some((role, content(token)?)))
    }

    /// All special tokens: those of the roles, then the others; each text once, but for those that the list of the others repeats.
    fn special(&self) -> Vec<&Value> {
        let config = &self.config;
        let one = |token: &Value| content(token).map(str::to_owned);
        let mut seen: Vec<String> = Vec::new();
        let mut out = Vec::new();
        let more = config.get(MORE).and_then(Value::as_array);
        let extra = config
            .get("extra_special_tokens")
            .and_then(Value::as_object);
        let roles = ROLES.iter().filter_map(|role| config.get(*role));
        let groups = roles.map(std::slice::from_ref);
        let groups = groups.chain(more.map(Vec::as_slice));
        let named = extra.into_iter().flat_map(Map::values);
        for group in groups.chain(named.map(std::slice::from_ref)) {
            let new = |t: &&Value| one(t).is_some_and(|t| !seen.contains(&t));
            let new: Vec<&Value> = group.iter().filter(new).collect();
            seen.extend(new.iter().filter_map(|t| one(t)));
            out.extend(new);
        }
        out
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.config.get(key)?.as_str()
    }

    fn flag(&self, key: &str, usual: bool) -> bool {
        // Null is a value: it is not true.
        let value = self.config.get(key);
        value.map_or(usual, |v| v.as_bool().unwrap_or(false))
    }
}

/// A token, written as itself or as an `AddedToken` object.
pub(super) fn content(token: &Value) -> Option<&str> {
    match token {
        Value::Object(o) => o.get("content")?.as_str(),
        other => other.as_str(),
    }
}

/// Applies the configuration. The ends of a text in the target language, for a class that
/// has one.
///
/// # Errors
/// Settings that ask for a token that there is not, or for a conversion.
pub(super) fn apply(
    inner: &mut Tokenizer,
    files: &Files,
    settings: &Settings,
) -> Result<Option<Ends>, String> {
    converted(inner, settings)?;
    add_tokens(inner, files, settings)?;
    prefix_space(inner, settings);
    inner.set_encode_special_tokens(settings.flag("split_special_tokens", false));
    match settings.class.does {
        Does::Alone | Does::T5 | Does::Pegasus => {}
        Does::Bert => normalizer(inner, &settings.config, true)?,
        Does::Cased => normalizer(inner, &settings.config, false)?,
        Does::Flags => by_flags(inner, settings)?,
        Does::Language => return language(inner, settings).map(Some),
    }
    Ok(None)
}

/// Classes that convert a sentencepiece model when a setting says so, in place of reading the file. What Llama's class makes of its
/// model in front of the vocabulary is known, so a file that says the same is as good.
fn converted(inner: &Tokenizer, settings: &Settings) -> Result<(), String> {
    let set = |key: &str| settings.config.get(key).is_some_and(|v| !v.is_null());
    let renamed = |role: &str, usual: &str| {
        let token = settings.config.get(role).and_then(content);
        settings.class.does == Does::Pegasus && token != Some(usual)
    };
    let why = if settings.class.space == Space::Null && set("add_prefix_space") {
        "add_prefix_space"
    } else if settings.flag("from_slow", false) && settings.class.does != Does::Alone {
        "from_slow"
    } else if renamed("pad_token", "<pad>") {
        "pad_token"
    } else if renamed("eos_token", "</s>") {
        "eos_token"
    } else if renamed("unk_token", "<unk>") {
        "unk_token"
    } else {
        return Ok(());
    };
    let legacy = settings
        .config
        .get("legacy")
        .is_none_or(|v| v.is_null() || *v == json!(true));
    let space = settings.flag("add_prefix_space", true);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizers = if space {
        vec![json!({"type": "Prepend", "prepend": "▁"}), replace]
    } else {
        vec![replace]
    };
    let scheme = if space { "first" } else { "never" };
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    let expected = if legacy {
        [
            json!({"type": "Sequence", "normalizers": normalizers}),
            Value::Null,
        ]
    } else {
        [Value::Null, metaspace]
    };
    let have = [
        serde_json::to_value(inner.get_normalizer()),
        serde_json::to_value(inner.get_pre_tokenizer()),
    ];
    let have = have.map(Result::unwrap_or_default);
    if settings.name == "LlamaTokenizer" && have == expected {
        return Ok(());
    }
    Err(format!(
        "`{why}` makes the class `{}` convert a sentencepiece model in place of reading tokenizer.json, and this file does otherwise; save the tokenizer again, and remove `{why}`",
        settings.name
    ))
}

/// Adds the tokens that the configuration lists and the file does not, then the special tokens among them.
fn add_tokens(inner: &mut Tokenizer, files: &Files, settings: &Settings) -> Result<(), String> {
    let config = &settings.config;
    let special = settings.special();
    let is_special = |text: &str| special.iter().any(|t| content(t) == Some(text));
    let there = inner.get_added_tokens_decoder();
    let mut listed: Vec<(u64, Value)> = Vec::new();
    let decoder = config.get("added_tokens_decoder");
    if settings.class.does == Does::Pegasus {
        // Its class drops them.
    } else if let Some(decoder) = decoder.and_then(Value::as_object) {
        let all = decoder.iter();
        listed.extend(all.filter_map(|(id, token)| Some((id.parse().ok()?, token.clone()))));
    } else {
        for (text, id) in files.added.as_object().into_iter().flatten() {
            let special = is_special(text);
            let token = json!({"content": text, "normalized": !special, "special": special});
            let id = id.as_u64();
            // The file's own tokens stand over these.
            let id = id.filter(|&id| u32::try_from(id).is_ok_and(|id| !there.contains_key(&id)));
            listed.extend(id.map(|id| (id, token)));
        }
    }
    listed.sort_by_key(|(id, _)| *id);
    let there: Vec<AddedToken> = there.into_values().collect();
    let as_written = |token: &Value| added(token, |_| false);
    let mut new: Vec<Value> = listed.into_iter().map(|(_, t)| t).collect();
    new.retain(|t| !as_written(t).is_some_and(|t| there.contains(&t)));
    // What is but a text has no flags to give; a token with flags gives them also where the tokenizer has it by others.
    let known = |token: &&Value| match token {
        Value::String(text) => {
            there.iter().any(|t| t.content == *text) || new.iter().any(|t| content(t) == Some(text))
        }
        token => new.iter().any(|t| same(t, token)),
    };
    let more: Vec<Value> = special
        .iter()
        .filter(|t| !known(t))
        .map(|&t| t.clone())
        .collect();
    new.extend(more);
    if !new.is_empty() {
        // Where a special token of the file is looked for stays as the file says: Transformers' tokenizers 0.21 keep its first entry.
        let placed = |mut token: AddedToken| {
            let old = there
                .iter()
                .find(|t| t.special && t.content == token.content);
            token.normalized = old.map_or(token.normalized, |t| t.normalized);
            token
        };
        let new = new.iter().filter_map(|t| added(t, is_special));
        let new: Vec<AddedToken> = new.map(placed).collect();
        inner
            .add_tokens(new)
            .map_err(|e| format!("its added tokens cannot be added: {e}"))?;
    }
    Ok(())
}

/// Whether two tokens are equal as they are written: a text and a token with flags never are.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(_), Value::Object(_)) => added(a, |_| false) == added(b, |_| false),
        _ => a == b,
    }
}

/// A token as it is added: one that `is_special` is special whatever it says.
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
fn prefix_space(inner: &mut Tokenizer, settings: &Settings) {
    let class = settings.class;
    let wanted = match (settings.config.get("add_prefix_space"), class.space) {
        (_, Space::Unseen) | (None, Space::False) => false,
        (Some(Value::Bool(b)), _) => *b,
        // No pre-tokenizer takes null.
        (Some(_), _) | (None, Space::Null) => return,
    };
    let state = inner.get_pre_tokenizer();
    let Ok(mut state) = serde_json::to_value(state) else {
        return;
    };
    let before = state.clone();
    if let Some(have) = state.get_mut("add_prefix_space") {
        *have = wanted.into();
    }
    if class.nested && wanted {
        set_inside(&mut state);
    }
    if before == state {
        return;
    }
    if let Ok(changed) = serde_json::from_value::<PreTokenizerWrapper>(state) {
        inner.with_pre_tokenizer(Some(changed));
    }
}

/// Sets `add_prefix_space` at every depth.
fn set_inside(state: &mut Value) {
    match state {
        Value::Object(fields) => {
            for (key, value) in fields {
                if key == "add_prefix_space" {
                    *value = true.into();
                } else {
                    set_inside(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(set_inside),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// BERT's normalizer with the configuration's flags, that for Chinese characters only if `chinese`.
fn normalizer(
    inner: &mut Tokenizer,
    config: &Map<String, Value>,
    chinese: bool,
) -> Result<(), String> {
    let flag = |key: &str, default: Value| config.get(key).cloned().unwrap_or(default);
    let mut wanted = vec![
        ("lowercase", flag("do_lower_case", true.into())),
        ("strip_accents", flag("strip_accents", Value::Null)),
    ];
    if chinese {
        let flag = flag("tokenize_chinese_chars", true.into());
        wanted.push(("handle_chinese_chars", flag));
    }
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
    let null = ["do_lower_case", "tokenize_chinese_chars"]
        .iter()
        .find(|key| {
            let reaches = chinese || **key == "do_lower_case";
            reaches && config.get(**key).is_some_and(Value::is_null)
        });
    if let Some(key) = null {
        return Err(format!("`{key}` is null, expected true or false"));
    }
    state.extend(
        wanted
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value)),
    );
    if let Ok(changed) = serde_json::from_value::<NormalizerWrapper>(Value::Object(state)) {
        inner
            .with_normalizer(Some(changed))
            .map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// The tokens in front of a text and behind it, by flags.
fn by_flags(inner: &mut Tokenizer, settings: &Settings) -> Result<(), String> {
    let [bos, eos] = settings.class.flags;
    let mut ends = [Vec::new(), Vec::new()];
    let asked = [
        ("add_bos_token", "bos_token", bos),
        ("add_eos_token", "eos_token", eos),
    ];
    for (end, (key, role, usual)) in asked.into_iter().enumerate() {
        if !settings.flag(key, usual) {
            continue;
        }
        let token = settings.config.get(role).and_then(content);
        let id = token.and_then(|t| inner.token_to_id(t));
        let none = || format!("`{key}` is set, and the tokenizer has no `{role}`");
        ends[end].push(id.ok_or_else(none)?);
    }
    let [front, back] = &ends;
    let one = |text: &str, kind: u8| {
        [
            pieces(inner, front, kind),
            vec![sequence(text, kind)],
            pieces(inner, back, kind),
        ]
        .concat()
    };
    let pair = [one("A", 0), one("B", 1)].concat();
    post_processor(inner, &ends, &one("A", 0), &pair)
}

/// The language of a text as a token: before it or behind it, as the class does. The ends of a text in the target language.
fn language(inner: &mut Tokenizer, settings: &Settings) -> Result<Ends, String> {
    let eos = settings.config.get("eos_token").and_then(content);
    let eos = eos.and_then(|t| inner.token_to_id(t));
    let eos = eos.ok_or("the tokenizer has no `eos_token`")?;
    let written = |code: &str| match settings.name.as_str() {
        "SeamlessM4TTokenizer" if !code.contains("__") => format!("__{code}__"),
        _ => code.to_owned(),
    };
    let usual = match settings.name.as_str() {
        "NllbTokenizer" => ["eng_Latn", ""],
        "SeamlessM4TTokenizer" => ["eng", "fra"],
        _ => ["en_XX", ""],
    };
    let id = |key: &str, usual: &str| {
        let code = written(settings.text(key).unwrap_or(usual));
        let id = inner.token_to_id(&code);
        id.ok_or_else(|| format!("`{key}` is `{code}`, which is no token of the tokenizer"))
    };
    let behind = settings.name == "MBartTokenizer" || settings.flag("legacy_behaviour", false);
    let ends = |language: u32| {
        if behind {
            [Vec::new(), vec![eos, language]]
        } else {
            [vec![language], vec![eos]]
        }
    };
    let source = ends(id("src_lang", usual[0])?);
    let target = match settings.name.as_str() {
        "SeamlessM4TTokenizer" => [vec![eos, id("tgt_lang", usual[1])?], vec![eos]],
        _ if settings.text("tgt_lang").is_none() => [Vec::new(), Vec::new()],
        _ => ends(id("tgt_lang", usual[1])?),
    };
    let around = |texts: Vec<Value>| {
        [
            pieces(inner, &source[0], 0),
            texts,
            pieces(inner, &source[1], 0),
        ]
        .concat()
    };
    let single = around(vec![sequence("A", 0)]);
    let pair = around(vec![sequence("A", 0), sequence("B", 0)]);
    post_processor(inner, &source, &single, &pair)?;
    Ok(target)
}

fn sequence(id: &str, kind: u8) -> Value {
    json!({"Sequence": {"id": id, "type_id": kind}})
}

fn pieces(inner: &Tokenizer, ids: &[u32], kind: u8) -> Vec<Value> {
    let texts = ids.iter().filter_map(|&id| inner.id_to_token(id));
    texts
        .map(|t| json!({"SpecialToken": {"id": t, "type_id": kind}}))
        .collect()
}

fn post_processor(
    inner: &mut Tokenizer,
    ends: &Ends,
    single: &[Value],
    pair: &[Value],
) -> Result<(), String> {
    let special: Map<String, Value> = ends
        .iter()
        .flatten()
        .filter_map(|&id| Some((inner.id_to_token(id)?, id)))
        .map(|(t, id)| (t.clone(), json!({"id": t, "ids": [id], "tokens": [t]})))
        .collect();
    let state = json!({"single": single, "pair": pair, "special_tokens": special});
    let made = serde_json::from_value::<TemplateProcessing>(state).map_err(|e| e.to_string())?;
    inner.with_post_processor(Some(made));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Tokenizer;
    use serde_json::Value;
    use std::path::Path;

    #[test]
    fn a_gap_that_is_to_be_filled_in_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizer/settings.json");
        let file: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let mut all = file["cases"].as_object().unwrap().values();
        let is_code_llama = |case: &&Value| {
            let class = &case["files"]["tokenizer_config.json"]["tokenizer_class"];
            class == "CodeLlamaTokenizer" && case["error"].is_null()
        };
        let case = all.find(is_code_llama).unwrap();
        let name = case["tokenizer"].as_str().unwrap();
        let inner = file["tokenizers"][name].to_string();
        std::fs::write(folder.path().join("tokenizer.json"), inner).unwrap();
        let config = folder.path().join("tokenizer_config.json");
        let mut own = case["files"]["tokenizer_config.json"].clone();
        std::fs::write(&config, own.to_string()).unwrap();
        let text = "def f(): <FILL_ME> return";
        let tokenizer = Tokenizer::open(folder.path()).unwrap();
        let e = tokenizer.encode(text, true).unwrap_err().to_string();
        assert!(e.contains("`<FILL_ME>`") && e.contains("fill_token"), "{e}");
        assert!(tokenizer.encode("def f()", true).is_ok());
        own["fill_token"] = Value::Null;
        std::fs::write(&config, own.to_string()).unwrap();
        let tokenizer = Tokenizer::open(folder.path()).unwrap();
        assert!(tokenizer.encode(text, true).is_ok());
    }

    /// Configurations and texts, against the ids of Transformers (`fixtures/make_tokenizers.py`).
    #[test]
    fn ids_are_those_of_transformers() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizer/settings.json");
        let file: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let (mut compared, mut refused) = (0, 0);
        for (name, case) in file["cases"].as_object().unwrap() {
            let folder = tempfile::tempdir().unwrap();
            let write = |file: &str, value: &Value| {
                std::fs::write(folder.path().join(file), value.to_string()).unwrap();
            };
            let tokenizer = case["tokenizer"].as_str().unwrap();
            write("tokenizer.json", &file["tokenizers"][tokenizer]);
            for (file, value) in case["files"].as_object().unwrap() {
                write(file, value);
            }
            let opened = Tokenizer::open(folder.path());
            if let Some(expected) = case["error"].as_str() {
                let message = opened.err().map(|e| e.to_string());
                let found = message.as_ref().is_some_and(|m| m.contains(expected));
                assert!(found, "{name}: {expected}: {message:?}");
                refused += 1;
                continue;
            }
            let tokenizer = opened.unwrap_or_else(|e| panic!("{name}: {e}"));
            for (text, ids) in case["ids"].as_object().unwrap() {
                let have = tokenizer.encode(text, true).unwrap();
                assert_eq!(serde_json::json!(have), *ids, "{name}: {text:?}");
                compared += 1;
            }
            let pair = tokenizer.tokens("Hello world", Some("  two  spaces"), true);
            let pair: Vec<i64> = pair.unwrap().iter().map(|t| t.id).collect();
            assert_eq!(serde_json::json!(pair), case["pair"], "{name}: a pair");
            let left = tokenizer.pads_left().unwrap_or(false);
            assert_eq!(left, case["left"], "{name}: padding");
        }
        assert!(compared > 500 && refused > 14, "{compared} {refused}");
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
        let asked = |tokenizer: &Tokenizer, kwargs: Value| {
            let text = tokenizer.chat(&[], kwargs.as_object().unwrap(), true);
            text.map_err(|e| e.to_string())
        };
        let rag = serde_json::json!({"chat_template": "rag"});
        assert_eq!(asked(&all, rag).unwrap(), "rag");
        let text = serde_json::json!({"chat_template": "{{ x }}{{ tools }}", "x": 7, "tools": [1]});
        assert_eq!(asked(&all, text).unwrap(), "7[1]");
        let empty = serde_json::json!({"tools": []});
        assert_eq!(asked(&all, empty).unwrap(), "tool_use");
        let error = asked(&all, serde_json::json!({"chat_template": "rug"})).unwrap_err();
        assert!(error.contains("default, tool_use, rag"), "{error}");
        let error = asked(&all, serde_json::json!({"tokenize": true})).unwrap_err();
        assert!(error.contains("`tokenize` cannot be set"), "{error}");
        let tools_alone = write([one("tool_use")].into());
        assert_eq!(rendered(&tools_alone, Some(&tools)).unwrap(), "tool_use");
        let error = rendered(&tools_alone, None).unwrap_err();
        assert!(error.contains("with tools alone"), "{error}");
        let neither = write([one("rag")].into());
        let error = neither.chat_template().unwrap_err().to_string();
        assert!(error.contains("of their names: rag"), "{error}");
    }
}
