//! Programs and bytes of strangers: templates, tokenizers, graphs in another engine. They end with an error, within their limits.

use super::support::fixture;
use onnx_graft::Result;
use onnx_graft::text::{Template, Tokenizer};
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

fn render(source: &str) -> Result<String> {
    Template::new(source)?.render(&json!({ "question": "a b" }))
}

/// Its error, which has to be there in less time than a template may take.
fn refused(source: &str) -> String {
    let began = Instant::now();
    let e = render(source).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(9), "{source}");
    assert!(e.findings()[0].code.starts_with("template"), "{e}");
    e.to_string()
}

#[test]
fn lists_and_texts_that_double_end() {
    for double in [
        "{% set ns.x = ns.x + ns.x %}",
        "{% set ns.x = ns.x ~ ns.x %}",
    ] {
        let source = format!(
            "{{% set ns = namespace(x=[1]) %}}{{% for i in range(60) %}}{double}{{% endfor %}}{{{{ ns.x|length }}}}"
        );
        assert!(refused(&source).contains("stopped"), "{double}");
    }
    // No loop, no namespace.
    let names: Vec<String> = (0..60)
        .map(|i| format!("{{% set x{} = x{i} + x{i} %}}", i + 1))
        .collect();
    let source = format!("{{% set x0 = [1] %}}{}{{{{ x60|length }}}}", names.concat());
    assert!(refused(&source).contains("stopped"));
}

#[test]
fn small_values_that_are_large_as_text_end() {
    for print in [
        "{{ ns.x }}",
        "{{ ns.x|tojson }}",
        "{{ {'a': ns.x}|tojson(indent=2) }}",
        "{{ ns.x|urlencode }}",
    ] {
        let source = format!(
            "{{% set ns = namespace(x=['a']) %}}{{% for i in range(60) %}}{{% set ns.x = [ns.x, ns.x] %}}{{% endfor %}}{print}"
        );
        refused(&source);
    }
}

#[test]
fn deep_values_fill_no_stack() {
    let deep = "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% for j in range(100) %}{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}";
    refused(deep);
    for n in [1000, 50_000] {
        let some = format!(
            "{{% set ns = namespace(x=[1]) %}}{{% for i in range({n}) %}}{{% set ns.x = [ns.x] %}}{{% endfor %}}"
        );
        for print in ["{{ ns.x }}", "{{ ns.x|tojson }}"] {
            assert!(
                refused(&format!("{some}{print}")).contains("nested"),
                "{n} {print}"
            );
        }
        // What the engine does on its own.
        let _ = render(&format!(
            "{some}{{{{ ns.x == ns.x }}}}{{{{ (ns.x|string)[:9] }}}}"
        ));
    }
}

#[test]
fn sources_of_any_nesting_fill_no_stack() {
    let many = |n: usize| {
        [
            format!("{{{{ {}1 }}}}", "not ".repeat(n)),
            format!("{{{{ {}1 }}}}", "-".repeat(n)),
            format!("{{{{ 1{} }}}}", "+1".repeat(n)),
            format!("{{{{ a{} }}}}", ".b".repeat(n)),
            format!("{{{{ question{} }}}}", "|upper".repeat(n)),
            format!("{{{{ {}1{} }}}}", "(".repeat(n), ")".repeat(n)),
            format!("{{{{ {}{} }}}}", "[".repeat(n), "]".repeat(n)),
            format!("{}{}", "{% if 1 %}".repeat(n), "{% endif %}".repeat(n)),
            format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(n)),
            format!("{{{{ question{} }}}}", "[0]".repeat(n)),
        ]
    };
    for source in many(20_000).iter().chain(&many(120_000)) {
        // Some are templates, and what they say of a row is their own matter.
        let _ = render(source);
    }
}

#[test]
fn sources_outputs_and_widths_have_limits() {
    assert!(refused(&"x".repeat(300_000)).contains("262144"));
    for source in [
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ '{:.10000000000f}'.format(1.5) }}",
        "{{ '{:099999999999999999999999d}'.format(1) }}",
        "{{ question.replace('', 'x' * 100000) * 10000 }}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{{ [[question] * 1000]|tojson(indent='x' * 1000000) }}",
    ] {
        refused(source);
    }
    assert_eq!(render("{{ '{:>5}'.format(1) }}").unwrap(), "    1");
}

