//! A selection as text: one line for each place, with the graph's names. Snapshots and `inspect` show it.

use super::site::{
    AttentionSite, Layer, Layout, LinearSite, NormSite, QkvLayout, Selection, WeightForm,
};
use crate::ir::{Graph, ValueId};
use std::fmt::{self, Write};

/// A selection beside its graph, for display.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Explained<'a> {
    selection: &'a Selection,
    graph: &'a Graph,
}

impl Selection {
    /// The selection as text, with the names of the graph it was made from.
    pub(crate) fn explain<'a>(&'a self, graph: &'a Graph) -> Explained<'a> {
        Explained {
            selection: self,
            graph,
        }
    }
}

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (s, g) = (self.selection, self.graph);
        writeln!(
            f,
            "base model `{}`, hidden size {}",
            s.base_prefix, s.hidden_size
        )?;
        for e in &s.embeddings {
            writeln!(f, "embeddings {} -> {}", e.path, g.name_of(e.output))?;
        }
        for l in &s.layers {
            layer(f, g, l)?;
        }
        if let Some(head) = &s.output_embeddings {
            linear(f, g, "", head)?;
        }
        for m in &s.misses {
            writeln!(f, "{m}")?;
        }
        Ok(())
    }
}

fn layer(f: &mut fmt::Formatter<'_>, g: &Graph, l: &Layer) -> fmt::Result {
    let call = if l.call > 0 {
        format!(" call {}", l.call)
    } else {
        String::new()
    };
    writeln!(
        f,
        "layer {}{call} {}: {} -> {}",
        l.index,
        l.path,
        g.name_of(l.input),
        g.name_of(l.output)
    )?;
    attention(f, g, &l.path, l.self_attn.as_ref())?;
    attention(f, g, &l.path, l.cross_attn.as_ref())?;
    for site in [&l.intermediate, &l.output_proj].into_iter().flatten() {
        linear(f, g, &l.path, site)?;
    }
    let mut pre = String::new();
    for (name, v) in [
        ("self_attn", l.pre_self_attn),
        ("cross_attn", l.pre_cross_attn),
        ("ffn", l.pre_ffn),
    ] {
        if let Some(v) = v {
            write!(pre, " {name} {}", g.name_of(v))?;
        }
    }
    if !pre.is_empty() {
        writeln!(f, "  residuals:{pre}")?;
    }
    for (name, site) in [
        ("ln_1", &l.ln_1),
        ("ln_cross", &l.ln_cross),
        ("ln_2", &l.ln_2),
    ] {
        if let Some(s) = site {
            norm(f, g, name, &l.path, s)?;
        }
    }
    Ok(())
}

fn attention(
    f: &mut fmt::Formatter<'_>,
    g: &Graph,
    layer: &str,
    site: Option<&AttentionSite>,
) -> fmt::Result {
    let Some(a) = site else { return Ok(()) };
    let layout = match &a.qkv_layout {
        None => String::new(),
        Some(QkvLayout::Blocks { q, k, v }) => format!(", columns q {q} | k {k} | v {v}"),
        Some(QkvLayout::Interleaved {
            widths: [q, k, v], ..
        }) => format!(", columns q {q}, k {k}, v {v}, head by head"),
        Some(QkvLayout::Unknown) => ", columns in an unknown order".to_owned(),
    };
    writeln!(
        f,
        "  {} -> {}{layout}",
        relative(&a.path, layer),
        g.name_of(a.output)
    )?;
    for l in [&a.q, &a.k, &a.v, &a.qkv, &a.o].into_iter().flatten() {
        linear(f, g, layer, l)?;
    }
    Ok(())
}

fn relative<'p>(path: &'p str, layer: &str) -> &'p str {
    path.strip_prefix(layer)
        .and_then(|p| p.strip_prefix('.'))
        .unwrap_or(path)
}

fn linear(f: &mut fmt::Formatter<'_>, g: &Graph, layer: &str, l: &LinearSite) -> fmt::Result {
    let indent = if layer.is_empty() { "" } else { "  " };
    for (i, l) in l.calls().enumerate() {
        write!(
            f,
            "{indent}{}{} [{} -> {}]: ",
            relative(&l.path, layer),
            if i > 0 { " (again)" } else { "" },
            l.d_in,
            l.d_out
        )?;
        write!(f, "{} -> {}", g.name_of(l.input), g.name_of(l.output))?;
        let ops: Vec<&str> = l.nodes.iter().map(|n| &*g.node(*n).op.op_type).collect();
        let layout = match l.weight.layout {
            Layout::InOut => "[in, out]",
            Layout::OutIn => "[out, in]",
        };
        write!(
            f,
            " by {}, weight {} {layout}{}",
            ops.join("+"),
            g.name_of(l.weight.value),
            form(&l.weight.form)
        )?;
        let name = |v: Option<ValueId>| v.map_or("none", |v| g.name_of(v)).to_owned();
        if l.weight.bias.is_some() {
            write!(f, ", bias {}", name(l.weight.bias))?;
        }
        if l.late_bias.is_some() {
            write!(f, ", bias {} added by the reader", name(l.late_bias))?;
        }
        if let Some(c) = l.column {
            write!(f, ", columns from {c}")?;
        }
        writeln!(f)?;
    }
    Ok(())
}

fn form(form: &WeightForm) -> String {
    match form {
        WeightForm::Float => String::new(),
        WeightForm::Dequantized { .. } => " dequantized".to_owned(),
        WeightForm::NBits {
            bits, block_size, ..
        } => format!(" {bits} bits in blocks of {block_size}"),
        WeightForm::Bnb4 { block_size, .. } => format!(" bnb4 in blocks of {block_size}"),
        WeightForm::Integer { .. } => " integer".to_owned(),
    }
}

fn norm(
    f: &mut fmt::Formatter<'_>,
    g: &Graph,
    name: &str,
    layer: &str,
    s: &NormSite,
) -> fmt::Result {
    let ops: Vec<&str> = s.nodes.iter().map(|n| &*g.node(*n).op.op_type).collect();
    writeln!(
        f,
        "  {name} {} {:?}: {} -> {} by {}",
        relative(&s.path, layer),
        s.kind,
        g.name_of(s.input),
        g.name_of(s.output),
        ops.join("+")
    )
}
