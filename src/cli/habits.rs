//! Arguments as scripts of Hugging Face's examples write them: `--learning_rate 1e-3`, `--bf16 true`; and flags of every command before
//! the command.

use super::args::Cli;
use clap::{Arg, CommandFactory};
use std::ffi::OsString;

/// Flags of every command.
const GLOBAL: [&str; 8] = [
    "--json",
    "--quiet",
    "-q",
    "--verbose",
    "-v",
    "-vv",
    "-vvv",
    "-qv",
];

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

/// Puts flags of every command that stand before the command behind it.
fn behind_the_command(mut given: Vec<OsString>) -> Vec<OsString> {
    let global = |a: &OsString| a.to_str().is_some_and(|t| GLOBAL.contains(&t));
    let flags = given.iter().skip(1).take_while(|a| global(a)).count();
    let command = given.get(flags + 1).and_then(|a| a.to_str());
    if command.is_some_and(|c| Cli::command().find_subcommand(c).is_some()) {
        given[1..=flags + 1].rotate_right(1);
    }
    given
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
                "rewrite hub --json -v pull a/b",
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
