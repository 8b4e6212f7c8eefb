//! Jinja templates that render as they do in Python.
//!
//! What differs between the engines is evened out here: `True`, `None` and lists print as Python prints them, `tojson` writes what
//! `json.dumps` writes, the methods of Python's strings, lists and dicts exist, and blocks are trimmed as Hugging Face sets it.
//! There is no clock: `strftime_now` gives the date that it is told, so that the same rows give the same text every day.
//!
//! A template is a program of a stranger. Its source, the depth of its values, what it may do (fuel), the memory it may hold and the time it
//! may take have limits; it is compiled and rendered behind the [`fence`], on a thread whose stack no template within these limits fills.

use crate::diag::{Diagnostic, nearest};
use crate::error::{Error, ErrorKind, Result};
use crate::fence::{self, Fallen, Limits};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{
    Environment, ErrorKind as JinjaKind, Output, State, UndefinedBehavior, syntax::SyntaxConfig,
};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The name of the one template of an environment.
const NAME: &str = "template";

/// Steps that one rendering may take: far more than a long conversation needs, few enough to end. One pays for an instruction, or for 64
/// bytes of what is made.
const FUEL: u64 = 2_000_000;
/// The longest source in bytes; chat templates have up to some ten thousand.
const SOURCE: usize = 256 << 10;
/// How deep lists and objects that are printed may be nested.
const DEPTH: usize = 128;
/// The largest width or precision that `str.format` may ask for.
const WIDTH: u64 = 100_000;
/// What a rendering, or compiling, may take.
const LIMITS: Limits = Limits {
    time: Duration::from_secs(2),
    bytes: 512 << 20,
};

/// A compiled template.
pub(crate) struct Template {
    env: Arc<Environment<'static>>,
    /// What a rendering found wrong with the template itself, whatever it was given.
    fault: OnceLock<Diagnostic>,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").finish_non_exhaustive()
    }
}

impl Template {
    /// A template over the columns of a row; a column that the row lacks is an error and not an empty text.
    ///
    /// # Errors
    /// A template that does not parse, with the line.
    pub(crate) fn new(source: &str) -> Result<Self> {
        Self::compile(source, UndefinedBehavior::SemiStrict)
    }

    /// A template in which what is not defined is empty, as in Jinja2.
    pub(super) fn lenient(source: &str) -> Result<Self> {
        Self::compile(source, UndefinedBehavior::Lenient)
    }

    fn compile(source: &str, undefined: UndefinedBehavior) -> Result<Self> {
        if source.len() > SOURCE {
            let message = format!(
                "the template has {} bytes; {SOURCE} are the most that is read",
                source.len()
            );
            return Err(stopped(message));
        }
        let source = source.to_owned();
        let env = fence::bounded(LIMITS, move || Self::environment(source, undefined));
        Ok(Template {
            env: Arc::new(env.map_err(fallen)??),
            fault: OnceLock::new(),
        })
    }

