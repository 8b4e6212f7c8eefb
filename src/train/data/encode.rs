//! Rows become examples: templates, tokens, labels, and the cut to the longest length.

use super::args::{DataArguments, Side, Task, TokenRef, Tokens};
use super::forms::{alpaca, conversation, messages};
use super::mask::{CompletionMask, Marker};
use super::roles::{Class, Roles};
use super::tokens::{Columns, cut, overlap};
use super::{Example, IGNORE, Labels};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::text::{ChatOptions, ChatTemplate, Template, Token, Tokenizer};
use serde_json::{Map, Value};

mod chat;
mod marked;

/// Makes examples of rows.
pub(super) struct Encoder<'a> {
    args: &'a DataArguments,
    tokenizer: Option<&'a Tokenizer>,
    vocab: Option<i64>,
    text: Option<Template>,
    prompt: Option<Template>,
    completion: Option<Template>,
    chat: Option<ChatTemplate>,
    /// The date that the chat template is given, where it asks for one.
    pub(super) chat_date: Option<String>,
    mask: Option<CompletionMask>,
    eos: Option<String>,
    bos: Option<i64>,
    max_length: usize,
    max_target: usize,
    /// Tokens that are never masked.
    special: Vec<i64>,
    pub(super) pad_id: i64,
}

/// What is wrong with a row of no text, as an empty line is.
pub(super) const NO_TOKENS: &str = "the text has no tokens";

/// An example, and what the report counts.
#[expect(clippy::struct_excessive_bools, reason = "each is counted by itself")]
pub(super) struct Outcome {
    pub(super) example: Example,
    /// The name of its class, where that has no id yet.
    pub(super) class: Option<String>,
    /// Names of the classes of tokens, where these have no ids yet.
    pub(super) names: Vec<(usize, String)>,
    /// Further examples that the row makes.
    pub(super) more: Vec<Example>,
    pub(super) truncated: bool,
    /// The template that was not found.
    pub(super) not_found: Option<Marker>,
    /// What that template is tokenized to in this text, where it stands in it as text.
    pub(super) in_context: Option<Vec<i64>>,
    /// The prompt alone has other tokens than at the head of prompt and completion.
    pub(super) apart: bool,
    /// The row is an instruction of Alpaca's form.
    pub(super) alpaca: bool,
    /// The chat template made the text.
    pub(super) chat: bool,
    /// The text begins with the beginning-of-sequence token twice.
    pub(super) twice: bool,
    /// Number of tokens of its text that the tokenizer does not know.
    pub(super) unknown: u64,
    /// Number of tokens that the tokenizer made.
    pub(super) tokenized: u64,
}

impl Outcome {
    fn of(example: Example, truncated: bool) -> Self {
        Outcome {
            example,
            class: None,
            names: Vec::new(),
            more: Vec::new(),
            truncated,
            not_found: None,
            in_context: None,
            apart: false,
            alpaca: false,
            chat: false,
            twice: false,
            unknown: 0,
            tokenized: 0,
        }
    }
}

/// A prompt and what should follow it, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TextPair {
    /// What the model is given.
    pub prompt: String,
    /// What it should say.
    pub completion: String,
    /// The prompt holds its special tokens already: it comes from a chat template.
    pub special: bool,
    /// The task or adapter that it is for, where there is a choice.
    pub task_id: Option<i64>,
}

type Found<T> = std::result::Result<T, String>;

impl<'a> Encoder<'a> {
    /// What is wrong with a template itself, and so with no row.
    pub(super) fn fault(&self) -> Option<Error> {
        let own = [&self.text, &self.prompt, &self.completion];
        let own = own.into_iter().flatten().find_map(Template::fault);
        let found = own.or_else(|| self.chat.as_ref().and_then(ChatTemplate::fault));
        found.map(|d| Error::new(ErrorKind::Train, d.clone()))
    }

    /// The source of the chat template.
    pub(super) fn chat_source(&self) -> Option<&str> {
        self.chat.as_ref().map(ChatTemplate::source)
    }

