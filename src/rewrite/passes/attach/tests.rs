use super::AttachPass;
use super::Shown;
use crate::adapters::{Adapter, Config, Setup};
use crate::infer::Verified;
use crate::rewrite::passes::testing::{DECODER, check_with, refuses_with, sites};

fn adapters(specs: &[(&str, &str)]) -> Vec<Adapter> {
    let fresh = |(name, spec): &(&str, &str)| {
        Adapter::fresh(*name, Config::parse(spec).expect("a configuration"))
    };
    specs.iter().map(fresh).collect()
}

fn attach(specs: &[(&str, &str)]) -> impl FnOnce(&Verified) -> AttachPass {
    let adapters = adapters(specs);
    move |model| AttachPass {
        selection: sites(model),
        setup: Setup::stack(adapters.iter().map(|a| a.name.clone())),
        adapters,
        seed: 7,
        training: false,
        shown: Shown::default(),
        skip_layers: Vec::new(),
        skip_input: false,
        tenants: None,
        exchange: None,
    }
}

#[test]
fn lora_stands_behind_its_linear_and_takes_its_place() {
    check_with(
        DECODER,
        attach(&[("a", "lora[r=1,attn_matrices=[q]]")]),
        r#"
        opset "" 17
        meta "onnx_graft.manifest" = "{\"tool\":\"onnx-graft VERSION\",\"adapters\":[{\"name\":\"a\",\"config\":{\"architecture\":\"lora\",\"selfattn_lora\":true,\"intermediate_lora\":false,\"output_lora\":false,\"leave_out\":[],\"r\":1,\"alpha\":8,\"dropout\":0.0,\"attn_matrices\":[\"q\"],\"composition_mode\":\"add\",\"init_weights\":\"lora\",\"init_weights_seed\":null,\"use_gating\":false,\"use_dora\":false,\"vera_d\":null,\"vera_b\":null,\"dtype\":null},\"config_id\":\"7b680d77be0bf15c\",\"route\":\"plugin\"}]}"
        graph main(%input_ids: i64[batch, seq]) -> (%logits: f32[batch, seq, 8])
          init %table: f32[8, 4] blake3:30d34cc24afbfa52
          init %q.weight: f32[4, 4] blake3:ef7b0a391c31c128
          init %k.weight: f32[4, 4] blake3:ef7b0a391c31c128
          init %v.weight: f32[4, 4] blake3:ef7b0a391c31c128
          init %o.weight: f32[4, 4] blake3:ef7b0a391c31c128
          init %up.weight: f32[4, 6] blake3:ba1ef1c43088d294
          init %down.weight: f32[6, 4] blake3:ba1ef1c43088d294
          init %head.weight: f32[4, 8] blake3:30d34cc24afbfa52
          init %heads: i64[4] = {0, 0, 2, 2}
          init %rows: i64[3] = {0, 0, 4}
          init %places: f32[16, 4] blake3:0f583d9684694fa4
          init %scale: f32[] = 0.5
          init %zero: i64[] = 0
          init %one: i64[] = 1
          init %axis: i64[1] = {0}
          init %model.layers.0.self_attn.q_proj.loras.a.lora_A: f32[1, 4] = {0.20990507, 0.00025095878, -0.20237598, 0.11159862} +onnx_graft.adapter="a" +onnx_graft.param="trainable"
          init %model.layers.0.self_attn.q_proj.loras.a.lora_B: f32[4, 1] = {0.0, 0.0, 0.0, 0.0} +onnx_graft.adapter="a" +onnx_graft.param="trainable"
          init %model.layers.0.self_attn.q_proj.loras.a/const: f32[] = 8.0 +onnx_graft.adapter="a"
          %shape = Shape(%input_ids)  // /model/Shape
          %length = Gather(%shape, %one)  // /model/Gather
          %counted = Range(%zero, %length, %one)  // /model/Range
          %row = Unsqueeze(%counted, %axis)  // /model/Unsqueeze
          %place = Gather(%places, %row)  // /model/embed_positions/Gather
          %token = Gather(%table, %input_ids)  // /model/embed_tokens/Gather
          %x = Add(%token, %place)  // /model/Add
          %q = MatMul(%x, %q.weight)  // /model/layers.0/self_attn/q_proj/MatMul
          %model.layers.0.self_attn.q_proj.loras.a/Transpose_output = Transpose(%model.layers.0.self_attn.q_proj.loras.a.lora_A) {perm = [1, 0]} +onnx_graft.adapter="a"  // model.layers.0.self_attn.q_proj.loras.a/Transpose
          %model.layers.0.self_attn.q_proj.loras.a/MatMul_output = MatMul(%x, %model.layers.0.self_attn.q_proj.loras.a/Transpose_output) +onnx_graft.adapter="a"  // model.layers.0.self_attn.q_proj.loras.a/MatMul
          %model.layers.0.self_attn.q_proj.loras.a/Transpose_1_output = Transpose(%model.layers.0.self_attn.q_proj.loras.a.lora_B) {perm = [1, 0]} +onnx_graft.adapter="a"  // model.layers.0.self_attn.q_proj.loras.a/Transpose_1
          %model.layers.0.self_attn.q_proj.loras.a/MatMul_1_output = MatMul(%model.layers.0.self_attn.q_proj.loras.a/MatMul_output, %model.layers.0.self_attn.q_proj.loras.a/Transpose_1_output) +onnx_graft.adapter="a"  // model.layers.0.self_attn.q_proj.loras.a/MatMul_1
          %model.layers.0.self_attn.q_proj.loras.a/Mul_output = Mul(%model.layers.0.self_attn.q_proj.loras.a/MatMul_1_output, %model.layers.0.self_attn.q_proj.loras.a/const) +onnx_graft.adapter="a"  // model.layers.0.self_attn.q_proj.loras.a/Mul
          %model.layers.0.self_attn.q_proj.loras.a/Add_output = Add(%q, %model.layers.0.self_attn.q_proj.loras.a/Mul_output) +onnx_graft.adapter="a" +onnx_graft.replaces="q" +onnx_graft.place="linear"  // model.layers.0.self_attn.q_proj.loras.a/Add
          %k = MatMul(%x, %k.weight)  // /model/layers.0/self_attn/k_proj/MatMul
          %v = MatMul(%x, %v.weight)  // /model/layers.0/self_attn/v_proj/MatMul
          %q2 = Reshape(%model.layers.0.self_attn.q_proj.loras.a/Add_output, %heads)  // /model/layers.0/self_attn/Reshape
          %q3 = Transpose(%q2) {perm = [0, 2, 1, 3]}  // /model/layers.0/self_attn/Transpose
          %k2 = Reshape(%k, %heads)  // /model/layers.0/self_attn/Reshape_1
          %k3 = Transpose(%k2) {perm = [0, 2, 3, 1]}  // /model/layers.0/self_attn/Transpose_1
          %v2 = Reshape(%v, %heads)  // /model/layers.0/self_attn/Reshape_2
          %v3 = Transpose(%v2) {perm = [0, 2, 1, 3]}  // /model/layers.0/self_attn/Transpose_2
          %scores = MatMul(%q3, %k3)  // /model/layers.0/self_attn/MatMul
          %scaled = Mul(%scores, %scale)  // /model/layers.0/self_attn/Mul
          %weights = Softmax(%scaled) {axis = -1}  // /model/layers.0/self_attn/Softmax
          %mix = MatMul(%weights, %v3)  // /model/layers.0/self_attn/MatMul_1
          %mix2 = Transpose(%mix) {perm = [0, 2, 1, 3]}  // /model/layers.0/self_attn/Transpose_3
          %mix3 = Reshape(%mix2, %rows)  // /model/layers.0/self_attn/Reshape_3
          %o = MatMul(%mix3, %o.weight)  // /model/layers.0/self_attn/o_proj/MatMul
          %between = Add(%x, %o)  // /model/layers.0/Add
          %up = MatMul(%between, %up.weight)  // /model/layers.0/mlp/up_proj/MatMul
          %act = Relu(%up)  // /model/layers.0/mlp/act/Relu
          %down = MatMul(%act, %down.weight)  // /model/layers.0/mlp/down_proj/MatMul
          %after = Add(%between, %down)  // /model/layers.0/Add_1
          %logits = MatMul(%after, %head.weight)  // /lm_head/MatMul
    "#,
    );
}

