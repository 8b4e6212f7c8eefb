//! The columns of rows, and what their values are, as `datasets` (5.0.1) finds them.
//!
//! A table is text: pandas makes it numbers, truth values and missing values, by all values of a column in as many rows as it reads at
//! once. Rows of JSON have each the columns of all; what a row does not have is null. What the first rows say holds for all files that
//! are read one after the other: `datasets` converts what follows to it, or refuses.

use super::{Fault, Row};
use indexmap::IndexMap;
use serde_json::{Map, Number, Value};
use std::cell::RefCell;
use std::rc::Rc;

/// Rows that pandas reads at once.
const ROWS: usize = 10_000;
/// Most bytes of text that are held to look at them together.
const BYTES: usize = 64 << 20;

/// What pandas takes for a missing value.
const MISSING: [&str; 19] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
];

/// What the values of a column are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Whole,
    /// Also a column without any value.
    Number,
    Truth,
    Text,
    /// Lists and objects of JSON.
    Nested,
}

/// The columns of files that are read one after the other; none before the first row.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Columns(Rc<RefCell<IndexMap<String, Kind>>>);

type Item = Result<Row, Fault>;

/// Rows with the values that their columns say. `table` is a format in which all values are text.
pub(super) fn typed(
    mut rows: Box<dyn Iterator<Item = Item>>,
    columns: Columns,
    table: bool,
) -> impl Iterator<Item = Item> {
    let mut held = Vec::new().into_iter();
    std::iter::from_fn(move || {
        loop {
            if let Some(row) = held.next() {
                return Some(row);
            }
            // Later rows of JSON are taken one by one: they only follow.
            if !table && !columns.0.borrow().is_empty() {
                let follow = |row: Row| columns.follow(row);
                return rows.next().map(|row| row.map(follow));
            }
            let chunk = chunk(&mut rows);
            if chunk.is_empty() {
                return None;
            }
            held = if table {
                columns.table(chunk).into_iter()
            } else {
                columns.json(&chunk);
                chunk
                    .into_iter()
                    .map(|row| row.map(|row| columns.follow(row)))
                    .collect::<Vec<_>>()
                    .into_iter()
            };
        }
    })
}

