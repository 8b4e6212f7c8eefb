//! New LoRA adapters of several: PEFT's `add_weighted_adapter`, against what PEFT computes (`fixtures/weighted`), and by laws where it draws.

use super::support::fixture;
use onnx_graft::adapters::folder::read_safetensors;
use onnx_graft::adapters::spec::read_folder;
use onnx_graft::adapters::{AdapterFolder, Weighting, weighted};
use std::collections::BTreeMap;
use std::fs;

fn folders(names: &[&str]) -> Vec<AdapterFolder> {
    let read = |n: &&str| read_folder(&fixture("weighted").join(n)).unwrap();
    names.iter().map(read).collect()
}

fn how(combination: &str) -> Weighting {
    Weighting {
        combination: combination.to_owned(),
        weights: None,
        density: None,
        by_frequency: false,
        svd_rank: None,
        seed: 1,
    }
}

/// `B·A` of every module.
fn products(folder: &AdapterFolder) -> BTreeMap<String, Vec<f32>> {
    let tensors = folder.tensors();
    let mut out = BTreeMap::new();
    for (key, a) in tensors {
        let Some(module) = key.strip_suffix(".lora_A") else {
            continue;
        };
        let b = &tensors[&*format!("{module}.lora_B")];
        let (a_values, b_values) = (a.to_f32().unwrap(), b.to_f32().unwrap());
        let [rows, r, columns] = [b.dims[0], b.dims[1], a.dims[1]].map(|n| n as usize);
        let product = (0..rows * columns).map(|i| {
            let (row, column) = (i / columns, i % columns);
            (0..r)
                .map(|k| b_values[row * r + k] * a_values[k * columns + column])
                .sum()
        });
        let path = module.split(".loras.").next().unwrap();
        out.insert(path.to_owned(), product.collect());
    }
    out
}

#[test]
fn combinations_are_those_of_peft() {
    type Case<'c> = (
        &'c str,
        &'c str,
        &'c [&'c str],
        &'c [f64],
        Option<f64>,
        Option<usize>,
    );
    let cases: [Case<'_>; 8] = [
        ("linear", "linear", &["a", "b"], &[0.7, -0.4], None, None),
        (
            "cat",
            "cat",
            &["a", "b", "c"],
            &[0.7, -0.4, 1.5],
            None,
            None,
        ),
        ("svd", "svd", &["a", "b"], &[0.7, -0.4], None, Some(3)),
        ("ties", "ties", &["a", "b"], &[0.7, 0.9], Some(0.5), None),
        (
            "ties_frequency",
            "ties",
            &["a", "b"],
            &[0.7, 0.9],
            Some(0.6),
            None,
        ),
        (
            "ties_svd",
            "ties_svd",
            &["a", "c"],
            &[0.7, 0.9],
            Some(0.5),
            Some(2),
        ),
        (
            "magnitude_prune",
            "magnitude_prune",
            &["a", "b"],
            &[0.7, -0.4],
            Some(0.5),
            None,
        ),
        (
            "magnitude_prune_svd",
            "magnitude_prune_svd",
            &["a", "c"],
            &[1.0, 0.5],
            Some(0.4),
            Some(3),
        ),
    ];
    for (case, combination, names, weights, density, svd_rank) in cases {
        let how = Weighting {
            weights: Some(weights.to_vec()),
            density,
            svd_rank,
            by_frequency: case == "ties_frequency",
            ..how(combination)
        };
        let made = weighted("new", &folders(names), &how).unwrap();
        let found = products(&made);
        let bytes = fs::read(fixture("weighted").join(format!("{case}.safetensors"))).unwrap();
        let want = read_safetensors(&bytes.into()).unwrap();
        assert_eq!(found.len(), want.len(), "{case}");
        for (path, want) in want {
            let (found, want) = (&found[&*path], want.to_f32().unwrap());
            let off = found
                .iter()
                .zip(&want)
                .map(|(f, w)| (f - w).abs())
                .fold(0.0, f32::max);
            // PEFT sums in f32.
            assert!(off < 2e-5, "{case}, {path}: off by {off}");
        }
        let dict = made.config.to_dict();
        assert_eq!(dict["r"], dict["alpha"], "{case}: the scale is 1");
        assert!(
            !dict.as_object().unwrap().contains_key("use_rslora"),
            "{case}"
        );
    }
}

#[test]
fn random_pruning_keeps_its_share_and_is_the_same_again() {
    let adapters = folders(&["a", "b"]);
    let draw = |seed: u64, density: f64| {
        let how = Weighting {
            density: Some(density),
            seed,
            ..how("dare_linear")
        };
        weighted("new", &adapters, &how).unwrap()
    };
    assert_eq!(draw(1, 0.5), draw(1, 0.5));
    assert_ne!(draw(1, 0.5), draw(2, 0.5));
    let all = weighted("new", &adapters, &how("linear")).unwrap();
    assert_eq!(products(&draw(3, 1.0)), products(&all));
}

#[test]
fn what_cannot_be_combined_is_refused() {
    let error = |names: &[&str], how: &Weighting| {
        weighted("new", &folders(names), how)
            .unwrap_err()
            .to_string()
    };
    for (names, how, want) in [
        (&["a", "b"][..], how("tie"), "the nearest one is `ties`"),
        (&["a", "b"], how("ties"), "needs a --density"),
        (&["a", "c"], how("linear"), "different ranks"),
        (
            &["a", "b"],
            Weighting {
                density: Some(1.5),
                ..how("ties")
            },
            "--density is 1.5",
        ),
        (
            &["a", "b"],
            Weighting {
                svd_rank: Some(9),
                ..how("svd")
            },
            "at most 4",
        ),
        (
            &["a", "b"],
            Weighting {
                weights: Some(vec![1.0]),
                ..how("cat")
            },
            "1 weights for 2 adapters",
        ),
    ] {
        let found = error(names, &how);
        assert!(found.contains(want), "{found}");
    }
    let bottleneck = AdapterFolder::read(&fixture("qwen3/plugin/stack/adapter_a")).unwrap();
    let found = weighted("new", &[bottleneck], &how("cat"))
        .unwrap_err()
        .to_string();
    assert!(
        found.contains("only LoRA adapters are combined so"),
        "{found}"
    );
}