#[test]
fn the_second_of_a_stack_goes_on_from_the_first() {
    check_with(
        DECODER,
        attach(&[
            ("a", "lora[r=1,attn_matrices=[o]]"),
            ("b", "seq_bn[reduction_factor=2,ln_after=False]"),
        ]),
        r#"
        opset "" 17
        meta "onnx_graft.manifest" = "{\"tool\":\"onnx-graft VERSION\",\"adapters\":[{\"name\":\"a\",\"config\":{\"architecture\":\"lora\",\"selfattn_lora\":true,\"intermediate_lora\":false,\"output_lora\":false,\"leave_out\":[],\"r\":1,\"alpha\":8,\"dropout\":0.0,\"attn_matrices\":[\"o\"],\"composition_mode\":\"add\",\"init_weights\":\"lora\",\"init_weights_seed\":null,\"use_gating\":false,\"use_dora\":false,\"vera_d\":null,\"vera_b\":null,\"dtype\":null},\"config_id\":\"41acdc26e5ffbaea\",\"route\":\"plugin\"},{\"name\":\"b\",\"config\":{\"mh_adapter\":false,\"output_adapter\":true,\"reduction_factor\":2,\"non_linearity\":\"relu\",\"original_ln_before\":true,\"original_ln_after\":true,\"ln_before\":false,\"ln_after\":false,\"init_weights\":\"bert\",\"init_weights_seed\":null,\"is_parallel\":false,\"scaling\":1.0,\"use_gating\":false,\"residual_before_ln\":true,\"adapter_residual_before_ln\":false,\"inv_adapter\":null,\"inv_adapter_reduction_factor\":null,\"cross_adapter\":false,\"leave_out\":[],\"dropout\":0.0,\"stochastic_depth\":0.0,\"phm_layer\":false,\"phm_dim\":4,\"factorized_phm_W\":true,\"shared_W_phm\":false,\"shared_phm_rule\":true,\"factorized_phm_rule\":false,\"phm_c_init\":\"normal\",\"phm_init_range\":0.0001,\"learn_phm\":true,\"hypercomplex_nonlinearity\":\"glorot-uniform\",\"phm_rank\":1,\"phm_bias\":true},\"config_id\":\"e15331acc3f0a5c0\",\"route\":\"plugin\"}]}"
        graph main(%input_ids: i64[batch, seq]) -> (%logits: f32[batch, seq, 8])
          init %table: f32[8, 4] blake3:30d34cc24afbfa52
          init %q.weight: f32[4, 4] blake3:ef7b0a391c31c128
          init %k.weight: f32[4, 4] blake3:ef7b0a391c31c128
          init %v.weight: f32[4, 4] blake3:ef7b0a391c31c128
          init %o.weight: f32[4, 4] blake3:ef7b0a391c31c128
          init %up.weight: f32[4, 6] blake3:ba1ef1c43088d294
          init %down.weight: f32[6, 4] blake3:ba1ef1c43088d294
          init %head.weight: f32[4, 8] blake3:30d34cc24afbfa52
          init %heads: i64[4] = {0, 0, 2, 2}
          init %rows: i64[3] = {0, 0, 4}
          init %places: f32[16, 4] blake3:0f583d9684694fa4
          init %scale: f32[] = 0.5
          init %zero: i64[] = 0
          init %one: i64[] = 1
          init %axis: i64[1] = {0}
          init %model.layers.0.self_attn.o_proj.loras.a.lora_A: f32[1, 4] = {-0.15422162, -0.2410008, -0.15787448, 0.21831973} +onnx_graft.adapter="a" +onnx_graft.param="trainable"
          init %model.layers.0.self_attn.o_proj.loras.a.lora_B: f32[4, 1] = {0.0, 0.0, 0.0, 0.0} +onnx_graft.adapter="a" +onnx_graft.param="trainable"
          init %model.layers.0.self_attn.o_proj.loras.a/const: f32[] = 8.0 +onnx_graft.adapter="a"
          init %model.layers.0.output_adapters.adapters.b.adapter_down.0.weight: f32[2, 4] = {0.017503684, 0.0047252555, -0.0073362985, -0.0018116585, 0.026355205, -0.004467077, 0.0011923264, 0.0080453735} +onnx_graft.adapter="b" +onnx_graft.param="trainable"
          init %model.layers.0.output_adapters.adapters.b.adapter_down.0.bias: f32[2] = {0.0, 0.0} +onnx_graft.adapter="b" +onnx_graft.param="trainable"
          init %model.layers.0.output_adapters.adapters.b.adapter_up.weight: f32[4, 2] = {-0.0038531981, 0.017751636, -0.009990597, 0.005722012, 0.017169066, -0.015139848, 0.010785631, 0.012449265} +onnx_graft.adapter="b" +onnx_graft.param="trainable"
          init %model.layers.0.output_adapters.adapters.b.adapter_up.bias: f32[4] = {0.0, 0.0, 0.0, 0.0} +onnx_graft.adapter="b" +onnx_graft.param="trainable"
          %shape = Shape(%input_ids)  // /model/Shape
          %length = Gather(%shape, %one)  // /model/Gather
          %counted = Range(%zero, %length, %one)  // /model/Range
          %row = Unsqueeze(%counted, %axis)  // /model/Unsqueeze
          %place = Gather(%places, %row)  // /model/embed_positions/Gather
          %token = Gather(%table, %input_ids)  // /model/embed_tokens/Gather
          %x = Add(%token, %place)  // /model/Add
          %q = MatMul(%x, %q.weight)  // /model/layers.0/self_attn/q_proj/MatMul
          %k = MatMul(%x, %k.weight)  // /model/layers.0/self_attn/k_proj/MatMul
          %v = MatMul(%x, %v.weight)  // /model/layers.0/self_attn/v_proj/MatMul
          %q2 = Reshape(%q, %heads)  // /model/layers.0/self_attn/Reshape
          %q3 = Transpose(%q2) {perm = [0, 2, 1, 3]}  // /model/layers.0/self_attn/Transpose
          %k2 = Reshape(%k, %heads)  // /model/layers.0/self_attn/Reshape_1
          %k3 = Transpose(%k2) {perm = [0, 2, 3, 1]}  // /model/layers.0/self_attn/Transpose_1
          %v2 = Reshape(%v, %heads)  // /model/layers.0/self_attn/Reshape_2
          %v3 = Transpose(%v2) {perm = [0, 2, 1, 3]}  // /model/layers.0/self_attn/Transpose_2
          %scores = MatMul(%q3, %k3)  // /model/layers.0/self_attn/MatMul
          %scaled = Mul(%scores, %scale)  // /model/layers.0/self_attn/Mul
          %weights = Softmax(%scaled) {axis = -1}  // /model/layers.0/self_attn/Softmax
          %mix = MatMul(%weights, %v3)  // /model/layers.0/self_attn/MatMul_1
          %mix2 = Transpose(%mix) {perm = [0, 2, 1, 3]}  // /model/layers.0/self_attn/Transpose_3
          %mix3 = Reshape(%mix2, %rows)  // /model/layers.0/self_attn/Reshape_3
          %o = MatMul(%mix3, %o.weight)  // /model/layers.0/self_attn/o_proj/MatMul
          %model.layers.0.self_attn.o_proj.loras.a/Transpose_output = Transpose(%model.layers.0.self_attn.o_proj.loras.a.lora_A) {perm = [1, 0]} +onnx_graft.adapter="a"  // model.layers.0.self_attn.o_proj.loras.a/Transpose
          %model.layers.0.self_attn.o_proj.loras.a/MatMul_output = MatMul(%mix3, %model.layers.0.self_attn.o_proj.loras.a/Transpose_output) +onnx_graft.adapter="a"  // model.layers.0.self_attn.o_proj.loras.a/MatMul
          %model.layers.0.self_attn.o_proj.loras.a/Transpose_1_output = Transpose(%model.layers.0.self_attn.o_proj.loras.a.lora_B) {perm = [1, 0]} +onnx_graft.adapter="a"  // model.layers.0.self_attn.o_proj.loras.a/Transpose_1
          %model.layers.0.self_attn.o_proj.loras.a/MatMul_1_output = MatMul(%model.layers.0.self_attn.o_proj.loras.a/MatMul_output, %model.layers.0.self_attn.o_proj.loras.a/Transpose_1_output) +onnx_graft.adapter="a"  // model.layers.0.self_attn.o_proj.loras.a/MatMul_1
          %model.layers.0.self_attn.o_proj.loras.a/Mul_output = Mul(%model.layers.0.self_attn.o_proj.loras.a/MatMul_1_output, %model.layers.0.self_attn.o_proj.loras.a/const) +onnx_graft.adapter="a"  // model.layers.0.self_attn.o_proj.loras.a/Mul
          %model.layers.0.self_attn.o_proj.loras.a/Add_output = Add(%o, %model.layers.0.self_attn.o_proj.loras.a/Mul_output) +onnx_graft.adapter="a" +onnx_graft.replaces="o" +onnx_graft.place="linear"  // model.layers.0.self_attn.o_proj.loras.a/Add
          %between = Add(%x, %model.layers.0.self_attn.o_proj.loras.a/Add_output)  // /model/layers.0/Add
          %up = MatMul(%between, %up.weight)  // /model/layers.0/mlp/up_proj/MatMul
          %act = Relu(%up)  // /model/layers.0/mlp/act/Relu
          %down = MatMul(%act, %down.weight)  // /model/layers.0/mlp/down_proj/MatMul
          %model.layers.0.output_adapters.adapters.b/Transpose_output = Transpose(%model.layers.0.output_adapters.adapters.b.adapter_down.0.weight) {perm = [1, 0]} +onnx_graft.adapter="b"  // model.layers.0.output_adapters.adapters.b/Transpose
          %model.layers.0.output_adapters.adapters.b/MatMul_output = MatMul(%down, %model.layers.0.output_adapters.adapters.b/Transpose_output) +onnx_graft.adapter="b"  // model.layers.0.output_adapters.adapters.b/MatMul
          %model.layers.0.output_adapters.adapters.b/Add_output = Add(%model.layers.0.output_adapters.adapters.b/MatMul_output, %model.layers.0.output_adapters.adapters.b.adapter_down.0.bias) +onnx_graft.adapter="b"  // model.layers.0.output_adapters.adapters.b/Add
          %model.layers.0.output_adapters.adapters.b/Relu_output = Relu(%model.layers.0.output_adapters.adapters.b/Add_output) +onnx_graft.adapter="b"  // model.layers.0.output_adapters.adapters.b/Relu
          %model.layers.0.output_adapters.adapters.b/Transpose_1_output = Transpose(%model.layers.0.output_adapters.adapters.b.adapter_up.weight) {perm = [1, 0]} +onnx_graft.adapter="b"  // model.layers.0.output_adapters.adapters.b/Transpose_1
          %model.layers.0.output_adapters.adapters.b/MatMul_1_output = MatMul(%model.layers.0.output_adapters.adapters.b/Relu_output, %model.layers.0.output_adapters.adapters.b/Transpose_1_output) +onnx_graft.adapter="b"  // model.layers.0.output_adapters.adapters.b/MatMul_1
          %model.layers.0.output_adapters.adapters.b/Add_1_output = Add(%model.layers.0.output_adapters.adapters.b/MatMul_1_output, %model.layers.0.output_adapters.adapters.b.adapter_up.bias) +onnx_graft.adapter="b"  // model.layers.0.output_adapters.adapters.b/Add_1
          %model.layers.0.output_adapters.adapters.b/Add_2_output = Add(%down, %model.layers.0.output_adapters.adapters.b/Add_1_output) +onnx_graft.adapter="b" +onnx_graft.replaces="down" +onnx_graft.place="sublayer"  // model.layers.0.output_adapters.adapters.b/Add_2
          %after = Add(%between, %model.layers.0.output_adapters.adapters.b/Add_2_output)  // /model/layers.0/Add_1
          %logits = MatMul(%after, %head.weight)  // /lm_head/MatMul
    "#,
    );
}

#[test]
fn a_name_is_given_once() {
    refuses_with(
        DECODER,
        attach(&[("a", "lora[r=1]"), ("a", "lora[r=2]")]),
        "
        error[adapter-twice]: two adapters are called `a`
          in pass attach
          help: give one of them another name: `NAME=SPEC`
    ",
    );
}
