//! `adapter eject` as a user runs it.

use super::desk::{Desk, stderr};
use onnx_graft::adapters::AdapterFolder;

#[test]
fn ejects_prefixes_and_nothing_else() {
    let desk = Desk::with("qwen3/model.onnx");
    for adapter in [
        "made=prefix_tuning[prefix_length=2, bottleneck_size=4]",
        "lora=lora",
    ] {
        desk.ok(&["-i", "interface.json", "-a", adapter, "model.onnx"]);
    }
    let eject = |from: &str, more: &[&str]| {
        let args = ["adapter", "eject", from, "-o", "flat"];
        let out = desk.command(&[&args[..], more].concat());
        (out.status.code(), stderr(&out))
    };
    let (code, error) = eject("lora", &[]);
    assert!(
        code == Some(1) && error.contains("has no prefix tuning"),
        "{error}"
    );
    assert!(!desk.path("flat").exists());
    assert_eq!(eject("made", &[]).0, Some(0));
    let flat = AdapterFolder::read(&desk.path("flat")).unwrap();
    assert!(flat.tensors().keys().all(|k| k.ends_with(".control_trans")));
    let (code, error) = eject("made", &[]);
    assert!(code == Some(1) && error.contains("--force"), "{error}");
    assert_eq!(eject("made", &["--force"]).0, Some(0));
}
