//! The help: arguments in sections, `-h` with the usual ones in a line each and `--help` with all of them, and the commands by what they
//! are for.

use super::args::Cli;
use crate::diag::Diagnostic;
use crate::generate::GenerationArguments;
use crate::job::{JobArguments, ModelSettings};
use crate::options::{Kind, OptionField, fields};
use crate::train::{CollateArguments, DataArguments, EvalArguments, TrainingArguments};
use clap::{Arg, Command, CommandFactory, FromArgMatches};
use std::collections::BTreeMap;

/// The commands by what they are for.
const COMMANDS: [(&str, &[&str]); 6] = [
    ("Adapt", &["merge", "strip", "export-adapter", "tenants"]),
    ("Train and use", &["train", "eval", "generate", "run"]),
    (
        "Look",
        &[
            "check", "inspect", "graph", "diff", "print", "verify", "report",
        ],
    ),
    ("Adapters and interfaces", &["adapter", "interface"]),
    ("Share", &["hub"]),
    ("Shell", &["completions", "man"]),
];

/// Sections of the options that every command declares by itself, by the argument's id.
const OWN: [(&str, &[&str]); 3] = [
    (
        MODEL,
        &[
            "variant",
            "interface",
            "adapters",
            "active",
            "fusions",
            "skip_layers",
            "skip_layers_input",
            "output_adapter_gating_scores",
            "output_adapter_fusion_attentions",
            "route",
            "allow_other_base",
        ],
    ),
    (
        "Execution",
        &[
            "device", "dtype", "threads", "backend", "portable", "native",
        ],
    ),
    (
        GENERAL,
        &[
            "json",
            "quiet",
            "verbose",
            "memory_limit",
            "help",
            "version",
        ],
    ),
];

const MODEL: &str = "Model and adapters";
const GENERAL: &str = "General";

/// Sections of options of a job beyond that of their struct, by what their names begin with.
const PARTS: [(&str, &[&str]); 4] = [
    (
        "Texts and tokens",
        &[
            "template",
            "prompt_template",
            "completion_template",
            "chat_",
            "assistant_only",
            "append_eos",
            "add_special",
            "max_seq_length",
            "max_target_length",
            "truncation",
            "response_template",
            "instruction_template",
            "pad_token",
            "label_",
            "doc_stride",
            "mlm_",
        ],
    ),
    (
        "Optimizer and schedule",
        &[
            "optim",
            "weight_decay",
            "adam_",
            "lr_scheduler",
            "warmup",
            "max_grad_norm",
        ],
    ),
    (
        "Logging and evaluation",
        &[
            "logging_",
            "eval_",
            "per_device_eval",
            "metric_",
            "greater_",
            "early_",
            "report_to",
        ],
    ),
    ("Checkpoints", &["save_", "load_best", "resume"]),
];

/// Options that `-h` shows of a command that has many.
const USUAL: &[&str] = &[
    "interface",
    "adapter",
    "output",
    "force",
    "dry-run",
    "format",
    "threads",
    "dtype",
    "json",
    "quiet",
    "verbose",
    "data",
    "eval-data",
    "task",
    "prompt-template",
    "completion-template",
    "max-seq-length",
    "packing",
    "output-dir",
    "max-steps",
    "num-train-epochs",
    "learning-rate",
    "per-device-train-batch-size",
    "gradient-accumulation-steps",
    "eval-strategy",
    "bf16",
    "resume-from-checkpoint",
    "report-to",
    "prompt",
    "prompts",
    "chat",
    "interactive",
    "stream",
    "max-new-tokens",
    "temperature",
    "do-sample",
    "metrics",
];

/// A command with more options than this shows the usual ones only, where a short help is asked for.
const MANY: usize = 16;

/// The command line with its help.
pub(super) fn command() -> Command {
    let sections = sections();
    let text = commands();
    let root = shaped(Cli::command(), &sections);
    let names: Vec<String> = root
        .get_subcommands()
        .map(|c| c.get_name().to_owned())
        .collect();
    // Listed in groups below, and so not once more by clap.
    let hidden = names.into_iter().fold(root, |root, name| {
        root.mut_subcommand(name, |c| c.hide(true))
    });
    hidden
        .override_usage("rewrite [OPTIONS] <MODEL>\n       rewrite <COMMAND> [OPTIONS] …")
        .help_template(format!(
            "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{text}{{all-args}}{{after-help}}"
        ))
}