    fn environment(source: String, undefined: UndefinedBehavior) -> Result<Environment<'static>> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        env.set_syntax(syntax.map_err(|e| failed(&e))?);
        env.set_undefined_behavior(undefined);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(method);
        env.set_formatter(format);
        env.set_fuel(Some(FUEL));
        env.add_filter("tojson", to_json);
        env.add_filter("urlencode", url_encode);
        env.add_filter("wordcount", word_count);
        env.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<String, minijinja::Error> {
                Err(minijinja::Error::new(JinjaKind::InvalidOperation, message))
            },
        );
        env.add_template_owned(NAME, source)
            .map_err(|e| failed(&e))?;
        Ok(env)
    }

    /// Gives `strftime_now` a date, at midnight.
    pub(super) fn set_date(&mut self, date: chrono::NaiveDate) {
        let now = date.and_time(chrono::NaiveTime::MIN);
        let at = move |form: String| -> std::result::Result<String, minijinja::Error> {
            use std::fmt::Write as _;
            let mut text = String::new();
            // A form that is none is an error of the formatter.
            write!(text, "{}", now.format(&form)).map_err(|_| {
                let message = format!("strftime_now: {form:?} is no form of a date");
                minijinja::Error::new(JinjaKind::InvalidOperation, message)
            })?;
            Ok(text)
        };
        Arc::make_mut(&mut self.env).add_function("strftime_now", at);
    }

    /// The text for these values.
    ///
    /// # Errors
    /// What the template says about them, with the line.
    pub(crate) fn render(&self, values: &impl Serialize) -> Result<String> {
        let context = minijinja::Value::from(minijinja::value::Serde(values));
        let env = Arc::clone(&self.env);
        let work = move || env.get_template(NAME)?.render(context);
        let done = fence::bounded(LIMITS, work).map_err(|f| self.faulty(fallen(f)))?;
        done.map_err(|e| match e.kind() {
            JinjaKind::UndefinedError => self.undefined(&e, values),
            JinjaKind::UnknownFilter | JinjaKind::UnknownFunction | JinjaKind::UnknownTest => {
                self.faulty(failed(&e))
            }
            _ => failed(&e),
        })
    }

    /// Remembers an error that no other values would mend.
    fn faulty(&self, error: Error) -> Error {
        if let Some(d) = error.findings().first() {
            self.fault.get_or_init(|| d.clone());
        }
        error
    }

    /// What a rendering found wrong with the template itself: no other values would mend it.
    pub(crate) fn fault(&self) -> Option<&Diagnostic> {
        self.fault.get()
    }

    /// Names what the template wants and the values lack; the engine itself does not.
    fn undefined(&self, e: &minijinja::Error, values: &impl Serialize) -> Error {
        let Ok(Value::Object(values)) = serde_json::to_value(values) else {
            return failed(e);
        };
        // It parses the source once more.
        let env = Arc::clone(&self.env);
        let wanted = fence::bounded(LIMITS, move || {
            let template = env.get_template(NAME);
            template.map(|t| t.undeclared_variables(false))
        });
        let mut missing: Vec<String> = wanted.into_iter().flatten().flatten().collect();
        missing
            .retain(|name| !values.contains_key(name) && self.env.globals().all(|g| g.0 != name));
        missing.sort();
        let Some(name) = missing.first() else {
            return failed(e);
        };
        let at = e.line().map_or_else(String::new, |n| format!(", line {n}"));
        let d = Diagnostic::error("template", format!("there is no `{name}`"));
        let help = match nearest(name, values.keys().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => {
                format!("where it may be missing, give a default: {{{{ {name} | default(\"\") }}}}")
            }
        };
        let d = d.at(format!("the template{at}")).help(help);
        Error::new(ErrorKind::Train, d)
    }
}

/// The date of this day, where this machine is: `2025-01-31`.
pub(crate) fn today() -> String {
    chrono::Local::now().date_naive().to_string()
}

/// The error of a template that was stopped.
fn fallen(why: Fallen) -> Error {
    stopped(format!("the template was stopped: {why}"))
}

fn stopped(message: String) -> Error {
    let d = Diagnostic::error("template-limit", message).at("the template");
    let help = "a template writes out one row or one conversation, and needs no more than that";
    Error::new(ErrorKind::Train, d.help(help))
}

