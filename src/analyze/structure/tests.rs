use super::{Found, Structure};
use crate::analyze::flow::Flow;
use crate::analyze::linear::Linears;
use crate::infer::Verified;
use crate::ir::text;

/// Projections of `%n` in heads.
const PROJECTED: &str = "
    %q = MatMul(%n, %wq)
    %k = MatMul(%n, %wk)
    %v = MatMul(%n, %wv)";

/// The attention of `%q`, `%k` and `%v`, as `%mixed` in the order of `[b, s, heads, head]`.
const MIXED: &str = "
    %qh = Reshape(%q, %heads)
    %kh = Reshape(%k, %heads)
    %vh = Reshape(%v, %heads)
    %qt = Transpose(%qh) {perm = [0, 2, 1, 3]}
    %kt = Transpose(%kh) {perm = [0, 2, 3, 1]}
    %vt = Transpose(%vh) {perm = [0, 2, 1, 3]}
    %scores = MatMul(%qt, %kt)
    %weights = Softmax(%scores) {axis = -1}
    %product = MatMul(%weights, %vt)
    %mixed = Transpose(%product) {perm = [0, 2, 1, 3]}";

/// The layers of a graph of one layer whose attention is what `attention` makes of `%n`: `%made`. `%h` is the stream behind it.
fn layers<T>(attention: &str, stream: &str, see: impl Fn(&Flow<'_>, &[Found]) -> T) -> T {
    let text = format!(
        r#"
        graph-text 1
        ir_version 8
        opset "" 17
        graph main(%x: f32[b, s, 4]) -> (%y)
          init %one: f32[4] = fill(1)
          init %wq: f32[4, 4] = fill(0.1)
          init %wk: f32[4, 4] = fill(0.2)
          init %wv: f32[4, 4] = fill(0.3)
          init %wo: f32[4, 4] = fill(0.4)
          init %wg: f32[4, 4] = fill(0.5)
          init %wide: f32[4, 12] = fill(0.5)
          init %up: f32[4, 8] = fill(0.6)
          init %down: f32[8, 4] = fill(0.7)
          init %heads: i64[4] = {{0, 0, 2, 2}}
          init %flat: i64[3] = {{0, 0, 4}}
          init %rows: i64[2] = {{-1, 4}}
          init %behind: i64[8] = {{0, 0, 0, 0, 0, 0, 0, 1}}
          init %below: i64[8] = {{0, 0, 0, 0, 0, 0, 1, 0}}
          init %scale: f32[] = {{0.1}}
          init %zero: u8[] = {{128}}
          %n = LayerNormalization(%x, %one, %one) {{axis = -1}}
          {attention}
          {stream}
          %m = LayerNormalization(%h, %one, %one) {{axis = -1}}
          %u = MatMul(%m, %up)
          %r = Relu(%u)
          %d = MatMul(%r, %down)
          %y = Add(%h, %d)
        "#
    );
    let model = text::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let model = Verified::check(model).unwrap();
    let view = Flow::new(&model);
    let linears = Linears::new(&view, &|_, _| true);
    see(&view, &Structure::new(&view, &linears).layers())
}

const ADDED: &str = "%h = Add(%x, %made)";

fn is_whole(found: &[Found]) -> bool {
    let [f] = found else { return false };
    f.down.is_some() && f.output.is_some() && !f.self_attn.cross
}

#[test]
fn a_reshape_that_only_its_shape_is_read_of_leads_nowhere() {
    let attention = format!(
        "{PROJECTED}{MIXED}
        %whole = Reshape(%mixed, %flat)
        %size = Shape(%whole)
        %row = Reshape(%mixed, %rows)
        %o = Gemm(%row, %wo, %one)
        %made = Reshape(%o, %size)"
    );
    assert!(layers(&attention, ADDED, |_, found| is_whole(found)));
}

#[test]
fn a_gate_stands_between_attention_and_output() {
    let attention = format!(
        "{PROJECTED}{MIXED}
        %g = MatMul(%n, %wg)
        %open = Sigmoid(%g)
        %whole = Reshape(%mixed, %flat)
        %gated = Mul(%whole, %open)
        %made = MatMul(%gated, %wo)"
    );
    assert!(layers(&attention, ADDED, |_, found| is_whole(found)));
}

#[test]
fn columns_end_behind_their_own_bias() {
    let attention = format!(
        "%all = MatMul(%n, %wide)
        %qc, %kc, %vc = Split(%all) {{axis = -1}}
        %q = Add(%qc, %one)
        %k = Add(%kc, %one)
        %v = Add(%one, %vc){MIXED}
        %whole = Reshape(%mixed, %flat)
        %made = MatMul(%whole, %wo)"
    );
    let named = layers(&attention, ADDED, |view, found| {
        assert!(is_whole(found));
        let core = &found[0].self_attn;
        [core.q, core.k, core.v].map(|p| {
            let (value, first, width) = p.unwrap().columns.unwrap();
            (view.graph.name_of(value).to_owned(), first, width)
        })
    });
    assert_eq!(
        named,
        [("q".into(), 0, 4), ("k".into(), 4, 4), ("v".into(), 8, 4)]
    );
}

/// Longformer's chunks are padded between softmax and mix, and put together from parts.
#[test]
fn an_attention_in_chunks_is_found_by_where_its_projections_go() {
    let chunked = MIXED.replace(
        "%product = MatMul(%weights, %vt)",
        "%padded = Pad(%weights, %behind)
        %filled = Pad(%vt, %below)
        %product = MatMul(%padded, %filled)",
    );
    let attention = format!(
        "{PROJECTED}{chunked}
        %whole = Reshape(%mixed, %flat)
        %made = MatMul(%whole, %wo)"
    );
    let outputs = layers(&attention, ADDED, |view, found| {
        assert!(is_whole(found));
        let core = &found[0].self_attn;
        let linears = Linears::new(view, &|_, _| true);
        [core.q, core.k, core.v].map(|p| {
            let made = linears.all[p.unwrap().linear].output;
            view.graph.name_of(made).to_owned()
        })
    });
    assert_eq!(outputs, ["q", "k", "v"]);
}

/// A quantizer puts codes everywhere, between a product and its bias too, and on the stream.
#[test]
fn codes_hide_no_layer() {
    let coded = |name: &str, from: &str| {
        format!(
            "%{name}_codes = QuantizeLinear(%{from}, %scale, %zero)
            %{name} = DequantizeLinear(%{name}_codes, %scale, %zero)\n"
        )
    };
    let attention = format!(
        "{PROJECTED}{MIXED}
        %whole = Reshape(%mixed, %flat)
        %raw = MatMul(%whole, %wo)
        {}%biased = Add(%product_of, %one)
        {}",
        coded("product_of", "raw"),
        coded("made", "biased"),
    );
    let stream = format!("%sum = Add(%x, %made)\n{}", coded("h", "sum"));
    assert!(layers(&attention, &stream, |_, found| is_whole(found)));
}
