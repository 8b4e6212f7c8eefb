//! Arguments of Hugging Face's `TrainingArguments`, and of TRL's `SFTConfig`, `ScriptArguments` and `ModelConfig`, that a job file or
//! a command may have and that are no options here: they change nothing, or are refused with what to write instead. What has a name
//! of its own here is in the `ALIASES` of the options.

use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use serde_json::{Map, Value};

/// They say how Python runs, or where it writes; or they name what always holds here.
const HARMLESS: [&str; 73] = [
    "activation_offloading",
    "attn_implementation",
    "auto_find_batch_size",
    "average_tokens_across_devices",
    "batch_eval_metrics",
    "chars_per_token",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "dataset_batch_size",
    "dataset_num_proc",
    "dataset_streaming",
    "ddp_backend",
    "ddp_broadcast_buffers",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
    "ddp_timeout",
    "disable_tqdm",
    "do_eval",
    "do_predict",
    "do_train",
    "eval_accumulation_steps",
    "eval_do_concat_batches",
    "eval_packing",
    "eval_use_gather_object",
    "fp16_backend",
    "fp16_opt_level",
    "full_determinism",
    "gradient_checkpointing_kwargs",
    "gradient_checkpointing_use_reentrant",
    "half_precision_backend",
    "hub_always_push",
    "hub_strategy",
    "ignore_bias_buffers",
    "include_inputs_for_metrics",
    "include_num_input_tokens_seen",
    "include_tokens_per_second",
    "jit_mode_eval",
    "liger_kernel_config",
    "local_rank",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "logging_dir",
    "logging_nan_inf_filter",
    "lora_task_type",
    "no_cuda",
    "num_of_sequences",
    "padding_free",
    "ray_scope",
    "remove_unused_columns",
    "restore_callback_states_from_checkpoint",
    "run_name",
    "save_on_each_node",
    "save_only_model",
    "save_safetensors",
    "skip_memory_metrics",
    "torch_compile",
    "torch_compile_backend",
    "torch_compile_mode",
    "torch_empty_cache_steps",
    "torchdynamo",
    "tpu_metrics_debug",
    "tpu_num_cores",
    "trust_remote_code",
    "use_cpu",
    "use_ipex",
    "use_legacy_prediction_loop",
    "use_liger",
    "use_liger_kernel",
    "use_mps_device",
    "use_peft",
];
/// They ask for numbers with fewer digits than the program computes with.
const EXACT: [&str; 4] = ["bf16_full_eval", "fp16", "fp16_full_eval", "tf32"];
/// They would change the training, and say here that they do not.
const OFF: [&str; 52] = [
    "accelerator_config",
    "adafactor",
    "bnb_4bit_quant_type",
    "chat_template_path",
    "completion_only_loss",
    "dataset_kwargs",
    "dataset_name",
    "debug",
    "deepspeed",
    "eos_token",
    "fsdp",
    "fsdp_config",
    "fsdp_min_num_params",
    "fsdp_transformer_layer_cls_to_wrap",
    "generation_config",
    "generation_max_length",
    "generation_num_beams",
    "hub_token",
    "ignore_data_skip",
    "include_for_metrics",
    "length_column_name",
    "load_in_4bit",
    "load_in_8bit",
    "lora_alpha",
    "lora_dropout",
    "lora_modules_to_save",
    "lora_r",
    "lora_target_modules",
    "loss_type",
    "model_init_kwargs",
    "model_name_or_path",
    "model_revision",
    "mp_parameters",
    "neftune_noise_alpha",
    "optim_args",
    "optim_target_modules",
    "packing_strategy",
    "past_index",
    "per_gpu_eval_batch_size",
    "per_gpu_train_batch_size",
    "predict_with_generate",
    "prediction_loss_only",
    "push_to_hub_model_id",
    "push_to_hub_organization",
    "push_to_hub_token",
    "shuffle_dataset",
    "sortish_sampler",
    "torch_dtype",
    "tp_size",
    "use_bnb_nested_quant",
    "use_dora",
    "use_rslora",
];
/// Those that are true or false, so that a flag of this name may stand alone.
const TRUTHS: [&str; 60] = [
    "activation_offloading",
    "adafactor",
    "auto_find_batch_size",
    "average_tokens_across_devices",
    "batch_eval_metrics",
    "bf16_full_eval",
    "completion_only_loss",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataset_streaming",
    "ddp_broadcast_buffers",
    "ddp_find_unused_parameters",
    "disable_tqdm",
    "do_eval",
    "do_predict",
    "do_train",
    "eval_do_concat_batches",
    "eval_packing",
    "eval_use_gather_object",
    "fp16",
    "fp16_full_eval",
    "full_determinism",
    "gradient_checkpointing_use_reentrant",
    "hub_always_push",
    "ignore_bias_buffers",
    "ignore_data_skip",
    "include_inputs_for_metrics",
    "include_num_input_tokens_seen",
    "include_tokens_per_second",
    "jit_mode_eval",
    "load_in_4bit",
    "load_in_8bit",
    "log_on_each_node",
    "logging_nan_inf_filter",
    "no_cuda",
    "padding_free",
    "predict_with_generate",
    "prediction_loss_only",
    "remove_unused_columns",
    "restore_callback_states_from_checkpoint",
    "save_on_each_node",
    "save_only_model",
    "save_safetensors",
    "shuffle_dataset",
    "skip_memory_metrics",
    "sortish_sampler",
    "tf32",
    "torch_compile",
    "tpu_metrics_debug",
    "trust_remote_code",
    "use_bnb_nested_quant",
    "use_cpu",
    "use_dora",
    "use_ipex",
    "use_legacy_prediction_loop",
    "use_liger",
    "use_liger_kernel",
    "use_mps_device",
    "use_peft",
    "use_rslora",
];
/// Values that leave an argument of `accelerator_config` as it is.
const AS_IT_IS: [&str; 2] = ["even_batches", "use_seedable_sampler"];

