//! A picture as a page: the SVG, and what is in it as tables and a tree that opens.

use super::svg;
use super::text::{escaped, percent, short};
use super::{Block, Part, Picture};
use crate::diag::{count, grouped};
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page.
pub(super) fn page(picture: &Picture) -> String {
    let title = escaped(&picture.title);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n\
         <p class=\"tools\"><button type=\"button\" data-zoom=\"in\" aria-label=\"larger\">+</button>\
         <button type=\"button\" data-zoom=\"out\" aria-label=\"smaller\">−</button>\
         <button type=\"button\" data-zoom=\"fit\">fit</button><button type=\"button\" data-zoom=\"one\">1:1</button></p>\n\
         <div class=\"wide\" id=\"picture\" tabindex=\"0\" role=\"group\" aria-label=\"the model\">\n{}</div>\n",
        svg::element(picture)
    );
    adapters(&mut out, picture);
    out.push_str("<h2>Modules</h2>\n<div class=\"tree\">\n");
    tree(&mut out, &picture.model, 0);
    let _ = write!(
        out,
        "</div>\n</main>\n<footer>onnx-graft {}</footer>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    );
    out
}

fn adapters(out: &mut String, picture: &Picture) {
    if picture.adapters.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Adapters</h2>\n<div class=\"wide\" tabindex=\"0\" role=\"group\" aria-label=\"adapters\"><table>\n<thead><tr><th scope=\"col\">Name</th><th scope=\"col\">Method</th>\
         <th scope=\"col\">Parameters</th><th scope=\"col\">Of the model</th><th scope=\"col\">Trained</th><th scope=\"col\">Places</th><th scope=\"col\">State</th></tr></thead>\n<tbody>\n",
    );
    for a in &picture.adapters {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(&a.name),
            escaped(&a.kind),
            grouped(a.parameters),
            percent(a.parameters, picture.parameters),
            grouped(a.trained),
            grouped(a.places as u64),
            a.state()
        );
    }
    out.push_str("</tbody></table></div>\n");
}

/// The modules in a module, each of which opens.
fn tree(out: &mut String, block: &Block, depth: usize) {
    for part in &block.parts {
        match part {
            Part::Module(b) => {
                let line = line(b);
                if b.parts
                    .iter()
                    .any(|p| matches!(p, Part::Module(_) | Part::Adapter(_)))
                {
                    let open = if depth < 2 { " open" } else { "" };
                    let _ = writeln!(out, "<details{open}><summary>{line}</summary>");
                    tree(out, b, depth + 1);
                    out.push_str("</details>\n");
                } else {
                    let _ = writeln!(out, "<p>{line}</p>");
                }
            }
            Part::Adapter(p) => {
                let tensors: Vec<String> =
                    p.tensors.iter().map(|(n, s)| format!("{n} {s}")).collect();
                let state = if p.trains { "trains" } else { "frozen" };
                let _ = writeln!(
                    out,
                    "<p class=\"adapter\"><b>{}</b> {state} · {} · <span>{}</span></p>",
                    escaped(&p.name),
                    short(p.parameters),
                    escaped(&tensors.join(" · "))
                );
            }
            Part::Operators(_) | Part::Input(_) | Part::Output(_) => {}
        }
    }
}

fn line(b: &Block) -> String {
    let mut out = format!("<b>{}</b>", escaped(&b.name));
    if b.count > 1 {
        let _ = write!(out, " × {}", b.count);
    }
    let mut facts: Vec<String> = Vec::new();
    facts.extend(b.class.clone());
    facts.extend(b.weight.clone());
    facts.extend(b.stored.clone());
    if b.parameters > 0 {
        facts.push(format!("{} parameters", grouped(b.parameters)));
    }
    facts.push(count(b.nodes, "node", "nodes"));
    facts.extend(b.roles.iter().cloned());
    let _ = write!(out, " <span>{}</span>", escaped(&facts.join(" · ")));
    out
}
