//! Rows whose labels are about tokens: a class for each word, where an answer stands, words that are masked.

use super::{Encoder, Found, Outcome, reason};
use crate::text::Token;
use crate::train::data::roles::{Class, Roles};
use crate::train::data::tokens::{Columns, cut};
use crate::train::data::{Example, IGNORE, Labels};
use serde_json::Value;

/// Columns that hold the classes of words, where `columns` names none: those of Hugging Face's data sets.
const TAGS: [&str; 5] = ["labels", "tags", "ner_tags", "pos_tags", "chunk_tags"];

/// The token that an answer has which is not in the text: the first, `[CLS]`.
const NOWHERE: i64 = 0;

impl Encoder<'_> {
    /// Words and their classes (`run_ner.py` of Transformers): the first token of a word has its class, the others none, unless
    /// `label_all_tokens`.
    pub(super) fn tagged(&self, roles: &Roles<'_>) -> Found<Outcome> {
        let side = self.args.truncation_side;
        if roles.has("input_ids") {
            let mut rows = Columns::read(roles)?;
            let mut labels = roles.integers("labels")?;
            if labels.len() != rows.given {
                let (n, given) = (labels.len(), rows.given);
                return Err(format!("labels of {n} for {given} input_ids"));
            }
            labels = rows.kept(labels);
            let truncated = rows.cut(&mut labels, self.max_length, side);
            return Ok(Outcome::of(rows.example(Labels::Each(labels)), truncated));
        }
        let word = |v: Value| match v {
            Value::String(s) => Ok(s),
            Value::Number(n) => Ok(n.to_string()),
            other => Err(format!("`tokens` holds {other}, not a word")),
        };
        let words = roles.list("tokens")?.into_iter().map(word);
        let words = words.collect::<Found<Vec<String>>>()?;
        let role = TAGS.iter().find(|role| roles.has(role));
        let role = role.ok_or_else(|| roles.missing("labels"))?;
        let tags = roles.list(role)?;
        if tags.len() != words.len() {
            let (n, m) = (tags.len(), words.len());
            return Err(format!("{n} classes for {m} words"));
        }
        let names = self.args.label_names.as_deref();
        let classes = tags.iter().map(|tag| roles.class_of(role, tag, names));
        let classes = classes.collect::<Found<Vec<Class>>>()?;
        let tokens = self
            .tokenizer()?
            .words(&words, self.args.add_special_tokens)
            .map_err(|e| reason(&e))?;
        let (tokens, truncated) = cut(tokens, self.max_length, side)?;
        let (mut labels, mut named) = (Vec::with_capacity(tokens.len()), Vec::new());
        let mut before = None;
        for (at, token) in tokens.iter().enumerate() {
            let first = token.word != before;
            before = token.word;
            let class = token.word.and_then(|w| classes.get(w));
            labels.push(match class {
                Some(Class::Id(id)) if first || self.args.label_all_tokens => *id,
                Some(Class::Name(name)) if first || self.args.label_all_tokens => {
                    named.push((at, name.clone()));
                    0
                }
                Some(_) | None => IGNORE,
            });
        }
        let mut example = Example::tokens(tokens.iter().map(|t| t.id).collect(), Vec::new());
        example.labels = Labels::Each(labels);
        let mut out = Outcome::of(example, truncated);
        out.names = named;
        Ok(out)
    }

    /// A text whose words are to be masked, drawn anew in every epoch. A special token is never masked.
    pub(super) fn maskable(&self, roles: &Roles<'_>) -> Found<Outcome> {
        let side = self.args.truncation_side;
        let special = |id: i64| self.special.contains(&id);
        if roles.has("input_ids") && self.text.is_none() {
            let mut rows = Columns::read(roles)?;
            let truncated = rows.cut(&mut Vec::new(), self.max_length, side);
            let label = |&id: &i64| if special(id) { IGNORE } else { id };
            let labels = rows.ids.iter().map(label).collect();
            return Ok(Outcome::of(rows.example(Labels::Each(labels)), truncated));
        }
        let text = match &self.text {
            Some(template) => template.render(roles.row).map_err(|e| reason(&e))?,
            None => roles.text("text")?,
        };
        let tokens = self.tokens(&text, None, self.args.add_special_tokens)?;
        let (tokens, truncated) = cut(tokens, self.max_length, side)?;
        let label = |t: &Token| match t.text {
            Some(_) if !special(t.id) => t.id,
            _ => IGNORE,
        };
        let labels = tokens.iter().map(label).collect();
        let mut example = Example::tokens(tokens.iter().map(|t| t.id).collect(), Vec::new());
        example.labels = Labels::Each(labels);
        Ok(Outcome::of(example, truncated))
    }

    /// A question, a text, and where the answer stands in it, in the form of `SQuAD` (`run_qa.py` of Transformers). A text that is too
    /// long becomes several examples, `doc_stride` tokens of which are in two; where the answer is not in one, it is the first token.
    pub(super) fn asked(&self, roles: &Roles<'_>) -> Found<Outcome> {
        let (question, context) = (roles.text("question")?, roles.text("context")?);
        let answer = answer(roles, &context)?;
        let tokens = self.tokens(
            question.trim_start(),
            Some(&context),
            self.args.add_special_tokens,
        )?;
        let inside = |t: &Token| t.text == Some(1);
        let begin = tokens.iter().position(inside).unwrap_or(tokens.len());
        let end = tokens.iter().rposition(inside).map_or(begin, |e| e + 1);
        let (front, back) = (&tokens[..begin], &tokens[end..]);
        let fixed = front.len() + back.len();
        let stride = self.args.doc_stride;
        let room = self.max_length.checked_sub(fixed).filter(|r| *r > 0);
        let whole = end - begin + fixed <= self.max_length;
        let room = match room {
            Some(room) if whole || room > stride => room,
            _ => {
                return Err(format!(
                    "the question takes {fixed} of {} tokens, and `doc_stride` is {stride}",
                    self.max_length
                ));
            }
        };
        let mut examples = Vec::new();
        let mut at = begin;
        loop {
            let to = (at + room).min(end);
            let window: Vec<&Token> = front.iter().chain(&tokens[at..to]).chain(back).collect();
            let context = front.len()..front.len() + (to - at);
            let mut example = Example::tokens(window.iter().map(|t| t.id).collect(), Vec::new());
            let span = answer.as_ref().and_then(|a| within(&window, context, a));
            let (from, until) = span.unwrap_or((NOWHERE, NOWHERE));
            example.labels = Labels::Span(from, until);
            let types: Vec<i64> = window.iter().map(|t| t.type_id).collect();
            example.token_type_ids = types.iter().any(|&t| t != 0).then_some(types);
            examples.push(example);
            if to == end {
                break;
            }
            at += room - stride;
        }
        let mut examples = examples.into_iter();
        let first = examples.next().ok_or("the row has no tokens")?;
        let mut out = Outcome::of(first, false);
        out.more = examples.collect();
        Ok(out)
    }
}