/// TRL's name of the column that `columns` has as `text`.
const TEXT_FIELD: &str = "dataset_text_field";

/// The names of all arguments here, and whether each is true or false.
pub(crate) fn names() -> impl Iterator<Item = (&'static str, bool)> {
    let all = HARMLESS.into_iter().chain(EXACT).chain(OFF);
    let all = all.chain([TEXT_FIELD]);
    all.map(|name| (name, TRUTHS.contains(&name)))
}

/// The arguments that were taken out, as a line for each kind; none where there are none.
pub(super) fn notes(options: &Map<String, Value>) -> Vec<String> {
    let named = |exact: bool| -> Vec<&str> {
        let names = options.iter().filter(|(name, value)| {
            exact == (EXACT.contains(&name.as_str()) && **value == Value::Bool(true))
        });
        names.map(|(name, _)| name.as_str()).collect()
    };
    let lines = [
        (
            "ignored, as it changes nothing here",
            named(false).join(", "),
        ),
        (
            "not followed, as the program computes with more digits (f32)",
            named(true).join(", "),
        ),
    ];
    let some = lines.into_iter().filter(|(_, names)| !names.is_empty());
    some.map(|(why, names)| format!("{why}: {names}")).collect()
}

/// Whether a value leaves the training as it is here.
fn neutral(name: &str, value: &Value) -> bool {
    let word = |words: &[&str]| value.as_str().is_some_and(|v| words.contains(&v));
    match name {
        // Of a prompt and its completion the completion alone is learned.
        "completion_only_loss" => value.is_null() || *value == true,
        // A token is a text as well.
        "eos_token" => value.is_null(),
        "length_column_name" => off(value) || word(&["length"]),
        "loss_type" => off(value) || word(&["nll"]),
        "model_revision" => off(value) || word(&["main"]),
        // Examples are put together whole.
        "packing_strategy" => off(value) || word(&["bfd", "ffd"]),
        _ => off(value),
    }
}