    pub(super) fn new(
        args: &'a DataArguments,
        tokenizer: Option<&'a Tokenizer>,
        vocab: Option<i64>,
    ) -> Result<Self> {
        let template = |source: &Option<String>, name: &str| match source {
            Some(source) => Template::new(source)
                .map(Some)
                .map_err(|e| e.within(format!("`{name}`"))),
            None => Ok(None),
        };
        let pad_id = pad_id(args, tokenizer, vocab)?;
        let (chat, chat_date) = match chat::template(args, tokenizer)? {
            Some(chat) => {
                let (chat, date) = chat.dated(args.chat_date.as_deref())?;
                (Some(chat), date)
            }
            None => (None, None),
        };
        let max_length = args.max_length(tokenizer);
        let eos = tokenizer.and_then(|t| {
            let eos = t.special_tokens().get("eos_token")?.as_str()?;
            // A post-processor that ends every text needs no help.
            let ends = t
                .encode("a", args.add_special_tokens)
                .is_ok_and(|ids| ids.last().copied() == t.eos_id());
            (!ends).then(|| eos.to_owned())
        });
        if args.append_eos == Some(true) && tokenizer.is_some_and(|t| t.eos_id().is_none()) {
            let d = Diagnostic::error(
                "data-argument",
                "`append_eos`: the tokenizer names no end-of-sequence token",
            );
            return Err(Error::new(
                ErrorKind::Train,
                d.help("name `eos_token` in tokenizer_config.json beside tokenizer.json"),
            ));
        }
        Ok(Encoder {
            args,
            tokenizer,
            vocab,
            text: template(&args.template, "template")?,
            prompt: template(&args.prompt_template, "prompt_template")?,
            completion: template(&args.completion_template, "completion_template")?,
            chat,
            chat_date,
            mask: mask(args, tokenizer, pad_id)?,
            eos,
            bos: tokenizer.and_then(Tokenizer::bos_id),
            max_length,
            max_target: args.max_target_length.unwrap_or(max_length),
            special: tokenizer.map(Tokenizer::special_ids).unwrap_or_default(),
            pad_id,
        })
    }

    /// The task or adapter of a row, where it has one.
    fn task(&self, roles: &Roles<'_>) -> Found<Option<i64>> {
        roles.task(self.args.task_names.as_deref(), self.args.choice.as_ref())
    }

    /// The example of a row, or what is wrong with the row.
    pub(super) fn encode(&self, row: &Map<String, Value>) -> Found<Outcome> {
        let roles = Roles {
            row,
            columns: &self.args.columns,
        };
        let mut out = match self.args.task {
            Task::CausalLm => self.causal(&roles)?,
            Task::Seq2seq => self.seq2seq(&roles)?,
            Task::Classification | Task::Regression | Task::MultiLabel => self.labelled(&roles)?,
            Task::TokenClassification => self.tagged(&roles)?,
            Task::QuestionAnswering => self.asked(&roles)?,
            Task::MaskedLm => self.maskable(&roles)?,
        };
        out.example.task_id = self.task(&roles)?;
        if out.example.input_ids.is_empty() {
            let given = roles.has("input_ids");
            return Err(if given {
                "the row has no tokens"
            } else {
                NO_TOKENS
            }
            .to_owned());
        }
        out.twice = self.bos.is_some()
            && out
                .example
                .input_ids
                .iter()
                .take(2)
                .all(|&id| Some(id) == self.bos)
            && out.example.input_ids.len() > 1;
        let made = self.tokenizer.filter(|_| !roles.has("input_ids"));
        let ids = &out.example.input_ids;
        self.in_vocabulary("token id", ids)
            .map_err(|e| match made {
                Some(t) => format!(
                    "{e}: the tokenizer, of {} tokens, is of another model",
                    t.size()
                ),
                None => e,
            })?;
        if let Some(t) = made {
            out.tokenized = ids.len() as u64;
            out.unknown = t.unknown(ids);
        }
        if let Labels::Tokens(l) | Labels::Sequence(l) = &out.example.labels {
            self.in_vocabulary("label", l)?;
        }
        Ok(out)
    }

    fn in_vocabulary(&self, what: &str, ids: &[i64]) -> Found<()> {
        let outside = |id: i64| id < 0 || self.vocab.is_some_and(|v| id >= v);
        let ignored = |id: i64| what == "label" && id == IGNORE;
        let Some(id) = ids.iter().find(|&&id| outside(id) && !ignored(id)) else {
            return Ok(());
        };
        let vocab = self
            .vocab
            .map_or_else(|| "the vocabulary".to_owned(), |v| format!("0..{v}"));
        let or = if what == "label" {
            format!(" (and not {IGNORE})")
        } else {
            String::new()
        };
        Err(format!("{what} {id} is outside {vocab}{or}"))
    }