/// The list of commands.
fn commands() -> String {
    let root = Cli::command();
    let mut text = String::new();
    for (title, names) in COMMANDS {
        let found = names.iter().filter_map(|n| root.find_subcommand(n));
        text += &format!("{title}:\n");
        for c in found {
            let about = c.get_about().map(ToString::to_string).unwrap_or_default();
            text += &format!("  {:<16}{}\n", c.get_name(), brief(&about));
        }
        text.push('\n');
    }
    text
}

/// The sections of the options of jobs, by name.
fn sections() -> BTreeMap<String, (&'static str, OptionField)> {
    let mut out = BTreeMap::new();
    let mut add = |title: &'static str, all: Vec<OptionField>| {
        for field in all {
            let part = PARTS.iter().find(|(_, starts)| {
                starts
                    .iter()
                    .any(|s| field.name == s.trim_end_matches('_') || field.name.starts_with(s))
            });
            let title = part.map_or(title, |(part, _)| *part);
            out.entry(field.name.clone()).or_insert((title, field));
        }
    };
    add("Job", fields::<JobArguments>());
    add(MODEL, fields::<ModelSettings>());
    add("Data", fields::<DataArguments>());
    add("Batches", fields::<CollateArguments>());
    add("Training", fields::<TrainingArguments>());
    add("Generation", fields::<GenerationArguments>());
    add("Measures", fields::<EvalArguments>());
    out
}

fn shaped(command: Command, sections: &BTreeMap<String, (&'static str, OptionField)>) -> Command {
    let shown = command.get_arguments().filter(|a| !a.is_hide_set()).count();
    let many = shown > MANY;
    let mut command = command.mut_args(|arg| {
        let arg = placed(arg, sections);
        let usual = arg.is_positional()
            || arg.is_required_set()
            || arg.get_long().is_some_and(|l| USUAL.contains(&l));
        let long = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let arg = arg.hide_short_help(many && !usual);
        if arg.get_long_help().is_some() || long.is_empty() {
            return arg;
        }
        arg.help(brief(&long)).long_help(long)
    });
    if many {
        let mut path = command.get_name().to_owned();
        if path != "rewrite" {
            path = format!("rewrite {path}");
        }
        let after = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let short =
            format!("{after}\n\nThese are the usual options. `{path} --help` has all of them.");
        command = command
            .after_help(short.trim_start().to_owned())
            .after_long_help(after);
    }
    let names: Vec<String> = command
        .get_subcommands()
        .map(|c| c.get_name().to_owned())
        .collect();
    names.into_iter().fold(command, |command, name| {
        command.mut_subcommand(name, |c| shaped(c, sections))
    })
}

/// An argument in its section, with the values that it may have.
fn placed(arg: Arg, sections: &BTreeMap<String, (&'static str, OptionField)>) -> Arg {
    let id = arg.get_id().to_string();
    let found = id
        .strip_prefix("option.")
        .and_then(|name| sections.get(name));
    if let Some((title, field)) = found {
        let arg = arg
            .help_heading(*title)
            .hide_possible_values(field.kind == Kind::Bool || words(&field.kind).is_some());
        return match words(&field.kind) {
            Some(words) => {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                arg.help(format!("{help} [values: {words}]"))
            }
            None => arg,
        };
    }
    let own = OWN.iter().find(|(_, ids)| ids.contains(&&*id));
    match own {
        Some((title, _)) if !arg.is_positional() => arg.help_heading(*title),
        _ => arg,
    }
}

/// The words of a list of words; a single word's are listed by clap.
fn words(kind: &Kind) -> Option<String> {
    match kind {
        Kind::List(of) => match &**of {
            Kind::Choice(words) => Some(words.join(", ")),
            _ => None,
        },
        Kind::OneOf(kinds) => kinds.iter().find_map(words),
        _ => None,
    }
}

/// The beginning of a help text that says what an argument is; default and values stay.
fn brief(text: &str) -> String {
    const LENGTH: usize = 88;
    if text.chars().count() <= LENGTH {
        return text.to_owned();
    }
    let (body, tail) = match text.find(" [default: ").or_else(|| text.find(" [values: ")) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    // Of many values the first ones.
    let tail = match tail.char_indices().nth(LENGTH / 2) {
        Some((at, _)) => format!("{}, …]", tail[..at].rsplit_once(',').map_or("", |t| t.0)),
        None => tail.to_owned(),
    };
    let ends = [". ", "; ", ", where ", ", as ", ": ", " ("];
    let cut = ends
        .iter()
        .filter_map(|e| body.find(e))
        .filter(|at| *at > 24)
        .min();
    let default = body.find(" (default: ").map(|at| body.split_at(at).1);
    let default = default.and_then(|d| Some(&d[..=d.find(')')?]));
    let default = default
        .filter(|d| d.chars().count() < 50)
        .unwrap_or_default();
    let body = cut.map_or(body, |at| &body[..at]);
    format!("{}{default}{tail}", body.trim_end_matches('.'))
}

/// What a command line says.
pub(super) fn parsed<A: Into<std::ffi::OsString> + Clone>(
    arguments: impl IntoIterator<Item = A>,
) -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&command().try_get_matches_from(arguments)?)
}