fn off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map
            .iter()
            .all(|(name, v)| off(v) || AS_IT_IS.contains(&name.as_str()) && *v == true),
        Value::Number(n) => [Some(-1), Some(0)].contains(&n.as_i64()),
        Value::Bool(true) => false,
    }
}

/// What `TrainingArguments.to_dict` writes in place of a token.
fn is_hidden(name: &str, value: &Value) -> bool {
    let hidden = || format!("<{}>", name.to_uppercase());
    name.ends_with("_token") && value.as_str().is_some_and(|v| v == hidden())
}

/// What to do instead.
fn instead(name: &str) -> &'static str {
    match name {
        "adafactor" => "`optim` = \"adafactor\"",
        "hub_token" | "push_to_hub_token" => {
            "set the environment variable HF_TOKEN: a token does not belong into a file or a command"
        }
        "push_to_hub_model_id" | "push_to_hub_organization" => "use `hub_model_id`",
        "per_gpu_train_batch_size" => "use `per_device_train_batch_size`",
        "per_gpu_eval_batch_size" => "use `per_device_eval_batch_size`",
        "chat_template_path" => "use `chat_template`",
        "completion_only_loss" => {
            "leave it out: of a prompt and its completion the completion is learned; `template` = \"{prompt}{completion}\" makes one text of both, all of which is learned"
        }
        "dataset_name" => "use `data`: a file, a folder, or \"hub:datasets/OWNER/NAME\"",
        "eos_token" => {
            "set `eos_token` in tokenizer_config.json beside the model: it is part of the tokenizer"
        }
        "lora_alpha" | "lora_dropout" | "lora_r" | "use_dora" | "use_rslora" => {
            "use `adapter`: \"lora[r=16, alpha=32, dropout=0.05]\", or \"dora\"; `rewrite adapter show lora` has all fields"
        }
        "lora_target_modules" | "lora_modules_to_save" => {
            "use `adapter` with a folder of PEFT's, or `attn_matrices` and the like of \"lora[…]\""
        }
        "model_name_or_path" | "model_revision" => "give the ONNX file of the exported model",
        "packing_strategy" => "leave it out: examples are packed whole",
        "shuffle_dataset" => "leave it out: each epoch is shuffled, unless `no_shuffle` is set",
        "torch_dtype" => "use `bf16`; the weights have the type that they were exported in",
        _ => "leave it out",
    }
}

/// Whether none of these would change the training.
///
/// # Errors
/// Those of [`take`].
pub(crate) fn check(options: &Map<String, Value>) -> Result<()> {
    take(&mut options.clone()).map(|_| ())
}

/// Takes out the arguments that change nothing.
///
/// # Errors
/// An argument that would change the training, with a value that turns it on.
pub(super) fn take(options: &mut Map<String, Value>) -> Result<Map<String, Value>> {
    options.retain(|name, value| !is_hidden(name, value));
    let on: Vec<Diagnostic> = options
        .iter()
        .filter(|(name, value)| OFF.contains(&name.as_str()) && !neutral(name, value))
        .map(|(name, value)| {
            let secret = name.ends_with("token") && name != "eos_token";
            let value = if secret {
                "…".to_owned()
            } else {
                value.to_string()
            };
            let message = format!("`{name}` = {value} is not followed here");
            Diagnostic::error("job-field", message).help(instead(name))
        })
        .collect();
    if !on.is_empty() {
        return Err(Error::many(ErrorKind::Train, on));
    }
    let mut taken = Map::new();
    for (name, value) in std::mem::take(options) {
        if name != TEXT_FIELD && names().any(|(known, _)| known == name) {
            taken.insert(name, value);
        } else {
            options.insert(name, value);
        }
    }
    Ok(taken)
}

