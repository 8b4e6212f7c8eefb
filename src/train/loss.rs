//! Losses by the names that settings give them.

use crate::adapters::AdapterStore;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind};
use crate::rewrite::passes::loss::{Divisor, Loss, RowLoss};

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
            kind: kind @ (RowLoss::Classification | RowLoss::Tagging),
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

/// Parses a loss as the command line names it: `causal-lm`, `seq2seq`, `classification`, `multi-label`, `regression`,
/// `token-classification`, `question-answering`, `masked-lm`, `mse`, or the name of a scalar value.
pub(crate) fn parse_loss(text: &str, divisor: Divisor) -> Loss {
    match text {
        "causal-lm" => Loss::CausalLm {
            logits: None,
            divisor,
        },
        "seq2seq" | "masked-lm" => Loss::Tokens {
            shift: false,
            divisor,
            smoothing: 0.0,
        },
        "classification" => rows(RowLoss::Classification, divisor),
        "multi-label" => rows(RowLoss::MultiLabel, divisor),
        "regression" => rows(RowLoss::Regression, divisor),
        "token-classification" => rows(RowLoss::Tagging, divisor),
        "question-answering" => rows(RowLoss::Spans, divisor),
        "mse" => Loss::Mse { output: None },
        name => Loss::Named(name.to_owned()),
    }
}

/// An error where nothing can be trained.
pub(super) fn not_trained(name: &str, store: &AdapterStore) -> Error {
    let found = format!("`train_adapters` names `{name}`, which has no parameters here");
    Error::new(
        ErrorKind::Train,
        Diagnostic::error("train-adapters", found)
            .help(format!("active are: {}", store.adapters().join(", "))),
    )
}

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
