//! How findings look on a terminal: as clap's and rustc's, in colour where the terminal has it and `NO_COLOR` is not set.

use anstyle::{AnsiColor, Style};
use std::fmt::Write;

const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const HELP: Style = AnsiColor::Green.on_default();

/// The text of findings with colours.
pub(super) fn coloured(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 32);
    for line in text.split_inclusive('\n') {
        let style = match line {
            l if l.starts_with("error[") => ERROR,
            l if l.starts_with("warning[") => WARNING,
            l if l.trim_start().starts_with("help: ") => HELP,
            _ => {
                out.push_str(line);
                continue;
            }
        };
        let indent = line.len() - line.trim_start().len();
        let end = line.find(": ").map_or(line.len(), |at| at + 1);
        let (head, rest) = line.split_at(end);
        let (space, head) = head.split_at(indent.min(head.len()));
        // Writing to a string does not fail.
        let _ = write!(out, "{space}{style}{head}{style:#}{rest}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::coloured;

    #[test]
    fn heads_of_lines_are_coloured_and_nothing_else_changes() {
        let text = "error[io]: cannot open: x\n  in a: b\n  help: do this\nplain: text\n";
        let shown = coloured(text);
        assert!(
            shown.contains("error[io]:\u{1b}[0m cannot open: x\n"),
            "{shown:?}"
        );
        assert!(
            shown.contains("\n  in a: b\n  \u{1b}[32mhelp:\u{1b}[0m do this\nplain: text\n"),
            "{shown:?}"
        );
        assert_eq!(anstream::adapter::strip_str(&shown).to_string(), text);
    }
}
