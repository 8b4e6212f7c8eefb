"""Architectures for the reach matrix: tiny configs, inputs, and the module names an adapter interface should have.

Every entry: config class + arguments, model class, main output, loss, inputs, `truth` (interface fields as the HF modules are called;
a function of the major version of transformers where the names differ), `builtin` (name of the built-in interface, or None), `vers`.

For onnxruntime-genai's builder set REACH_V=71, because it takes any linear as wide as the vocabulary for the head, and REACH_HEADS=2,
because onnxruntime's kernel wants heads of a multiple of 16.
"""
import os

import torch

NH = int(os.environ.get("REACH_HEADS", 4))
H, L, V, KV, I, S, B = 32, 2, int(os.environ.get("REACH_V", 64)), NH // 2, 48, 8, 3


def _iface(**kw):
    d = dict(adapter_methods=["bottleneck", "lora", "reft", "invertible"],
             model_embeddings="embed_tokens", model_layers="layers", layer_self_attn="self_attn", layer_cross_attn=None,
             attn_q_proj="q_proj", attn_k_proj="k_proj", attn_v_proj="v_proj", attn_o_proj="o_proj", attn_qkv_proj=None,
             layer_intermediate_proj="mlp.up_proj", layer_output_proj="mlp.down_proj",
             layer_pre_self_attn="input_layernorm", layer_pre_cross_attn=None, layer_pre_ffn="post_attention_layernorm",
             layer_ln_1=None, layer_ln_2=None, base_model=None)
    d.update(kw)
    return d


FUSED = dict(attn_q_proj=None, attn_k_proj=None, attn_v_proj=None)
LLAMA = _iface()
GEMMA2 = _iface(layer_pre_ffn="pre_feedforward_layernorm", layer_ln_1="post_attention_layernorm", layer_ln_2="post_feedforward_layernorm")
NEOX = _iface(model_embeddings="embed_in", layer_self_attn="attention", **FUSED, attn_qkv_proj="query_key_value", attn_o_proj="dense",
              layer_intermediate_proj="mlp.dense_h_to_4h", layer_output_proj="mlp.dense_4h_to_h")
GPT2 = _iface(model_embeddings="wte", model_layers="h", layer_self_attn="attn", **FUSED, attn_qkv_proj="c_attn", attn_o_proj="c_proj",
              layer_intermediate_proj="mlp.c_fc", layer_output_proj="mlp.c_proj", layer_pre_self_attn="ln_1", layer_pre_ffn="ln_2")
FAIRSEQ_PRE = _iface(model_embeddings="decoder.embed_tokens", model_layers="decoder.layers", attn_o_proj="out_proj",
                     layer_intermediate_proj="fc1", layer_output_proj="fc2", layer_pre_self_attn="self_attn_layer_norm",
                     layer_pre_ffn="final_layer_norm")
BERT = _iface(model_embeddings="embeddings", model_layers="encoder.layer", layer_self_attn="attention",
              attn_q_proj="self.query", attn_k_proj="self.key", attn_v_proj="self.value", attn_o_proj="output.dense",
              layer_intermediate_proj="intermediate.dense", layer_output_proj="output.dense",
              layer_pre_self_attn="attention.self", layer_pre_ffn="intermediate",
              layer_ln_1="attention.output.LayerNorm", layer_ln_2="output.LayerNorm")
VIT4 = _iface(model_embeddings="embeddings", model_layers="encoder.layer", layer_self_attn="attention",
              attn_q_proj="attention.query", attn_k_proj="attention.key", attn_v_proj="attention.value", attn_o_proj="output.dense",
              layer_intermediate_proj="intermediate.dense", layer_output_proj="output.dense",
              layer_pre_self_attn="layernorm_before", layer_pre_ffn="layernorm_after")
VIT5 = _iface(model_embeddings="embeddings", model_layers="layers", layer_self_attn="attention", layer_intermediate_proj="mlp.fc1",
              layer_output_proj="mlp.fc2", layer_pre_self_attn="layernorm_before", layer_pre_ffn="layernorm_after")
DINO = _iface(model_embeddings="embeddings", model_layers="encoder.layer", layer_self_attn="attention",
              attn_q_proj="attention.query", attn_k_proj="attention.key", attn_v_proj="attention.value", attn_o_proj="output.dense",
              layer_intermediate_proj="mlp.fc1", layer_output_proj="mlp.fc2", layer_pre_self_attn="norm1", layer_pre_ffn="norm2")
CLIP = _iface(attn_o_proj="out_proj", layer_intermediate_proj="mlp.fc1", layer_output_proj="mlp.fc2",
              layer_pre_self_attn="layer_norm1", layer_pre_ffn="layer_norm2")
W2V = _iface(model_embeddings="feature_projection", model_layers="encoder.layers", layer_self_attn="attention", attn_o_proj="out_proj",
             layer_intermediate_proj="feed_forward.intermediate_dense", layer_output_proj="feed_forward.output_dense",
             layer_pre_self_attn="attention", layer_pre_ffn="feed_forward", layer_ln_1="layer_norm", layer_ln_2="final_layer_norm")


def seq2seq(enc, dec, **kw):
    """Two stacks: a field that differs is a list, encoder first."""
    d = {}
    for k in enc:
        d[k] = enc[k] if enc[k] == dec[k] and k != "model_layers" or k == "adapter_methods" else [enc[k], dec[k]]
    d.update(kw)
    return d