fn failed(e: &minijinja::Error) -> Error {
    if e.kind() == JinjaKind::OutOfFuel {
        let at = e
            .line()
            .map_or_else(String::new, |n| format!(" in line {n}"));
        return stopped(format!(
            "the template was stopped{at}: it took more than {FUEL} steps, or made as many times 64 bytes"
        ));
    }
    let what = e
        .detail()
        .map_or_else(|| e.kind().to_string(), |d| format!("{}: {d}", e.kind()));
    let message = match (e.kind(), e.detail()) {
        // What `raise_exception` was given is said in the words of the template.
        (JinjaKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        _ => what,
    };
    let d = Diagnostic::error("template", message.clone()).at(match e.line() {
        Some(line) => format!("the template, line {line}"),
        None => "the template".to_owned(),
    });
    let d = match e.kind() {
        JinjaKind::UndefinedError => {
            d.help("give it a value, or a default: {{ name | default(\"\") }}")
        }
        JinjaKind::UnknownFunction if message.contains("strftime_now") => {
            d.help("only chat templates have it; write the date")
        }
        _ => d,
    };
    Error::new(ErrorKind::Train, d)
}

/// Prints a value as Python's `str` does.
fn format(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &minijinja::Value,
) -> std::result::Result<(), minijinja::Error> {
    match value.kind() {
        ValueKind::Bool | ValueKind::None | ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            weigh(state, value, 0)?;
            let Ok(json) = serde_json::to_value(value) else {
                return minijinja::escape_formatter(out, state, value);
            };
            let mut text = String::new();
            repr(&json, &mut text);
            out.write_str(&text)
                .map_err(|_| minijinja::Error::new(JinjaKind::WriteFailure, "cannot write"))
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// Pays for what is to be written of a value, and refuses one that is nested too deeply. A list that holds a list twice is written twice,
/// so what is small in memory need not be small as text.
fn weigh(
    state: &State<'_, '_>,
    value: &minijinja::Value,
    depth: usize,
) -> std::result::Result<(), minijinja::Error> {
    if depth > DEPTH {
        let message = format!("a value is nested more than {DEPTH} levels deep");
        return Err(minijinja::Error::new(JinjaKind::InvalidOperation, message));
    }
    state.consume_fuel(1 + value.as_str().map_or(0, |s| s.len() as u64 / 64))?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                weigh(state, &item, depth + 1)?;
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()? {
                weigh(state, &value.get_item(&key)?, depth + 1)?;
                weigh(state, &key, depth + 1)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Refuses a form of `str.format` that asks for a width or precision that no text has.
fn check_widths(form: &str) -> std::result::Result<(), minijinja::Error> {
    let numbers = form.split(|c: char| !c.is_ascii_digit());
    let wide = |n: &&str| n.parse::<u64>().map_or(!n.is_empty(), |n| n > WIDTH);
    let Some(found) = form
        .contains('{')
        .then_some(numbers)
        .and_then(|mut n| n.find(wide))
    else {
        return Ok(());
    };
    let message = format!("format: a width of {found}; {WIDTH} is the largest");
    Err(minijinja::Error::new(JinjaKind::InvalidOperation, message))
}

/// Python's `repr` of a JSON value.
fn repr(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Number(n) => number(n, out),
        Value::String(s) => {
            let quote = if s.contains('\'') && !s.contains('"') {
                '"'
            } else {
                '\''
            };
            out.push(quote);
            for c in s.chars() {
                match c {
                    '\\' => out.push_str("\\\\"),
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    '\t' => out.push_str("\\t"),
                    c if c == quote => out.extend(['\\', c]),
                    c => out.push(c),
                }
            }
            out.push(quote);
        }
        Value::Array(list) => {
            out.push('[');
            for (i, v) in list.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(v, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (i, (k, v)) in map.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&Value::String(k.clone()), out);
                out.push_str(": ");
                repr(v, out);
            }
            out.push('}');
        }
    }
}

/// A number as Python prints it.
fn number(n: &serde_json::Number, out: &mut String) {
    let text = match n.as_f64() {
        Some(x) if n.is_f64() && x != 0.0 && !(1e-4..1e16).contains(&x.abs()) => {
            let text = format!("{x:e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, exponent) = exponent
                .strip_prefix('-')
                .map_or(('+', exponent), |e| ('-', e));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        _ => n.to_string(),
    };
    out.push_str(&text);
}

/// A method of Python's that the engine has not.
fn method(
    state: &mut State<'_, '_>,
    value: &minijinja::Value,
    name: &str,
    args: &[minijinja::Value],
) -> std::result::Result<minijinja::Value, minijinja::Error> {
    let usual = |state: &mut State<'_, '_>| {
        minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
    };
    let Some(text) = value.as_str() else {
        return usual(state);
    };
    if name == "rsplit" {
        let (separator, times, named): (Option<&str>, Option<i64>, Kwargs) =
            minijinja::value::from_args(args)?;
        let separator = match separator {
            None => named.get::<Option<&str>>("sep")?,
            given => given,
        };
        let times = times.map_or_else(|| named.get::<Option<i64>>("maxsplit"), |n| Ok(Some(n)))?;
        named.assert_all_used()?;
        if separator == Some("") {
            let message = "rsplit: the separator is empty";
            return Err(minijinja::Error::new(JinjaKind::InvalidOperation, message));
        }
        let times = times.and_then(|n| usize::try_from(n).ok());
        let parts = split_back(text, separator, times);
        return Ok(parts.into_iter().map(minijinja::Value::from).collect());
    }
    if name == "format" {
        check_widths(text)?;
    }
    match usual(state) {
        Err(e) if e.kind() == JinjaKind::UnknownMethod => {
            let message = format!("a text has no method `{name}` here");
            Err(minijinja::Error::new(JinjaKind::UnknownFunction, message))
        }
        done => done,
    }
}

/// Python's `str.rsplit`: at most `times` cuts, from the back; at white space where there is no separator.
fn split_back<'a>(text: &'a str, separator: Option<&str>, times: Option<usize>) -> Vec<&'a str> {
    let mut rest = if separator.is_none() {
        text.trim_end()
    } else {
        text
    };
    let mut out = Vec::new();
    while times.is_none_or(|n| out.len() < n) {
        let cut = match separator {
            Some(s) => rest.rsplit_once(s),
            None => rest.rsplit_once(char::is_whitespace),
        };
        let Some((front, back)) = cut else { break };
        out.push(back);
        rest = if separator.is_none() {
            front.trim_end()
        } else {
            front
        };
    }
    if separator.is_some() || !rest.is_empty() {
        out.push(rest);
    }
    out.reverse();
    out
}

/// The filter `wordcount` of Jinja2: the runs of letters, digits and `_`.
#[expect(clippy::needless_pass_by_value, reason = "the form of a filter")]
fn word_count(text: String) -> usize {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|w| !w.is_empty()).count()
}

/// The filter `urlencode` of Jinja2: a text for a path, pairs for a query.
#[expect(clippy::needless_pass_by_value, reason = "the form of a filter")]
fn url_encode(
    state: &State<'_, '_>,
    value: minijinja::Value,
) -> std::result::Result<String, minijinja::Error> {
    weigh(state, &value, 0)?;
    let pair = |k: &minijinja::Value, v: &minijinja::Value| {
        format!("{}={}", quoted_url(k, true), quoted_url(v, true))
    };
    let mut out = Vec::new();
    match value.kind() {
        ValueKind::Map => {
            for key in value.try_iter()? {
                out.push(pair(&key, &value.get_item(&key)?));
            }
        }
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                out.push(pair(
                    &item.get_item_by_index(0)?,
                    &item.get_item_by_index(1)?,
                ));
            }
        }
        _ => return Ok(quoted_url(&value, false)),
    }
    Ok(out.join("&"))
}