    fn causal(&self, roles: &Roles<'_>) -> Found<Outcome> {
        if let Some(template) = &self.text {
            return self.whole(&template.render(roles.row).map_err(|e| reason(&e))?);
        }
        if let Some((prompt, completion)) = self.pair(roles)? {
            return self.continued(&prompt, &completion);
        }
        if roles.has("input_ids") {
            return self.tokenized(roles);
        }
        if roles.has("messages") {
            return self.conversation(roles);
        }
        match (roles.get("prompt"), roles.get("completion")) {
            (Some(Value::Array(prompt)), Some(Value::Array(completion))) => {
                return self.reply(prompt, completion, roles);
            }
            (Some(_), Some(_)) => {
                return self.continued(&roles.text("prompt")?, &roles.text("completion")?);
            }
            (Some(_), None) => return Err(roles.missing("completion")),
            (None, Some(_)) => return Err(roles.missing("prompt")),
            (None, None) => {}
        }
        if roles.has("text") {
            return self.whole(&roles.text("text")?);
        }
        if let Some((prompt, completion)) = alpaca(roles)? {
            let mut out = self.continued(&prompt, &completion)?;
            out.alpaca = true;
            return Ok(out);
        }
        let known = ["input_ids", "messages", "prompt", "completion", "text"];
        if let Some(null) = roles.null(&known) {
            return Err(null);
        }
        let near = ["input_ids", "messages", "prompt", "text"].map(|role| roles.missing(role));
        let near = near.into_iter().find(|m| m.contains("did you mean"));
        let columns: Vec<&str> = roles.row.keys().map(String::as_str).collect();
        Err(near.unwrap_or_else(|| {
            format!(
                "a row has `text`, `prompt` and `completion`, `messages`, `instruction` and `output`, or `input_ids`, and this one has {}: name them in `columns`, or give a `template`",
                if columns.is_empty() { "nothing".to_owned() } else { columns.join(", ") }
            )
        }))
    }

    /// Prompt and completion, when a template makes one of them.
    fn pair(&self, roles: &Roles<'_>) -> Found<Option<(String, String)>> {
        if self.prompt.is_none() && self.completion.is_none() {
            return Ok(None);
        }
        let part = |template: &Option<Template>, role: &str| match template {
            Some(t) => t.render(roles.row).map_err(|e| reason(&e)),
            None => roles.text(role),
        };
        let (prompt, completion) = if self.args.task == Task::Seq2seq {
            ("source", "target")
        } else {
            ("prompt", "completion")
        };
        Ok(Some((
            part(&self.prompt, prompt)?,
            part(&self.completion, completion)?,
        )))
    }

