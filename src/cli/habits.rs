//! Arguments as scripts of Hugging Face's examples write them: `--learning_rate 1e-3`, `--bf16 true`; and flags before
//! the command.

use super::args::Cli;
use clap::{Arg, CommandFactory};
use std::ffi::OsString;

/// The same arguments as the parser knows them.
pub(super) fn arguments(given: Vec<OsString>) -> Vec<OsString> {
    let switches = switches();
    let mut out: Vec<OsString> = Vec::with_capacity(given.len());
    let mut given = given.into_iter().peekable();
    let mut plain = false;
    while let Some(arg) = given.next() {
        plain |= arg == "--";
        let Some(flag) = arg
            .to_str()
            .filter(|t| t.len() > 2 && t.starts_with("--") && !plain)
        else {
            out.push(arg);
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        let name = name.replace('_', "-");
        if !switches.contains(&name) {
            out.push(value.map_or(name.clone(), |v| format!("{name}={v}")).into());
            continue;
        }
        let next = given.peek().and_then(|a| truth(a.to_str()?));
        match value.map(|v| truth(v).unwrap_or(v)).or(next) {
            Some(value) => {
                out.push(format!("{name}={value}").into());
                if flag.split_once('=').is_none() {
                    given.next();
                }
            }
            None => out.push(name.into()),
        }
    }
    behind_the_command(out)
}

/// The first flag of true or false that a word follows which is neither, and the word.
pub(super) fn no_truth(arguments: &[OsString]) -> Option<(String, String)> {
    let switches = switches();
    arguments.windows(2).find_map(|pair| {
        let [flag, word] = [pair[0].to_str()?, pair[1].to_str()?];
        let wrong = switches.iter().any(|s| s == flag)
            && !word.starts_with('-')
            && !std::path::Path::new(word).exists();
        wrong.then(|| (flag.to_owned(), word.to_owned()))
    })
}

/// A truth value as Python or a shell writes it.
fn truth(text: &str) -> Option<&'static str> {
    match text {
        "true" | "True" | "TRUE" => Some("true"),
        "false" | "False" | "FALSE" => Some("false"),
        _ => None,
    }
}

/// The flags of all commands that take true or false, and may stand alone.
fn switches() -> Vec<String> {
    fn collect(command: &clap::Command, out: &mut Vec<String>) {
        let truths = |a: &Arg| {
            let words = a.get_possible_values();
            words.len() == 2 && words.iter().all(|w| truth(w.get_name()).is_some())
        };
        for arg in command.get_arguments().filter(|a| truths(a)) {
            let names = arg.get_long_and_visible_aliases().unwrap_or_default();
            let all = arg.get_all_aliases().unwrap_or_default();
            out.extend(names.into_iter().chain(all).map(|n| format!("--{n}")));
        }
        command.get_subcommands().for_each(|c| collect(c, out));
    }
    let mut out = Vec::new();
    collect(&Cli::command(), &mut out);
    out
}

/// Puts flags that stand before the command behind it, with their values.
fn behind_the_command(mut given: Vec<OsString>) -> Vec<OsString> {
    let all = Cli::command();
    let text = |at: usize| given.get(at).and_then(|a| a.to_str());
    let mut at = 1;
    while let Some(flag) = text(at).filter(|t| t.len() > 1 && t.starts_with('-') && *t != "--") {
        match takes_value(&all, flag) {
            Some(value) => at += 1 + usize::from(value),
            None => return given,
        }
    }
    let flags = at - 1;
    let Some(command) = text(at).and_then(|word| all.find_subcommand(word)) else {
        return given;
    };
    let part = text(at + 1).and_then(|word| command.find_subcommand(word));
    let words = if part.is_some() { 2 } else { 1 };
    if flags > 0 {
        given[1..=flags + words].rotate_right(words);
    }
    given
}

/// Whether the argument behind a flag of any command is its value. `None` for what is no flag.
fn takes_value(command: &clap::Command, flag: &str) -> Option<bool> {
    if let Some(name) = flag.strip_prefix("--") {
        let (name, value) = match name.split_once('=') {
            Some((name, _)) => (name, true),
            None => (name, false),
        };
        let is = |a: &Arg| {
            let names = a.get_long_and_visible_aliases().unwrap_or_default();
            let hidden = a.get_all_aliases().unwrap_or_default();
            names.into_iter().chain(hidden).any(|n| n == name)
        };
        return find(command, &is).map(|takes| takes && !value);
    }
    let mut shorts = flag.trim_start_matches('-').chars().peekable();
    while let Some(short) = shorts.next() {
        // What follows a flag that takes a value is its value.
        if find(command, &|a: &Arg| a.get_short() == Some(short))? {
            return Some(shorts.peek().is_none());
        }
    }
    Some(false)
}

/// Whether the flag of any command takes a value.
fn find(command: &clap::Command, is: &dyn Fn(&Arg) -> bool) -> Option<bool> {
    let own = command.get_arguments().find(|a| is(a));
    let takes = |a: &Arg| {
        let least = a.get_num_args().map_or(1, |n| n.min_values());
        a.get_action().takes_values() && least > 0
    };
    let mut parts = command.get_subcommands();
    own.map(takes).or_else(|| parts.find_map(|c| find(c, is)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn scripts_of_others_are_understood() {
        for (given, want) in [
            (
                "rewrite train m.onnx --learning_rate 1e-3 --bf16 True --max_steps=5",
                "rewrite train m.onnx --learning-rate 1e-3 --bf16=true --max-steps=5",
            ),
            (
                "rewrite train --bf16 m.onnx --load_best_model_at_end=False",
                "rewrite train --bf16 m.onnx --load-best-model-at-end=false",
            ),
            (
                "rewrite generate m.onnx --prompt true --do_sample false -- --a_b",
                "rewrite generate m.onnx --prompt true --do-sample=false -- --a_b",
            ),
            (
                "rewrite --json -v hub pull a/b",
                "rewrite hub pull --json -v a/b",
            ),
            (
                "rewrite --seed 3 --json train m.onnx --max-steps 2",
                "rewrite train --seed 3 --json m.onnx --max-steps 2",
            ),
            (
                "rewrite -i qwen3 -qv inspect m.onnx",
                "rewrite inspect -i qwen3 -qv m.onnx",
            ),
            (
                "rewrite --interface=qwen3 --force adapter delete a",
                "rewrite adapter delete --interface=qwen3 --force a",
            ),
            (
                "rewrite --interface train model.onnx",
                "rewrite --interface train model.onnx",
            ),
            (
                "rewrite train m.onnx --fp16 --logging_dir logs --dataloader_num_workers 4",
                "rewrite train m.onnx --fp16 --logging-dir logs --dataloader-num-workers 4",
            ),
            (
                "rewrite --quiet model.onnx --seed 3",
                "rewrite --quiet model.onnx --seed 3",
            ),
            ("rewrite", "rewrite"),
        ] {
            assert_eq!(arguments(line(given)), line(want));
        }
    }
}