fn chunk(rows: &mut dyn Iterator<Item = Item>) -> Vec<Item> {
    let (mut out, mut bytes) = (Vec::new(), 0);
    while out.len() < ROWS && bytes < BYTES {
        let Some(row) = rows.next() else { break };
        bytes += row
            .as_ref()
            .map_or(0, |r| r.values.values().map(size).sum());
        out.push(row);
    }
    out
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(size).sum(),
        Value::Object(map) => map.iter().map(|(k, v)| k.len() + size(v)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

impl Columns {
    /// Rows of a table, converted to the kinds of the columns, which the first rows say.
    fn table(&self, rows: Vec<Item>) -> Vec<Item> {
        let mut found: IndexMap<String, Vec<&str>> = IndexMap::new();
        for row in rows.iter().flatten() {
            for (name, value) in &row.values {
                let values = found.entry(name.clone()).or_default();
                values.extend(value.as_str());
            }
        }
        let found: IndexMap<String, Kind> = found
            .into_iter()
            .map(|(name, values)| (name, kind(&values)))
            .collect();
        let mut columns = self.0.borrow_mut();
        for (name, kind) in &found {
            columns.entry(name.clone()).or_insert(*kind);
        }
        let value = |name: &String, text: &Value| {
            let text = text.as_str().unwrap_or_default();
            let wanted = columns.get(name).copied().unwrap_or(Kind::Text);
            let here = found.get(name).copied().unwrap_or(Kind::Text);
            converted(parsed(text, here), wanted).ok_or_else(|| {
                format!(
                    "`{name}` is {text:?}, and in the first rows it is {}",
                    wanted.said()
                )
            })
        };
        let all = |row: Row| {
            let values = row
                .values
                .iter()
                .map(|(n, v)| Ok((n.clone(), value(n, v)?)));
            let values: Result<Map<String, Value>, String> = values.collect();
            let at = row.at;
            let values = values.map_err(|reason| Fault::Row { at, reason })?;
            Ok(Row { values, at })
        };
        rows.into_iter().map(|row| row.and_then(all)).collect()
    }

    /// Takes the columns of the first rows.
    fn json(&self, rows: &[Item]) {
        let mut columns = self.0.borrow_mut();
        for row in rows.iter().flatten() {
            for (name, value) in &row.values {
                let here = match value {
                    Value::Number(n) if n.is_f64() => Kind::Number,
                    Value::Number(_) => Kind::Whole,
                    Value::Bool(_) => Kind::Truth,
                    Value::String(_) => Kind::Text,
                    Value::Null | Value::Array(_) | Value::Object(_) => Kind::Nested,
                };
                let kind = columns.entry(name.clone()).or_insert(here);
                match (*kind, here) {
                    (Kind::Whole, Kind::Number) => *kind = Kind::Number,
                    // Mixed values stay as they are.
                    (a, b) if a != b && (a, b) != (Kind::Number, Kind::Whole) => {
                        if value.is_null() {
                            continue;
                        }
                        *kind = if *kind == Kind::Nested {
                            here
                        } else {
                            Kind::Nested
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    /// A row of JSON with all columns, and numbers with a fraction where the column has some.
    fn follow(&self, mut row: Row) -> Row {
        for (name, kind) in self.0.borrow().iter() {
            match row.values.get_mut(name) {
                None => {
                    row.values.insert(name.clone(), Value::Null);
                }
                Some(value) if *kind == Kind::Number && value.is_i64() => {
                    *value = value.as_f64().map_or(Value::Null, Value::from);
                }
                Some(_) => {}
            }
        }
        row
    }
}

impl Kind {
    fn said(self) -> &'static str {
        match self {
            Kind::Whole => "a whole number",
            Kind::Number => "a number, or missing",
            Kind::Truth => "true or false",
            Kind::Text => "text",
            Kind::Nested => "a list or an object",
        }
    }
}

/// What the values of a column of a table are.
fn kind(values: &[&str]) -> Kind {
    let there = || values.iter().filter(|v| !MISSING.contains(v));
    let none_missing = values.len() == there().count();
    if there().next().is_some() && there().all(|v| truth(v).is_some()) {
        return Kind::Truth;
    }
    if none_missing && there().all(|v| whole(v).is_some()) {
        return Kind::Whole;
    }
    // Pandas refuses whole numbers that no type holds; as text they stay what they are.
    let large = none_missing && there().all(|v| digits(v));
    if !large && there().all(|v| number(v).is_some()) {
        return Kind::Number;
    }
    Kind::Text
}

fn parsed(text: &str, kind: Kind) -> Value {
    if MISSING.contains(&text) {
        return Value::Null;
    }
    match kind {
        Kind::Whole => whole(text).unwrap_or_default(),
        Kind::Number => number(text).map_or(Value::Null, float),
        Kind::Truth => truth(text).map_or(Value::Null, Value::from),
        Kind::Text | Kind::Nested => text.into(),
    }
}

/// JSON has no infinite numbers: they are what Python writes for them.
fn float(x: f64) -> Value {
    let infinite = if x > 0.0 { "inf" } else { "-inf" };
    Number::from_f64(x).map_or_else(|| infinite.into(), Value::Number)
}

/// A value as one of another kind, as Arrow casts it.
fn converted(value: Value, kind: Kind) -> Option<Value> {
    match (kind, value) {
        (_, Value::Null) => Some(Value::Null),
        (Kind::Whole, Value::Number(n)) if n.is_f64() => {
            let x = n.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9e15)?;
            Some((x as i64).into())
        }
        (Kind::Whole, n @ Value::Number(_)) => Some(n),
        (Kind::Number, Value::Number(n)) => n.as_f64().map(float),
        (Kind::Whole, Value::String(text)) => whole(&text),
        (Kind::Number, Value::String(text)) => number(&text).map(float),
        (Kind::Truth, b @ Value::Bool(_)) => Some(b),
        (Kind::Text | Kind::Nested, text @ Value::String(_)) => Some(text),
        (Kind::Text | Kind::Nested, other) => Some(other.to_string().into()),
        (Kind::Whole | Kind::Number, Value::Bool(_) | Value::Array(_) | Value::Object(_))
        | (Kind::Truth, _) => None,
    }
}

fn truth(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

fn digits(text: &str) -> bool {
    let text = text.trim_matches(' ');
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn whole(text: &str) -> Option<Value> {
    let text = text.trim_matches(' ');
    let signed = || text.parse::<i64>().ok().map(Value::from);
    signed().or_else(|| text.parse::<u64>().ok().map(Value::from))
}

/// Digits with a point and an exponent, or infinity. Longer runs of digits than any whole number has are no number.
fn number(text: &str) -> Option<f64> {
    let text = text.trim_matches(' ');
    let bare = text.strip_prefix(['-', '+']).unwrap_or(text);
    let infinite = ["inf", "infinity"]
        .iter()
        .any(|i| bare.eq_ignore_ascii_case(i));
    let starts = bare.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    if !infinite && (!starts || digits(text) && bare.parse::<u64>().is_err()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Tables and JSON lines, against the rows of `datasets` (`fixtures/make_datasets.py`).
    #[test]
    fn columns_are_those_of_datasets() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/data/columns.json");
        let cases: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut compared = 0;
        for (i, case) in cases.as_array().unwrap().iter().enumerate() {
            let name = case["name"].as_str().unwrap();
            let file = folder.path().join(format!("{i}.{name}"));
            std::fs::write(&file, case["text"].as_str().unwrap()).unwrap();
            let rows: Vec<Value> = super::super::open(&file, &Columns::default())
                .unwrap()
                .map(|row| Value::Object(row.unwrap().values))
                .collect();
            assert_eq!(Value::from(rows), case["rows"], "{}", case["text"]);
            compared += 1;
        }
        assert!(compared > 80, "{compared}");
    }

    /// What follows is converted to what the first rows say, in the same file and in the next.
    #[test]
    fn the_first_rows_say_it() {
        let columns = Columns::default();
        let row = |text: &str| {
            let values = Map::from_iter([("a".to_owned(), Value::from(text))]);
            Ok(Row { values, at: 1 })
        };
        let read = |texts: &[&str]| -> Vec<Result<Value, String>> {
            let rows: Vec<Item> = texts.iter().map(|t| row(t)).collect();
            let value = |item: Item| match item {
                Ok(row) => Ok(row.values["a"].clone()),
                Err(Fault::Row { reason, .. }) => Err(reason),
                Err(Fault::File(e)) => Err(e.to_string()),
            };
            columns.table(rows).into_iter().map(value).collect()
        };
        assert_eq!(read(&["007"]), [Ok(7.into())]);
        assert_eq!(read(&["8.0"]), [Ok(8.into())]);
        assert!(
            read(&["1.5"])[0]
                .as_ref()
                .is_err_and(|e| e.contains("a whole number"))
        );
        assert!(read(&["x"])[0].is_err());
        assert_eq!(read(&["NA"]), [Ok(Value::Null)]);
    }
}
