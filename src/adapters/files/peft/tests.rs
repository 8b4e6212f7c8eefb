use super::*;

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
    let back = from_peft(&peft, "a", &interface).unwrap();
    assert_eq!(back.weights.tensors[&*a].dims.as_ref(), [6, 2]);
    assert_eq!(back.weights.tensors[&*b].to_f32().unwrap(), full);
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
    let interface = Interface::builtin("qwen3").unwrap().unwrap();
    let mut peft = to_peft(&folder(
        "qwen3",
        "ia3",
        &[(
            "model.layers.1.mlp.up_proj.loras.a.lora_B",
            [3, 1],
            &[1.0, 2.0, 3.0],
        )],
    ))
    .unwrap();
    assert_eq!(
        from_peft(&peft, "a", &interface).unwrap().config.to_dict()["leave_out"],
        json!([0])
    );
    let input = TensorData::from_f32([1, 3], &[1.0; 3]);
    peft.tensors.insert(
        "base_model.model.model.layers.1.mlp.down_proj.ia3_l".into(),
        input,
    );
    assert!(
        from_peft(&peft, "a", &interface)
            .unwrap_err()
            .to_string()
            .contains("at its input")
    );
    peft.tensors.insert(
        "base_model.model.lm_head.ia3_l".into(),
        TensorData::from_f32([3, 1], &[1.0; 3]),
    );
    assert!(
        from_peft(&peft, "a", &interface)
            .unwrap_err()
            .to_string()
            .contains("`lm_head`")
    );
    peft.config
        .insert("modules_to_save".into(), json!(["score"]));
    assert!(
        from_peft(&peft, "a", &interface)
            .unwrap_err()
            .to_string()
            .contains("modules_to_save")
    );
}
