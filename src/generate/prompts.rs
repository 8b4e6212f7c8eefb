//! Prompts as files have them.

use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::BufRead;
use std::path::Path;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Message {
    /// Who speaks: `system`, `user`, `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A prompt that is not tokens yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PromptText {
    /// Text.
    Text(String),
    /// A conversation, whose form the model's chat template gives.
    Messages(Vec<Message>),
    /// Tokens.
    Ids(Vec<i64>),
}

/// A prompt with what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PromptRow {
    /// The prompt.
    pub text: PromptText,
    /// The task or adapter that it chooses, by name or id.
    pub chosen: Option<Value>,
}

impl From<PromptText> for PromptRow {
    fn from(text: PromptText) -> Self {
        PromptRow { text, chosen: None }
    }
}

#[derive(Deserialize)]
struct Row {
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    input_ids: Option<Vec<i64>>,
    #[serde(alias = "task_ids")]
    adapter_ids: Option<Value>,
}

/// Reads a file of prompts: JSON lines with `prompt`, `messages` or `input_ids`, and with `adapter_ids` or `task_ids` where samples choose, where the name ends in `.jsonl` or `.json`; otherwise
/// one prompt a line. Empty lines are left out.
pub(crate) fn read_prompts(path: &Path) -> Result<Vec<PromptRow>> {
    let file = disk::open(path).map_err(|e| Error::io(path, "cannot open the prompts", e))?;
    let json = path
        .extension()
        .is_some_and(|e| e == "jsonl" || e == "json");
    prompts(std::io::BufReader::new(file), path, Some(json))
}

/// The prompts of lines, which are of a file of this name. `json`: whether they are JSON; without it, they are if the first one is an
/// object.
pub(crate) fn prompts(
    lines: impl BufRead,
    path: &Path,
    mut json: Option<bool>,
) -> Result<Vec<PromptRow>> {
    let mut out = Vec::new();
    for (i, line) in lines.lines().enumerate() {
        let line = line.map_err(|e| Error::io(path, "cannot read the prompts as UTF-8 text", e))?;
        if line.trim().is_empty() {
            continue;
        }
        let object = || line.starts_with('{') && serde_json::from_str::<Row>(&line).is_ok();
        if !*json.get_or_insert_with(object) {
            out.push(PromptText::Text(line).into());
            continue;
        }
        let bad = |m: String| {
            let d = Diagnostic::error("prompt-row", m).at(format!(
                "{}, line {}",
                path.display(),
                i + 1
            ));
            let help = "{\"prompt\": \"…\"}, {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}]} or {\"input_ids\": [1, 2]}";
            Error::new(ErrorKind::Run, d.help(help))
        };
        let row: Row = serde_json::from_str(&line).map_err(|e| bad(e.to_string()))?;
        let text = match (row.prompt, row.messages, row.input_ids) {
            (Some(text), None, None) => PromptText::Text(text),
            (None, Some(messages), None) => PromptText::Messages(messages),
            (None, None, Some(ids)) => PromptText::Ids(ids),
            _ => {
                return Err(bad(
                    "a row has one of `prompt`, `messages` and `input_ids`".into()
                ));
            }
        };
        out.push(PromptRow {
            text,
            chosen: row.adapter_ids,
        });
    }
    if out.is_empty() {
        let d = Diagnostic::error("prompts-empty", "there are no prompts")
            .at(path.display().to_string());
        return Err(Error::new(
            ErrorKind::Run,
            d.help("one a line, or JSON lines in a file named .jsonl"),
        ));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Vec<PromptRow>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        read_prompts(&path)
    }

    #[test]
    fn lines_and_rows_are_prompts() {
        let text = |t: &str| PromptRow::from(PromptText::Text(t.into()));
        assert_eq!(
            read("p.txt", "one\n\n{two\n").unwrap(),
            [text("one"), text("{two")]
        );
        let rows = "{\"prompt\": \"a\", \"id\": 3}\n{\"messages\": [{\"role\": \"user\", \"content\": \"b\"}]}\n{\"input_ids\": [4]}";
        let found = read("p.jsonl", rows).unwrap();
        assert_eq!(
            (&found[0], &found[2]),
            (&text("a"), &PromptRow::from(PromptText::Ids(vec![4])))
        );
        assert!(matches!(&found[1].text, PromptText::Messages(m) if m[0].content == "b"));
    }

    #[test]
    fn what_is_piped_in_is_lines_or_rows() {
        let read = |text: &str| prompts(text.as_bytes(), Path::new("stdin"), None).unwrap();
        let rows = read("{\"prompt\": \"a\"}\n{\"prompt\": \"{b\"}\n");
        assert_eq!(rows[1], PromptText::Text("{b".into()).into());
        let lines = read("{a}\n{\"prompt\": \"b\"}\n");
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], PromptText::Text("{a}".into()).into());
    }

    #[test]
    fn bad_rows_say_where() {
        for text in [
            "{\"prompt\": \"a\"}\n{\"text\": \"b\"}",
            "{\"prompt\": \"a\"}\nnot json",
        ] {
            let e = read("p.jsonl", text).unwrap_err().to_string();
            assert!(e.contains("line 2"), "{e}");
        }
        assert!(read("p.txt", "\n").is_err());
    }
}