/// What is wrong with arguments, in the look of all other errors.
pub(super) fn refusal(e: &clap::Error, given: &[std::ffi::OsString]) -> Diagnostic {
    let text = e.render().to_string();
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    let mut out = Diagnostic::error("arguments", first.trim_start_matches("error: ").trim());
    let mut tips = Vec::new();
    for line in lines.map(str::trim).filter(|l| !l.is_empty()) {
        match line
            .strip_prefix("tip: ")
            .or_else(|| line.strip_prefix("help: "))
        {
            // That it might be a value after all helps nobody.
            Some(tip) if tip.starts_with("to pass ") => {}
            Some(tip) => tips.push(tip.to_owned()),
            None if line.starts_with("Usage:") || line.starts_with("For more information") => break,
            None => out.notes.push(line.to_owned()),
        }
    }
    if tips.is_empty() {
        tips.push(format!("`{} --help` shows the arguments", path(given)));
    }
    out.help = Some(tips.join("; "));
    out
}

/// The command that is called, with the one inside it.
fn path(given: &[std::ffi::OsString]) -> String {
    let mut at = Cli::command();
    let mut path = vec!["rewrite".to_owned()];
    for word in given.iter().skip(1).filter_map(|w| w.to_str()) {
        let Some(inner) = at.find_subcommand(word).cloned() else {
            break;
        };
        path.push(word.to_owned());
        at = inner;
    }
    path.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_stands_in_one_group() {
        let listed: Vec<&str> = COMMANDS
            .iter()
            .flat_map(|(_, n)| n.iter().copied())
            .collect();
        for c in Cli::command().get_subcommands() {
            let times = listed.iter().filter(|n| **n == c.get_name()).count();
            assert_eq!(times, 1, "{}", c.get_name());
        }
    }

    #[test]
    fn the_usual_options_exist() {
        let root = command();
        let commands = std::iter::once(&root).chain(root.get_subcommands());
        let all: Vec<String> = commands
            .flat_map(clap::Command::get_arguments)
            .filter_map(|a| a.get_long().map(str::to_owned))
            .collect();
        for usual in USUAL {
            assert!(all.iter().any(|l| l == usual), "--{usual}");
        }
    }

    #[test]
    fn the_short_help_of_a_large_command_fits_a_screen_or_two() {
        let mut root = command();
        for name in ["train", "generate", "eval"] {
            let sub = root.find_subcommand_mut(name).unwrap();
            let short = sub.render_help().to_string();
            let long = sub.render_long_help().to_string();
            assert!(
                short.lines().count() <= 75,
                "{name}: {}",
                short.lines().count()
            );
            assert!(long.lines().count() > short.lines().count(), "{name}");
        }
    }

    #[test]
    fn a_short_text_says_what_an_argument_is() {
        let long = "Layers that get nothing at all, by their numbers, and more words of that kind. More of it, and more [default: 3]";
        assert_eq!(
            brief(long),
            "Layers that get nothing at all, by their numbers, and more words of that kind [default: 3]"
        );
        assert_eq!(brief("Short. And more"), "Short. And more");
    }
}
