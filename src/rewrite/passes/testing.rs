//! Tests of passes: text in, text out.
//!
//! A test shows the graph before and after the pass, or the error with which the pass refuses it. `UPDATE=1 cargo nextest run -j1 passes`
//! writes what the passes make into the tests; read the difference before you commit it.

use crate::infer::Verified;
use crate::ir::{Model, text};
use crate::rewrite::{Pass, Pipeline};
use crate::select::{Interface, Selection};
use std::panic::Location;
use std::path::Path;

/// One layer of a decoder, with names of modules as exports have them: positions that it counts itself, attention of two heads, and an MLP.
pub(crate) const DECODER: &str = r#"
        opset "" 17
        graph main(%input_ids: i64[batch, seq]) -> (%logits: f32[batch, seq, 8])
          init %table: f32[8, 4] = fill(0.5)
          init %q.weight: f32[4, 4] = fill(0.5)
          init %k.weight: f32[4, 4] = fill(0.5)
          init %v.weight: f32[4, 4] = fill(0.5)
          init %o.weight: f32[4, 4] = fill(0.5)
          init %up.weight: f32[4, 6] = fill(0.5)
          init %down.weight: f32[6, 4] = fill(0.5)
          init %head.weight: f32[4, 8] = fill(0.5)
          init %heads: i64[4] = {0, 0, 2, 2}
          init %rows: i64[3] = {0, 0, 4}
          init %places: f32[16, 4] = fill(0.5)
          init %scale: f32[] = {0.5}
          init %zero: i64[] = {0}
          init %one: i64[] = {1}
          init %axis: i64[1] = {0}
          %shape = Shape(%input_ids)  // /model/Shape
          %length = Gather(%shape, %one)  // /model/Gather
          %counted = Range(%zero, %length, %one)  // /model/Range
          %row = Unsqueeze(%counted, %axis)  // /model/Unsqueeze
          %place = Gather(%places, %row)  // /model/embed_positions/Gather
          %token = Gather(%table, %input_ids)  // /model/embed_tokens/Gather
          %x = Add(%token, %place)  // /model/Add
          %q = MatMul(%x, %q.weight)  // /model/layers.0/self_attn/q_proj/MatMul
          %k = MatMul(%x, %k.weight)  // /model/layers.0/self_attn/k_proj/MatMul
          %v = MatMul(%x, %v.weight)  // /model/layers.0/self_attn/v_proj/MatMul
          %q2 = Reshape(%q, %heads)  // /model/layers.0/self_attn/Reshape
          %q3 = Transpose(%q2) {perm = [0, 2, 1, 3]}  // /model/layers.0/self_attn/Transpose
          %k2 = Reshape(%k, %heads)  // /model/layers.0/self_attn/Reshape_1
          %k3 = Transpose(%k2) {perm = [0, 2, 3, 1]}  // /model/layers.0/self_attn/Transpose_1
          %v2 = Reshape(%v, %heads)  // /model/layers.0/self_attn/Reshape_2
          %v3 = Transpose(%v2) {perm = [0, 2, 1, 3]}  // /model/layers.0/self_attn/Transpose_2
          %scores = MatMul(%q3, %k3)  // /model/layers.0/self_attn/MatMul
          %scaled = Mul(%scores, %scale)  // /model/layers.0/self_attn/Mul
          %weights = Softmax(%scaled) {axis = -1}  // /model/layers.0/self_attn/Softmax
          %mix = MatMul(%weights, %v3)  // /model/layers.0/self_attn/MatMul_1
          %mix2 = Transpose(%mix) {perm = [0, 2, 1, 3]}  // /model/layers.0/self_attn/Transpose_3
          %mix3 = Reshape(%mix2, %rows)  // /model/layers.0/self_attn/Reshape_3
          %o = MatMul(%mix3, %o.weight)  // /model/layers.0/self_attn/o_proj/MatMul
          %between = Add(%x, %o)  // /model/layers.0/Add
          %up = MatMul(%between, %up.weight)  // /model/layers.0/mlp/up_proj/MatMul
          %act = Relu(%up)  // /model/layers.0/mlp/act/Relu
          %down = MatMul(%act, %down.weight)  // /model/layers.0/mlp/down_proj/MatMul
          %after = Add(%between, %down)  // /model/layers.0/Add_1
          %logits = MatMul(%after, %head.weight)  // /lm_head/MatMul
        "#;

/// The interface of [`DECODER`].
pub(crate) fn interface() -> Interface {
    let text = r#"{"interface": {
        "model_embeddings": "embed_tokens", "model_layers": "layers", "layer_self_attn": "self_attn",
        "attn_q_proj": "q_proj", "attn_k_proj": "k_proj", "attn_v_proj": "v_proj", "attn_o_proj": "o_proj",
        "layer_intermediate_proj": "mlp.up_proj", "layer_output_proj": "mlp.down_proj",
        "layer_pre_self_attn": null, "layer_pre_ffn": null, "layer_ln_1": null, "layer_ln_2": null,
        "layer_cross_attn": null, "layer_pre_cross_attn": null, "attn_qkv_proj": null, "base_model": null,
        "adapter_methods": ["lora"]}, "version": "adapters.1.2.0"}"#;
    Interface::parse(text, "of the test").expect("a good interface")
}

/// The sites of [`DECODER`].
pub(crate) fn sites(model: &Verified) -> Selection {
    interface().select(model).expect("the sites are found")
}

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
