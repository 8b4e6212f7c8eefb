//! Chat templates: conversations as text, and which part of the text the assistant says.

use super::template::Template;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use serde_json::{Map, Value};
use std::ops::Range;

/// Noncharacters (Unicode 23.7) that mark where a `{% generation %}` block begins and ends while a conversation is rendered.
const BEGIN: char = '\u{fdd0}';
const END: char = '\u{fdd1}';

/// Arguments of Transformers' `apply_chat_template` that are no variables of a template, and that the program sets itself.
const NO_VARIABLES: [&str; 12] = [
    "add_generation_prompt",
    "continue_final_message",
    "conversation",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
];

/// The template that `chat_template_kwargs` choose: `apply_chat_template` takes its name or its text there.
///
/// # Errors
/// A template that is no text, and arguments that cannot be given.
pub(crate) fn chosen(kwargs: &Map<String, Value>) -> Result<Option<&str>> {
    let bad = |message: String| {
        let d = Diagnostic::error("chat-template-kwargs", message);
        let help = "`chat_template_kwargs` holds variables of the template, and `chat_template`, `tools` and `documents`";
        Error::new(ErrorKind::Train, d.help(help))
    };
    if let Some(name) = NO_VARIABLES.iter().find(|n| kwargs.contains_key(**n)) {
        return Err(bad(format!("`{name}` cannot be set")));
    }
    match kwargs.get("tools") {
        None | Some(Value::Null | Value::Array(_)) => {}
        Some(other) => return Err(bad(format!("`tools` is {other}, expected a list"))),
    }
    match kwargs.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(given)) => Ok(Some(given)),
        Some(other) => Err(bad(format!(
            "`chat_template` is {other}, expected the name of a template, or a template"
        ))),
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    source: String,
    template: Template,
    special: Map<String, Value>,
    marks: bool,
    /// Takes its place where a conversation has tools.
    with_tools: Option<Box<ChatTemplate>>,
    /// Whether a conversation without tools has no template.
    only_with_tools: bool,
}

/// What a conversation is rendered with besides its messages.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ChatOptions<'a> {
    /// Ends the text where the assistant's turn begins.
    pub add_generation_prompt: bool,
    /// Tools that the assistant may call.
    pub tools: Option<&'a Value>,
    /// Further variables of the template, such as `enable_thinking`.
    pub kwargs: Option<&'a Map<String, Value>>,
}

/// A conversation as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chat {
    /// All of it.
    pub text: String,
    /// The bytes between `{% generation %}` and `{% endgeneration %}`; none when the template has no such block.
    pub assistant: Option<Vec<Range<usize>>>,
}

impl ChatTemplate {
    /// A template, and the special tokens it may name (`bos_token`, …).
    ///
    /// # Errors
    /// One that does not parse.
    pub(crate) fn new(source: &str, special: Map<String, Value>) -> Result<Self> {
        let (with_marks, marks) = marked(source);
        Ok(ChatTemplate {
            source: source.to_owned(),
            template: Template::lenient(&with_marks)?,
            special,
            marks,
            with_tools: None,
            only_with_tools: false,
        })
    }

    /// The same with a date (`2025-01-31`) for `strftime_now`; that of today without one. `None` where the template asks for no date,
    /// otherwise the date that it gets.
    ///
    /// # Errors
    /// A text that is no date.
    pub(crate) fn dated(mut self, date: Option<&str>) -> Result<(Self, Option<String>)> {
        let mut used = None;
        if let Some(inner) = self.with_tools.take() {
            let (inner, date) = inner.dated(date)?;
            self.with_tools = Some(Box::new(inner));
            used = date;
        }
        if self.source.contains("strftime_now") {
            let date = date.map_or_else(super::template::today, str::to_owned);
            let day = date.parse().map_err(|_| {
                let d = Diagnostic::error("chat-date", format!("`{date}` is no date"));
                Error::new(
                    ErrorKind::Train,
                    d.help("`chat_date`: a date such as 2025-01-31"),
                )
            })?;
            self.template.set_date(day);
            used = Some(date);
        }
        Ok((self, used))
    }

    /// The template as it was given.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// Whether it says anywhere what the assistant calls.
    pub(crate) fn reads_calls(&self) -> bool {
        let with_tools = self.with_tools.as_ref();
        self.source.contains("tool_calls") || with_tools.is_some_and(|t| t.reads_calls())
    }