/// The bytes of the first answer in a text; `None` where the row says that there is none.
fn answer(roles: &Roles<'_>, context: &str) -> Found<Option<std::ops::Range<usize>>> {
    let answers = roles
        .get("answers")
        .ok_or_else(|| roles.missing("answers"))?;
    let first = |v: &Value| match v {
        Value::Array(list) => list.first().cloned(),
        other => Some(other.clone()),
    };
    // `{"text": […], "answer_start": […]}`, or a list of `{"text", "answer_start"}`.
    let one = match answers {
        Value::Array(list) => list.first(),
        other => Some(other),
    };
    let Some(one) = one else { return Ok(None) };
    let (text, start) = (
        one.get("text").and_then(first),
        one.get("answer_start").and_then(first),
    );
    let (Some(text), Some(start)) = (text, start) else {
        return match one.get("text") {
            Some(Value::Array(list)) if list.is_empty() => Ok(None),
            _ => Err("`answers` is no object with `text` and `answer_start`".to_owned()),
        };
    };
    let (Some(text), Some(start)) = (text.as_str(), start.as_u64()) else {
        return Err(format!("`answers` has {text} at {start}"));
    };
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    let byte = context.char_indices().map(|(at, _)| at);
    let at = byte.chain([context.len()]).nth(start);
    let found = at.filter(|at| context.get(*at..).is_some_and(|c| c.starts_with(text)));
    match found {
        Some(at) => Ok(Some(at..at + text.len())),
        None => Err(format!(
            "the answer {text:?} does not stand at character {start} of the text"
        )),
    }
}

/// The first and the last token of an answer, where all of it is in these tokens of the text.
fn within(
    window: &[&Token],
    context: std::ops::Range<usize>,
    answer: &std::ops::Range<usize>,
) -> Option<(i64, i64)> {
    let tokens = window.get(context.clone())?;
    let (first, last) = (tokens.first()?, tokens.last()?);
    if first.span.start > answer.start || last.span.end < answer.end {
        return None;
    }
    let from = tokens.iter().rposition(|t| t.span.start <= answer.start)?;
    let until = tokens.iter().position(|t| t.span.end >= answer.end)?;
    let place = |at: usize| (context.start + at) as i64;
    Some((place(from), place(until)))
}
