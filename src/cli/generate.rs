//! `rewrite generate`.

use super::args::{GenerateArgs, name_beside};
use super::progress::Spinner;
use super::{Ui, stdout, visible};
use crate::error::Result;
use crate::generate::Generated;
use crate::job::{Event, Generation, Request};
use serde_json::json;

pub(super) fn run(args: &GenerateArgs, ui: &Ui) -> Result<()> {
    let stream = args.stream && !ui.json;
    let mut generation = Generation::new(request(args, stream));
    for prompt in &args.prompt {
        generation = generation.prompt(prompt);
    }
    let mut spinner = Spinner::new(ui, !stream);
    let mut last = None;
    let report = generation.run(&mut |event| match event {
        Event::Text { index, piece } if stream => {
            let border = if last.is_some_and(|l| l != *index) {
                "\n"
            } else {
                ""
            };
            last = Some(*index);
            stdout(visible(&format!("{border}{piece}")).as_bytes())
        }
        other => {
            spinner.event(other);
            Ok(())
        }
    })?;
    if stream {
        return stdout(b"\n");
    }
    ui.result(&json!(report), || {
        let line = |text| line(text, report.readable);
        report.results.iter().map(line).collect()
    })
}

fn request(args: &GenerateArgs, stream: bool) -> Request {
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
    if let Some(file) = &args.prompts {
        request = request.set("prompts", file.display().to_string());
    }
    request.set("chat", args.chat).set("one_by_one", stream)
}

/// A text as it is printed: its ids where there is no tokenizer.
fn line(text: &Generated, readable: bool) -> String {
    let of = text.adapter.as_ref().map(|name| format!("{name}: "));
    let of = of.unwrap_or_default();
    if readable {
        return format!("{of}{}\n", text.text);
    }
    let ids: Vec<String> = text.ids.iter().map(ToString::to_string).collect();
    format!("{of}{}\n", ids.join(" "))
}