#[test]
fn a_template_that_was_stopped_is_at_fault_itself() {
    let template =
        Template::new("{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}").unwrap();
    assert!(template.render(&json!({})).is_err());
    assert_eq!(template.fault().unwrap().code, "template-limit");
}

/// The error of a tokenizer whose file was changed.
fn opened(change: impl FnOnce(&mut Value)) -> Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(fixture("skill/tokenizer.json")).unwrap();
    let mut file: Value = serde_json::from_str(&text).unwrap();
    change(&mut file);
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, file.to_string()).unwrap();
    Tokenizer::open(&path)
}

#[test]
fn damaged_tokenizers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(fixture("skill/tokenizer.json")).unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut broken = 0;
    for (key, value) in [
        ("decoder", "\"\\ud800\""),
        ("normalizer", "\"\\ud800\""),
        ("pre_tokenizer", "{\"type\": \"\\ud800\"}"),
        ("post_processor", "\"\\udfff\""),
    ] {
        let file: Value = serde_json::from_str(&text).unwrap();
        let old = format!("\"{key}\":{}", file[key]);
        let whole = file.to_string();
        assert!(whole.contains(&old), "{key}");
        fs::write(&path, whole.replace(&old, &format!("\"{key}\":{value}"))).unwrap();
        let e = Tokenizer::open(&path).unwrap_err();
        assert_eq!(e.findings()[0].code, "tokenizer", "{e}");
        broken += 1;
    }
    assert_eq!(broken, 4);
}

#[test]
fn tokenizers_do_not_make_a_text_endless() {
    let step = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let tokenizer = opened(|file| {
        file["normalizer"] = json!({"type": "Sequence", "normalizers": vec![step.clone(); 50]});
        file["decoder"] = json!({"type": "Sequence", "decoders": vec![step; 50]});
    });
    let tokenizer = tokenizer.unwrap();
    let said = |e: onnx_graft::Error| e.to_string();
    assert!(said(tokenizer.encode("a", false).unwrap_err()).contains("1 MiB"));
    assert!(said(tokenizer.tokens("a", Some("b"), false).unwrap_err()).contains("1 MiB"));
    assert!(said(tokenizer.words(&["a".to_owned()], false).unwrap_err()).contains("1 MiB"));
    assert!(said(tokenizer.decode(&[5, 6], false).unwrap_err()).contains("64 MiB"));
    assert!(!tokenizer.encode("1", false).unwrap().is_empty());
}

#[cfg(feature = "tract")]
#[test]
fn tract_is_stopped() {
    use onnx_graft::Verified;
    use onnx_graft::fence::Limits;
    use onnx_graft::ir::text;
    use onnx_graft::onnx::{self, SaveOptions};
    use onnx_graft::runtime::{Feeds, Value as Tensor, tract};
    let mut source = String::from(
        "graph-text 1\nir_version 10\nopset \"\" 20\ngraph g(%x: f32[n, m]) -> (%y: f32[..])\n  init %zero: i64[] = 0\n  init %zero1: i64[1] = {0}\n  %s = Shape(%x)\n  %n0 = Gather(%s, %zero) {axis = 0}\n",
    );
    for i in 0..60 {
        source += &format!("  %n{} = Mul(%n{i}, %n{i})\n", i + 1);
    }
    source += "  %u = Unsqueeze(%n60, %zero1)\n  %y = ConstantOfShape(%u)\n";
    let model = Verified::check(text::parse(&source).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    onnx::save(&model, &path, SaveOptions::default()).unwrap();
    let mut feeds = Feeds::new();
    feeds.insert("x", Tensor::from_f32(&[1, 1], vec![1.0]).unwrap());
    let limits = Limits {
        time: Duration::from_millis(500),
        bytes: 256 << 20,
    };
    let e = tract::run_within(&model, &path, &feeds, limits).unwrap_err();
    assert!(e.to_string().contains("was stopped"), "{e}");
}