    fn tokenizer(&self) -> Found<&'a Tokenizer> {
        self.tokenizer
            .ok_or_else(|| "a row of text needs a tokenizer: give --tokenizer, or put tokenizer.json beside the model".to_owned())
    }

    fn tokens(&self, text: &str, pair: Option<&str>, special: bool) -> Found<Vec<Token>> {
        self.tokenizer()?
            .tokens(text, pair, special)
            .map_err(|e| reason(&e))
    }

    fn target(&self, text: &str, special: bool) -> Found<Vec<Token>> {
        let tokens = self.tokenizer()?.target(text, special);
        tokens.map_err(|e| reason(&e))
    }

    /// A text with the end-of-sequence token, if it is to have it.
    fn ended(&self, text: &str, by_default: bool) -> String {
        match &self.eos {
            Some(eos)
                if self.args.append_eos.unwrap_or(by_default) && !text.ends_with(eos.as_str()) =>
            {
                format!("{text}{eos}")
            }
            _ => text.to_owned(),
        }
    }

    /// A text that is learned as a whole, or behind the response template.
    fn whole(&self, text: &str) -> Found<Outcome> {
        let text = self.ended(text, false);
        let tokens = self.tokens(&text, None, self.args.add_special_tokens)?;
        self.masked(&text, tokens, |_| true)
    }

    /// The example of tokens of which some are learned; the response template decides where there is one.
    fn masked(
        &self,
        text: &str,
        tokens: Vec<Token>,
        learned: impl Fn(&Token) -> bool,
    ) -> Found<Outcome> {
        let (tokens, truncated) = cut(tokens, self.max_length, self.args.truncation_side)?;
        let ids: Vec<i64> = tokens.iter().map(|t| t.id).collect();
        let Some(mask) = &self.mask else {
            let labels = tokens
                .iter()
                .map(|t| if learned(t) { t.id } else { IGNORE })
                .collect();
            return Ok(Outcome::of(Example::tokens(ids, labels), truncated));
        };
        let (labels, found) = mask.labels(&ids);
        let not_found = (!found).then(|| mask.missing(&ids));
        let mut out = Outcome::of(Example::tokens(ids, labels), truncated);
        out.not_found = not_found;
        let template = match out.not_found {
            Some(Marker::Response) => &self.args.response_template,
            Some(Marker::Instruction) => &self.args.instruction_template,
            None => &None,
        };
        if let Some(Tokens::Text(template)) = template {
            out.in_context = in_context(text, &tokens, template);
        }
        Ok(out)
    }

    /// A prompt that is read and a completion that is learned. They are tokenized as one text, of which as many tokens are read as the
    /// prompt alone has: as in TRL (`SFTTrainer`), also where the prompt's tokens are other ones in the whole text.
    fn continued(&self, prompt: &str, completion: &str) -> Found<Outcome> {
        let completion = self.ended(completion, true);
        let special = self.args.add_special_tokens;
        let joint = self.tokens(&format!("{prompt}{completion}"), None, special)?;
        let head = self.tokens(prompt, None, special)?;
        let begins =
            joint.len() >= head.len() && joint.iter().zip(&head).all(|(a, b)| a.id == b.id);
        let labelled = joint
            .into_iter()
            .enumerate()
            .map(|(i, t)| (t, i >= head.len()))
            .collect();
        let (tokens, truncated) = cut(labelled, self.max_length, self.args.truncation_side)?;
        let labels = tokens
            .iter()
            .map(|(t, l)| if *l { t.id } else { IGNORE })
            .collect();
        let ids = tokens.iter().map(|(t, _)| t.id).collect();
        let mut out = Outcome::of(Example::tokens(ids, labels), truncated);
        out.apart = !begins;
        Ok(out)
    }

    /// Token ids as they stand in the row.
    fn tokenized(&self, roles: &Roles<'_>) -> Found<Outcome> {
        let mut rows = Columns::read(roles)?;
        let mut not_found = None;
        let mut labels = match (&self.mask, roles.has("labels")) {
            (_, true) => {
                let labels = roles.integers("labels")?;
                if labels.len() != rows.given {
                    return Err(format!(
                        "{} labels for {} input_ids",
                        labels.len(),
                        rows.given
                    ));
                }
                rows.kept(labels)
            }
            (Some(_), false) => Vec::new(),
            (None, false) => rows.ids.clone(),
        };
        let truncated = rows.cut(&mut labels, self.max_length, self.args.truncation_side);
        if let (Some(mask), false) = (&self.mask, roles.has("labels")) {
            let (found_labels, found) = mask.labels(&rows.ids);
            labels = found_labels;
            not_found = (!found).then(|| mask.missing(&rows.ids));
        }
        let mut out = Outcome::of(rows.example(Labels::Tokens(labels)), truncated);
        out.not_found = not_found;
        Ok(out)
    }

    fn seq2seq(&self, roles: &Roles<'_>) -> Found<Outcome> {
        let side = self.args.truncation_side;
        if roles.has("input_ids") {
            let mut rows = Columns::read(roles)?;
            let mut labels = roles.integers("labels")?;
            let long = rows.cut(&mut Vec::new(), self.max_length, side);
            let cut_labels = labels.len() > self.max_target;
            labels.truncate(self.max_target);
            return Ok(Outcome::of(
                rows.example(Labels::Sequence(labels)),
                long || cut_labels,
            ));
        }
        let (source, target) = match self.pair(roles)? {
            Some(pair) => pair,
            None if roles.has("source") || roles.has("target") => {
                (roles.text("source")?, roles.text("target")?)
            }
            None if roles.has("prompt") => (roles.text("prompt")?, roles.text("completion")?),
            None => {
                return Err(roles
                    .null(&["source", "prompt"])
                    .unwrap_or_else(|| roles.missing("source")));
            }
        };
        let special = self.args.add_special_tokens;
        let (source, long) = cut(self.tokens(&source, None, special)?, self.max_length, side)?;
        let target = self.ended(&target, false);
        let (target, long_target) =
            cut(self.target(&target, special)?, self.max_target, Side::Right)?;
        let ids = |tokens: Vec<Token>| tokens.into_iter().map(|t| t.id).collect::<Vec<_>>();
        let mut example = Example::tokens(ids(source), Vec::new());
        example.labels = Labels::Sequence(ids(target));
        Ok(Outcome::of(example, long || long_target))
    }

    /// A text or a pair of texts with a label of its own.
    fn labelled(&self, roles: &Roles<'_>) -> Found<Outcome> {
        let names = self.args.label_names.as_deref();
        let mut class = None;
        let labels = match self.args.task {
            Task::Regression => Labels::Values(roles.numbers(roles.label_role())?),
            Task::MultiLabel => Labels::Values(roles.classes(names)?),
            Task::Classification
            | Task::CausalLm
            | Task::Seq2seq
            | Task::TokenClassification
            | Task::QuestionAnswering
            | Task::MaskedLm => Labels::Class(match roles.class(names)? {
                Class::Id(id) => id,
                Class::Name(name) => {
                    class = Some(name);
                    0
                }
            }),
        };
        let (mut example, truncated) = if roles.has("input_ids") && self.text.is_none() {
            let mut rows = Columns::read(roles)?;
            let truncated = rows.cut(&mut Vec::new(), self.max_length, self.args.truncation_side);
            (rows.example(labels), truncated)
        } else {
            let text = match &self.text {
                Some(template) => template.render(roles.row).map_err(|e| reason(&e))?,
                None => roles.text("text")?,
            };
            let pair = if roles.has("text_pair") {
                Some(roles.text("text_pair")?)
            } else {
                None
            };
            let tokens = self.tokens(&text, pair.as_deref(), self.args.add_special_tokens)?;
            let (tokens, truncated) = cut(tokens, self.max_length, self.args.truncation_side)?;
            let mut example = Example::tokens(tokens.iter().map(|t| t.id).collect(), Vec::new());
            example.labels = labels;
            let types: Vec<i64> = tokens.iter().map(|t| t.type_id).collect();
            example.token_type_ids = types.iter().any(|&t| t != 0).then_some(types);
            (example, truncated)
        };
        example.task_id = None;
        let mut out = Outcome::of(example, truncated);
        out.class = class;
        Ok(out)
    }

    /// The names of classes that a row of a multi-label task lists.
    pub(super) fn class_names(&self, row: &Map<String, Value>) -> Vec<String> {
        let columns = &self.args.columns;
        Roles { row, columns }.class_names()
    }

    /// Prompt and completion of a row as text.
    pub(super) fn texts(&self, row: &Map<String, Value>) -> Found<TextPair> {
        let roles = Roles {
            row,
            columns: &self.args.columns,
        };
        let task_id = self.task(&roles)?;
        let plain = |(prompt, completion)| TextPair {
            prompt,
            completion,
            special: false,
            task_id,
        };
        if let Some(template) = &self.text {
            let text = template.render(row).map_err(|e| reason(&e))?;
            let Some(Tokens::Text(response)) = &self.args.response_template else {
                return Err("where the completion begins is not known: give `response_template` as text, or `prompt_template` and `completion_template`".to_owned());
            };
            let at = text
                .rfind(response.as_str())
                .ok_or_else(|| format!("the text has no {response:?}"))?
                + response.len();
            return Ok(plain((text[..at].to_owned(), text[at..].to_owned())));
        }
        if let Some(pair) = self.pair(&roles)? {
            return Ok(plain(pair));
        }
        let calls = self.chat.as_ref().is_none_or(ChatTemplate::reads_calls);
        let (asked, said) = match (
            roles.get("messages"),
            roles.get("prompt"),
            roles.get("completion"),
        ) {
            (Some(_), _, _) => {
                let mut all = conversation(&roles, calls)?;
                let last = all
                    .iter()
                    .rposition(|m| m["role"] == "assistant")
                    .ok_or("no turn of the assistant among the messages")?;
                let said = all.split_off(last);
                (all, said)
            }
            (None, Some(Value::Array(p)), Some(Value::Array(c))) => {
                (messages(p, calls)?, messages(c, calls)?)
            }
            (None, Some(_), _) => {
                return Ok(plain((roles.text("prompt")?, roles.text("completion")?)));
            }
            _ if roles.has("source") => {
                return Ok(plain((roles.text("source")?, roles.text("target")?)));
            }
            _ => {
                if let Some(pair) = alpaca(&roles)? {
                    return Ok(plain(pair));
                }
                return Err(roles
                    .null(&["messages", "prompt", "source"])
                    .unwrap_or_else(|| roles.missing("prompt")));
            }
        };
        let (tools, kwargs) = (Self::tools(&roles)?, self.kwargs(&roles)?);
        let options = ChatOptions {
            add_generation_prompt: true,
            tools: tools.as_ref(),
            kwargs: Some(&kwargs),
        };
        let prompt = self
            .chat()?
            .render(&asked, options)
            .map_err(|e| reason(&e))?
            .text;
        let completion = said
            .first()
            .and_then(|m| m["content"].as_str())
            .unwrap_or_default()
            .to_owned();
        Ok(TextPair {
            prompt,
            completion,
            special: true,
            task_id,
        })
    }
}

