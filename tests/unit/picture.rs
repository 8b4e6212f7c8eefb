//! Pictures of models: small ones as they are, what holds for all of them, and files of strangers.

use crate::ir::text::parse;
use crate::picture::{Block, Part, Picture, Place};
use crate::select::{Interface, Selection};
use crate::{Attach, Verified};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("fixtures").join(name)
}

fn of_text(nodes: &str) -> Verified {
    let text = format!(
        "graph-text 1\nir_version 8\nopset \"\" 17\ngraph g(%x: f32[b, 4]) -> (%y)\n\
         init %w: f32[4, 4] = fill(0.5)\n{nodes}"
    );
    Verified::check(parse(&text).unwrap()).unwrap()
}

/// Two equal layers, and one that is another.
const LAYERS: &str = "
  init %layers.0.q.weight: f32[4, 4] = fill(0.5)
  init %layers.1.q.weight: f32[4, 4] = fill(0.5)
  init %layers.2.q.weight: f32[4, 8] = fill(0.5)
  init %layers.2.o.weight: f32[8, 4] = fill(0.5)
  %a0 = MatMul(%x, %layers.0.q.weight)  // /layers.0/q/MatMul
  %b0 = Add(%x, %a0)  // /layers.0/Add
  %a1 = MatMul(%b0, %layers.1.q.weight)  // /layers.1/q/MatMul
  %b1 = Add(%b0, %a1)  // /layers.1/Add
  %a2 = MatMul(%b1, %layers.2.q.weight)  // /layers.2/q/MatMul
  %c2 = MatMul(%a2, %layers.2.o.weight)  // /layers.2/o/MatMul
  %b2 = Add(%b1, %c2)  // /layers.2/Add
  %y = Relu(%b2)  // /act/Relu
";

fn draw(model: &Verified) -> Picture {
    Picture::of(model, None).unwrap()
}

/// All blocks with how many modules each of them stands for.
fn blocks<'p>(block: &'p Block, times: u64, out: &mut Vec<(&'p Block, u64)>) {
    let times = times * block.count as u64;
    out.push((block, times));
    for part in &block.parts {
        if let Part::Module(inner) = part {
            blocks(inner, times, out);
        }
    }
}

fn all(picture: &Picture) -> Vec<(&Block, u64)> {
    let mut out = Vec::new();
    blocks(&picture.model, 1, &mut out);
    out
}

fn places(picture: &Picture) -> Vec<(&Place, u64)> {
    let mut out = Vec::new();
    for (block, times) in all(picture) {
        out.extend(block.places().map(|p| (p, times)));
    }
    out
}

