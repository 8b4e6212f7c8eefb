//! The recipes of `examples/`: what they say is learned is learned.

use super::support::fixture;
use onnx_graft::adapters::AdapterFolder;
use std::path::Path;

#[path = "../../examples/fusion.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "an example is a program of its own"
)]
mod fusion;
#[path = "../../examples/languages.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "an example is a program of its own"
)]
mod languages;

#[test]
fn a_fusion_is_better_at_both_than_each_of_its_adapters() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second, fused] = fusion::run(&fixture(""), dir.path()).unwrap();
    assert!(
        fused < 0.8 * first.min(second),
        "{first}, {second} and {fused}"
    );
    let same = |name: &str, made: &str| {
        let read = |at: &Path| AdapterFolder::read(at).unwrap();
        let (alone, mixed) = (
            read(&dir.path().join(made).join(name)),
            read(&dir.path().join("fusion").join(name)),
        );
        assert_eq!(alone.tensors(), mixed.tensors(), "{name}");
    };
    same("rising", "first");
    same("falling", "second");
}

#[test]
fn a_task_survives_another_language() {
    let dir = tempfile::tempdir().unwrap();
    let learned = languages::run(&fixture(""), dir.path()).unwrap();
    assert!(learned.after < 0.5 * learned.before, "{learned:?}");
    assert!(
        learned.other_after < 0.8 * learned.other_before,
        "{learned:?}"
    );
    let read = |at: &str| AdapterFolder::read(&dir.path().join(at)).unwrap();
    let (before, after) = (read("north/north"), read("task/language"));
    assert!(
        before
            .tensors()
            .keys()
            .any(|k| k.contains("invertible_adapters"))
    );
    let bytes = |f: &AdapterFolder| -> Vec<_> { f.tensors().values().cloned().collect() };
    assert_eq!(bytes(&before), bytes(&after));
}
