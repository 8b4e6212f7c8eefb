//! Tests of passes: text in, text out.
//!
//! A test shows the graph before and after the pass, or the error with which the pass refuses it. `UPDATE=1 cargo nextest run -j1 passes`
//! writes what the passes make into the tests; read the difference before you commit it.

use crate::infer::Verified;
use crate::ir::{Model, text};
use crate::rewrite::{Pass, Pipeline};
use std::panic::Location;
use std::path::Path;

/// The pass makes the graph `after` of the graph `before`.
#[track_caller]
pub(crate) fn check(pass: impl Pass + 'static, before: &str, after: &str) {
    check_with(before, |_| pass, after);
}

/// The pass refuses the graph `before` with this error.
#[track_caller]
pub(crate) fn refuses(pass: impl Pass + 'static, before: &str, error: &str) {
    refuses_with(before, |_| pass, error);
}

/// The same for a pass that is made for its model, from a selection of sites.
#[track_caller]
pub(crate) fn check_with<P: Pass + 'static>(
    before: &str,
    pass: impl FnOnce(&Verified) -> P,
    after: &str,
) {
    let got = run(before, pass).unwrap_or_else(|e| panic!("the pass refuses the graph:\n{e}"));
    compare(before, after, &got);
}

/// The same for a pass that is made for its model.
#[track_caller]
pub(crate) fn refuses_with<P: Pass + 'static>(
    before: &str,
    pass: impl FnOnce(&Verified) -> P,
    error: &str,
) {
    match run(before, pass) {
        Ok(got) => panic!("the pass does not refuse the graph, but makes:\n{got}"),
        Err(got) => compare(before, error, &got),
    }
}

/// The graph that the pass makes, or its error.
fn run<P: Pass + 'static>(
    before: &str,
    pass: impl FnOnce(&Verified) -> P,
) -> Result<String, String> {
    let model = text::parse(before).expect("the graph before is well-formed");
    let model = Verified::check(model).unwrap_or_else(|r| {
        let findings: Vec<String> = r.findings.iter().map(ToString::to_string).collect();
        panic!("the graph before does not verify:\n{}", findings.join("\n"))
    });
    let pass = pass(&model);
    match Pipeline::new().with(pass).run(model) {
        Ok(done) => Ok(shown(done.model.model())),
        Err(e) => Err(e.error.to_string()),
    }
}

/// The text of a model, without what is alike in all tests.
fn shown(model: &Model) -> String {
    let same = ["graph-text ", "ir_version "];
    let version = concat!("onnx-graft ", env!("CARGO_PKG_VERSION"));
    let text = text::print(model).replace(version, "onnx-graft VERSION");
    let lines = text
        .lines()
        .filter(|l| !same.iter().any(|s| l.starts_with(s)));
    lines.collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn compare(before: &str, want: &str, got: &str) {
    if dedented(want) == got {
        return;
    }
    if std::env::var_os("UPDATE").is_some() {
        return update(Location::caller(), before, want, got);
    }
    panic!(
        "the outcome differs (`-` expected, `+` found); UPDATE=1 writes it into the test\n{}",
        difference(&dedented(want), got)
    );
}

/// A text without the indentation that all its lines share.
fn dedented(text: &str) -> String {
    let by = indentation(text);
    let lines = text.lines().map(|l| l.get(by..).unwrap_or("").trim_end());
    let lines: Vec<&str> = lines.collect();
    lines.join("\n").trim_matches('\n').to_owned()
}

fn indentation(text: &str) -> usize {
    let full = text.lines().filter(|l| !l.trim().is_empty());
    full.map(|l| l.len() - l.trim_start().len())
        .min()
        .unwrap_or(0)
}

/// Lines that are only in one of the texts, marked, among those of both.
fn difference(want: &str, got: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (want.lines().collect(), got.lines().collect());
    // Length of the longest common sequence of lines from (i, j) on.
    let mut common = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] = if a[i] == b[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, String::new());
    while i < a.len() || j < b.len() {
        let same = i < a.len() && j < b.len() && a[i] == b[j];
        let gone = j == b.len() || i < a.len() && common[i + 1][j] >= common[i][j + 1];
        let (mark, line) = match (same, gone) {
            (true, _) => (' ', a[i]),
            (false, true) => ('-', a[i]),
            (false, false) => ('+', b[j]),
        };
        i += usize::from(mark != '+');
        j += usize::from(mark != '-');
        out.extend([mark, ' ']);
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// Writes an outcome into the source of the test, in the place of what is expected there.
fn update(at: &Location<'_>, before: &str, want: &str, got: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(at.file());
    let source = std::fs::read_to_string(&path).expect("the source of the test");
    // Other tests of the file may have been written since it was compiled: the graph before tells where this one is.
    let test = match source.find(&format!("\"{before}\"")) {
        Some(found) => found + before.len(),
        None => source
            .split_inclusive('\n')
            .take(at.line() as usize - 1)
            .map(str::len)
            .sum(),
    };
    let old = format!("\"{want}\"");
    let found = source[test..].find(&old).expect("a plain raw string") + test;
    let indent = " ".repeat(indentation(before));
    let lines: Vec<String> = got
        .lines()
        .map(|l| format!("{indent}{l}").trim_end().to_owned())
        .collect();
    let close = " ".repeat(indent.len().saturating_sub(4));
    let new = format!("\"\n{}\n{close}\"", lines.join("\n"));
    let updated = [&source[..found], &new, &source[found + old.len()..]].concat();
    std::fs::write(path, updated).expect("the source is writable");
}

#[test]
fn differences_are_marked() {
    assert_eq!(difference("a\nb\nc", "a\nx\nc"), "  a\n- b\n+ x\n  c\n");
    assert_eq!(dedented("\n    a\n      b\n    "), "a\n  b");
}
