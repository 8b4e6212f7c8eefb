//! `rewrite generate`.

use super::args::{GenerateArgs, name_beside};
use super::progress::Texts;
use super::{Ui, chat, stdout, visible};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::generate::Generated;
use crate::job::{Event, Generation, GenerationReport, Request};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::Path;

/// What stands for standard input.
const STDIN: &str = "-";
/// Bytes of a prompt on standard input: far more than any model reads.
const MOST: u64 = 64 << 20;

pub(super) fn run(args: &GenerateArgs, ui: &Ui) -> Result<()> {
    let unasked = args.prompt.is_empty() && args.prompts.is_none();
    let seen = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if args.interactive || (unasked && seen && !ui.json) {
        return chat::run(&Generation::new(request(args)), ui);
    }
    let mut generation = Generation::new(request(args));
    for prompt in &args.prompt {
        generation = match prompt.as_str() {
            STDIN => generation.prompt(piped()?),
            text => generation.prompt(text),
        };
    }
    match &args.prompts {
        Some(path) if path == Path::new(STDIN) => {
            generation = generation.lines(std::io::stdin().lock(), "standard input")?;
        }
        None if unasked && !std::io::stdin().is_terminal() => {
            let text = piped()?;
            if !text.trim().is_empty() {
                generation = generation.prompt(text);
            }
        }
        _ => {}
    }
    let one = args.prompt.len() <= 1 && args.prompts.is_none();
    let stream = args.stream || (one && std::io::stdout().is_terminal());
    let generation = generation.set("one_by_one", stream && !ui.json);
    let mut out = Out::new(ui, stream && !ui.json);
    let report = generation.run(&mut |event| out.event(event))?;
    out.end(&report)
}

/// All of standard input, without the end of its last line.
fn piped() -> Result<String> {
    let bad = |e| Error::io(Path::new("stdin"), "cannot read a prompt as UTF-8 text", e);
    let mut text = String::new();
    let mut input = std::io::stdin().lock().take(MOST + 1);
    input.read_to_string(&mut text).map_err(bad)?;
    if text.len() as u64 > MOST {
        let message = format!(
            "the prompt on standard input is longer than {} MiB",
            MOST >> 20
        );
        let d = Diagnostic::error("prompt-length", message);
        let help = "`--prompts -` reads one prompt a line";
        return Err(Error::new(ErrorKind::Run, d.help(help)));
    }
    let line = text.strip_suffix('\n');
    let line = line.map(|t| t.strip_suffix('\r').unwrap_or(t));
    let kept = line.map_or(text.len(), str::len);
    text.truncate(kept);
    Ok(text)
}

fn request(args: &GenerateArgs) -> Request {
    let mut request = Request::new(&args.model);
    request.flags.extend(args.generation.given.clone());
    args.select.name(&mut request.flags);
    if let Some(template) = &args.chat_template {
        request = request.set("chat_template", template.clone());
    }
    if let Some(kwargs) = &args.chat_template_kwargs {
        request = request.set("chat_template_kwargs", kwargs.clone());
    }
    if let Some(name) = &args.adapter_name {
        request = request.set("adapter_name", name.clone());
    }
    args.exec.name(&mut request.flags);
    name_beside(
        &mut request.flags,
        &args.stop_strings,
        args.tokenizer.as_deref(),
        args.portable,
    );
    if let Some(file) = args.prompts.as_ref().filter(|f| *f != Path::new(STDIN)) {
        request = request.set("prompts", file.display().to_string());
    }
    request.set("chat", args.chat)
}

/// Prints what is generated: one text as it is, several under their numbers and prompts, in order; or events.
struct Out<'a> {
    ui: &'a Ui,
    stream: bool,
    bar: Texts<'a>,
    prompts: Vec<String>,
    copies: usize,
    total: usize,
    readable: bool,
    /// The next text to be printed, and those behind it that are done.
    next: usize,
    waiting: BTreeMap<usize, Generated>,
    /// The text that is being printed as it comes.
    open: Option<usize>,
}