T5 = seq2seq(
    _iface(model_embeddings="shared", model_layers="encoder.block", layer_self_attn="layer.0.SelfAttention", attn_q_proj="q", attn_k_proj="k",
           attn_v_proj="v", attn_o_proj="o", layer_intermediate_proj="layer.1.DenseReluDense.wi",
           layer_output_proj="layer.1.DenseReluDense.wo", layer_pre_self_attn="layer.0.layer_norm", layer_pre_ffn="layer.1.layer_norm"),
    _iface(model_embeddings="shared", model_layers="decoder.block", layer_self_attn="layer.0.SelfAttention",
           layer_cross_attn="layer.1.EncDecAttention", attn_q_proj="q", attn_k_proj="k", attn_v_proj="v", attn_o_proj="o",
           layer_intermediate_proj="layer.2.DenseReluDense.wi", layer_output_proj="layer.2.DenseReluDense.wo",
           layer_pre_self_attn="layer.0.layer_norm", layer_pre_cross_attn="layer.1.layer_norm", layer_pre_ffn="layer.2.layer_norm"))
T5_GATED = {k: ([x.replace(".wi", ".wi_1") for x in v] if k == "layer_intermediate_proj" else v) for k, v in T5.items()}


def _fairseq(post):
    kw = dict(attn_o_proj="out_proj", layer_intermediate_proj="fc1", layer_output_proj="fc2")
    if post:
        kw.update(layer_pre_self_attn="self_attn", layer_pre_ffn="fc1", layer_ln_1="self_attn_layer_norm", layer_ln_2="final_layer_norm")
    else:
        kw.update(layer_pre_self_attn="self_attn_layer_norm", layer_pre_ffn="final_layer_norm")
    enc = _iface(model_embeddings="encoder.embed_tokens", model_layers="encoder.layers", **kw)
    dec = _iface(model_embeddings="encoder.embed_tokens", model_layers="decoder.layers", layer_cross_attn="encoder_attn",
                 layer_pre_cross_attn="encoder_attn" if post else "encoder_attn_layer_norm", **kw)
    d = seq2seq(enc, dec)
    if post:
        d["layer_ln_cross"] = [None, "encoder_attn_layer_norm"]
    return d


FAIRSEQ_POST_ED, FAIRSEQ_PRE_ED = _fairseq(True), _fairseq(False)


# ---- inputs --------------------------------------------------------------------------------------------------------------------
def text(b=B, s=S, seed=7, vocab=V):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab, (b, s), generator=g)
    am = torch.ones(b, s, dtype=torch.long)
    if b > 1 and s > 4:
        am[1, -2:] = 0
    return dict(input_ids=ids, attention_mask=am)


def text_nomask(b=B, s=S, seed=7):
    d = text(b, s, seed)
    d.pop("attention_mask")
    return d


def encdec(b=B, s=S, seed=7):
    d = text(b, s, seed)
    g = torch.Generator().manual_seed(seed + 1)
    d["decoder_input_ids"] = torch.randint(3, V, (b, max(2, s - 2)), generator=g)
    return d


def image(b=B, s=S, seed=7, size=16):
    g = torch.Generator().manual_seed(seed)
    return dict(pixel_values=torch.randn(b, 3, size, size, generator=g))


def image32(b=B, s=S, seed=7):
    return image(b, s, seed, 32)


def clip_both(b=B, s=S, seed=7):
    d = text(b, s, seed)
    d.update(image(b, s, seed))
    return d


def whisper(b=B, s=S, seed=7):
    g = torch.Generator().manual_seed(seed)
    return dict(input_features=torch.randn(b, 8, 32, generator=g), decoder_input_ids=torch.randint(3, V, (b, s), generator=g))


def waves(b=B, s=S, seed=7):
    g = torch.Generator().manual_seed(seed)
    return dict(input_values=torch.randn(b, 40 * s + 400, generator=g))


def spectro(b=B, s=S, seed=7):
    g = torch.Generator().manual_seed(seed)
    return dict(input_values=torch.randn(b, 24, 16, generator=g))


def layout(b=B, s=S, seed=7):
    d = text(b, s, seed)
    g = torch.Generator().manual_seed(seed + 2)
    x = torch.randint(0, 20, (b, s, 4), generator=g)
    x[..., 2:] += x[..., :2]
    d["bbox"] = x
    return d


def patches(b=B, s=S, seed=7):
    g = torch.Generator().manual_seed(seed)
    return dict(pixel_values=torch.randn(b, 3, 16, 16, generator=g))


def std(**kw):
    d = dict(vocab_size=V, hidden_size=H, intermediate_size=I, num_hidden_layers=L, num_attention_heads=NH, max_position_embeddings=64,
             pad_token_id=0, bos_token_id=1, eos_token_id=2)
    d.update(kw)
    return d


def kv(**kw):
    return std(num_key_value_heads=KV, use_cache=False, **kw)


BD = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
VITC = dict(hidden_size=H, num_hidden_layers=L, num_attention_heads=NH, intermediate_size=I, image_size=16, patch_size=4, **BD)
SEQ = dict(vocab_size=V, d_model=H, encoder_layers=L, decoder_layers=L, encoder_attention_heads=NH, decoder_attention_heads=NH,
           encoder_ffn_dim=I, decoder_ffn_dim=I, max_position_embeddings=64, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
           use_cache=False, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2)
T5C = dict(vocab_size=V, d_model=H, d_kv=8, d_ff=I, num_layers=L, num_decoder_layers=L, num_heads=NH, dropout_rate=0.0,
           relative_attention_num_buckets=8, relative_attention_max_distance=16, use_cache=False, decoder_start_token_id=0)
