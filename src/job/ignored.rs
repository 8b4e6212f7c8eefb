//! Arguments of Hugging Face's `TrainingArguments` that a job file may have and that change nothing here.

use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use serde_json::{Map, Value};

/// They say how Python runs, or where it writes; or they name what always holds here.
const HARMLESS: [&str; 44] = [
    "average_tokens_across_devices",
    "batch_eval_metrics",
    "bf16_full_eval",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
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
    "fp16",
    "fp16_backend",
    "fp16_full_eval",
    "fp16_opt_level",
    "full_determinism",
    "gradient_checkpointing_kwargs",
    "half_precision_backend",
    "hub_always_push",
    "hub_strategy",
    "include_num_input_tokens_seen",
    "include_tokens_per_second",
    "local_rank",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "logging_dir",
    "logging_nan_inf_filter",
    "remove_unused_columns",
    "run_name",
    "save_safetensors",
    "skip_memory_metrics",
    "tf32",
    "torch_empty_cache_steps",
    "use_cpu",
    "use_legacy_prediction_loop",
];
/// They would change the training, and say here that they do not.
const OFF: [&str; 18] = [
    "accelerator_config",
    "auto_find_batch_size",
    "debug",
    "deepspeed",
    "fsdp",
    "fsdp_config",
    "include_for_metrics",
    "jit_mode_eval",
    "length_column_name",
    "liger_kernel_config",
    "neftune_noise_alpha",
    "optim_args",
    "optim_target_modules",
    "past_index",
    "prediction_loss_only",
    "torch_compile",
    "use_ipex",
    "use_liger_kernel",
];

/// Takes out the arguments that change nothing, and says their names.
///
/// # Errors
/// An argument that would change the training, with a value that turns it on.
pub(super) fn take(options: &mut Map<String, Value>) -> Result<Vec<String>> {
    let off = |v: &Value| match v {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty() || text == "length",
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(n) => n.as_i64() == Some(-1),
        Value::Bool(true) => false,
    };
    let on: Vec<Diagnostic> = options
        .iter()
        .filter(|(name, value)| OFF.contains(&name.as_str()) && !off(value))
        .map(|(name, value)| {
            let message = format!("`{name}` = {value} is not followed here");
            Diagnostic::error("job-field", message).help("leave it out")
        })
        .collect();
    if !on.is_empty() {
        return Err(Error::many(ErrorKind::Train, on));
    }
    let mut taken = Vec::new();
    options.retain(|name, _| {
        let harmless = HARMLESS.contains(&name.as_str()) || OFF.contains(&name.as_str());
        if harmless {
            taken.push(name.clone());
        }
        !harmless
    });
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::settings::JobSettings;

    #[test]
    fn no_option_is_ignored() {
        let known = JobSettings::fields();
        let both: Vec<&str> = HARMLESS
            .into_iter()
            .chain(OFF)
            .filter(|n| known.iter().any(|f| f.name == *n))
            .collect();
        assert!(both.is_empty(), "{both:?}");
        assert!(HARMLESS.is_sorted() && OFF.is_sorted());
    }
}