/// Takes out TRL's name of the column of texts.
pub(super) fn text_field(options: &mut Map<String, Value>) -> Option<Value> {
    options.shift_remove(TEXT_FIELD).filter(|v| !v.is_null())
}

/// Makes a column the one of texts: TRL's `dataset_text_field` is `columns` with `text`. The usual name says nothing, as a row of another
/// form has no such column.
///
/// # Errors
/// A name that is no text, and a column that `columns` names already.
pub(super) fn put_text_field(settings: &mut Map<String, Value>, field: &Value) -> Result<()> {
    let refuse = |message: String, help: &str| {
        let d = Diagnostic::error("job-field", message).help(help);
        Err(Error::new(ErrorKind::Train, d))
    };
    let Some(name) = field.as_str().filter(|n| !n.is_empty()) else {
        let message = format!("`{TEXT_FIELD}`: found {field}, expected the name of a column");
        return refuse(message, "give the name of the column that holds the text");
    };
    if name == "text" {
        return Ok(());
    }
    settings.retain(|name, value| name != "columns" || !value.is_null());
    let columns = settings
        .entry("columns")
        .or_insert_with(|| Map::new().into());
    let Value::Object(columns) = columns else {
        return Ok(());
    };
    match columns.get("text") {
        Some(other) if other != field => {
            let message =
                format!("`{TEXT_FIELD}` is {field}, and `columns` has {other} for `text`");
            refuse(message, "leave one of them out")
        }
        _ => {
            columns.insert("text".to_owned(), field.clone());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::settings::JobSettings;

    #[test]
    fn no_option_is_ignored() {
        let known = JobSettings::fields();
        let both: Vec<&str> = names()
            .map(|(n, _)| n)
            .filter(|n| known.iter().any(|f| f.name == *n))
            .collect();
        assert!(both.is_empty(), "{both:?}");
        assert!(HARMLESS.is_sorted() && OFF.is_sorted() && EXACT.is_sorted() && TRUTHS.is_sorted());
        let all: Vec<&str> = names().map(|(n, _)| n).collect();
        let stray: Vec<&str> = TRUTHS.into_iter().filter(|t| !all.contains(t)).collect();
        assert!(stray.is_empty(), "{stray:?}");
    }

    /// What `Seq2SeqTrainingArguments().to_dict()` holds (`fixtures/train/make_arguments.py`): every field is an option, or known here.
    #[test]
    fn all_arguments_of_transformers_are_known() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/train/arguments.json");
        let text = std::fs::read_to_string(file).unwrap();
        let Value::Object(mut all) = serde_json::from_str(&text).unwrap() else {
            panic!("no object");
        };
        assert!(all.len() > 130, "{}", all.len());
        let truths: Vec<&str> = all
            .iter()
            .filter(|(name, value)| value.is_boolean() && names().any(|(n, _)| n == *name))
            .map(|(name, _)| name.as_str())
            .collect();
        let wrong: Vec<&&str> = truths.iter().filter(|n| !TRUTHS.contains(n)).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        let taken = take(&mut all).unwrap();
        assert!(taken.len() > 60, "{}", taken.len());
        JobSettings::read(all).unwrap();
    }

    /// `SFTConfig`, `ScriptArguments` and `ModelConfig` of TRL 0.17, and what later versions have beside them.
    #[test]
    fn all_arguments_of_trl_are_known() {
        let known = JobSettings::fields();
        let all = [
            "activation_offloading assistant_only_loss attn_implementation bnb_4bit_quant_type chars_per_token chat_template_path",
            "completion_only_loss dataset_batch_size dataset_config dataset_kwargs dataset_name dataset_num_proc dataset_streaming",
            "dataset_test_split dataset_text_field dataset_train_split eos_token eval_packing gradient_checkpointing_use_reentrant",
            "ignore_bias_buffers load_in_4bit load_in_8bit lora_alpha lora_dropout lora_modules_to_save lora_r lora_target_modules",
            "lora_task_type loss_type max_length max_seq_length model_init_kwargs model_name_or_path model_revision num_of_sequences",
            "packing packing_strategy pad_to_multiple_of pad_token padding_free shuffle_dataset torch_dtype trust_remote_code",
            "use_bnb_nested_quant use_dora use_liger use_peft use_rslora",
        ];
        let aliases = <crate::train::DataArguments as crate::options::Options>::ALIASES;
        let unknown = |name: &&str| {
            !known.iter().any(|f| f.name == *name)
                && !aliases.iter().any(|(a, _)| a == name)
                && !names().any(|(n, _)| n == *name)
        };
        let all = all.iter().flat_map(|line| line.split(' '));
        let unknown: Vec<&str> = all.filter(unknown).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        // What `SFTConfig().to_dict()` has beside the arguments of Transformers.
        let Value::Object(mut usual) = serde_json::json!({
            "model_init_kwargs": null, "dataset_text_field": "text", "dataset_kwargs": null, "dataset_num_proc": null,
            "eos_token": "<EOS_TOKEN>", "pad_token": "<PAD_TOKEN>", "max_length": 1024, "packing": false, "padding_free": false,
            "eval_packing": null, "completion_only_loss": null, "dataset_batch_size": null, "num_of_sequences": null,
            "chars_per_token": null, "max_seq_length": null, "use_liger": null
        }) else {
            panic!("no object");
        };
        crate::options::rename::<crate::train::DataArguments>(&mut usual).unwrap();
        take(&mut usual).unwrap();
        let field = text_field(&mut usual).unwrap();
        put_text_field(&mut usual, &field).unwrap();
        let job = JobSettings::read(usual).unwrap();
        assert_eq!(job.data.max_seq_length, Some(1024));
        assert!(job.data.columns.is_empty() && job.data.pad_token.is_none());
    }

    #[test]
    fn the_column_of_texts_has_a_second_name() {
        let mut settings = Map::new();
        put_text_field(&mut settings, &"content".into()).unwrap();
        assert_eq!(settings["columns"]["text"], "content");
        put_text_field(&mut settings, &"content".into()).unwrap();
        let e = put_text_field(&mut settings, &"body".into()).unwrap_err();
        assert!(e.to_string().contains("leave one of them out"), "{e}");
        assert!(put_text_field(&mut settings, &3.into()).is_err());
    }

    #[test]
    fn what_changes_numbers_is_refused() {
        for (name, value) in [
            ("adafactor", Value::Bool(true)),
            ("deepspeed", "zero3.json".into()),
            ("neftune_noise_alpha", 5.into()),
            ("sortish_sampler", true.into()),
            ("per_gpu_train_batch_size", 4.into()),
            (
                "accelerator_config",
                serde_json::json!({"even_batches": true, "split_batches": true}),
            ),
            ("hub_token", "hf_secret".into()),
            ("eos_token", "<|im_end|>".into()),
            ("completion_only_loss", false.into()),
            ("packing_strategy", "wrapped".into()),
            ("lora_r", 8.into()),
            ("dataset_name", "trl-lib/Capybara".into()),
        ] {
            let mut options = Map::from_iter([(name.to_owned(), value)]);
            let e = take(&mut options).unwrap_err().to_string();
            assert!(
                e.contains(&format!("`{name}`")) && !e.contains("hf_secret"),
                "{e}"
            );
        }
        let mut options = Map::from_iter([
            ("fp16".to_owned(), Value::Bool(true)),
            ("tf32".to_owned(), Value::Bool(false)),
        ]);
        let notes = notes(&take(&mut options).unwrap());
        assert!(
            notes.len() == 2 && notes[0].ends_with("here: tf32"),
            "{notes:?}"
        );
        assert!(notes[1].ends_with("(f32): fp16"), "{notes:?}");
    }
}
