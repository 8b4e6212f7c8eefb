//! All pipelines of the library, as lists of passes. Each line says why the pass is there, and why it stands where it stands.
//!
//! What is written to files is made by portable pipelines only. Native ones are for the copy that a plan is compiled from: they put
//! operators of this library's own domain in the place of whole blocks (see [`two_pipelines`](crate::design::two_pipelines)).
//!
//! [`all`] makes every one of them with nothing particular to do, for those who want to know what the lists hold.

use super::Pipeline;
use super::bodies::Sink;
use super::passes::cache::AddCache;
use super::passes::channel::OneChannel;
use super::passes::expand::Expand;
use super::passes::fuse::{Cleanup, FuseBlocks, FuseLoss, FuseProducts};
use super::passes::gradient::{GradientPass, Outputs, Unreached};
use super::passes::head::{AttachHead, NoteHead};
use super::passes::inline::Inline;
use super::passes::join::Join;
use super::passes::logits::ChooseLogits;
use super::passes::loss::{Divisor, Loss};
use super::passes::pack::Pack;
use super::passes::recompute::Recompute;
use super::passes::shapes::EarlyShapes;
use super::passes::unpad::Unpad;
use super::passes::{AttachPass, Changes, Merge, Strip};
use crate::adapters::Setup;
use crate::adapters::heads::{Head, HeadConfig, Noted};
use crate::adapters::methods::Fold;
use crate::adapters::place::Shown;
use crate::infer::Verified;
use crate::ir::{OpId, contract};
use crate::select::Selection;

/// Which operators the result of a pipeline is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The exported graph's own, and standard ONNX for what is added.
    Portable,
    /// Fused ones, for this library's runtime.
    #[default]
    Native,
}

impl Mode {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Portable => "portable",
            Mode::Native => "native",
        }
    }

    fn is_native(self) -> bool {
        self == Mode::Native
    }
}

/// Opens operators that hide values: before sites are selected.
pub(crate) fn opening(ops: Vec<OpId>) -> Pipeline {
    Pipeline::named("opening").step(
        Expand::Ops(ops),
        "Fused skip norms and attentions hide the values that adapters are spliced at.",
    )
}

/// Puts calls of functions and branches that are decided in the place of their nodes.
pub(crate) fn inlining(without_cache: bool) -> Pipeline {
    Pipeline::named("inlining").step(
        Inline {
            without_cache,
            calls: true,
        },
        "A function or a branch hides its nodes from everything that looks at one graph.",
    )
}

/// Puts an encoder in front of a decoder.
pub(crate) fn joining(encoder: Verified) -> Pipeline {
    Pipeline::named("joining").step(
        Join { encoder },
        "Two files of one model become one graph, so that adapters of both are trained by one loss.",
    )
}

/// Puts bodies of nodes, which were rewritten as models of their own, back where they stood.
pub(crate) fn sinking(sink: Sink) -> Pipeline {
    Pipeline::named("sinking").step(
        sink,
        "Behind the passes that saw each body as a graph: what they read of the graph around is captured again.",
    )
}

/// Keeps examples of one row apart: before adapters are attached.
pub(crate) fn packing(selection: Selection) -> Pipeline {
    Pipeline::named("packing").step(
        Pack { selection },
        "Attention sees its own example only, and positions start again for each.",
    )
}

/// Attaches adapters.
pub(crate) fn attaching(attach: AttachPass) -> Pipeline {
    Pipeline::named("attaching").step(
        attach,
        "All adapters in one pass: it plans every place before it writes the first node.",
    )
}

/// Gives a base model a prediction head.
pub(crate) fn heading(head: AttachHead) -> Pipeline {
    Pipeline::named("heading").step(
        head,
        "Behind the adapters: the head reads the adapted hidden states.",
    )
}

/// Keeps one child of a `Parallel`.
pub(crate) fn one_channel(channel: usize) -> Pipeline {
    Pipeline::named("one-channel").step(
        OneChannel { channel },
        "A row has one answer of each child: to measure one, or to go on with its text, it is taken alone.",
    )
}

/// Says what the graph's own head became, where an adapter or the weights hold another one.
pub(crate) fn noting(head: Noted) -> Pipeline {
    Pipeline::named("noting").step(
        NoteHead(head),
        "Behind the adapters, whose manifest it stands in: the file knows its classes, and the head is written again.",
    )
}

/// Takes adapters out again: one, or all.
pub(crate) fn stripping(adapter: Option<String>) -> Pipeline {
    Pipeline::named("stripping").step(
        Strip { adapter },
        "The stamps on nodes say what attaching added, in memory and in a file.",
    )
}

/// Folds adapters into the base weights, or takes them out of these again.
pub(crate) fn merging(merge: Merge) -> Pipeline {
    Pipeline::named("merging").step(
        merge,
        "Weights change and no node does, so the merged file is as fast as the base model.",
    )
}

/// A model that is run as it is.
pub fn inference(mode: Mode) -> Pipeline {
    fused(Pipeline::named("inference"), mode).when(
        mode.is_native(),
        FuseProducts,
        "Last: transposes, scales and sums go into the products that fusing left, those of adapters too.",
    )
}

/// A loss without gradients.
pub fn loss(loss: &Loss, mode: Mode) -> Pipeline {
    on_tokens(with_loss(Pipeline::named("loss"), loss, mode), mode, false)
}

/// A loss without gradients, and outputs of which nobody looks at padding.
pub(crate) fn evaluating(loss: &Loss, mode: Mode) -> Pipeline {
    on_tokens(
        with_loss(Pipeline::named("evaluating"), loss, mode),
        mode,
        true,
    )
}

