//! A selection as text: one line for each place, with the graph's names. Snapshots and `inspect` show it.

use super::site::{
    AttentionSite, Layer, Layout, LinearSite, NormSite, QkvLayout, Selection, WeightForm,
};
use crate::ir::layers::{masked, ranges};
use crate::ir::{Graph, ValueId};
use indexmap::IndexMap;
use std::fmt::{self, Write};

/// A selection beside its graph, for display.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Explained<'a> {
    selection: &'a Selection,
    graph: &'a Graph,
    folds: bool,
}

impl Selection {
    /// The selection as text, with the names of the graph it was made from.
    pub(crate) fn explain<'a>(&'a self, graph: &'a Graph) -> Explained<'a> {
        Explained {
            selection: self,
            graph,
            folds: false,
        }
    }
}

impl Explained<'_> {
    /// The same with equal layers shown once.
    pub(crate) fn folded(self) -> Self {
        Explained {
            folds: true,
            ..self
        }
    }

    /// The text of each layer, and the numbers of all that have the same one but for numbers in names.
    fn layers(&self) -> Result<Vec<(String, Vec<usize>)>, fmt::Error> {
        let mut out: IndexMap<String, (String, Vec<usize>)> = IndexMap::new();
        for (at, l) in self.selection.layers.iter().enumerate() {
            let mut text = String::new();
            layer(&mut text, self.graph, l)?;
            let (_, body) = text.split_once('\n').unwrap_or_default();
            // What enters the first layer has another name than what one layer hands to the next.
            let own = body.lines().filter(|l| !l.starts_with("  residuals:"));
            let key = if self.folds {
                without_numbers(&own.collect::<Vec<_>>().join("\n"))
            } else {
                at.to_string()
            };
            let found = out.entry(key).or_insert((text, Vec::new()));
            found.1.push(l.index);
        }
        Ok(out.into_values().collect())
    }
}

/// A text without the numbers in its names; sizes in brackets and numbers that stand alone stay.
fn without_numbers(text: &str) -> String {
    let mut depth = 0usize;
    let words = text.split_inclusive(char::is_whitespace).map(|word| {
        let named = depth == 0 && word.contains(char::is_alphabetic);
        for c in word.chars() {
            match c {
                '[' => depth += 1,
                ']' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        masked(word, |_, _| named)
    });
    words.collect()
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
        for (text, numbers) in self.layers()? {
            if numbers.len() > 1 {
                writeln!(f, "layers {}, each as this one:", ranges(numbers))?;
            }
            f.write_str(&text)?;
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

fn layer(f: &mut dyn Write, g: &Graph, l: &Layer) -> fmt::Result {
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
    f: &mut dyn Write,
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

fn linear(f: &mut dyn Write, g: &Graph, layer: &str, l: &LinearSite) -> fmt::Result {
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

fn norm(f: &mut dyn Write, g: &Graph, name: &str, layer: &str, s: &NormSite) -> fmt::Result {
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

#[cfg(test)]
mod tests {
    use super::without_numbers;

    #[test]
    fn numbers_in_names_differ_between_equal_layers_and_sizes_do_not() {
        let of = |layer, width| {
            format!("  q_proj [{width} -> 16]: mul_{layer} -> linear_{layer} by MatMul, 4 bits\n")
        };
        assert_eq!(without_numbers(&of(3, 32)), without_numbers(&of(14, 32)));
        let first = of(3, 32).replace("linear_3", "linear");
        assert_eq!(without_numbers(&first), without_numbers(&of(3, 32)));
        assert_ne!(without_numbers(&of(3, 32)), without_numbers(&of(3, 64)));
        assert!(without_numbers(&of(3, 32)).contains("[32 -> 16]"));
        assert!(without_numbers(&of(3, 32)).contains("4 bits"));
    }
}
