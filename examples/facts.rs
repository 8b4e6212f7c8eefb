//! Prints what is known of every value: `cargo run --example facts -- model.onnx [filter]`.
use std::io::Write;

fn main() -> onnx_graft::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(path), filter) = (args.next(), args.next().unwrap_or_default()) else {
        return Ok(());
    };
    let model = onnx_graft::Verified::check(onnx_graft::onnx::open(path)?)?;
    let g = &model.model().graph;
    let mut out = std::io::stdout().lock();
    for n in g.order().unwrap_or_default() {
        for v in g
            .node_outputs(n)
            .into_iter()
            .flatten()
            .filter(|&v| g.name_of(v).contains(&filter))
        {
            let fact = model.fact(v).cloned().unwrap_or_default();
            let show = |d: &[onnx_graft::ir::Sym]| {
                d.iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            let dims = fact.dims.as_deref().map_or("?".into(), show);
            let ints = fact
                .ints
                .as_deref()
                .map_or(String::new(), |i| format!(" = [{}]", show(i)));
            let _ = writeln!(
                out,
                "{} {}: {:?}[{dims}]{ints}",
                g.node(n).op,
                g.name_of(v),
                fact.dtype
            );
        }
    }
    Ok(())
}
