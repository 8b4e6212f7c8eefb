//! Options as data: the fields of an argument struct with type, default and documentation, read from its JSON schema. Job files,
//! command-line flags and the tables of the documentation come from this one description.

use crate::diag::{Diagnostic, nearest};
use crate::error::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};

/// A struct whose fields are options. Every field has a default.
pub(crate) trait Options: Default + Serialize + DeserializeOwned + JsonSchema {
    /// Other names that a field is known under, as (alias, field).
    const ALIASES: &'static [(&'static str, &'static str)] = &[];
    /// Other words for a word of a field, as (field, other word, word).
    const WORDS: &'static [(&'static str, &'static str, &'static str)] = &[];

    /// Values that are wrong whatever the other options are.
    fn wrong(&self) -> Vec<Diagnostic> {
        Vec::new()
    }
}

/// What is wrong with values by themselves; combinations are not looked at, as other options may still come.
///
/// # Errors
/// [`ErrorKind::Train`]: values that do not fit or are out of range, all of them.
pub(crate) fn check<T: Options>(options: &Map<String, Value>) -> Result<()> {
    let found = read::<T>(options.clone())?.wrong();
    if found.is_empty() {
        return Ok(());
    }
    Err(Error::many(ErrorKind::Train, found))
}

/// One option.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OptionField {
    /// Its name in snake case.
    pub name: String,
    /// What it does.
    pub doc: String,
    /// What its value looks like.
    pub kind: Kind,
    /// The value without it; null where there is none.
    pub default: Value,
}

/// What the value of an option looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// true or false.
    Bool,
    /// A whole number.
    Integer,
    /// A finite number.
    Number,
    /// Text.
    Text,
    /// One of these words.
    Choice(Vec<String>),
    /// Several values.
    List(Box<Kind>),
    /// Values by name.
    Map,
    /// One of several of the above.
    OneOf(Vec<Kind>),
}

