//! From an adapted model to the graph of a training step.

use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
#[cfg(test)]
use crate::rewrite::passes::gradient::Outputs;
use crate::rewrite::passes::loss::{Divisor, Loss, RowLoss};
use crate::rewrite::pipelines::{self, Mode};

/// The same loss with a share of the target spread over all classes; losses that have no classes stay as they are.
#[must_use]
pub(crate) fn smoothed(loss: Loss, factor: f64) -> Loss {
    match loss {
        Loss::CausalLm { divisor, .. } if factor > 0.0 => Loss::Tokens {
            shift: true,
            divisor,
            smoothing: factor,
        },
        Loss::Tokens { shift, divisor, .. } => Loss::Tokens {
            shift,
            divisor,
            smoothing: factor,
        },
        Loss::Rows {
            kind: kind @ RowLoss::Classification,
            divisor,
            ..
        } => Loss::Rows {
            kind,
            divisor,
            smoothing: factor,
        },
        other => other,
    }
}

fn rows(kind: RowLoss, divisor: Divisor) -> Loss {
    Loss::Rows {
        kind,
        divisor,
        smoothing: 0.0,
    }
}

/// Parses a loss as the command line names it: `causal-lm`, `seq2seq`, `classification`, `multi-label`, `regression`, `mse`, or the name
/// of a scalar value.
pub(crate) fn parse_loss(text: &str, divisor: Divisor) -> Loss {
    match text {
        "causal-lm" => Loss::CausalLm {
            logits: None,
            divisor,
        },
        "seq2seq" => Loss::Tokens {
            shift: false,
            divisor,
            smoothing: 0.0,
        },
        "classification" => rows(RowLoss::Classification, divisor),
        "multi-label" => rows(RowLoss::MultiLabel, divisor),
        "regression" => rows(RowLoss::Regression, divisor),
        "mse" => Loss::Mse { output: None },
        name => Loss::Named(name.to_owned()),
    }
}

/// Fuses a model for inference on this library's runtime.
pub(crate) fn inference_graph(model: Verified, mode: Mode) -> Result<Verified> {
    Ok(pipelines::inference(mode).run(model)?.model)
}

/// Appends the loss and its gradients by the values named. Afterwards the graph has the output `loss` and an output `grad/NAME` for
/// each; with [`Outputs::Drop`] no others.
#[cfg(test)]
pub(crate) fn training_graph(
    model: Verified,
    loss: &Loss,
    wrt: &[String],
    outputs: Outputs,
    mode: Mode,
) -> Result<Verified> {
    let pipeline = pipelines::training(loss, wrt, outputs, false, mode);
    Ok(pipeline.run(model)?.model)
}

/// Appends a loss without gradients.
pub(crate) fn loss_graph(model: Verified, loss: &Loss, mode: Mode) -> Result<Verified> {
    Ok(pipelines::loss(loss, mode).run(model)?.model)
}

/// An error where nothing can be trained.
pub(super) fn nothing_to_train() -> Error {
    Error::new(
        ErrorKind::Train,
        Diagnostic::error(
            "nothing-to-train",
            "the model has no trainable adapter parameter",
        )
        .help("attach an adapter: --adapter 'lora[r=8]'"),
    )
}