/// The tokens of the last place at which a template stands in a text, if the cut has left all of them.
fn in_context(text: &str, tokens: &[Token], template: &str) -> Option<Vec<i64>> {
    let at = text.rfind(template)?;
    let span = at..at + template.len();
    let within: Vec<&Token> = tokens
        .iter()
        .filter(|t| t.text.is_some() && overlap(&t.span, &span))
        .collect();
    let (first, last) = (within.first()?, within.last()?);
    let whole = first.span.start <= span.start && last.span.end >= span.end;
    whole.then(|| within.iter().map(|t| t.id).collect())
}

fn mask(
    args: &DataArguments,
    tokenizer: Option<&Tokenizer>,
    pad_id: i64,
) -> Result<Option<CompletionMask>> {
    let ids = |tokens: &Tokens, name: &str| match (tokens, tokenizer) {
        (Tokens::Ids(ids), _) => Ok(ids.clone()),
        (Tokens::Text(text), Some(t)) => t.encode(text, false),
        (Tokens::Text(_), None) => {
            let d = Diagnostic::error(
                "data-argument",
                format!("`{name}` is text, and there is no tokenizer"),
            );
            Err(Error::new(
                ErrorKind::Train,
                d.help("give token ids, or a tokenizer"),
            ))
        }
    };
    let Some(response) = &args.response_template else {
        return Ok(None);
    };
    let instruction = args
        .instruction_template
        .as_ref()
        .map(|t| ids(t, "instruction_template"))
        .transpose()?;
    Ok(Some(CompletionMask {
        response: ids(response, "response_template")?,
        instruction,
        // Where nothing declares one, token 0 is a token like any other.
        pad_id: (args.pad_token.is_some()
            || tokenizer.is_some_and(|t| t.pad_id().or(t.eos_id()).is_some()))
        .then_some(pad_id),
    }))
}

