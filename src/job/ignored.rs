//! Arguments of Hugging Face's `TrainingArguments` that a job file or a command may have and that change nothing here.

use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use serde_json::{Map, Value};

/// They say how Python runs, or where it writes; or they name what always holds here.
const HARMLESS: [&str; 61] = [
    "auto_find_batch_size",
    "average_tokens_across_devices",
    "batch_eval_metrics",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "dataset_batch_size",
    "dataset_num_proc",
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
    "eval_use_gather_object",
    "fp16_backend",
    "fp16_opt_level",
    "full_determinism",
    "gradient_checkpointing_kwargs",
    "half_precision_backend",
    "hub_always_push",
    "hub_strategy",
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
    "no_cuda",
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
    "use_cpu",
    "use_ipex",
    "use_legacy_prediction_loop",
    "use_liger",
    "use_liger_kernel",
    "use_mps_device",
];
/// They ask for numbers with fewer digits than the program computes with.
const EXACT: [&str; 4] = ["bf16_full_eval", "fp16", "fp16_full_eval", "tf32"];
/// They would change the training, and say here that they do not.
const OFF: [&str; 29] = [
    "accelerator_config",
    "adafactor",
    "debug",
    "deepspeed",
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
    "mp_parameters",
    "neftune_noise_alpha",
    "optim_args",
    "optim_target_modules",
    "past_index",
    "per_gpu_eval_batch_size",
    "per_gpu_train_batch_size",
    "predict_with_generate",
    "prediction_loss_only",
    "push_to_hub_model_id",
    "push_to_hub_organization",
    "push_to_hub_token",
    "sortish_sampler",
    "tp_size",
];
/// Those that are true or false, so that a flag of this name may stand alone.
const TRUTHS: [&str; 45] = [
    "adafactor",
    "auto_find_batch_size",
    "average_tokens_across_devices",
    "batch_eval_metrics",
    "bf16_full_eval",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "ddp_broadcast_buffers",
    "ddp_find_unused_parameters",
    "disable_tqdm",
    "do_eval",
    "do_predict",
    "do_train",
    "eval_do_concat_batches",
    "eval_use_gather_object",
    "fp16",
    "fp16_full_eval",
    "full_determinism",
    "hub_always_push",
    "ignore_data_skip",
    "include_inputs_for_metrics",
    "include_num_input_tokens_seen",
    "include_tokens_per_second",
    "jit_mode_eval",
    "log_on_each_node",
    "logging_nan_inf_filter",
    "no_cuda",
    "predict_with_generate",
    "prediction_loss_only",
    "remove_unused_columns",
    "restore_callback_states_from_checkpoint",
    "save_on_each_node",
    "save_only_model",
    "save_safetensors",
    "skip_memory_metrics",
    "sortish_sampler",
    "tf32",
    "torch_compile",
    "tpu_metrics_debug",
    "use_cpu",
    "use_ipex",
    "use_legacy_prediction_loop",
    "use_liger",
    "use_liger_kernel",
    "use_mps_device",
];
/// Values that leave an argument of `accelerator_config` as it is.
const AS_IT_IS: [&str; 2] = ["even_batches", "use_seedable_sampler"];

/// The names of all arguments here, and whether each is true or false.
pub(crate) fn names() -> impl Iterator<Item = (&'static str, bool)> {
    let all = HARMLESS.into_iter().chain(EXACT).chain(OFF);
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

fn off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        // What `TrainingArguments.to_dict` writes in place of a token.
        Value::String(text) => {
            text.is_empty() || text == "length" || text.starts_with('<') && text.ends_with('>')
        }
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map
            .iter()
            .all(|(name, v)| off(v) || AS_IT_IS.contains(&name.as_str()) && *v == true),
        Value::Number(n) => [Some(-1), Some(0)].contains(&n.as_i64()),
        Value::Bool(true) => false,
    }
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
        _ => "leave it out",
    }
}

/// Takes out the arguments that change nothing.
///
/// # Errors
/// An argument that would change the training, with a value that turns it on.
pub(super) fn take(options: &mut Map<String, Value>) -> Result<Map<String, Value>> {
    let on: Vec<Diagnostic> = options
        .iter()
        .filter(|(name, value)| OFF.contains(&name.as_str()) && !off(value))
        .map(|(name, value)| {
            let secret = name.ends_with("token");
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
        if names().any(|(known, _)| known == name) {
            taken.insert(name, value);
        } else {
            options.insert(name, value);
        }
    }
    Ok(taken)
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