/// Python's `urllib.parse.quote`; in a query, `/` is quoted too, and a space is `+`.
fn quoted_url(value: &minijinja::Value, query: bool) -> String {
    let mut out = String::new();
    for byte in text_of(value).bytes() {
        match byte {
            b'/' if !query => out.push('/'),
            b' ' if query => out.push('+'),
            b'_' | b'.' | b'-' | b'~' => out.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// A value as Python's `str` writes it.
fn text_of(value: &minijinja::Value) -> String {
    match (value.as_str(), serde_json::to_value(value)) {
        (None, Ok(json)) => {
            let mut text = String::new();
            repr(&json, &mut text);
            text
        }
        _ => value.to_string(),
    }
}

/// The filter `tojson`, with the arguments that Hugging Face's has.
#[expect(clippy::needless_pass_by_value, reason = "the form of a filter")]
fn to_json(
    state: &State<'_, '_>,
    value: minijinja::Value,
    options: Kwargs,
) -> std::result::Result<String, minijinja::Error> {
    let invalid =
        |e: serde_json::Error| minijinja::Error::new(JinjaKind::BadSerialization, e.to_string());
    weigh(state, &value, 0)?;
    let json = serde_json::to_value(&value).map_err(invalid)?;
    let indent: Option<minijinja::Value> = options.get("indent")?;
    let indent = match indent.filter(|v| !v.is_none() && !v.is_undefined()) {
        Some(v) => match v.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(v)?.min(64))),
        },
        None => None,
    };
    let separators: Option<minijinja::Value> = options.get("separators")?;
    let given: Option<Vec<String>> = match separators.filter(|v| !v.is_none() && !v.is_undefined())
    {
        Some(v) => Some(v.try_iter()?.map(|s| s.to_string()).collect()),
        None => None,
    };
    let style = Style {
        item: given
            .as_ref()
            .and_then(|g| g.first().cloned())
            .unwrap_or_else(|| if indent.is_some() { "," } else { ", " }.to_owned()),
        key: given
            .as_ref()
            .and_then(|g| g.get(1).cloned())
            .unwrap_or_else(|| ": ".to_owned()),
        indent,
        ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    dump(&json, &style, 0, &mut out);
    Ok(out)
}

/// How `json.dumps` was asked to write.
struct Style {
    item: String,
    key: String,
    indent: Option<String>,
    ascii: bool,
    sort: bool,
}

impl Style {
    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn between(&self, index: usize, depth: usize, out: &mut String) {
        if index > 0 {
            out.push_str(&self.item);
        }
        self.line(depth, out);
    }
}

fn dump(value: &Value, style: &Style, depth: usize, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => number(n, out),
        Value::String(s) => quoted(s, style.ascii, out),
        Value::Array(list) if list.is_empty() => out.push_str("[]"),
        Value::Array(list) => {
            out.push('[');
            for (i, v) in list.iter().enumerate() {
                style.between(i, depth + 1, out);
                dump(v, style, depth + 1, out);
            }
            style.line(depth, out);
            out.push(']');
        }
        Value::Object(map) if map.is_empty() => out.push_str("{}"),
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            if style.sort {
                entries.sort_by_key(|(k, _)| k.as_str());
            }
            out.push('{');
            for (i, (k, v)) in entries.into_iter().enumerate() {
                style.between(i, depth + 1, out);
                quoted(k, style.ascii, out);
                out.push_str(&style.key);
                dump(v, style, depth + 1, out);
            }
            style.line(depth, out);
            out.push('}');
        }
    }
}

