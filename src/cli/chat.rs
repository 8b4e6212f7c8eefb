//! A conversation on a terminal, or line by line from a pipe.

use super::{Ui, interrupt, stdout, visible};
use crate::error::{Error, Result};
use crate::generate::FinishReason;
use crate::job::{Conversation, Event, Generation, Turn};
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};
use serde_json::json;
use std::io::{BufRead, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const HELP: &str = "/reset          forget the conversation\n\
                    /system [TEXT]  begin anew with this text of the system, or with none\n\
                    /help           these lines\n\
                    /exit           end (Ctrl-D too)\n\
                    Ctrl-C ends an answer. A line that begins with // is said with one / less.";

/// Holds a conversation until the input ends.
pub(super) fn run(generation: &Generation, ui: &Ui) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut input = Input::new(ui)?;
    generation.converse(&stop, &mut |event| ui.shown(event), &mut |talk| {
        interrupt::stop_by(&stop);
        greet(talk, input.is_typed(), ui);
        let mut turns = 0;
        while let Some(line) = input.read()? {
            let said = match understood(&line) {
                Said::Nothing => continue,
                Said::End => return Ok(()),
                Said::Help => {
                    ui.say(HELP);
                    continue;
                }
                Said::Unknown(word) => {
                    ui.say(&format!("there is no {word}; /help lists what there is"));
                    continue;
                }
                Said::Reset => {
                    talk.reset();
                    continue;
                }
                Said::System(text) => {
                    if !talk.has_template() && !text.is_empty() {
                        ui.say("the model has no chat template, which a text of the system needs");
                        continue;
                    }
                    talk.system(text);
                    continue;
                }
                Said::Text(text) => text,
            };
            stop.store(false, Ordering::Relaxed);
            turn(talk, said, turns, ui)?;
            turns += 1;
        }
        Ok(())
    })
}

/// Says once what kind of conversation it is.
fn greet(talk: &Conversation<'_>, typed: bool, ui: &Ui) {
    if !talk.has_template() {
        ui.note(
            "the model has no chat template: the text just goes on (--chat-template gives one)",
        );
    }
    if !talk.keeps() {
        ui.note(
            "nothing is kept from turn to turn: the whole conversation is computed for every token",
        );
    }
    if typed {
        ui.note("/help lists commands; Ctrl-C ends an answer, Ctrl-D the conversation");
    }
}

/// One turn: what is said, and the answer as it comes. What cannot be answered does not end the conversation.
fn turn(talk: &mut Conversation<'_>, text: &str, number: usize, ui: &Ui) -> Result<()> {
    let answered = talk.say(text, &mut |event| {
        if let Event::Text { piece, .. } = event {
            return if ui.json {
                ui.line(&json!({ "event": "text", "index": number, "text": piece }))
            } else {
                stdout(visible(piece).as_bytes())
            };
        }
        ui.shown(event)
    });
    match answered {
        Ok(found) if ui.json => ui.line(&json!({
            "event": "answer", "index": number, "prompt_text": text, "prompt_tokens": found.answer.prompt_tokens,
            "kept_tokens": found.kept, "ids": found.answer.ids, "text": found.answer.text,
            "finish_reason": found.answer.finish_reason,
        })),
        Ok(found) => {
            stdout(b"\n")?;
            ui.say_more(&figures(&found));
            if found.answer.text.trim().is_empty() {
                ui.note("(the model ended its answer at once)");
            }
            if found.answer.finish_reason == FinishReason::Length {
                ui.note("(the answer ends at its longest length: --max-new-tokens)");
            }
            Ok(())
        }
        Err(e) if super::broken_pipe(&e) => Err(e),
        Err(e) => {
            ui.failed(&e.to_string(), e.findings());
            Ok(())
        }
    }
}

/// A turn in figures.
fn figures(turn: &Turn) -> String {
    let (new, read) = (turn.answer.ids.len(), turn.answer.prompt_tokens);
    let rate = new as f64 / turn.seconds.max(1e-9);
    format!(
        "({new} tokens, {rate:.0} tokens/s; of the {read} before them {} were kept from the last turn)",
        turn.kept
    )
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Said<'a> {
    Nothing,
    End,
    Help,
    Reset,
    System(&'a str),
    Unknown(&'a str),
    Text(&'a str),
}

fn understood(line: &str) -> Said<'_> {
    let line = line.trim_end();
    if line.trim().is_empty() {
        return Said::Nothing;
    }
    if !line.starts_with('/') {
        return Said::Text(line);
    }
    if line.starts_with("//") {
        return Said::Text(line.strip_prefix('/').unwrap_or(line));
    }
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match word {
        "/exit" | "/quit" | "/bye" => Said::End,
        "/help" | "/?" => Said::Help,
        "/reset" | "/clear" => Said::Reset,
        "/system" => Said::System(rest.trim()),
        other => Said::Unknown(other),
    }
}

/// Where turns come from: an editor of lines, or a pipe.
enum Input {
    Editor(Box<DefaultEditor>),
    Pipe,
}

impl Input {
    fn new(ui: &Ui) -> Result<Self> {
        let seen = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        if !seen || ui.json {
            return Ok(Input::Pipe);
        }
        let config = Config::builder().auto_add_history(true).build();
        let editor = DefaultEditor::with_config(config).map_err(failed)?;
        Ok(Input::Editor(Box::new(editor)))
    }

    fn is_typed(&self) -> bool {
        matches!(self, Input::Editor(_))
    }

    /// The next line, without its end; none behind the last one.
    fn read(&mut self) -> Result<Option<String>> {
        match self {
            Input::Pipe => {
                let bad = |e| Error::io(Path::new("stdin"), "cannot read a turn as UTF-8 text", e);
                let line = std::io::stdin().lock().lines().next();
                line.transpose().map_err(bad)
            }
            Input::Editor(editor) => loop {
                match editor.readline("> ") {
                    Ok(line) => return Ok(Some(line)),
                    // Nothing is being answered: there is nothing to end but the line.
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(e) => return Err(failed(e)),
                }
            },
        }
    }
}

fn failed(e: ReadlineError) -> Error {
    let e = match e {
        ReadlineError::Io(e) => e,
        other => std::io::Error::other(other.to_string()),
    };
    Error::io(Path::new("terminal"), "cannot be read", e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_said_or_are_commands() {
        for (line, want) in [
            ("  ", Said::Nothing),
            ("hello /exit", Said::Text("hello /exit")),
            ("//etc is a folder", Said::Text("/etc is a folder")),
            ("/exit", Said::End),
            ("/system be brief ", Said::System("be brief")),
            ("/system", Said::System("")),
            ("/reset", Said::Reset),
            ("/?", Said::Help),
            ("/rest now", Said::Unknown("/rest")),
        ] {
            assert_eq!(understood(line), want, "{line}");
        }
    }
}
