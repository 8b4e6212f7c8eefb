//! Rows in forms that are known by their columns: conversations as `ShareGPT` has them, and instructions as Alpaca has them.

use super::roles::Roles;
use serde_json::{Map, Value, json};

type Found<T> = Result<T, String>;

/// Who speaks in a conversation of `ShareGPT`'s form, and the role of a message.
const SPEAKERS: [(&str, &[&str]); 4] = [
    ("user", &["human", "user"]),
    (
        "assistant",
        &["gpt", "assistant", "chatgpt", "bing", "bard", "model"],
    ),
    ("system", &["system"]),
    ("tool", &["tool", "observation", "function_response"]),
];
/// The speaker whose text is a call of a tool, as JSON.
const CALL: &str = "function_call";

/// The messages of a conversation: objects with a role, or `ShareGPT`'s `from` and `value`. A call of a tool there is `tool_calls` of its
/// message if `calls`: the template reads them; otherwise its text is what the assistant says.
pub(super) fn messages(list: &[Value], calls: bool) -> Found<Vec<Value>> {
    if list.is_empty() {
        return Err("the conversation is empty".to_owned());
    }
    let message = |(i, m): (usize, &Value)| match (&m["role"], &m["from"]) {
        (Value::String(_), _) => Ok(m.clone()),
        (_, Value::String(from)) => spoken(i, m, from, calls),
        _ => Err(format!(
            "message {i} has no `role`: a message is {{\"role\": \"user\", \"content\": \"…\"}} or {{\"from\": \"human\", \"value\": \"…\"}}"
        )),
    };
    list.iter().enumerate().map(message).collect()
}

/// The messages of a row. A column `system` beside them, as LLaMA-Factory reads it, is the first message.
pub(super) fn conversation(roles: &Roles<'_>, calls: bool) -> Found<Vec<Value>> {
    let mut all = messages(&roles.list("messages")?, calls)?;
    let system = match roles.get("system") {
        Some(_) => roles.text("system")?,
        None => String::new(),
    };
    if system.is_empty() {
        return Ok(all);
    }
    match all.first() {
        Some(first) if first["role"] == "system" && first["content"] == system.as_str() => {}
        Some(first) if first["role"] == "system" => {
            return Err("the column `system` and the first message say different things to the system: remove one of them".to_owned());
        }
        _ => all.insert(0, json!({"role": "system", "content": system})),
    }
    Ok(all)
}

/// Whether each turn of the assistant is learned: its `weight` is 1, or it has none.
pub(super) fn learned(messages: &[Value]) -> Found<Vec<bool>> {
    let said = messages.iter().filter(|m| m["role"] == "assistant");
    said.map(|m| match &m["weight"] {
        Value::Null | Value::Bool(true) => Ok(true),
        Value::Bool(false) => Ok(false),
        Value::Number(n) if n.as_f64() == Some(1.0) => Ok(true),
        Value::Number(n) if n.as_f64() == Some(0.0) => Ok(false),
        other => Err(format!(
            "`weight` of a message is {other}: it is 1 for a turn that is learned, and 0 for one that is not"
        )),
    })
    .collect()
}

/// A message of `ShareGPT`'s form with `role` and `content`; what else it has stays.
fn spoken(i: usize, message: &Value, from: &str, reads_calls: bool) -> Found<Value> {
    let mut out = message.as_object().cloned().unwrap_or_default();
    out.shift_remove("from");
    let value = out
        .shift_remove("value")
        .ok_or_else(|| format!("message {i} has no `value`"))?;
    let mut said = Map::new();
    if from == CALL {
        let call = value.as_str().map(serde_json::from_str::<Value>);
        let calls = match call {
            Some(Ok(Value::Array(calls))) => calls,
            Some(Ok(call @ Value::Object(_))) => vec![call],
            _ => return Err(format!("message {i}: the call of a tool is no JSON object")),
        };
        let named = |c: &Value| c["name"].as_str().is_some_and(|n| !n.is_empty());
        if calls.is_empty() || !calls.iter().all(named) {
            return Err(format!(
                "message {i}: the call of a tool has no `name`: it is {{\"name\": \"…\", \"arguments\": {{…}}}}"
            ));
        }
        let call = |c| json!({"type": "function", "function": c});
        said.insert("role".to_owned(), "assistant".into());
        if reads_calls {
            said.insert("content".to_owned(), "".into());
            said.insert(
                "tool_calls".to_owned(),
                calls.into_iter().map(call).collect(),
            );
        } else {
            said.insert("content".to_owned(), value);
        }
    } else {
        let role = SPEAKERS.iter().find(|(_, names)| names.contains(&from));
        let (role, _) = role.ok_or_else(|| {
            let known = SPEAKERS.iter().flat_map(|(_, names)| *names);
            let known: Vec<&str> = known.copied().chain([CALL]).collect();
            format!(
                "message {i} is from `{from}`; known are {}",
                known.join(", ")
            )
        })?;
        said.insert("role".to_owned(), (*role).into());
        said.insert("content".to_owned(), value);
    }
    said.extend(out);
    Ok(Value::Object(said))
}

/// Prompt and completion of a row with `instruction` and `output` (and `input`): the text of Stanford Alpaca, which Axolotl and others
/// train on. `None` where the row has another form.
pub(super) fn alpaca(roles: &Roles<'_>) -> Found<Option<(String, String)>> {
    if !(roles.has("instruction") && roles.has("output")) {
        return Ok(None);
    }
    for column in ["system", "history"] {
        let value = roles.get(column);
        let empty = |v: &Value| v.as_str() == Some("") || v.as_array().is_some_and(Vec::is_empty);
        if value.is_some_and(|v| !empty(v)) {
            return Err(format!(
                "the column `{column}` has no place in Alpaca's text: make `messages` of the row, or write `prompt_template` and `completion_template`"
            ));
        }
    }
    let instruction = roles.text("instruction")?;
    let input = match roles.get("input") {
        Some(_) => roles.text("input")?,
        None => String::new(),
    };
    let prompt = if input.is_empty() {
        format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Response:\n"
        )
    } else {
        format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that \
             appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        )
    };
    Ok(Some((prompt, roles.text("output")?)))
}