    /// What a rendering found wrong with the template itself.
    pub(crate) fn fault(&self) -> Option<&Diagnostic> {
        let with_tools = self.with_tools.as_ref();
        let inner = with_tools.and_then(|t| t.fault());
        self.template.fault().or(inner)
    }

    /// The same, with another one (`tool_use`) for conversations with tools.
    pub(crate) fn with_tools(mut self, template: Option<ChatTemplate>) -> Self {
        self.with_tools = template.map(Box::new);
        self
    }

    /// The same for conversations with tools alone: the tokenizer has no default template.
    pub(crate) fn only_with_tools(mut self) -> Self {
        self.only_with_tools = true;
        self
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// What the template says about the messages.
    pub(crate) fn render(&self, messages: &[Value], options: ChatOptions<'_>) -> Result<Chat> {
        let empty = Map::new();
        let kwargs = options.kwargs.unwrap_or(&empty);
        let usual = kwargs.get("tools").filter(|t| !t.is_null());
        let tools = options.tools.or(usual);
        match (&self.with_tools, tools) {
            (Some(template), Some(_)) => return template.render(messages, options),
            (_, None) if self.only_with_tools => {
                let d = Diagnostic::error(
                    "chat-template",
                    "the tokenizer has a chat template for conversations with tools alone",
                );
                let help = "give the rows a column `tools`, or another template: `chat_template`";
                return Err(Error::new(ErrorKind::Train, d.help(help)));
            }
            _ => {}
        }
        let mut values = self.special.clone();
        values.insert("messages".to_owned(), Value::from(messages));
        values.insert("tools".to_owned(), tools.cloned().unwrap_or_default());
        values.insert("documents".to_owned(), Value::Null);
        values.insert(
            "add_generation_prompt".to_owned(),
            options.add_generation_prompt.into(),
        );
        let variables = kwargs
            .iter()
            .filter(|(key, _)| !["tools", "chat_template"].contains(&key.as_str()));
        values.extend(variables.map(|(k, v)| (k.clone(), v.clone())));
        let text = self.template.render(&values)?;
        if !self.marks {
            return Ok(Chat {
                text,
                assistant: None,
            });
        }
        let (text, spans) = unmarked(&text).ok_or_else(|| {
            let d = Diagnostic::error(
                "chat-template",
                "the conversation has the characters U+FDD0 or U+FDD1, which are no characters",
            );
            Error::new(ErrorKind::Train, d.help("remove them"))
        })?;
        Ok(Chat {
            text,
            assistant: Some(spans),
        })
    }

    /// The text of a conversation, and the bytes of the turns of the assistant in it: what a `{% generation %}` block encloses, or, in a
    /// template without one, what each of these turns adds behind the prompt for it. Renders once for every turn.
    ///
    /// # Errors
    /// What the template says about the messages; a template that changes earlier turns when later ones follow.
    pub(crate) fn turns(
        &self,
        messages: &[Value],
        options: ChatOptions<'_>,
    ) -> Result<(String, Vec<Range<usize>>)> {
        let whole = self.render(messages, options)?;
        if let Some(spans) = whole.assistant {
            return Ok((whole.text, spans));
        }
        let mut spans = Vec::new();
        for (i, message) in messages.iter().enumerate() {
            if message["role"] == "assistant" {
                spans.push(self.added(messages, i..i + 1, &whole.text, options)?);
            }
        }
        Ok((whole.text, spans))
    }

    /// The bytes that a range of messages takes in the text of the whole conversation, behind the prompt for the first of them.
    ///
    /// # Errors
    /// As for [`turns`](Self::turns).
    pub(crate) fn added(
        &self,
        messages: &[Value],
        range: Range<usize>,
        whole: &str,
        options: ChatOptions<'_>,
    ) -> Result<Range<usize>> {
        let render = |n: usize, add_generation_prompt: bool| {
            let messages = messages.get(..n).unwrap_or(messages);
            let options = ChatOptions {
                add_generation_prompt,
                ..options
            };
            self.render(messages, options).map(|c| c.text)
        };
        // A template that puts something between the prompt and the reply (an empty thought) still begins alike without the prompt.
        let mut before = render(range.start, true)?;
        if !whole.starts_with(&before) {
            before = render(range.start, false)?;
        }
        let after = if range.end == messages.len() {
            whole.to_owned()
        } else {
            render(range.end, false)?
        };
        if whole.starts_with(&before) && whole.starts_with(&after) && before.len() <= after.len() {
            return Ok(before.len()..after.len());
        }
        let d = Diagnostic::error(
            "chat-template",
            "the chat template changes earlier turns when later ones follow, so what the assistant says cannot be told apart",
        );
        let help = "mark it in the template with {% generation %} and {% endgeneration %}, or give one turn of the assistant in each row";
        Err(Error::new(ErrorKind::Train, d.help(help)))
    }
}

/// A template in which `generation` blocks print marks, and whether it has any. The white space around the tags is trimmed as before.
fn marked(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut found) = (String::with_capacity(source.len()), source, false);
    while let Some(at) = rest.find("{%") {
        // The end begins behind the beginning: `{%}` is not a tag.
        let Some(len) = rest[at + 2..].find("%}").map(|n| n + 4) else {
            break;
        };
        let tag = &rest[at..at + len];
        let inner = &tag[2..len - 2];
        let word = inner
            .trim_start_matches(['-', '+'])
            .trim_end_matches(['-', '+'])
            .trim();
        let (open, mark) = match word {
            "generation" => (true, BEGIN),
            "endgeneration" => (false, END),
            _ => {
                out.push_str(&rest[..at + len]);
                rest = &rest[at + len..];
                continue;
            }
        };
        found = true;
        let left = if inner.starts_with(['-', '+']) {
            &inner[..1]
        } else {
            ""
        };
        let right = if inner.ends_with(['-', '+']) {
            &inner[inner.len() - 1..]
        } else {
            ""
        };
        out.push_str(&rest[..at]);
        let print = format!("{{{{ '{mark}' }}}}");
        // The outer two tags carry the trimming on their outer sides.
        let word = if open { "if true" } else { "endif" };
        out += &format!("{{%{left} {word} %}}{print}{{% {word} {right}%}}");
        rest = &rest[at + len..];
    }
    out.push_str(rest);
    (out, found)
}