fn pad_id(args: &DataArguments, tokenizer: Option<&Tokenizer>, vocab: Option<i64>) -> Result<i64> {
    let bad = |message: String| {
        let d = Diagnostic::error("data-argument", format!("`pad_token`: {message}"));
        Error::new(
            ErrorKind::Train,
            d.help("give a token of the vocabulary, or its id"),
        )
    };
    let id = match (&args.pad_token, tokenizer) {
        (Some(TokenRef::Id(id)), _) => *id,
        (Some(TokenRef::Text(text)), Some(t)) => t
            .token_id(text)
            .ok_or_else(|| bad(format!("the vocabulary has no token {text:?}")))?,
        (Some(TokenRef::Text(text)), None) => {
            return Err(bad(format!("{text:?} is text, and there is no tokenizer")));
        }
        (None, Some(t)) => t.pad_id().or(t.eos_id()).unwrap_or(0),
        (None, None) => 0,
    };
    if args.pad_token.is_some() && (id < 0 || vocab.is_some_and(|v| id >= v)) {
        let vocab = vocab.map_or_else(|| "the vocabulary".to_owned(), |v| format!("0..{v}"));
        return Err(bad(format!("{id} is outside {vocab}")));
    }
    Ok(id)
}

/// What an error says about a row, in one line.
fn reason(e: &Error) -> String {
    let Some(d) = e.findings().first() else {
        return e.to_string();
    };
    let place = if d.path.is_empty() {
        String::new()
    } else {
        format!(" ({})", d.path)
    };
    let help = d
        .help
        .as_ref()
        .map_or_else(String::new, |h| format!("; {h}"));
    format!("{}{place}{help}", d.message)
}