CLIPT = dict(vocab_size=V, hidden_size=H, intermediate_size=I, num_hidden_layers=L, num_attention_heads=NH, max_position_embeddings=64,
             projection_dim=24, eos_token_id=2, bos_token_id=1, pad_token_id=0)
CLIPV = dict(hidden_size=H, intermediate_size=I, num_hidden_layers=L, num_attention_heads=NH, image_size=16, patch_size=4, projection_dim=24)
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
MOE_TRUTH = _iface(layer_intermediate_proj=None, layer_output_proj=None)

ARCHS = {}


def lm(name, config, cls, cfg, truth, builtin=None, **kw):
    ARCHS[name] = dict(config=(config, cfg), cls=cls, out="logits", loss="causal-lm", truth=truth, builtin=builtin, **kw)


def enc(name, config, cls, cfg, truth, builtin=None, out="last_hidden_state", **kw):
    ARCHS[name] = dict(config=(config, cfg), cls=cls, out=out, loss="mse", truth=truth, builtin=builtin, **kw)


# decoders, Llama-like
lm("qwen2", "Qwen2Config", "Qwen2ForCausalLM", kv(), LLAMA, "qwen2")
lm("qwen3", "Qwen3Config", "Qwen3ForCausalLM", kv(head_dim=16), LLAMA, "qwen3")
lm("qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeForCausalLM", kv(head_dim=8, **MOE), MOE_TRUTH)
lm("qwen2_moe", "Qwen2MoeConfig", "Qwen2MoeForCausalLM", kv(shared_expert_intermediate_size=I, **MOE), MOE_TRUTH)
lm("llama", "LlamaConfig", "LlamaForCausalLM", kv(head_dim=16), LLAMA, "llama")
lm("mistral", "MistralConfig", "MistralForCausalLM", kv(sliding_window=None), LLAMA, "mistral")
lm("mistral_sw", "MistralConfig", "MistralForCausalLM", kv(sliding_window=4), LLAMA, "mistral")
lm("mixtral", "MixtralConfig", "MixtralForCausalLM", kv(num_local_experts=4, num_experts_per_tok=2, sliding_window=None), MOE_TRUTH)
lm("gemma", "GemmaConfig", "GemmaForCausalLM", kv(head_dim=8, hidden_activation="gelu_pytorch_tanh"), LLAMA)
lm("gemma2", "Gemma2Config", "Gemma2ForCausalLM", kv(head_dim=8, sliding_window=64, query_pre_attn_scalar=8, attn_implementation="eager"), GEMMA2, "gemma2")
lm("gemma3_text", "Gemma3TextConfig", "Gemma3ForCausalLM",
   kv(head_dim=8, sliding_window=64, query_pre_attn_scalar=8, attn_implementation="eager"), GEMMA2, "gemma3_text")
lm("phi", "PhiConfig", "PhiForCausalLM", std(num_key_value_heads=NH, use_cache=False, partial_rotary_factor=0.5),
   _iface(attn_o_proj="dense", layer_intermediate_proj="mlp.fc1", layer_output_proj="mlp.fc2", layer_pre_ffn="input_layernorm"), "phi")
lm("phi3", "Phi3Config", "Phi3ForCausalLM", std(num_key_value_heads=NH, use_cache=False, resid_pdrop=0.0, embd_pdrop=0.0),
   _iface(**FUSED, attn_qkv_proj="qkv_proj", layer_intermediate_proj="mlp.gate_up_proj"))
lm("phi3_gqa", "Phi3Config", "Phi3ForCausalLM", kv(resid_pdrop=0.0, embd_pdrop=0.0),
   _iface(**FUSED, attn_qkv_proj="qkv_proj", layer_intermediate_proj="mlp.gate_up_proj"))
G2 = dict(vocab_size=V, n_embd=H, n_layer=L, n_head=NH, n_positions=64, n_inner=I, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
          use_cache=False, bos_token_id=0, eos_token_id=0)
lm("gpt2", "GPT2Config", "GPT2LMHeadModel", G2, GPT2, "gpt2")
lm("gptj", "GPTJConfig", "GPTJForCausalLM", dict(vocab_size=V, n_embd=H, n_layer=L, n_head=NH, n_positions=64, n_inner=I, rotary_dim=4,
   resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0),
   _iface(model_embeddings="wte", model_layers="h", layer_self_attn="attn", attn_o_proj="out_proj", layer_intermediate_proj="mlp.fc_in",
          layer_output_proj="mlp.fc_out", layer_pre_self_attn="ln_1", layer_pre_ffn="ln_1"), "gptj")
lm("gpt_neo", "GPTNeoConfig", "GPTNeoForCausalLM", dict(vocab_size=V, hidden_size=H, num_layers=L, num_heads=NH, intermediate_size=I,
   max_position_embeddings=64, attention_types=[[["global", "local"], 1]], window_size=4, resid_dropout=0.0, embed_dropout=0.0,
   attention_dropout=0.0, use_cache=False, bos_token_id=0, eos_token_id=0),
   _iface(model_embeddings="wte", model_layers="h", layer_self_attn="attn.attention", attn_o_proj="out_proj", layer_intermediate_proj="mlp.c_fc",
          layer_output_proj="mlp.c_proj", layer_pre_self_attn="ln_1", layer_pre_ffn="ln_2"))
