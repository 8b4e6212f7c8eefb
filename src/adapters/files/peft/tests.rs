use super::*;
use crate::adapters::folder::Meta;
use crate::adapters::methods::MethodConfig;
use crate::adapters::store::Weights;
use crate::adapters::{AdapterFolder, Config};
use crate::select::Interface;
use serde_json::json;

fn folder(model_type: &str, config: &str, tensors: &[(&str, [u64; 2], &[f32])]) -> AdapterFolder {
    let tensors = tensors
        .iter()
        .map(|(k, dims, v)| ((*k).into(), TensorData::from_f32(*dims, v)));
    AdapterFolder {
        name: "a".into(),
        config: Config::parse(config).unwrap(),
        meta: Meta {
            model_type: model_type.into(),
            hidden_size: Some(2),
            ..Meta::default()
        },
        weights: Weights::new("a", tensors),
        interface: None,
        notes: Vec::new(),
    }
}

/// q and v of a fused projection of width 2: two blocks of the library's become one block-diagonal factor.
#[test]
fn a_fused_projection_becomes_one_factor() {
    let key = "transformer.h.0.attn.c_attn.loras.a.";
    let (a, b) = (format!("{key}lora_A"), format!("{key}lora_B"));
    let made = folder(
        "gpt2",
        "lora[r=1,alpha=3]",
        &[
            (&a, [2, 2], &[1.0, 2.0, 3.0, 4.0]),
            (&b, [4, 1], &[5.0, 6.0, 7.0, 8.0]),
        ],
    );
    let peft = to_peft(&made).unwrap();
    let key = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight";
    let full = peft.tensors[key].to_f32().unwrap();
    assert_eq!(
        full,
        [5.0, 0.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 7.0, 0.0, 8.0]
    );
    assert_eq!(
        (&peft.config["r"], &peft.config["lora_alpha"]),
        (&json!(2), &json!(6))
    );
    let interface = Interface::builtin("gpt2").unwrap().unwrap();
    let back = from_peft(&peft, "a", Some(&interface)).unwrap();
    assert_eq!(back.weights.tensors[&*a].dims.as_ref(), [6, 2]);
    assert_eq!(back.weights.tensors[&*b].to_f32().unwrap(), full);
    assert_eq!(to_peft(&back).unwrap().tensors, peft.tensors, "bit by bit");
}

#[test]
fn what_the_other_format_cannot_say_is_refused() {
    let refused = |config: &str| {
        to_peft(&folder("qwen3", config, &[]))
            .unwrap_err()
            .to_string()
    };
    assert!(refused("dora").contains("norm"));
    assert!(refused("lora[use_gating=True]").contains("gated"));
    assert!(refused("seq_bn").contains("bottleneck"));
}

fn peft(config: Value, tensors: &[(&str, &[u64])]) -> PeftFolder {
    let ones = |dims: &[u64]| {
        TensorData::from_f32(dims, &vec![1.0; dims.iter().product::<u64>() as usize])
    };
    let Value::Object(config) = config else {
        unreachable!()
    };
    let tensors = tensors.iter();
    PeftFolder {
        config,
        tensors: tensors
            .map(|(k, d)| (format!("base_model.{k}").into(), ones(d)))
            .collect(),
    }
}