impl<'a> Out<'a> {
    fn new(ui: &'a Ui, stream: bool) -> Self {
        Out {
            ui,
            stream,
            bar: Texts::new(ui, !stream),
            prompts: Vec::new(),
            copies: 1,
            total: 0,
            readable: true,
            next: 0,
            waiting: BTreeMap::new(),
            open: None,
        }
    }

    fn event(&mut self, event: &Event) -> Result<()> {
        self.bar.event(event);
        match event {
            Event::Asked {
                prompts,
                copies,
                texts,
                readable,
            } => {
                self.prompts.clone_from(prompts);
                (self.copies, self.total, self.readable) = (*copies, *texts, *readable);
                self.line(|| json!({ "event": "begin", "texts": texts, "prompts": prompts.len() }))
            }
            Event::Text { index, piece } => {
                self.line(|| json!({ "event": "text", "index": index, "text": piece }))?;
                if self.stream {
                    let head = self.begun(*index);
                    stdout(visible(&(head + piece)).as_bytes())?;
                }
                Ok(())
            }
            Event::Answer { index, text } => {
                self.line(|| answer(*index, self.prompt(*index), text))?;
                if self.ui.json {
                    return Ok(());
                }
                self.waiting.insert(*index, text.clone());
                self.ready()
            }
            _ => Ok(()),
        }
    }

    /// Prints the texts that are done, in order.
    fn ready(&mut self) -> Result<()> {
        while let Some(text) = self.waiting.remove(&self.next) {
            let number = self.next;
            // What came as it was made is there already.
            let mut shown = if self.open == Some(number) {
                "\n".to_owned()
            } else {
                self.begun(number) + &self.whole(&text)
            };
            self.next += 1;
            if self.next < self.total {
                shown.push('\n');
            }
            let shown = visible(&shown).into_owned();
            self.bar.suspend(|| stdout(shown.as_bytes()))?;
        }
        Ok(())
    }

    /// The number of a text and its prompt, where there are several and it was not begun before.
    fn begun(&mut self, index: usize) -> String {
        if self.open.replace(index) == Some(index) || self.total <= 1 {
            return String::new();
        }
        let prompt = brief(self.prompt(index));
        format!("[{}/{}] {prompt}\n", index + 1, self.total)
    }

    fn prompt(&self, index: usize) -> &str {
        let prompt = index / self.copies.max(1) % self.prompts.len().max(1);
        self.prompts.get(prompt).map_or("", String::as_str)
    }

    /// A text as it is printed: its ids where there is no tokenizer.
    fn whole(&self, text: &Generated) -> String {
        let of = text.adapter.as_ref().map(|name| format!("{name}: "));
        let of = of.unwrap_or_default();
        if self.readable {
            return format!("{of}{}\n", text.text);
        }
        let ids: Vec<String> = text.ids.iter().map(ToString::to_string).collect();
        format!("{of}{}\n", ids.join(" "))
    }

    /// A line of JSON, where that is what is printed.
    fn line(&self, value: impl FnOnce() -> Value) -> Result<()> {
        if self.ui.json {
            self.ui.line(&value())
        } else {
            Ok(())
        }
    }

    fn end(&self, report: &GenerationReport) -> Result<()> {
        self.line(|| {
            json!({
                "event": "end", "texts": report.results.len(), "new_tokens": report.new_tokens,
                "tokens_per_second": report.tokens_per_second, "cache": report.cache,
            })
        })
    }
}

/// A text that is done, as an event.
fn answer(index: usize, prompt: &str, text: &Generated) -> Value {
    let mut event = json!({ "event": "answer", "index": index, "prompt_text": prompt });
    if let (Value::Object(event), Value::Object(fields)) = (&mut event, json!(text)) {
        event.extend(fields);
    }
    event
}

/// The first line of a prompt, as far as it fits on a line.
fn brief(prompt: &str) -> String {
    const WIDTH: usize = 72;
    let first = prompt.trim().lines().next().unwrap_or_default();
    let cut: String = first.chars().take(WIDTH).collect();
    if cut.len() < prompt.trim().len() {
        cut + "…"
    } else {
        cut
    }
}