lm("gpt_neox", "GPTNeoXConfig", "GPTNeoXForCausalLM", std(hidden_dropout=0.0, attention_dropout=0.0, rotary_pct=0.5, use_cache=False), NEOX)
lm("opt", "OPTConfig", "OPTForCausalLM", dict(vocab_size=V, hidden_size=H, ffn_dim=I, num_hidden_layers=L, num_attention_heads=NH,
   max_position_embeddings=64, dropout=0.0, attention_dropout=0.0, word_embed_proj_dim=H, use_cache=False, pad_token_id=1, bos_token_id=2,
   eos_token_id=2), FAIRSEQ_PRE)
lm("bloom", "BloomConfig", "BloomForCausalLM", dict(vocab_size=V, hidden_size=H, n_layer=L, n_head=NH, use_cache=False, hidden_dropout=0.0,
   attention_dropout=0.0, bos_token_id=1, eos_token_id=2),
   _iface(model_embeddings="word_embeddings", model_layers="h", layer_self_attn="self_attention", **FUSED, attn_qkv_proj="query_key_value",
          attn_o_proj="dense", layer_intermediate_proj="mlp.dense_h_to_4h", layer_output_proj="mlp.dense_4h_to_h"))
FAL = _iface(model_embeddings="word_embeddings", model_layers="h", layer_self_attn="self_attention", **FUSED, attn_qkv_proj="query_key_value",
             attn_o_proj="dense", layer_intermediate_proj="mlp.dense_h_to_4h", layer_output_proj="mlp.dense_4h_to_h",
             layer_pre_self_attn="input_layernorm", layer_pre_ffn="input_layernorm")
FALC = dict(vocab_size=V, hidden_size=H, num_hidden_layers=L, num_attention_heads=NH, hidden_dropout=0.0, attention_dropout=0.0, use_cache=False,
            bos_token_id=1, eos_token_id=2, max_position_embeddings=64)
lm("falcon", "FalconConfig", "FalconForCausalLM", dict(FALC, multi_query=True, parallel_attn=True, bias=False, alibi=False), FAL)
lm("falcon_new", "FalconConfig", "FalconForCausalLM", dict(FALC, new_decoder_architecture=True, num_kv_heads=KV, alibi=False),
   dict(FAL, layer_pre_self_attn="ln_attn", layer_pre_ffn="ln_mlp"))
lm("mpt", "MptConfig", "MptForCausalLM", dict(vocab_size=V, d_model=H, n_heads=NH, n_layers=L, expansion_ratio=2, max_seq_len=64, use_cache=False),
   _iface(model_embeddings="wte", model_layers="blocks", layer_self_attn="attn", **FUSED, attn_qkv_proj="Wqkv", attn_o_proj="out_proj",
          layer_intermediate_proj="ffn.up_proj", layer_output_proj="ffn.down_proj", layer_pre_self_attn="norm_1", layer_pre_ffn="norm_2"))
lm("stablelm", "StableLmConfig", "StableLmForCausalLM", kv(partial_rotary_factor=0.5), LLAMA)
lm("olmo", "OlmoConfig", "OlmoForCausalLM", kv(), LLAMA)
lm("olmo2", "Olmo2Config", "Olmo2ForCausalLM", kv(), _iface(layer_pre_self_attn="self_attn", layer_pre_ffn="mlp",
   layer_ln_1="post_attention_layernorm", layer_ln_2="post_feedforward_layernorm"))
lm("cohere", "CohereConfig", "CohereForCausalLM", kv(), _iface(layer_pre_ffn="input_layernorm"))
lm("glm", "GlmConfig", "GlmForCausalLM", kv(head_dim=8), _iface(layer_intermediate_proj="mlp.gate_up_proj"))
lm("xglm", "XGLMConfig", "XGLMForCausalLM", dict(vocab_size=V, d_model=H, ffn_dim=I, num_layers=L, attention_heads=NH, dropout=0.0, attention_dropout=0.0,
   activation_dropout=0.0, max_position_embeddings=64, use_cache=False, pad_token_id=1, bos_token_id=0, eos_token_id=2),
   dict(FAIRSEQ_PRE, model_embeddings="embed_tokens", model_layers="layers"))
lm("biogpt", "BioGptConfig", "BioGptForCausalLM", std(use_cache=False, activation_dropout=0.0, layerdrop=0.0, pad_token_id=1, bos_token_id=0, **BD),
   dict(FAIRSEQ_PRE, model_embeddings="embed_tokens", model_layers="layers"))
lm("nemotron", "NemotronConfig", "NemotronForCausalLM", kv(head_dim=8), LLAMA)
lm("deepseek_v3", "DeepseekV3Config", "DeepseekV3ForCausalLM", std(num_key_value_heads=NH, use_cache=False, moe_intermediate_size=24, n_routed_experts=4,
   num_experts_per_tok=2, n_group=1, topk_group=1, q_lora_rank=12, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, first_k_dense_replace=2),
   _iface(attn_q_proj="q_b_proj", attn_k_proj="kv_b_proj", attn_v_proj="kv_b_proj"))
lm("llama4_text", "Llama4TextConfig", "Llama4ForCausalLM", kv(head_dim=8, intermediate_size_mlp=I, num_local_experts=2, num_experts_per_tok=1,
   interleave_moe_layer_step=4, attention_chunk_size=64), _iface(layer_intermediate_proj="feed_forward.up_proj", layer_output_proj="feed_forward.down_proj"))
