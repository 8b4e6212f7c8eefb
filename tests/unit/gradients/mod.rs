//! Every gradient rule against finite differences.
//!
//! A case is one operator in one form. An operator that has a rule or a definition and no case fails the test, so that no rule goes
//! untested. Each case runs with known sizes and, where its rule allows, with unknown ones.

mod cases;
mod harness;
mod models;
mod passes;
mod straight;

use harness::{Case, check};
use onnx_graft::ops::{Gradient, operators};
use std::collections::BTreeSet;

/// Operators that take the scale of their codes from the input itself, so that differences do not see steps: `straight` has their tests.
const OWN_SCALE: [(&str, &str); 2] = [
    ("", "DynamicQuantizeLinear"),
    ("com.microsoft", "DynamicQuantizeMatMul"),
];

fn label(case: &Case) -> String {
    let attrs: Vec<String> = case
        .attrs
        .iter()
        .map(|(k, v)| format!("{k} = {:?}", v.value))
        .collect();
    format!(
        "{}::{} at {} {}",
        case.domain,
        case.op,
        case.opset,
        attrs.join(", ")
    )
}

#[test]
fn rules_agree_with_differences() {
    let only = std::env::var("ONLY").ok();
    let mut wrong = Vec::new();
    for case in cases::all() {
        if only.as_deref().is_some_and(|o| o != case.op) {
            continue;
        }
        for known in [true, false] {
            if (known || case.dynamic)
                && let Err(e) = check(&case, known)
            {
                let sizes = if known { "known" } else { "unknown" };
                wrong.push(format!("{}, {sizes} sizes: {e}", label(&case)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn every_rule_has_a_case() {
    let tested: BTreeSet<(&str, &str)> = cases::all().iter().map(|c| (c.domain, c.op)).collect();
    let untested: Vec<String> = operators()
        .filter(|d| matches!(d.gradient, Gradient::Rule(_) | Gradient::Expand(_)))
        .filter(|d| !tested.contains(&(d.domain, d.name)))
        .filter(|d| !OWN_SCALE.contains(&(d.domain, d.name)))
        .map(|d| format!("{}::{}", d.domain, d.name))
        .collect();
    assert!(
        untested.is_empty(),
        "rules without a case: {}",
        untested.join(", ")
    );
}