/// The loss and its gradients by the values named: one step of training. The result has the output `loss` and an output `grad/NAME` for
/// each; with [`Outputs::Drop`] no others. `recompute` saves memory for time.
pub fn training(
    loss: &Loss,
    wrt: &[String],
    outputs: Outputs,
    recompute: bool,
    mode: Mode,
) -> Pipeline {
    let gradient = GradientPass {
        loss: contract::LOSS.to_owned(),
        wrt: wrt.to_vec(),
        outputs,
        unreached: Unreached::Refuse,
    };
    let again = Recompute {
        loss: contract::LOSS.to_owned(),
        wrt: wrt.to_vec(),
    };
    let dropped = outputs == Outputs::Drop;
    on_tokens(with_loss(Pipeline::named("training"), loss, mode), mode, dropped)
        .step(
            gradient,
            "Behind the fused blocks, whose operators have a gradient rule and a kernel for it.",
        )
        .when(
            mode.is_native(),
            FuseProducts,
            "Behind the gradient: backward products are transposed and summed, and fold as forward ones do.",
        )
        .step(
            EarlyShapes,
            "The gradient asks for shapes of the forward pass; read early, they keep no value alive.",
        )
        .when(
            recompute,
            again,
            "Last: what is computed again is what all other passes left of the forward pass.",
        )
}

/// The logits of chosen positions only.
pub(crate) fn choosing(logits: String) -> Pipeline {
    Pipeline::named("choosing").step(choose(logits), CHOOSE)
}

/// Logits of chosen positions, of whole texts.
pub(crate) fn scoring(logits: String, mode: Mode) -> Pipeline {
    Pipeline::named("scoring")
        .step(choose(logits), CHOOSE)
        .then(inference(mode))
}

/// A decoder that keeps keys and values: its first step, or with `past` those behind it. For a model of [`choosing`].
pub(crate) fn decoding(selection: Selection, past: bool, mode: Mode) -> Pipeline {
    let name = if past { "decoding" } else { "decoding-first" };
    Pipeline::named(name)
        .step(
            Expand::Ops(vec![OpId::new("", "Attention")]),
            "An attention that is one operator shows no scores, in front of which those of the cache stand.",
        )
        .step(
            AddCache { selection, past },
            "Before fusing, as it looks for attentions as they were exported.",
        )
        .then(inference(mode))
}

/// Blocks that become one operator.
fn fused(pipeline: Pipeline, mode: Mode) -> Pipeline {
    let native = mode.is_native();
    pipeline
        .when(
            native,
            Cleanup,
            "First: an Identity or an idle Cast between two nodes hides what fusing looks for.",
        )
        .when(
            native,
            FuseBlocks,
            "Norms, rotary embeddings, attentions and gates, before anything else is put between their nodes.",
        )
}

fn with_loss(pipeline: Pipeline, loss: &Loss, mode: Mode) -> Pipeline {
    fused(pipeline, mode)
        .step(
            loss.clone(),
            "In standard operators, whatever the mode: one definition of every loss.",
        )
        .when(
            mode.is_native(),
            FuseLoss {
                of: loss.clone(),
            },
            "Before the gradient: logits of labelled rows only, never all of them, forward or backward.",
        )
}

/// Takes padding out where only positions by themselves are worked on.
fn on_tokens(pipeline: Pipeline, mode: Mode, free_outputs: bool) -> Pipeline {
    pipeline.when(
        mode.is_native(),
        Unpad { free_outputs },
        "Behind the loss, whose labels hide what stands at padding, and before the gradient, which is then one of tokens too.",
    )
}

fn choose(logits: String) -> ChooseLogits {
    ChooseLogits {
        logits: Some(logits),
    }
}

/// Why the logits are chosen.
const CHOOSE: &str = "First: the product with the vocabulary is the largest, and most of its rows would be thrown away.";

/// Every pipeline in the order of a model's life, with nothing particular to do: for its name, and the names and reasons of its passes.
pub(crate) fn all(mode: Mode) -> Vec<Pipeline> {
    let selection = Selection::default;
    let causal = Loss::CausalLm {
        logits: None,
        divisor: Divisor::Labels,
    };
    let attach = AttachPass {
        selection: selection(),
        setup: Setup::Stack(Vec::new()),
        adapters: Vec::new(),
        seed: 0,
        training: false,
        shown: Shown::default(),
        skip_layers: Vec::new(),
        skip_input: false,
        tenants: None,
        exchange: None,
    };
    let merge = Merge {
        selection: selection(),
        adapters: Vec::new(),
        skip_layers: Vec::new(),
        setup: None,
        fold: Fold::In,
        changes: Changes::default(),
        evaluate: Box::new(|_| Ok(Vec::new())),
    };
    let fresh = Head::fresh("", HeadConfig::default());
    let noted = Noted::flexible(&fresh);
    let head = AttachHead {
        heads: vec![fresh],
        block: None,
        seed: 0,
        training: false,
    };
    let logits = || contract::LOGITS.to_owned();
    vec![
        inlining(true),
        opening(Vec::new()),
        sinking(Sink { pieces: Vec::new() }),
        packing(selection()),
        attaching(attach),
        heading(head),
        noting(noted),
        one_channel(0),
        inference(mode),
        loss(&causal, mode),
        evaluating(&causal, mode),
        training(&causal, &[], Outputs::Drop, true, mode),
        choosing(logits()),
        decoding(selection(), false, mode),
        decoding(selection(), true, mode),
        scoring(logits(), mode),
        merging(merge),
        stripping(None),
    ]
}
