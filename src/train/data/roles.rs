//! The columns of a row by role, and their values as what the role needs.

use crate::adapters::Choice;
use crate::diag::nearest;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A row, seen by role.
pub(super) struct Roles<'a> {
    pub(super) row: &'a Map<String, Value>,
    pub(super) columns: &'a BTreeMap<String, String>,
}

type Found<T> = Result<T, String>;

impl<'a> Roles<'a> {
    fn column<'b>(&'b self, role: &'b str) -> &'b str {
        match self.columns.get(role) {
            Some(column) => column,
            // As conversations in ShareGPT's form are called.
            None if role == "messages"
                && !self.row.contains_key(role)
                && self.row.contains_key("conversations") =>
            {
                "conversations"
            }
            None => role,
        }
    }

    /// The value of a role, if the row has one that is not null.
    pub(super) fn get(&self, role: &str) -> Option<&'a Value> {
        self.row.get(self.column(role)).filter(|v| !v.is_null())
    }

    pub(super) fn has(&self, role: &str) -> bool {
        self.get(role).is_some()
    }

    /// The first of these roles whose column the row has, with nothing in it.
    pub(super) fn null(&self, roles: &[&str]) -> Option<String> {
        let null = |role: &&&str| self.row.get(self.column(role)).is_some_and(Value::is_null);
        roles.iter().find(null).map(|role| self.missing(role))
    }

    /// What the row lacks, in terms of its columns.
    pub(super) fn missing(&self, role: &str) -> String {
        let column = self.column(role);
        let known = || self.row.keys().map(String::as_str);
        let there = || {
            let all = self.row.iter().filter(|(_, v)| !v.is_null());
            all.map(|(name, _)| name.as_str())
        };
        let name = if column == role {
            format!("`{role}`")
        } else {
            format!("`{column}` (the {role})")
        };
        match nearest(column, there()) {
            Some(near) if self.row.contains_key(column) => {
                format!("{name} is null; did you mean `{near}`?")
            }
            None if self.row.contains_key(column) => format!("{name} is null"),
            Some(near) => format!("the row has no {name}; did you mean `{near}`?"),
            None => format!(
                "the row has no {name}; its columns are {}",
                known().collect::<Vec<_>>().join(", ")
            ),
        }
    }

    fn wrong(&self, role: &str, wanted: &str, found: &Value) -> String {
        let mut text = found.to_string();
        if text.chars().count() > 60 {
            text = text.chars().take(60).chain("…".chars()).collect();
        }
        format!("`{}` is {text}, not {wanted}", self.column(role))
    }

    pub(super) fn text(&self, role: &str) -> Found<String> {
        match self.get(role) {
            Some(Value::String(s)) => Ok(s.clone()),
            // A column of numbers is text where text is asked for.
            Some(v @ Value::Number(_)) => Ok(v.to_string()),
            Some(v) => Err(self.wrong(role, "text", v)),
            None => Err(self.missing(role)),
        }
    }

    /// A list; a table holds it as JSON text.
    pub(super) fn list(&self, role: &str) -> Found<Vec<Value>> {
        match self.get(role) {
            Some(Value::Array(list)) => Ok(list.clone()),
            Some(v @ Value::String(s)) => {
                serde_json::from_str(s).map_err(|_| self.wrong(role, "a list", v))
            }
            Some(v) => Err(self.wrong(role, "a list", v)),
            None => Err(self.missing(role)),
        }
    }

    pub(super) fn integers(&self, role: &str) -> Found<Vec<i64>> {
        let list = self.list(role)?;
        let number =
            |v: &Value| integer(v).ok_or_else(|| self.wrong(role, "a list of whole numbers", v));
        list.iter().map(number).collect()
    }

    pub(super) fn numbers(&self, role: &str) -> Found<Vec<f32>> {
        let numbers = match self.get(role) {
            Some(v) if number(v).is_some() => vec![v.clone()],
            Some(v) if !matches!(v, Value::Array(_)) => self
                .list(role)
                .map_err(|_| self.wrong(role, "a finite number", v))?,
            _ => self.list(role)?,
        };
        let finite = |v: &Value| number(v).ok_or_else(|| self.wrong(role, "a finite number", v));
        numbers.iter().map(finite).collect()
    }

    /// The role that labels have: `label`, or `labels` as datasets made for a trainer call it.
    pub(super) fn label_role(&self) -> &'static str {
        let there = |role| self.row.contains_key(self.column(role));
        let null = there("labels") && !there("label");
        if !self.has("label") && (self.has("labels") || null) {
            "labels"
        } else {
            "label"
        }
    }

    /// A class by id or by name.
    pub(super) fn class(&self, names: Option<&[String]>) -> Found<Class> {
        let role = self.label_role();
        let value = self.get(role).ok_or_else(|| self.missing(role))?;
        self.class_of(role, value, names)
    }

    /// A class of the column that a role has, by id or by name.
    pub(super) fn class_of(
        &self,
        role: &str,
        value: &Value,
        names: Option<&[String]>,
    ) -> Found<Class> {
        if let Value::String(name) = value {
            // A name first, so that classes may be named "0" and "1" in any order.
            if let Some(id) = names.and_then(|n| n.iter().position(|n| n == name)) {
                return Ok(Class::Id(id as i64));
            }
            if name.trim().is_empty() {
                return Err(format!("`{}` is empty", self.column(role)));
            }
            if integer(value).is_none() {
                return Ok(Class::Name(name.clone()));
            }
        }
        if let (Value::Bool(truth), Some(names)) = (value, names) {
            let said = |n: &String| n.eq_ignore_ascii_case(&truth.to_string());
            if let Some(id) = names.iter().position(said) {
                return Ok(Class::Id(id as i64));
            }
        }
        let id = match value {
            // As a trainer makes a tensor of it.
            Value::Bool(truth) => Some(i64::from(*truth)),
            _ => integer(value),
        };
        let id = id.ok_or_else(|| self.wrong(role, "a class", value))?;
        match names {
            Some(names) if id < 0 || id >= names.len() as i64 => Err(format!(
                "class {id} is outside the {} classes: {}",
                names.len(),
                names.join(", ")
            )),
            _ if id < 0 => Err(format!("class {id} is negative")),
            _ => Ok(Class::Id(id)),
        }
    }

    /// One 0 or 1 for each class: from a list of names, or of the numbers themselves.
    pub(super) fn classes(&self, names: Option<&[String]>) -> Found<Vec<f32>> {
        let role = self.label_role();
        let list = self.list(role)?;
        let Some(names) = names else {
            return self.zeros_and_ones(role, None);
        };
        if !list.iter().any(Value::is_string) && !list.is_empty() {
            return self.zeros_and_ones(role, Some(names.len()));
        }
        let mut out = vec![0.0; names.len()];
        for value in &list {
            let found = value
                .as_str()
                .and_then(|v| names.iter().position(|n| n == v));
            let Some(at) = found else {
                let near = value
                    .as_str()
                    .and_then(|v| nearest(v, names.iter().map(String::as_str)));
                let near = near.map_or_else(
                    || format!("classes are {}", names.join(", ")),
                    |n| format!("did you mean `{n}`?"),
                );
                return Err(format!("there is no class {value}; {near}"));
            };
            out[at] = 1.0;
        }
        Ok(out)
    }

    /// The names of classes in a list of them; none in one of numbers.
    pub(super) fn class_names(&self) -> Vec<String> {
        let list = self.list(self.label_role()).unwrap_or_default();
        let name = |v: &Value| v.as_str().map(str::to_owned);
        list.iter()
            .map(name)
            .collect::<Option<_>>()
            .unwrap_or_default()
    }

    fn zeros_and_ones(&self, role: &str, count: Option<usize>) -> Found<Vec<f32>> {
        let values = self.numbers(role)?;
        if let Some(count) = count.filter(|&c| c != values.len()) {
            return Err(format!(
                "{} values for the {count} of `label_names`",
                values.len()
            ));
        }
        match values.iter().find(|v| **v * (**v - 1.0) != 0.0) {
            Some(v) => Err(format!(
                "`{}` has {v}, and each class has 0 or 1; class names need `label_names`",
                self.column(role)
            )),
            None if values.is_empty() => Err(format!(
                "`{}` is empty; class names need `label_names`",
                self.column(role)
            )),
            None => Ok(values),
        }
    }

    /// The task or adapter of a row, by id or name. Where rows choose, each is of one, or of none where that is a choice.
    pub(super) fn task(
        &self,
        names: Option<&[String]>,
        choice: Option<&Choice>,
    ) -> Found<Option<i64>> {
        let role = if self.has("adapter_ids") {
            "adapter_ids"
        } else {
            "task_ids"
        };
        let Some(value) = self.get(role) else {
            return match choice {
                Some(choice) if choice.or_none => Ok(Some(-1)),
                Some(_) => Err(self.missing(role)),
                None => Ok(None),
            };
        };
        // One task a row, also where a dataset wraps it in a list.
        let value = match value {
            Value::Array(list) if list.len() == 1 => &list[0],
            other => other,
        };
        let named = value
            .as_str()
            .and_then(|v| names?.iter().position(|n| n == v));
        let known = choice.and_then(|c| c.id(value));
        let found = named.map(|n| n as i64).or(known).or_else(|| integer(value));
        let least = if choice.is_some_and(|c| c.or_none) {
            -1
        } else {
            0
        };
        let counts = names.map(<[String]>::len).into_iter();
        let count = counts.chain(choice.map(|c| c.names.len())).min();
        match (found, count) {
            (Some(id), Some(count)) if id < least || id >= count as i64 => Err(format!(
                "`{}` is {id}, and ids of {} are {least} to {}",
                self.column(role),
                if least < 0 { "adapters" } else { "tasks" },
                count.saturating_sub(1)
            )),
            (Some(id), None) if id < 0 => Err(self.wrong(role, "the number of a task", value)),
            (Some(id), _) => Ok(Some(id)),
            (None, None) => {
                Err(self.wrong(role, "the number of a task; names need `task_names`", value))
            }
            (None, Some(_)) => {
                let known = names.or(choice.map(|c| &*c.names)).unwrap_or_default();
                let known = format!("one of {}", known.join(", "));
                Err(self.wrong(role, &known, value))
            }
        }
    }
}

/// A class as a row has it.
pub(super) enum Class {
    Id(i64),
    Name(String),
}

fn integer(v: &Value) -> Option<i64> {
    match v {
        Value::Bool(b) => Some(i64::from(*b)),
        Value::String(s) => s.trim().parse().ok(),
        _ => v.as_i64().or_else(|| {
            let x = v.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9e15)?;
            Some(x as i64)
        }),
    }
}

fn number(v: &Value) -> Option<f32> {
    let x = match v {
        Value::Bool(b) => f64::from(u8::from(*b)),
        Value::String(s) => s.trim().parse().ok()?,
        _ => v.as_f64()?,
    };
    let x = x as f32;
    x.is_finite().then_some(x)
}
