//! The configurations that the card of a data set (the YAML head of `README.md`) lists under `configs`.

use crate::fence;
use serde_json::{Map, Value};
use yaml_rust2::parser::{Event, Parser};

/// A configuration of a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Configuration {
    pub(super) name: String,
    /// The folder that everything is below.
    pub(super) folder: String,
    /// Patterns of the files of each split; none where names say the splits.
    pub(super) files: Vec<(String, Vec<String>)>,
    default: bool,
    /// Arguments of the reader that are not followed here (`field`, `names`, a `sep` other than a comma).
    pub(super) unknown: Vec<String>,
}

/// The configuration that is meant where none is named.
pub(super) fn default(all: &[Configuration]) -> Option<&Configuration> {
    match all {
        [one] => Some(one),
        _ => all.iter().find(|c| c.default || c.name == "default"),
    }
}

/// The configurations of a card; none where it lists none. The error says what is wrong.
pub(super) fn configurations(card: &str) -> Result<Vec<Configuration>, String> {
    let Some(head) = head(card) else {
        return Ok(Vec::new());
    };
    let head = yaml(head)?;
    let Some(list) = head.get("configs").filter(|c| !c.is_null()) else {
        return Ok(Vec::new());
    };
    let list = list.as_array().ok_or("`configs` is no list")?;
    list.iter().map(configuration).collect()
}

/// What stands between the first two lines of dashes.
fn head(card: &str) -> Option<&str> {
    let card = card.trim_start_matches('\u{feff}');
    let rest = card.strip_prefix("---")?;
    let rest = rest.strip_prefix('\r').unwrap_or(rest).strip_prefix('\n')?;
    let mut at = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return rest.get(..at);
        }
        at += line.len();
    }
    None
}

/// Keys of a configuration that say which files it has, or nothing about them. All others are arguments of the reader of a format.
const KNOWN: [&str; 7] = [
    "config_name",
    "data_dir",
    "data_files",
    "default",
    "description",
    "drop_labels",
    "version",
];
/// Arguments of readers with the values that hold here.
const USUAL: [(&str, &[&str]); 5] = [
    ("delimiter", &[","]),
    ("encoding", &["utf-8", "utf8", "UTF-8"]),
    ("header", &["0", "infer"]),
    ("quotechar", &["\""]),
    ("sep", &[","]),
];

/// The arguments of a reader that a configuration has and that are not followed here.
fn unknown(value: &Value) -> Vec<&str> {
    let usual = |key: &str, value: &Value| {
        let found = USUAL.iter().find(|(k, _)| *k == key);
        value.is_null()
            || found.is_some_and(|(_, all)| value.as_str().is_some_and(|v| all.contains(&v)))
    };
    let all = value.as_object().into_iter().flatten();
    all.filter(|(key, value)| !KNOWN.contains(&key.as_str()) && !usual(key, value))
        .map(|(key, _)| key.as_str())
        .collect()
}

fn configuration(value: &Value) -> Result<Configuration, String> {
    let name = value["config_name"]
        .as_str()
        .ok_or("a configuration has no `config_name`")?;
    let mut files: Vec<(String, Vec<String>)> = Vec::new();
    let form = || {
        format!(
            "`data_files` of `{name}` is neither a path, nor a list of them, nor one of `split` and `path`"
        )
    };
    match &value["data_files"] {
        Value::Null => {}
        Value::Array(list) if list.iter().any(Value::is_object) => {
            for item in list {
                let split = item["split"].as_str().ok_or_else(form)?;
                files.push((split.to_owned(), paths(&item["path"]).ok_or_else(form)?));
            }
        }
        other => files.push(("train".to_owned(), paths(other).ok_or_else(form)?)),
    }
    Ok(Configuration {
        name: name.to_owned(),
        folder: value["data_dir"].as_str().unwrap_or_default().to_owned(),
        files,
        default: value["default"] == true,
        unknown: unknown(value).into_iter().map(str::to_owned).collect(),
    })
}