/// That every element is closed, and no text holds markup.
fn well_formed(xml: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = xml;
    while let Some(at) = rest.find('<') {
        assert!(!rest[..at].contains('>'), "{}", &rest[..at]);
        let end = rest[at..].find('>').unwrap() + at;
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        let name = tag
            .trim_start_matches('/')
            .split([' ', '/'])
            .next()
            .unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') && !tag.starts_with('?') {
            open.push(name);
        }
        if name == "style" && !tag.starts_with('/') {
            rest = &rest[rest.find("</style>").unwrap()..];
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn the_smallest_picture_in_the_language_of_graphviz() {
    let dot = draw(&of_text(LAYERS)).dot();
    let own: Vec<&str> = dot.lines().skip(5).map(str::trim).collect();
    insta::assert_snapshot!("picture_dot", own.join("\n"));
}

#[test]
fn the_smallest_picture_as_svg() {
    let svg = draw(&of_text(LAYERS)).svg();
    well_formed(&svg);
    let body = &svg[svg.find("</defs>").unwrap()..];
    insta::assert_snapshot!("picture_svg", body);
}

#[test]
fn equal_layers_are_one_box_and_others_are_not() {
    let picture = draw(&of_text(LAYERS));
    let named: Vec<(&str, usize, u64)> = picture
        .model
        .parts
        .iter()
        .filter_map(|p| match p {
            Part::Module(b) => Some((&*b.name, b.count, b.parameters)),
            _ => None,
        })
        .collect();
    assert_eq!(
        named,
        [("layers 0–1", 2, 32), ("layers 2", 1, 64), ("act", 1, 0)]
    );
}

/// Fixtures by the interface that selects their layers, and how many those are.
const MODELS: [(&str, &str); 9] = [
    ("qwen3/model.onnx", "qwen3"),
    ("qwen3/model.torchscript.onnx", "qwen3"),
    ("qwen3_dedup/model.onnx", "qwen3"),
    ("llama/model.onnx", "llama"),
    ("bert/model.onnx", "bert"),
    ("bert/model.torchscript.onnx", "bert"),
    ("vit/model.onnx", "vit"),
    ("gpt2/model.onnx", "gpt2"),
    ("t5/model.onnx", "t5"),
];

fn selected(file: &str, interface: &str) -> (Verified, Selection) {
    let model = crate::open(fixture(file)).unwrap();
    let selection = Interface::resolve(interface)
        .unwrap()
        .select(&model)
        .unwrap();
    (model, selection)
}

#[test]
fn what_is_in_a_box_is_what_is_in_its_parts() {
    for (file, interface) in MODELS {
        let (model, selection) = selected(file, interface);
        let picture = Picture::of(&model, Some(&selection)).unwrap();
        assert_eq!(picture.parameters, picture.model.parameters, "{file}");
        for (block, _) in all(&picture) {
            if block.count > 1 || block.is_leaf() {
                continue;
            }
            let part = |p: &Part| match p {
                Part::Module(b) => b.parameters,
                Part::Operators(o) => o.parameters,
                Part::Adapter(_) | Part::Input(_) | Part::Output(_) => 0,
            };
            let sum: u64 = block.parts.iter().map(part).sum();
            assert_eq!(sum, block.parameters, "{file}: {}", block.path);
        }
        // Folded or not: every layer is there.
        let layers: Vec<&str> = selection.layers.iter().map(|l| &*l.path).collect();
        let shown = all(&picture);
        let drawn = shown.iter().filter(|(b, _)| layers.contains(&&*b.path));
        assert_eq!(
            drawn.map(|(b, _)| b.count).sum::<usize>(),
            layers.len(),
            "{file}"
        );
    }
}

#[test]
fn every_adapter_is_drawn_where_it_stands_with_its_parameters() {
    let specs: [&[&str]; 6] = [
        &["lora[r=4]"],
        &["seq_bn"],
        &["lora[r=4]", "seq_bn"],
        &["loreft"],
        &["ia3"],
        &["prefix_tuning[flat=True]"],
    ];
    for file in ["qwen3/model.onnx", "bert/model.onnx", "gpt2/model.onnx"] {
        for spec in specs {
            let mut attach = Attach::open(fixture(file)).unwrap();
            for one in spec {
                attach = attach.adapter(one).unwrap();
            }
            let adapted = attach.run().unwrap();
            let picture = Picture::of(&adapted.model, Some(&adapted.selection)).unwrap();
            let again = Picture::of(&adapted.model, Some(&adapted.selection)).unwrap();
            let svg = picture.svg();
            assert_eq!(svg, again.svg());
            assert_eq!((picture.html(), picture.dot()), (again.html(), again.dot()));
            well_formed(&svg);
            assert_eq!(picture.adapters.len(), spec.len());
            for (i, row) in picture.adapters.iter().enumerate() {
                let own = places(&picture).into_iter();
                let own: Vec<_> = own.filter(|(p, _)| p.adapter == i).collect();
                let sum: u64 = own.iter().map(|(p, times)| p.parameters * times).sum();
                // What all layers share counts once.
                let once: u64 = own.iter().map(|(p, _)| p.parameters).sum();
                assert_eq!(row.state(), "trains");
                // Nothing reads the units of positions that a configuration leaves out.
                let units = spec == ["loreft"] && 0 < sum && sum < row.parameters;
                let read = sum == row.parameters || once == row.parameters || units;
                assert!(read, "{file}: {spec:?}: {sum} of {}", row.parameters);
                assert!(
                    svg.contains(&format!(">{}</text>", row.name)),
                    "{}",
                    row.name
                );
            }
        }
    }
}

/// A layer that an adapter was left out of is another layer.
#[test]
fn layers_without_an_adapter_are_told_apart() {
    let attach = Attach::open(fixture("qwen3/model.onnx")).unwrap();
    let attach = attach.adapter("lora").unwrap().skip_layers([1]);
    let adapted = attach.run().unwrap();
    let dot = Picture::of(&adapted.model, Some(&adapted.selection))
        .unwrap()
        .dot();
    assert!(
        dot.contains("layers 0\\n") && dot.contains("layers 1\\n"),
        "{dot}"
    );
}

/// What a file says of itself is enough: no interface, no selection.
#[test]
fn a_rewritten_file_has_the_same_places() {
    let adapted = Attach::open(fixture("qwen3/model.onnx")).unwrap();
    let adapted = adapted
        .adapter("lora")
        .unwrap()
        .adapter("seq_bn")
        .unwrap()
        .run()
        .unwrap();
    let bytes = crate::onnx::to_bytes(&adapted.model).unwrap();
    let read = crate::onnx::read(bytes.into(), &crate::onnx::ExternalSource::none()).unwrap();
    let read = Verified::check(read).unwrap();
    let at = |picture: &Picture| -> Vec<(String, String)> {
        let blocks = all(picture);
        let each = blocks.into_iter();
        each.flat_map(|(b, _)| {
            b.places()
                .map(|p| (b.path.clone(), p.name.clone()))
                .collect::<Vec<_>>()
        })
        .collect()
    };
    let place = |path: &str, name: &str| (format!("model.layers.0{path}"), name.to_owned());
    let expected = [
        place("", "seq_bn"),
        place(".self_attn.q_proj", "lora"),
        place(".self_attn.v_proj", "lora"),
    ];
    assert_eq!(at(&draw(&read)), expected);
    assert_eq!(at(&draw(&adapted.model)), expected);
}

#[test]
fn names_of_strangers_are_text() {
    let nodes = "%a = MatMul(%x, %w)  // /m</text><script>alert(1)</script>\"&'\u{202e}/q]]>/MatMul\n %y = Relu(%a)  // /z/Relu";
    let picture = draw(&of_text(nodes)).titled("<b>\"a\" & \u{0}b</b>");
    let (svg, html, dot) = (picture.svg(), picture.html(), picture.dot());
    well_formed(&svg);
    for text in [&svg, &html] {
        assert!(
            !text.contains("<script>alert") && !text.contains("<b>\"a"),
            "{text}"
        );
        assert!(!text.contains('\u{202e}') && !text.contains('\u{0}'));
    }
    assert!(
        dot.lines()
            .all(|l| l.matches('"').count() - l.matches("\\\"").count() != 1)
    );
}

/// Bounded, whatever the file: deep modules, a long name, many different modules, many operators of nobody.
#[test]
fn pictures_are_bounded() {
    let deep = vec!["m"; 10_000].join("/");
    let long = "n".repeat(1 << 20);
    let mut many = String::new();
    for i in 0..3000 {
        let from = if i == 0 {
            "x".to_owned()
        } else {
            format!("v{}", i - 1)
        };
        let op = ["Relu", "Neg", "Exp", "Abs", "Sqrt"][i % 5];
        many += &format!("%v{i} = {op}(%{from})  // /m{i}/f{}/{op}\n", i % 7);
    }
    many += "%y = Relu(%v2999)";
    let cases = [
        format!("%y = Relu(%x)  // /{deep}/Relu"),
        format!("%y = Relu(%x)  // /{long}/Relu"),
        many,
    ];
    for (i, nodes) in cases.iter().enumerate() {
        let picture = draw(&of_text(nodes));
        let svg = picture.svg();
        well_formed(&svg);
        let all = svg.len() + picture.html().len() + picture.dot().len();
        assert!(all < 2 << 20, "case {i}: {all} bytes");
        let rest = picture
            .left_out
            .first()
            .is_some_and(|t| t.ends_with("modules"));
        assert_eq!(rest, i == 2, "{:?}", picture.left_out);
    }
}

/// The picture in the README. `UPDATE_SCHEMAS=1` writes it again.
#[test]
fn the_picture_of_the_readme_is_fresh() {
    let attach = Attach::open(fixture("qwen3/model.onnx")).unwrap();
    let attach = attach.adapter("lora[r=8,attn_matrices=['q','v']]").unwrap();
    let adapted = attach.adapter("seq_bn").unwrap().run().unwrap();
    let picture = Picture::of(&adapted.model, Some(&adapted.selection)).unwrap();
    let svg = picture.titled("Qwen3 with a LoRA and a bottleneck").svg();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/qwen3-lora-seq_bn.svg");
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &svg).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == svg,
        "docs/qwen3-lora-seq_bn.svg is not fresh: run the tests with UPDATE_SCHEMAS=1"
    );
}