# decoders of transformers 5 only
lm("smollm3", "SmolLM3Config", "SmolLM3ForCausalLM", kv(), LLAMA, vers=(5,))
lm("ernie4_5", "Ernie4_5Config", "Ernie4_5ForCausalLM", kv(head_dim=8), LLAMA, vers=(5,))
lm("gpt_oss", "GptOssConfig", "GptOssForCausalLM", kv(head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=64), MOE_TRUTH, vers=(5,))
lm("qwen3_next", "Qwen3NextConfig", "Qwen3NextForCausalLM", kv(head_dim=8, layer_types=["linear_attention", "full_attention"], linear_num_value_heads=4,
   linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, shared_expert_intermediate_size=24, **MOE), MOE_TRUTH, vers=(5,))
lm("gemma3n_text", "Gemma3nTextConfig", "Gemma3nForCausalLM", dict(kv(head_dim=8, sliding_window=64, vocab_size_per_layer_input=V, hidden_size_per_layer_input=8,
   laurel_rank=4, altup_num_inputs=2, num_kv_shared_layers=0, activation_sparsity_pattern=None, layer_types=["sliding_attention", "full_attention"])), GEMMA2, vers=(5,))
lm("hunyuan_v1_dense", "HunYuanDenseV1Config", "HunYuanDenseV1ForCausalLM", kv(head_dim=8), LLAMA, vers=(5,))
lm("arcee", "ArceeConfig", "ArceeForCausalLM", kv(head_dim=8), LLAMA, vers=(5,))
lm("modernbert-decoder", "ModernBertDecoderConfig", "ModernBertDecoderForCausalLM", std(local_attention=64, use_cache=False, cls_token_id=1, sep_token_id=2),
   _iface(model_embeddings="embeddings", layer_self_attn="attn", attn_o_proj="Wo", layer_intermediate_proj="mlp.Wi", layer_output_proj="mlp.Wo",
          layer_pre_self_attn="attn_norm", layer_pre_ffn="mlp_norm"), vers=(5,))
lm("qwen3_vl_text", "Qwen3VLTextConfig", "Qwen3VLTextModel", kv(head_dim=8), LLAMA, vers=())

# encoders
enc("bert", "BertConfig", "BertModel", std(**BD), BERT, "bert")
enc("bert_mlm", "BertConfig", "BertForMaskedLM", std(**BD), BERT, "bert", out="logits")
enc("bert_cls", "BertConfig", "BertForSequenceClassification", std(**BD), BERT, "bert", out="logits", dyn_out=False)
enc("roberta", "RobertaConfig", "RobertaForMaskedLM", std(max_position_embeddings=66, pad_token_id=1, bos_token_id=0, **BD), BERT, "roberta", out="logits")
enc("xlm-roberta", "XLMRobertaConfig", "XLMRobertaModel", std(max_position_embeddings=66, pad_token_id=1, bos_token_id=0, **BD), BERT, "xlm-roberta")
enc("distilbert", "DistilBertConfig", "DistilBertModel", dict(vocab_size=V, dim=H, hidden_dim=I, n_layers=L, n_heads=NH, max_position_embeddings=64,
    dropout=0.0, attention_dropout=0.0), _iface(model_embeddings="embeddings", model_layers="transformer.layer", layer_self_attn="attention",
    attn_q_proj="q_lin", attn_k_proj="k_lin", attn_v_proj="v_lin", attn_o_proj="out_lin", layer_intermediate_proj="ffn.lin1", layer_output_proj="ffn.lin2",
    layer_pre_self_attn="attention", layer_pre_ffn="ffn", layer_ln_1="sa_layer_norm", layer_ln_2="output_layer_norm"), "distilbert")
enc("electra", "ElectraConfig", "ElectraModel", std(embedding_size=24, **BD), BERT, "electra")
DEB = dict(BERT, attn_q_proj="self.query_proj", attn_k_proj="self.key_proj", attn_v_proj="self.value_proj")
enc("deberta", "DebertaConfig", "DebertaModel", std(relative_attention=True, max_relative_positions=16, pos_att_type=["c2p", "p2c"], position_biased_input=False, **BD),
    dict(BERT, **FUSED, attn_qkv_proj="self.in_proj"), "deberta")
enc("deberta-v2", "DebertaV2Config", "DebertaV2Model", std(relative_attention=True, max_relative_positions=16, position_buckets=8, pos_att_type=["c2p", "p2c"],
    norm_rel_ebd="layer_norm", share_att_key=True, position_biased_input=False, **BD), DEB, "deberta-v2")
enc("albert", "AlbertConfig", "AlbertModel", std(embedding_size=24, num_hidden_groups=1, inner_group_num=1, **BD),
    _iface(model_embeddings="embeddings", model_layers="encoder.albert_layer_groups.0.albert_layers", layer_self_attn="attention", attn_q_proj="query",
           attn_k_proj="key", attn_v_proj="value", attn_o_proj="dense", layer_intermediate_proj="ffn", layer_output_proj="ffn_output",
           layer_pre_self_attn="attention", layer_pre_ffn="ffn", layer_ln_1="attention.LayerNorm", layer_ln_2="full_layer_layer_norm"), "albert")
enc("modernbert", "ModernBertConfig", "ModernBertModel", std(attention_dropout=0.0, embedding_dropout=0.0, mlp_dropout=0.0, cls_token_id=1, sep_token_id=2,
    local_attention=64, reference_compile=False, attn_implementation="eager", global_attn_every_n_layers=2),
    _iface(model_embeddings="embeddings", layer_self_attn="attn", **FUSED, attn_qkv_proj="Wqkv", attn_o_proj="Wo", layer_intermediate_proj="mlp.Wi",
           layer_output_proj="mlp.Wo", layer_pre_self_attn="attn_norm", layer_pre_ffn="mlp_norm"), "modernbert")