fn quoted(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ascii && !c.is_ascii()) || (ascii && c == '\u{7f}') => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, values: &Value) -> Result<String> {
        Template::new(source)?.render(values)
    }

    const JINJA: &[(&str, &str)] = &[
        ("{{ s | wordcount }}", "4"),
        ("{{ s | urlencode }}", "%20a/b%20c%20%20d_%C3%A9%20"),
        ("{{ m | urlencode }}", "a+b=c%2Fd&n=1&t=True"),
        ("{{ l | urlencode }}", "x=None"),
        ("{{ 7 | urlencode }}", "7"),
        ("{{ s.rsplit() }}", "['a/b', 'c', 'd_é']"),
        ("{{ s.rsplit(None, 1) }}", "[' a/b c', 'd_é']"),
        ("{{ s.rsplit(' ') }}", "['', 'a/b', 'c', '', 'd_é', '']"),
        ("{{ s.rsplit(' ', 2) }}", "[' a/b c ', 'd_é', '']"),
        ("{{ s.rsplit('/', maxsplit=1)[-1] }}", "b c  d_é "),
        ("{{ s.rsplit(' ', -1) | length }}", "6"),
        ("{{ ''.rsplit() }}", "[]"),
        ("{{ ''.rsplit(',') }}", "['']"),
        ("{{ s.rsplit(maxsplit=1) }}", "[' a/b c', 'd_é']"),
        ("{{ s.rsplit(sep='/') }}", "[' a', 'b c  d_é ']"),
        ("{{ s.rsplit(None, 0) }}", "[' a/b c  d_é']"),
    ];

    #[test]
    fn values_print_as_python_prints_them() {
        let values =
            json!({"x": [true, null, "it's", 1.0, 1e20, {"a": 1e-5}], "t": true, "n": null});
        assert_eq!(
            render("{{ x }}", &values).unwrap(),
            "[True, None, \"it's\", 1.0, 1e+20, {'a': 1e-05}]"
        );
        assert_eq!(render("{{ t }} {{ n }}", &values).unwrap(), "True None");
    }

    #[test]
    fn json_is_that_of_json_dumps() {
        let values = json!({"x": {"b": [1, "é<\u{1}"], "a": {}}});
        assert_eq!(
            render("{{ x | tojson }}", &values).unwrap(),
            "{\"b\": [1, \"é<\\u0001\"], \"a\": {}}"
        );
        assert_eq!(
            render(
                "{{ x | tojson(indent=2, sort_keys=true, ensure_ascii=true) }}",
                &values
            )
            .unwrap(),
            "{\n  \"a\": {},\n  \"b\": [\n    1,\n    \"\\u00e9<\\u0001\"\n  ]\n}"
        );
    }

    #[test]
    fn a_missing_column_is_an_error_and_a_condition_on_it_is_not() {
        let values = json!({"question": 1});
        let e = render("x\n{{ questoin }}", &values)
            .unwrap_err()
            .to_string();
        assert!(
            e.contains("line 2") && e.contains("did you mean `question`"),
            "{e}"
        );
        let e = render("x\n{{ b }}", &values).unwrap_err().to_string();
        assert!(e.contains("line 2") && e.contains("default"), "{e}");
        assert_eq!(
            render("{% if b %}b{% else %}a{% endif %}", &values).unwrap(),
            "a"
        );
    }

    #[test]
    fn an_exception_of_the_template_is_its_own_words() {
        let e = render("{{ raise_exception('roles must alternate') }}", &json!({}))
            .unwrap_err()
            .to_string();
        assert!(e.contains("roles must alternate"), "{e}");
        assert!(
            render("{% for x in %}", &json!({}))
                .unwrap_err()
                .to_string()
                .contains("line 1")
        );
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(render(endless, &json!({})).is_err());
    }

    /// What Jinja2 3.1 makes of them.
    #[test]
    fn filters_and_methods_are_those_of_jinja() {
        let values = json!({"s": " a/b c  d_é ", "m": {"a b": "c/d", "n": 1, "t": true}, "l": [["x", null]]});
        for (source, want) in JINJA {
            assert_eq!(render(source, &values).unwrap(), *want, "{source}");
        }
    }

    #[test]
    fn what_no_values_mend_is_the_templates_fault() {
        let fault = |source: &str, values: serde_json::Value| {
            let template = Template::new(source).unwrap();
            assert!(template.render(&values).is_err(), "{source}");
            template.fault().map(|d| d.message.clone())
        };
        assert!(
            fault("{{ x | slugify }}", json!({"x": 1}))
                .unwrap()
                .contains("slugify")
        );
        assert!(
            fault("{{ x.swapcase() }}", json!({"x": "a"}))
                .unwrap()
                .contains("swapcase")
        );
        assert!(fault("{{ today() }}", json!({"x": 1})).is_some());
        assert_eq!(fault("{{ x.strip() }}", json!({"x": 1})), None);
        assert_eq!(fault("{{ raise_exception('no') }}", json!({})), None);
        assert_eq!(fault("{{ y }}", json!({"x": 1})), None);
    }

    #[test]
    fn blocks_are_trimmed_and_methods_are_pythons() {
        let source = "{% for x in xs %}\n  {% if x.startswith('a') %}\n{{ x.strip().upper() }}\n  {% endif %}\n{% endfor %}";
        assert_eq!(
            render(source, &json!({"xs": ["a b ", "c", "ad"]})).unwrap(),
            "A B\nAD\n"
        );
    }
}