fn paths(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(list) => list.iter().map(|v| v.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// Deepest nesting that is read.
const DEPTH: usize = 64;

/// A document of YAML as JSON. What an alias refers to is not repeated: it is null.
fn yaml(text: &str) -> Result<Value, String> {
    fence::guarded(|| parsed(text)).map_err(|f| f.to_string())?
}

fn parsed(text: &str) -> Result<Value, String> {
    /// A list or a mapping that is being read; the mapping with the key whose value comes next.
    enum Open {
        List(Vec<Value>),
        Map(Map<String, Value>, Option<String>),
    }
    let mut parser = Parser::new_from_str(text);
    let mut open: Vec<Open> = Vec::new();
    loop {
        let (event, at) = parser.next_token().map_err(|e| e.to_string())?;
        let done = match event {
            Event::StreamEnd | Event::DocumentEnd => return Ok(Value::Null),
            Event::Nothing | Event::StreamStart | Event::DocumentStart => continue,
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                None
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(Map::new(), None));
                None
            }
            Event::SequenceEnd | Event::MappingEnd => open.pop().map(|o| match o {
                Open::List(list) => Value::Array(list),
                Open::Map(map, _) => Value::Object(map),
            }),
            Event::Alias(_) => Some(Value::Null),
            Event::Scalar(text, yaml_rust2::scanner::TScalarStyle::Plain, ..) => {
                Some(match text.as_str() {
                    "true" | "True" | "TRUE" | "yes" => Value::Bool(true),
                    "false" | "False" | "FALSE" | "no" => Value::Bool(false),
                    "" | "~" | "null" => Value::Null,
                    _ => Value::String(text),
                })
            }
            Event::Scalar(text, ..) => Some(Value::String(text)),
        };
        if open.len() > DEPTH {
            return Err(format!("line {}: nested too deeply", at.line()));
        }
        let Some(value) = done else { continue };
        match open.last_mut() {
            None => return Ok(value),
            Some(Open::List(list)) => list.push(value),
            Some(Open::Map(map, key)) => match key.take() {
                Some(key) => {
                    map.insert(key, value);
                }
                None => {
                    *key = Some(match value {
                        Value::String(key) => key,
                        other => other.to_string(),
                    });
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_lists_configurations() {
        let card = "---\nlicense: mit\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n  - split: test\n    \
                    path: [\"main/a.jsonl\", main/b.jsonl]\n- config_name: other\n  data_dir: other\n  default: true\n---\n# Text\n";
        let all = configurations(card).unwrap();
        assert_eq!(all[0].name, "main");
        assert_eq!(all[0].files[1].1, ["main/a.jsonl", "main/b.jsonl"]);
        assert_eq!(default(&all).unwrap().name, "other");
        assert!(all.iter().all(|c| c.unknown.is_empty()));
        let read = "---\nconfigs:\n- {config_name: a, sep: \",\", field: data, skiprows: 1, delimiter: \";\"}\n---\n";
        let all = configurations(read).unwrap();
        assert_eq!(all[0].unknown, ["field", "skiprows", "delimiter"]);
        assert_eq!(configurations("# no head").unwrap(), []);
        assert_eq!(configurations("---\na: 1\n---\n").unwrap(), []);
    }

    #[test]
    fn cards_that_are_none_are_told_and_do_not_blow_up() {
        for (head, says) in [
            ("configs: 3", "no list"),
            ("configs:\n- data_dir: x", "no `config_name`"),
            (
                "configs:\n- config_name: a\n  data_files: {x: 1}",
                "`data_files` of `a`",
            ),
            ("a: [", ""),
            ("a: \"x", ""),
        ] {
            let e = configurations(&format!("---\n{head}\n---\n")).unwrap_err();
            assert!(e.contains(says), "{head}: {e}");
        }
        let deep = format!("---\na: {}\n---\n", "[".repeat(100_000));
        assert!(configurations(&deep).is_err());
        let bomb = "---\na: &a [1, 1]\nb: &b [*a, *a]\nconfigs:\n- config_name: *b\n---\n";
        assert!(configurations(bomb).is_err());
    }
}