/// The options of a struct, in the order of its fields.
pub(crate) fn fields<T: Options>() -> Vec<OptionField> {
    let schema = schemars::schema_for!(T).to_value();
    let Value::Object(defaults) = serde_json::to_value(T::default()).unwrap_or_default() else {
        return Vec::new();
    };
    let empty = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    let field = |name: &String| {
        let property = properties.get(name)?;
        Some(OptionField {
            name: name.clone(),
            doc: property["description"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            kind: kind(property, &schema["$defs"]),
            default: defaults.get(name).cloned().unwrap_or_default(),
        })
    };
    // `properties` and not the defaults: a field that is left out when empty is an option too.
    properties.keys().filter_map(field).collect()
}

fn kind(schema: &Value, defs: &Value) -> Kind {
    if let Some(name) = schema["$ref"].as_str() {
        return kind(&defs[name.trim_start_matches("#/$defs/")], defs);
    }
    if let Some(words) = schema["enum"].as_array() {
        return Kind::Choice(
            words
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
        );
    }
    if let Some(word) = schema["const"].as_str() {
        return Kind::Choice(vec![word.to_owned()]);
    }
    for union in ["anyOf", "oneOf"] {
        if let Some(list) = schema[union].as_array() {
            return union_of(
                list.iter()
                    .filter(|s| s["type"] != "null")
                    .map(|s| kind(s, defs)),
            );
        }
    }
    let of = |name: &str| match name {
        "boolean" => Kind::Bool,
        "integer" => Kind::Integer,
        "number" => Kind::Number,
        "array" => Kind::List(Box::new(kind(&schema["items"], defs))),
        "object" => Kind::Map,
        _ => Kind::Text,
    };
    match &schema["type"] {
        Value::Array(list) => union_of(
            list.iter()
                .filter_map(Value::as_str)
                .filter(|t| *t != "null")
                .map(of),
        ),
        Value::String(name) => of(name),
        _ => Kind::Text,
    }
}

fn union_of(kinds: impl Iterator<Item = Kind>) -> Kind {
    let mut words = Vec::new();
    let mut rest = Vec::new();
    for k in kinds {
        match k {
            Kind::Choice(w) => words.extend(w),
            other => rest.push(other),
        }
    }
    if !words.is_empty() {
        rest.push(Kind::Choice(words));
    }
    match rest.len() {
        1 => rest.remove(0),
        _ => Kind::OneOf(rest),
    }
}

impl Kind {
    /// The value of a text, as a command line has it.
    ///
    /// # Errors
    /// What was expected.
    pub(crate) fn parse(&self, text: &str) -> std::result::Result<Value, String> {
        match self {
            Kind::Bool => text
                .parse()
                .map(Value::Bool)
                .map_err(|_| "true or false is needed".to_owned()),
            Kind::Integer => integer(text).ok_or_else(|| "a whole number is needed".to_owned()),
            Kind::Number => integer(text)
                .or_else(|| number(text))
                .ok_or_else(|| "a finite number is needed, such as 1e-4".to_owned()),
            Kind::Text => Ok(Value::String(text.to_owned())),
            Kind::Choice(words) if words.iter().any(|w| w == text) => {
                Ok(Value::String(text.to_owned()))
            }
            Kind::Choice(words) => Err(match nearest(text, words.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`? One of: {}", words.join(", ")),
                None => format!("one of: {}", words.join(", ")),
            }),
            Kind::List(item) => {
                if let Ok(Value::Array(list)) = serde_json::from_str(text) {
                    return Ok(Value::Array(list));
                }
                let items: std::result::Result<_, _> =
                    text.split(',').map(|t| item.parse(t)).collect();
                items.map(Value::Array)
            }
            Kind::Map => map(text),
            Kind::OneOf(kinds) => {
                let rank = |k: &&Kind| matches!(k, Kind::Text | Kind::List(_));
                let (last, first): (Vec<&Kind>, Vec<&Kind>) = kinds.iter().partition(rank);
                let mut wanted = Vec::new();
                for k in first.into_iter().chain(last.into_iter().rev()) {
                    // A path may have an equals sign in it: an object among other kinds is JSON.
                    if *k == Kind::Map && !text.trim_start().starts_with('{') {
                        continue;
                    }
                    match k.parse(text) {
                        Ok(v) => return Ok(v),
                        Err(e) => wanted.push(e),
                    }
                }
                Err(wanted.join(", or "))
            }
        }
    }

    /// What is expected, in words.
    fn words(&self) -> String {
        match self {
            Kind::Bool => "true or false".to_owned(),
            Kind::Integer => "a whole number".to_owned(),
            Kind::Number => "a number".to_owned(),
            Kind::Text => "text".to_owned(),
            Kind::Choice(words) if words.len() == 1 => format!("`{}`", words[0]),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::List(item) => match &**item {
                Kind::Integer => "a list of whole numbers".to_owned(),
                Kind::Number => "a list of numbers".to_owned(),
                Kind::Text => "a list of texts".to_owned(),
                Kind::Choice(words) => format!("a list of {}", words.join(", ")),
                Kind::Bool | Kind::List(_) | Kind::Map | Kind::OneOf(_) => "a list".to_owned(),
            },
            Kind::Map => "an object".to_owned(),
            Kind::OneOf(kinds) => {
                let words: Vec<String> = kinds.iter().map(Kind::words).collect();
                words.join(", or ")
            }
        }
    }

    /// Whether a value is of this kind; what is inside a list or an object is not looked at.
    fn holds(&self, value: &Value) -> bool {
        match self {
            Kind::Bool => value.is_boolean(),
            Kind::Integer => value.is_u64() || value.is_i64(),
            Kind::Number => value.is_number(),
            Kind::Text => value.is_string(),
            Kind::Choice(words) => value.as_str().is_some_and(|v| words.iter().any(|w| w == v)),
            Kind::List(_) => value.is_array(),
            Kind::Map => value.is_object(),
            Kind::OneOf(kinds) => kinds.iter().any(|k| k.holds(value)),
        }
    }

    /// A word for the value in a synopsis.
    pub(crate) fn placeholder(&self) -> &'static str {
        match self {
            Kind::Bool => "BOOL",
            Kind::Integer => "N",
            Kind::Number => "X",
            Kind::Text => "TEXT",
            Kind::Choice(_) => "NAME",
            Kind::List(_) => "LIST",
            Kind::Map => "KEY=VALUE,…",
            Kind::OneOf(_) => "VALUE",
        }
    }
}

fn integer(text: &str) -> Option<Value> {
    text.parse::<u64>()
        .map(Value::from)
        .or_else(|_| text.parse::<i64>().map(Value::from))
        .ok()
}

fn number(text: &str) -> Option<Value> {
    let x = text.parse::<f64>().ok().filter(|x| x.is_finite())?;
    Some(Value::from(x))
}

fn map(text: &str) -> std::result::Result<Value, String> {
    if let Ok(Value::Object(o)) = serde_json::from_str(text) {
        return Ok(Value::Object(o));
    }
    let mut out = Map::new();
    for pair in text.split(',') {
        let Some((k, v)) = pair.split_once('=') else {
            return Err(
                "KEY=VALUE pairs with commas between, or a JSON object, are needed".to_owned(),
            );
        };
        // What JSON writes without quotes is what it says there; all else is text.
        let plain = match v {
            "true" => Some(Value::Bool(true)),
            "false" => Some(Value::Bool(false)),
            "null" => Some(Value::Null),
            _ => integer(v).or_else(|| number(v)),
        };
        let value = plain.unwrap_or_else(|| Value::String(v.to_owned()));
        out.insert(k.trim().to_owned(), value);
    }
    Ok(Value::Object(out))
}

/// Takes the options of a struct out of an object, under their names and aliases.
pub(crate) fn take<T: Options>(from: &mut Map<String, Value>) -> Map<String, Value> {
    let mut taken = Map::new();
    for field in fields::<T>() {
        let aliases = T::ALIASES
            .iter()
            .filter(|(_, f)| *f == field.name)
            .map(|(a, _)| *a);
        for name in std::iter::once(field.name.as_str()).chain(aliases) {
            if let Some(value) = from.shift_remove(name) {
                taken.insert(field.name.clone(), value);
            }
        }
    }
    taken
}

/// Gives options their own names in place of their aliases.
///
/// # Errors
/// [`ErrorKind::Train`]: an option that is given under two names.
pub(crate) fn rename<T: Options>(options: &mut Map<String, Value>) -> Result<()> {
    for (alias, field) in T::ALIASES {
        let Some(value) = options.shift_remove(*alias).filter(|v| !v.is_null()) else {
            continue;
        };
        options.retain(|name, v| name != field || !v.is_null());
        if options.insert((*field).to_owned(), value).is_some() {
            let message = format!("`{alias}` and `{field}` are one option, given twice");
            let d = Diagnostic::error("job-field", message).help("leave one of them out");
            return Err(Error::new(ErrorKind::Train, d));
        }
    }
    Ok(())
}

/// The word that another word of a field stands for.
pub(crate) fn word<T: Options>(field: &str, other: &str) -> Option<&'static str> {
    let found = T::WORDS.iter().find(|(f, o, _)| *f == field && *o == other);
    found.map(|(_, _, word)| *word)
}

/// A struct from its options; what is absent or null has its default.
///
/// # Errors
/// [`ErrorKind::Train`]: a value that does not fit, with the name of the option, what was found and what was expected.
pub(crate) fn read<T: Options>(mut options: Map<String, Value>) -> Result<T> {
    options.retain(|_, v| !v.is_null());
    for (name, value) in &mut options {
        if let Some(word) = value.as_str().and_then(|v| word::<T>(name, v)) {
            *value = word.into();
        }
    }
    let known = fields::<T>();
    for field in &known {
        // One value is a list of one, as in `"report_to": "none"`.
        if let (Kind::List(item), Some(value)) = (&field.kind, options.get_mut(&field.name))
            && item.holds(value)
        {
            *value = Value::Array(vec![value.take()]);
        }
    }
    // One by one, so that the message can name the option.
    for (name, value) in &options {
        let one = Map::from_iter([(name.clone(), value.clone())]);
        if let Err(e) = serde_json::from_value::<T>(Value::Object(one)) {
            let field = known.iter().find(|f| f.name == *name);
            let text = match field {
                Some(f) => unfit(&f.kind, value, &e),
                None => plain(&e),
            };
            let d = Diagnostic::error("option", format!("`{name}`: {text}")).at(name.clone());
            let doc = field.map(|f| f.doc.clone()).unwrap_or_default();
            return Err(Error::new(ErrorKind::Train, d.help(doc)));
        }
    }
    serde_json::from_value(Value::Object(options))
        .map_err(|e| Error::new(ErrorKind::Train, Diagnostic::error("option", plain(&e))))
}

/// Why a value does not fit.
fn unfit(kind: &Kind, value: &Value, e: &serde_json::Error) -> String {
    let text = plain(e);
    if kind.holds(value) && !text.contains("untagged enum") {
        return text;
    }
    let mut found = value.to_string();
    if found.chars().count() > 60 {
        found = found.chars().take(60).chain("…".chars()).collect();
    }
    format!("found {found}, expected {}", kind.words())
}

/// An error of serde without the names of Rust's types.
fn plain(e: &serde_json::Error) -> String {
    let text = e.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    let Some((found, expected)) = text.rsplit_once("expected ") else {
        return text.to_owned();
    };
    let expected = match expected {
        "f32" | "f64" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of at least 0",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "a boolean" => "true or false",
        "a string" => "text",
        "a sequence" => "a list",
        "a map" => "an object",
        other => other,
    };
    format!("{found}expected {expected}")
}

/// The value of a JSON text in which no object has a key twice.
///
/// # Errors
/// What is no JSON, and a key that is given twice.
pub(crate) fn json(text: &str) -> serde_json::Result<Value> {
    let mut source = serde_json::Deserializer::from_str(text);
    let value = Unique.deserialize(&mut source)?;
    source.end()?;
    Ok(value)
}

struct Unique;

impl<'de> DeserializeSeed<'de> for Unique {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> std::result::Result<Value, D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> std::result::Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_u64<E>(self, v: u64) -> std::result::Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_i64<E>(self, v: i64) -> std::result::Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_f64<E>(self, v: f64) -> std::result::Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_str<E>(self, v: &str) -> std::result::Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(value) = list.next_element_seed(Unique)? {
            out.push(value);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if out.contains_key(&key) {
                return Err(A::Error::custom(format!("`{key}` is given twice")));
            }
            let value = map.next_value_seed(Unique)?;
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

/// The error about names that no option has, with the nearest that is one.
pub(crate) fn unknown<'a>(
    names: impl IntoIterator<Item = &'a String>,
    known: &[&str],
) -> Option<Error> {
    let findings: Vec<Diagnostic> = names
        .into_iter()
        .map(|name| {
            let d = Diagnostic::error("job-field", format!("there is no option `{name}`"));
            match nearest(name, known.iter().copied()) {
                Some(near) => d.help(format!("did you mean `{near}`?")),
                None => d.help("`rewrite train --help` lists all of them"),
            }
        })
        .collect();
    (!findings.is_empty()).then(|| Error::many(ErrorKind::Train, findings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Default, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Side {
        #[default]
        Left,
        Right,
    }

    #[derive(Default, Serialize, Deserialize, JsonSchema)]
    #[serde(untagged)]
    enum Files {
        #[default]
        None,
        One(String),
        Many(Vec<String>),
    }

    #[derive(Default, Serialize, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct Some {
        /// How many.
        count: usize,
        rate: Option<f64>,
        side: Side,
        files: Files,
        flag: bool,
        columns: std::collections::BTreeMap<String, String>,
    }

    impl Options for Some {
        const ALIASES: &'static [(&'static str, &'static str)] = &[("number", "count")];
    }

    #[test]
    fn fields_have_kind_default_and_words() {
        let f = fields::<Some>();
        let kinds: Vec<(&str, &Kind)> = f.iter().map(|f| (f.name.as_str(), &f.kind)).collect();
        assert_eq!(kinds[0], ("count", &Kind::Integer));
        assert_eq!(kinds[1], ("rate", &Kind::Number));
        assert_eq!(
            kinds[2],
            ("side", &Kind::Choice(vec!["left".into(), "right".into()]))
        );
        assert_eq!(kinds[4], ("flag", &Kind::Bool));
        assert_eq!(kinds[5], ("columns", &Kind::Map));
        assert_eq!((f[0].doc.as_str(), &f[0].default), ("How many.", &json!(0)));
    }

    #[test]
    fn texts_become_values() {
        let kind = |name: &str| {
            fields::<Some>()
                .into_iter()
                .find(|f| f.name == name)
                .unwrap()
                .kind
        };
        assert_eq!(kind("rate").parse("1e-4"), Ok(json!(1e-4)));
        assert_eq!(kind("count").parse("3"), Ok(json!(3)));
        assert!(kind("count").parse("x").is_err());
        assert_eq!(
            kind("columns").parse("prompt=question,completion=answer"),
            Ok(json!({"prompt": "question", "completion": "answer"}))
        );
        assert_eq!(kind("files").parse("a.jsonl"), Ok(json!(["a.jsonl"])));
        assert!(
            kind("side")
                .parse("lefd")
                .unwrap_err()
                .contains("did you mean `left`")
        );
    }

    #[test]
    fn a_struct_takes_its_own_and_says_what_does_not_fit() {
        let Value::Object(mut all) = json!({"number": 2, "other": 1, "side": "right"}) else {
            unreachable!()
        };
        let own = take::<Some>(&mut all);
        assert_eq!(all.keys().collect::<Vec<_>>(), ["other"]);
        assert_eq!(read::<Some>(own).unwrap().count, 2);
        let Value::Object(bad) = json!({"count": "many"}) else {
            unreachable!()
        };
        let e = read::<Some>(bad).err().unwrap().to_string();
        assert!(e.contains("`count`") && e.contains("How many."), "{e}");
    }

    #[test]
    fn what_does_not_fit_is_said_without_types_of_rust() {
        for (bad, want) in [
            (
                json!({"count": "many"}),
                "`count`: found \"many\", expected a whole number",
            ),
            (
                json!({"count": 1.5}),
                "`count`: found 1.5, expected a whole number",
            ),
            (
                json!({"count": -1}),
                "expected a whole number of at least 0",
            ),
            (
                json!({"rate": "fast"}),
                "`rate`: found \"fast\", expected a number",
            ),
            (
                json!({"flag": 1}),
                "`flag`: found 1, expected true or false",
            ),
            (
                json!({"side": "up"}),
                "`side`: found \"up\", expected one of left, right",
            ),
            (
                json!({"files": [1]}),
                "`files`: found [1], expected text, or a list of texts",
            ),
            (
                json!({"columns": {"a": 1}}),
                "invalid type: integer `1`, expected text",
            ),
        ] {
            let Value::Object(bad) = bad else {
                unreachable!()
            };
            let e = read::<Some>(bad).err().unwrap().to_string();
            assert!(e.contains(want), "{want} in {e}");
        }
    }

    #[test]
    fn a_key_stands_once() {
        let fine = r#"{"a": [1, -1, 1.5, true, null, "x"], "b": {"a": {}}}"#;
        assert_eq!(
            json(fine).unwrap().to_string(),
            fine.replace(": ", ":").replace(", ", ",")
        );
        for bad in [
            r#"{"a": 1, "b": 2, "a": 3}"#,
            r#"{"b": {"a": 1, "a": 1}}"#,
            r#"[{"a": 1, "\u0061": 1}]"#,
        ] {
            let e = json(bad).unwrap_err().to_string();
            assert!(e.contains("`a` is given twice at line 1"), "{e}");
        }
        assert!(json("{} {}").is_err() && json("{").is_err());
        assert!(json(&"[".repeat(1 << 20)).is_err());
        let Value::Object(mut both) = json!({"number": 2, "count": 1}) else {
            unreachable!()
        };
        let e = rename::<Some>(&mut both).unwrap_err().to_string();
        assert!(e.contains("`number` and `count` are one option"), "{e}");
    }
}