/// What flags can say is said by flags, for the Adapters library; the rest keeps PEFT's own choice. Both ways lead back to the same
/// tensors.
#[test]
fn a_folder_becomes_flags_or_keeps_its_names() {
    const Q: &str = "model.model.layers.0.self_attn.q_proj";
    const GATE: &str = "model.model.layers.0.mlp.gate_proj";
    let lora = |module: &str, more: Value| {
        let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "gate_proj"]});
        config
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let (a, b) = (
            format!("{module}.lora_A.weight"),
            format!("{module}.lora_B.weight"),
        );
        peft(config, &[(&a, &[2, 3]), (&b, &[4, 2])])
    };
    let ia3 = json!({"peft_type": "IA3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]});
    let vera =
        json!({"peft_type": "VERA", "r": 2, "target_modules": ["q_proj"], "save_projection": true});
    let interface = Interface::builtin("llama").unwrap().unwrap();
    for (name, read, by_flags) in [
        ("q", lora(Q, json!({})), true),
        ("gate", lora(GATE, json!({})), false),
        (
            "layers",
            lora(Q, json!({"layers_to_transform": [0]})),
            false,
        ),
        (
            "ranks",
            lora(Q, json!({"rank_pattern": {"q_proj": 2}})),
            false,
        ),
        (
            "regex",
            lora(Q, json!({"target_modules": ".*q_proj"})),
            false,
        ),
        (
            "ia3 inside",
            peft(
                ia3.clone(),
                &[("model.model.layers.0.mlp.down_proj.ia3_l", &[1, 3])],
            ),
            false,
        ),
        (
            "ia3",
            peft(
                ia3,
                &[("model.model.layers.0.self_attn.k_proj.ia3_l", &[3, 1])],
            ),
            true,
        ),
        (
            "vera",
            peft(
                vera,
                &[
                    ("vera_A", &[2, 3]),
                    ("vera_B", &[4, 2]),
                    (&format!("{Q}.vera_lambda_b"), &[4]),
                    (&format!("{Q}.vera_lambda_d"), &[2]),
                ],
            ),
            false,
        ),
        (
            "saved",
            {
                let mut with = lora(Q, json!({"modules_to_save": ["lm_head"]}));
                with.tensors.insert(
                    "base_model.model.lm_head.weight".into(),
                    TensorData::from_f32([1, 1], &[1.0]),
                );
                with
            },
            false,
        ),
    ] {
        let got = from_peft(&read, "a", Some(&interface)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let Some(MethodConfig::Lora(config)) = got.config.only() else {
            unreachable!()
        };
        assert_eq!(!config.targets.is_some(), by_flags, "{name}");
        assert_eq!(got.notes.is_empty(), by_flags, "{name}");
        let back = to_peft(&got).unwrap();
        let sorted = |t: &IndexMap<Box<str>, TensorData>| {
            let mut t = t.clone();
            t.sort_unstable_keys();
            t
        };
        assert_eq!(sorted(&back.tensors), sorted(&read.tensors), "{name}");
        assert_eq!(back.config["peft_type"], read.config["peft_type"], "{name}");
    }
}

/// Fields are an allow-list: what is not understood is refused by its name.
#[test]
fn fields_and_values_that_are_not_understood_are_refused() {
    let with = |more: Value| {
        let mut config = json!({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "a_field_of_the_future": null});
        config
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let q = "model.model.layers.0.self_attn.q_proj";
        let (a, b) = (format!("{q}.lora_A.weight"), format!("{q}.lora_B.weight"));
        from_peft(&peft(config, &[(&a, &[2, 3]), (&b, &[4, 2])]), "a", None)
    };
    assert!(with(json!({"init_lora_weights": "gaussian", "loftq_config": {}})).is_ok());
    for (more, want) in [
        (
            json!({"init_lora_weights": "pissa"}),
            "`init_lora_weights` is \"pissa\"",
        ),
        (
            json!({"init_lora_weights": "pissa_niter_4"}),
            "`init_lora_weights`",
        ),
        (json!({"init_lora_weights": "olora"}), "`init_lora_weights`"),
        (json!({"init_lora_weights": "corda"}), "`init_lora_weights`"),
        (json!({"init_lora_weights": "loftq"}), "`init_lora_weights`"),
        (json!({"use_qalora": true}), "`use_qalora` is true"),
        (
            json!({"a_field_of_the_future": 3}),
            "`a_field_of_the_future` is 3",
        ),
        (json!({"r": "8"}), "`r` is \"8\", expected a whole number"),
        (json!({"r": 0}), "`r` is 0"),
        (json!({"use_rslora": "yes"}), "`use_rslora`"),
        (json!({"rank_pattern": {"q_proj": "4"}}), "`rank_pattern`"),
        (json!({"bias": "some"}), "expected none, all, lora_only"),
        (json!({"target_modules": 3}), "`target_modules`"),
        (json!({"target_modules": "("}), "no regular expression"),
        (
            json!({"target_parameters": ["experts"]}),
            "`target_parameters`",
        ),
        (json!({"peft_type": "LOHA"}), "`peft_type` is `LOHA`"),
    ] {
        let found = with(more.clone())
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        assert!(found.contains(want), "{more}: {found}");
    }
}