/// The text without marks, and what stood between them. None when they do not alternate.
fn unmarked(text: &str) -> Option<(String, Vec<Range<usize>>)> {
    let (mut out, mut spans, mut open) = (String::with_capacity(text.len()), Vec::new(), None);
    for c in text.chars() {
        match (c, open) {
            (BEGIN, None) => open = Some(out.len()),
            (END, Some(start)) => {
                spans.push(start..out.len());
                open = None;
            }
            (BEGIN | END, _) => return None,
            _ => out.push(c),
        }
    }
    open.is_none().then_some((out, spans))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, Map::new()).unwrap()
    }

    fn messages() -> Vec<Value> {
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        vec![
            turn("user", "one"),
            turn("assistant", "two"),
            turn("user", "three"),
            turn("assistant", "four"),
        ]
    }

    #[test]
    fn the_turns_of_the_assistant_are_what_they_add() {
        let (text, spans) = template(CHATML)
            .turns(&messages(), ChatOptions::default())
            .unwrap();
        let said: Vec<&str> = spans.into_iter().map(|s| &text[s]).collect();
        assert_eq!(said, ["two<|im_end|>\n", "four<|im_end|>\n"]);
    }

    #[test]
    fn a_generation_block_says_it_itself() {
        let source = "{% for m in messages %}\n{% if m.role == 'assistant' %}\n[{% generation %}\n{{ m.content }}|\n  {%- endgeneration %}\n{% else %}\n({{ m.content }})\n{% endif %}\n{% endfor %}";
        let (text, spans) = template(source)
            .turns(&messages(), ChatOptions::default())
            .unwrap();
        let said: Vec<&str> = spans.into_iter().map(|s| &text[s]).collect();
        assert_eq!(said, ["two|", "four|"]);
        assert_eq!(text, "(one)\n[two|(three)\n[four|");
    }

    #[test]
    fn a_template_that_rewrites_the_past_is_refused() {
        let forgets = "{% for m in messages %}{% if loop.last or m.role == 'user' %}<{{ m.content }}>{% else %}<>{% endif %}{% endfor %}";
        let e = template(forgets)
            .turns(&messages(), ChatOptions::default())
            .unwrap_err()
            .to_string();
        assert!(
            e.contains("changes earlier turns") && e.contains("generation"),
            "{e}"
        );
    }

    #[test]
    fn marks_in_a_conversation_are_refused() {
        let source = "{% generation %}{{ messages[0].content }}{% endgeneration %}";
        let bad = [json!({"role": "user", "content": "a\u{fdd1}b"})];
        assert!(
            template(source)
                .render(&bad, ChatOptions::default())
                .is_err()
        );
    }
}
