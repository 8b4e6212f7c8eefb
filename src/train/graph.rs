//! From an adapted model to the graph of a training step.

use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::contract;
use crate::rewrite::Pipeline;
use crate::rewrite::passes::fuse::{Cleanup, FuseBlocks, FuseLoss, FuseProducts};
use crate::rewrite::passes::gradient::{GradientPass, Outputs};
use crate::rewrite::passes::loss::{Divisor, Loss, RowLoss};
use crate::rewrite::passes::shapes::EarlyShapes;

/// Which operators the step is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The exported graph's own, and standard ONNX for loss and gradient.
    Portable,
    /// Fused ones, for this library's runtime.
    #[default]
    Native,
}

/// The same loss with a share of the target spread over all classes; losses that have no classes stay as they are.
#[must_use]
pub fn smoothed(loss: Loss, factor: f64) -> Loss {
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
pub fn parse_loss(text: &str, divisor: Divisor) -> Loss {
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
pub fn inference_graph(model: Verified, mode: Mode) -> Result<Verified> {
    match mode {
        Mode::Portable => Ok(model),
        Mode::Native => {
            let pipeline = Pipeline::new()
                .with(Cleanup)
                .with(FuseBlocks)
                .with(FuseProducts);
            Ok(pipeline.run(model)?.model)
        }
    }
}

/// Appends the loss and its gradients by the values named. Afterwards the graph has the output `loss` and an output `grad/NAME` for
/// each; with [`Outputs::Drop`] no others.
pub fn training_graph(
    model: Verified,
    loss: &Loss,
    wrt: &[String],
    outputs: Outputs,
    mode: Mode,
) -> Result<Verified> {
    let gradient = GradientPass {
        loss: contract::LOSS.to_owned(),
        wrt: wrt.to_vec(),
        outputs,
    };
    if mode == Mode::Portable {
        return Ok(Pipeline::new()
            .with(loss.clone())
            .with(gradient)
            .with(EarlyShapes)
            .run(model)?
            .model);
    }
    let fuse_loss = fused_loss(&model, loss);
    let mut pipeline = Pipeline::new()
        .with(Cleanup)
        .with(FuseBlocks)
        .with(loss.clone());
    if let Some(fuse_loss) = fuse_loss {
        pipeline = pipeline.with(fuse_loss);
    }
    let pipeline = pipeline.with(gradient).with(FuseProducts).with(EarlyShapes);
    Ok(pipeline.run(model)?.model)
}

fn fused_loss(model: &Verified, loss: &Loss) -> Option<FuseLoss> {
    let Loss::CausalLm { logits, divisor } = loss else {
        return None;
    };
    let g = &model.model().graph;
    let names = || g.outputs().iter().map(|p| g.name_of(p.value));
    let logits = logits
        .as_deref()
        .or_else(|| names().find(|n| *n == contract::LOGITS))
        .or_else(|| names().next())?;
    Some(FuseLoss {
        logits: logits.to_owned(),
        labels: contract::LABELS.to_owned(),
        divisor: (*divisor == Divisor::Input).then(|| contract::NUM_ITEMS.to_owned()),
        loss: contract::LOSS.to_owned(),
    })
}

/// Appends a loss without gradients.
pub fn loss_graph(model: Verified, loss: &Loss, mode: Mode) -> Result<Verified> {
    let fuse_loss = fused_loss(&model, loss).filter(|_| mode == Mode::Native);
    let mut pipeline = Pipeline::new();
    if mode == Mode::Native {
        pipeline = pipeline.with(Cleanup).with(FuseBlocks);
    }
    pipeline = pipeline.with(loss.clone());
    if let Some(fuse_loss) = fuse_loss {
        pipeline = pipeline.with(fuse_loss);
    }
    Ok(pipeline.run(model)?.model)
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