enc("roformer", "RoFormerConfig", "RoFormerModel", std(**BD), BERT)
enc("ernie", "ErnieConfig", "ErnieModel", std(**BD), BERT)
enc("data2vec-text", "Data2VecTextConfig", "Data2VecTextModel", std(max_position_embeddings=66, pad_token_id=1, bos_token_id=0, **BD), BERT)
enc("megatron-bert", "MegatronBertConfig", "MegatronBertModel", std(**BD), dict(BERT, layer_pre_self_attn="attention.ln", layer_pre_ffn="ln", layer_ln_1=None, layer_ln_2=None))
enc("squeezebert", "SqueezeBertConfig", "SqueezeBertModel", std(embedding_size=H, q_groups=2, k_groups=2, v_groups=2, post_attention_groups=1, intermediate_groups=2, output_groups=2, **BD), None)
enc("funnel", "FunnelConfig", "FunnelBaseModel", dict(vocab_size=V, block_sizes=[1, 1], num_decoder_layers=1, d_model=H, n_head=NH, d_head=8, d_inner=I, hidden_dropout=0.0,
    attention_dropout=0.0, activation_dropout=0.0), None)
enc("xlm", "XLMConfig", "XLMModel", dict(vocab_size=V, emb_dim=H, n_layers=L, n_heads=NH, dropout=0.0, attention_dropout=0.0, max_position_embeddings=64, n_langs=1, pad_index=0), None)
enc("eurobert", "EuroBertConfig", "EuroBertModel", kv(), LLAMA, vers=(5,))
enc("jina_embeddings_v3", "JinaEmbeddingsV3Config", "JinaEmbeddingsV3Model", std(), None, vers=(5,))
enc("neomme", "NeoMMEConfig", "NeoMMEModel", std(), None, vers=())

