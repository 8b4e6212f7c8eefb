//! `rewrite completions`: scripts for shells. Where an argument takes files beside names, the script offers both, which the generator
//! does not know of.

use super::args::Cli;
use crate::adapters::identifiers;
use crate::select::Interface;
use clap::CommandFactory;
use clap_complete::Shell;

/// The script of a shell.
pub(super) fn script(shell: Shell) -> String {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "rewrite", &mut out);
    let mut text = String::from_utf8_lossy(&out).into_owned();
    let interfaces: Vec<&str> = Interface::builtin_names().collect();
    let adapters: Vec<&str> = identifiers().collect();
    for (name, words) in [("interface", interfaces), ("adapter", adapters)] {
        text = with_files(shell, &text, name, &words);
    }
    text
}

/// The script with files beside the words of an argument.
fn with_files(shell: Shell, text: &str, name: &str, words: &[&str]) -> String {
    let list = words.join(" ");
    match shell {
        Shell::Bash => {
            let found = format!("compgen -W \"{list}\" -- ");
            text.replace(&found, &format!("compgen -f -W \"{list}\" -- "))
        }
        Shell::Zsh => {
            let own = format!(
                "_rewrite_{name}s() {{\n    _alternative 'names:{name}:({list})' 'files:file:_files'\n}}\n"
            );
            let text = text.replace(&format!(":({list})'"), &format!(":_rewrite_{name}s'"));
            // Behind the line that says whose completions these are.
            text.replacen("\n\n", &format!("\n\n{own}\n"), 1)
        }
        Shell::Fish => {
            let described: Vec<String> = words.iter().map(|w| format!("{w}\\t''")).collect();
            let list = described.join("\n");
            let found = format!(" -r -f -a \"{list}\"");
            text.replace(&found, &format!(" -r -F -a \"{list}\""))
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_names_and_files_offer_both() {
        for (shell, parts) in [
            (
                Shell::Bash,
                [
                    "compgen -f -W \"albert ",
                    "compgen -W \"jsonl ",
                    "compgen -f -W \"",
                ],
            ),
            (
                Shell::Zsh,
                [
                    "names:interface:(albert ",
                    ":_rewrite_interfaces'",
                    ":_rewrite_adapters'",
                ],
            ),
            (
                Shell::Fish,
                [
                    " -r -F -a \"albert\\t''",
                    "__fish_complete_directories",
                    "seq_bn\\t''",
                ],
            ),
        ] {
            let text = script(shell);
            for part in parts {
                assert!(text.contains(part), "{shell}: {part}");
            }
        }
    }
}