# encoder-decoders
enc("t5", "T5Config", "T5ForConditionalGeneration", T5C, T5, "t5", out="logits", inputs=encdec)
enc("flan-t5", "T5Config", "T5ForConditionalGeneration", dict(T5C, feed_forward_proj="gated-gelu", tie_word_embeddings=False), T5_GATED, "t5", out="logits", inputs=encdec)
enc("mt5", "MT5Config", "MT5ForConditionalGeneration", T5C, T5_GATED, "mt5", out="logits", inputs=encdec)
enc("t5_encoder", "T5Config", "T5EncoderModel", T5C, {k: (v[0] if isinstance(v, list) and k != "adapter_methods" else v) for k, v in T5.items()}, "t5")
enc("bart", "BartConfig", "BartForConditionalGeneration", SEQ, FAIRSEQ_POST_ED, "bart", out="logits", inputs=encdec)
enc("mbart", "MBartConfig", "MBartForConditionalGeneration", SEQ, FAIRSEQ_PRE_ED, "mbart", out="logits", inputs=encdec)
enc("plbart", "PLBartConfig", "PLBartForConditionalGeneration", SEQ, FAIRSEQ_POST_ED, "plbart", out="logits", inputs=encdec)
enc("pegasus", "PegasusConfig", "PegasusForConditionalGeneration", dict(SEQ, pad_token_id=0), FAIRSEQ_PRE_ED, out="logits", inputs=encdec)
enc("m2m_100", "M2M100Config", "M2M100ForConditionalGeneration", SEQ, FAIRSEQ_PRE_ED, out="logits", inputs=encdec)
enc("whisper", "WhisperConfig", "WhisperForConditionalGeneration", {**{k: v for k, v in SEQ.items() if k not in ("max_position_embeddings", "forced_eos_token_id")},
    "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32}, FAIRSEQ_PRE_ED, "whisper", out="logits", inputs=whisper)

# audio
enc("wav2vec2", "Wav2Vec2Config", "Wav2Vec2ForCTC", dict(vocab_size=V, hidden_size=H, num_hidden_layers=L, num_attention_heads=NH, intermediate_size=I, conv_dim=[16, 16],
    conv_stride=[5, 4], conv_kernel=[10, 4], num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, hidden_dropout=0.0, attention_dropout=0.0,
    feat_proj_dropout=0.0, layerdrop=0.0, mask_time_prob=0.0, apply_spec_augment=False), W2V, out="logits", inputs=waves)

# vision
enc("vit", "ViTConfig", "ViTModel", VITC, lambda v: VIT4 if v == 4 else VIT5, "vit", inputs=image, dyn_seq=False)
enc("vit_cls", "ViTConfig", "ViTForImageClassification", VITC, lambda v: VIT4 if v == 4 else VIT5, "vit", out="logits", inputs=image, dyn_seq=False)
enc("deit", "DeiTConfig", "DeiTModel", VITC, lambda v: VIT4 if v == 4 else VIT5, inputs=image, dyn_seq=False)
enc("beit", "BeitConfig", "BeitModel", dict(VITC, vocab_size=V, use_relative_position_bias=True), VIT4, "beit", inputs=image, dyn_seq=False)
enc("dinov2", "Dinov2Config", "Dinov2Model", dict(hidden_size=H, num_hidden_layers=L, num_attention_heads=NH, mlp_ratio=2, image_size=16, patch_size=4, **BD), DINO, inputs=image, dyn_seq=False)
enc("dinov2_with_registers", "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", dict(hidden_size=H, num_hidden_layers=L, num_attention_heads=NH, mlp_ratio=2, image_size=16,
    patch_size=4, num_register_tokens=2, **BD), DINO, inputs=image, dyn_seq=False)
enc("dinov3_vit", "DINOv3ViTConfig", "DINOv3ViTModel", dict(hidden_size=H, num_hidden_layers=L, num_attention_heads=NH, intermediate_size=I, image_size=16, patch_size=4,
    num_register_tokens=2), None, inputs=image, dyn_seq=False, vers=(5,))
enc("clip_text", "CLIPTextConfig", "CLIPTextModel", CLIPT, lambda v: dict(CLIP, model_embeddings="text_model.embeddings", model_layers="text_model.encoder.layers"), "clip_text_model")
enc("clip_vision", "CLIPVisionConfig", "CLIPVisionModel", CLIPV, lambda v: dict(CLIP, model_embeddings="vision_model.embeddings", model_layers="vision_model.encoder.layers"),
    "clip_vision_model", inputs=image, dyn_seq=False)
enc("clip", "CLIPConfig", "CLIPModel", dict(text_config=CLIPT, vision_config=CLIPV, projection_dim=24), None, None, out="logits_per_image", inputs=clip_both, dyn_out=False)
enc("vit_mae_enc", "ViTMSNConfig", "ViTMSNModel", VITC, lambda v: VIT4 if v == 4 else VIT5, inputs=image, dyn_seq=False)

# ---- architectures that nobody prepared -----------------------------------------------------------------------------------
enc("mpnet", "MPNetConfig", "MPNetModel", std(pad_token_id=1, bos_token_id=0, max_position_embeddings=66, relative_attention_num_buckets=32, **BD),
    _iface(model_embeddings="embeddings", model_layers="encoder.layer", layer_self_attn="attention", attn_q_proj="attn.q", attn_k_proj="attn.k", attn_v_proj="attn.v",
    attn_o_proj="attn.o", layer_intermediate_proj="intermediate.dense", layer_output_proj="output.dense", layer_pre_self_attn="attention.attn", layer_pre_ffn="intermediate",
    layer_ln_1="attention.LayerNorm", layer_ln_2="output.LayerNorm"))
enc("nystromformer", "NystromformerConfig", "NystromformerModel", std(segment_means_seq_len=8, num_landmarks=4, conv_kernel_size=3, **BD), None)
enc("longformer", "LongformerConfig", "LongformerModel", std(attention_window=[4, 4], pad_token_id=1, bos_token_id=0, **BD), None)
enc("swin", "SwinConfig", "SwinModel", dict(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, mlp_ratio=2.0, **BD), None, inputs=image32, dyn_seq=False)
enc("convbert", "ConvBertConfig", "ConvBertModel", std(embedding_size=H, conv_kernel_size=3, head_ratio=2, **BD), None)
enc("hubert", "HubertConfig", "HubertModel", dict(ARCHS["wav2vec2"]["config"][1]), W2V, inputs=waves)
enc("sew", "SEWConfig", "SEWModel", dict(ARCHS["wav2vec2"]["config"][1], squeeze_factor=2), None, inputs=waves)
enc("siglip_text", "SiglipTextConfig", "SiglipTextModel", CLIPT, lambda v: dict(CLIP, model_embeddings="text_model.embeddings", model_layers="text_model.encoder.layers"))
enc("siglip_vision", "SiglipVisionConfig", "SiglipVisionModel", CLIPV, lambda v: dict(CLIP, model_embeddings="vision_model.embeddings", model_layers="vision_model.encoder.layers"), inputs=image, dyn_seq=False)
enc("esm", "EsmConfig", "EsmModel", std(position_embedding_type="rotary", mask_token_id=3, pad_token_id=1, token_dropout=False, **BD), None)
enc("led", "LEDConfig", "LEDForConditionalGeneration", dict(SEQ, attention_window=[4, 4], max_encoder_position_embeddings=64, max_decoder_position_embeddings=64), None, out="logits", inputs=encdec)
enc("blenderbot", "BlenderbotConfig", "BlenderbotForConditionalGeneration", SEQ, FAIRSEQ_PRE_ED, out="logits", inputs=encdec)
enc("marian", "MarianConfig", "MarianMTModel", dict(SEQ, pad_token_id=1), FAIRSEQ_POST_ED, out="logits", inputs=encdec)
lm("gpt_bigcode", "GPTBigCodeConfig", "GPTBigCodeForCausalLM", dict(G2, multi_query=True), GPT2)
lm("codegen", "CodeGenConfig", "CodeGenForCausalLM", dict(vocab_size=V, n_embd=H, n_layer=L, n_head=NH, n_positions=64, n_inner=I, rotary_dim=4, resid_pdrop=0.0, embd_pdrop=0.0,
   attn_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0), _iface(model_embeddings="wte", model_layers="h", layer_self_attn="attn", **FUSED, attn_qkv_proj="qkv_proj",
   attn_o_proj="out_proj", layer_intermediate_proj="mlp.fc_in", layer_output_proj="mlp.fc_out", layer_pre_self_attn="ln_1", layer_pre_ffn="ln_1"))
lm("persimmon", "PersimmonConfig", "PersimmonForCausalLM", std(use_cache=False, hidden_dropout=0.0, attention_dropout=0.0), dict(NEOX, model_embeddings="embed_tokens", layer_self_attn="self_attn"))
lm("granite", "GraniteConfig", "GraniteForCausalLM", kv(residual_multiplier=0.5, embedding_multiplier=2.0, attention_multiplier=0.3, logits_scaling=2.0), LLAMA)
lm("granitemoe", "GraniteMoeConfig", "GraniteMoeForCausalLM", kv(num_local_experts=4, num_experts_per_tok=2, residual_multiplier=0.5), MOE_TRUTH)
lm("starcoder2", "Starcoder2Config", "Starcoder2ForCausalLM", kv(sliding_window=None, residual_dropout=0.0, embedding_dropout=0.0), _iface(layer_intermediate_proj="mlp.c_fc", layer_output_proj="mlp.c_proj"))
lm("cohere2", "Cohere2Config", "Cohere2ForCausalLM", kv(head_dim=8, sliding_window=64), _iface(layer_pre_ffn="input_layernorm"))
lm("olmoe", "OlmoeConfig", "OlmoeForCausalLM", kv(num_experts=4, num_experts_per_tok=2), MOE_TRUTH)
lm("phimoe", "PhimoeConfig", "PhimoeForCausalLM", kv(num_local_experts=4, num_experts_per_tok=2, sliding_window=None), MOE_TRUTH)
lm("jamba", "JambaConfig", "JambaForCausalLM", kv(num_experts=2, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
   use_mamba_kernels=False, mamba_d_state=4, mamba_dt_rank=4), MOE_TRUTH)
lm("bamba", "BambaConfig", "BambaForCausalLM", kv(attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8), MOE_TRUTH)
lm("mamba", "MambaConfig", "MambaForCausalLM", dict(vocab_size=V, hidden_size=H, state_size=4, num_hidden_layers=L, use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2), None)
lm("helium", "HeliumConfig", "HeliumForCausalLM", kv(head_dim=8), LLAMA)
lm("glm4", "Glm4Config", "Glm4ForCausalLM", kv(head_dim=8), _iface(layer_intermediate_proj="mlp.gate_up_proj", layer_ln_1="post_self_attn_layernorm", layer_ln_2="post_mlp_layernorm"))
lm("lfm2", "Lfm2Config", "Lfm2ForCausalLM", kv(layer_types=["conv", "full_attention"], block_multiple_of=8), None, vers=(5,))
lm("deepseek_v2", "DeepseekV2Config", "DeepseekV2ForCausalLM", std(num_key_value_heads=NH, use_cache=False, moe_intermediate_size=24, n_routed_experts=4, num_experts_per_tok=2,
   n_group=1, topk_group=1, q_lora_rank=12, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, first_k_dense_replace=1), None, vers=(5,))
lm("exaone4", "Exaone4Config", "Exaone4ForCausalLM", kv(head_dim=8, sliding_window=64, sliding_window_pattern=2), _iface(layer_pre_self_attn="self_attn", layer_pre_ffn="mlp",
   layer_ln_1="post_attention_layernorm", layer_ln_2="post_feedforward_layernorm"), vers=(5,))
lm("seed_oss", "SeedOssConfig", "SeedOssForCausalLM", kv(head_dim=8, attention_bias=True), LLAMA, vers=(5,))
lm("apertus", "ApertusConfig", "ApertusForCausalLM", kv(head_dim=8), None, vers=(5,))
lm("glm4_moe", "Glm4MoeConfig", "Glm4MoeForCausalLM", kv(head_dim=8, moe_intermediate_size=24, n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1, n_group=1, topk_group=1), None, vers=(5,))
lm("falcon_h1", "FalconH1Config", "FalconH1ForCausalLM", kv(head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8), None, vers=(5,))
lm("granitemoehybrid", "GraniteMoeHybridConfig", "GraniteMoeHybridForCausalLM", kv(layer_types=["mamba", "attention"], num_local_experts=2, num_experts_per_tok=1, shared_intermediate_size=24,
   mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8), None, vers=(5,))
NEW = ["mpnet", "nystromformer", "longformer", "swin", "convbert", "hubert", "sew", "siglip_text", "siglip_vision", "esm", "led", "blenderbot", "marian", "gpt_bigcode", "codegen", "persimmon",
       "granite", "granitemoe", "starcoder2", "cohere2", "olmoe", "phimoe", "jamba", "bamba", "mamba", "helium", "glm4", "lfm2", "deepseek_v2", "exaone4", "seed_oss", "apertus", "glm4_moe", "falcon_h1",
       "granitemoehybrid", "dinov3_vit"]
ARCHS = {k: v for k, v in ARCHS.items() if v.get("vers", (4, 5))}


def truth(a, major):
    t = a["truth"]
    return t(major) if callable(t) else t


def build(name, seed=0):
    import transformers
    a = ARCHS[name]
    cname, kw = a["config"]
    kw = dict(kw)
    impl = kw.pop("attn_implementation", None)
    torch.manual_seed(seed)
    cfg = getattr(transformers, cname)(**kw)
    if impl:
        cfg._attn_implementation = impl
    model = getattr(transformers, a["cls"])(cfg)
    model.eval()
    randomize(model, seed + 1)
    return model, a


def randomize(model, seed):
    """A distinct, non-degenerate value for every weight (norm weights too)."""
    g = torch.Generator().manual_seed(seed)
    done = set()
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.data_ptr() in done:
                continue
            done.add(p.data_ptr())
            r = torch.randn(p.shape, generator=g)
            if p.ndim >= 2:
                emb = any(w in n for w in ("embed", "wte", "wpe", "shared", "position"))
                p.copy_(r * (0.4 if emb else 1.0 / max(1, p.numel() // p.shape[0]) ** 0.5))
            else:
                p.add_(r * 0.1)
