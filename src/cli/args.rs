//! The command line as types.

#![expect(
    clippy::doc_markdown,
    reason = "the documentation is the help text on a terminal"
)]

use super::average::AverageArgs;
use super::exec::ExecArgs;
use super::export::{AdapterFormat, ExportArgs, FormatArg};
use super::flags::{Flags, OtherFlags};
use super::merge::MergeArgs;
use super::select::{AdapterArgs, VariantArgs};
use super::tenants::TenantsCommand;
use super::values;
use crate::budget;
use crate::generate::GenerationArguments;
use crate::job::{JobArguments, ModelSettings};
use crate::options::Kind;
use crate::rewrite::pipelines::Mode;
use crate::train::{CollateArguments, DataArguments, EvalArguments, TrainingArguments};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Adapters for any exported Transformer: selects layers of an ONNX graph, splices adapters in, runs and trains them.
#[derive(Debug, Parser)]
#[command(
    name = "rewrite",
    version,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = "Example:\n  rewrite --interface qwen3 --adapter 'lora[r=8,alpha=16]' model.onnx\n\
                  writes model.lora.onnx and the adapter folder lora/ beside the model."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) attach: AttachArgs,
    #[command(flatten)]
    pub(crate) global: Global,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Print one JSON document on stdout instead of text; `generate` prints events, one JSON object a line
    #[arg(long, global = true, display_order = 900)]
    pub(crate) json: bool,
    /// Show no progress and no warnings
    #[arg(short, long, global = true, display_order = 901)]
    pub(crate) quiet: bool,
    /// Show more detail; given twice, all of it
    #[arg(short, long, global = true, display_order = 902, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Refuse what would take more memory than this, as in 8G; all of the machine's by default
    #[arg(long, global = true, display_order = 903, value_name = "SIZE", value_parser = budget::parse)]
    pub(crate) memory_limit: Option<u64>,
}

/// An object of a text, as options that are objects have it.
fn object(text: &str) -> Result<Map<String, Value>, String> {
    match Kind::Map.parse(text)? {
        Value::Object(map) => Ok(map),
        other => Err(format!("found {other}")),
    }
}

/// Names what is given beside a model that generates.
pub(crate) fn name_beside(
    flags: &mut Map<String, Value>,
    stop_strings: &[String],
    tokenizer: Option<&Path>,
    portable: bool,
) {
    if !stop_strings.is_empty() {
        flags.insert("stop_strings".into(), json!(stop_strings));
    }
    if let Some(tokenizer) = tokenizer {
        flags.insert("tokenizer".into(), json!(tokenizer.display().to_string()));
    }
    if portable {
        flags.insert("portable".into(), json!(true));
    }
}

/// The main job.
#[derive(Clone, Debug, Args)]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    pub(crate) select: AdapterArgs,
    /// The ONNX file, its folder, or hub:ORG/NAME
    pub(crate) model: Option<PathBuf>,
    /// Output file or folder (default: beside the model; here, for a model on the Hub)
    #[arg(short, long, value_name = "FILE|DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Replace existing outputs
    #[arg(long)]
    pub(crate) force: bool,
    /// Select, attach and verify, print the difference, write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Seed of initial parameter values
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
    /// Give the graph an optional input `adapter_ids` that chooses one of the adapters for each sample of a batch: its place in the order
    /// in which they are given, from 0, or -1 for none (`rewrite tenants` lists, adds and removes them)
    #[arg(long)]
    pub(crate) adapter_ids: bool,
    /// Format that the adapters are written in
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What a graph holds: exporter, inputs and outputs, modules, layers, and what an interface selects
    #[command(after_help = "Example:\n  rewrite inspect model.onnx --interface qwen3")]
    Inspect {
        /// The ONNX file, its folder, or hub:ORG/NAME
        model: PathBuf,
        #[command(flatten)]
        of: VariantArgs,
        /// Interface to resolve on the model
        #[arg(short, long, value_name = "FILE|NAME", value_parser = values::interface(), hide_possible_values = true)]
        interface: Option<String>,
    },
    /// Interface specs: built in, checked, inferred
    #[command(
        subcommand,
        after_help = "Example:\n  rewrite interface check qwen3.json model.onnx"
    )]
    Interface(InterfaceCommand),
    /// Execute a graph on tensors of a safetensors file; optionally loss and gradients
    #[command(
        after_help = "Example:\n  rewrite run model.lora.onnx --inputs in.safetensors --outputs out.safetensors --loss causal-lm --grad"
    )]
    Run(Box<RunArgs>),
    /// Fine-tune adapter parameters; the base model stays as it is
    #[command(
        after_help = "Example:\n  rewrite train model.onnx --interface qwen3 --adapter 'lora[r=8]' --data train.jsonl --output-dir out --max-steps 100"
    )]
    Train(Box<TrainArgs>),
    /// Measure a model on data: loss and perplexity, classes, numbers, generated texts
    #[command(
        after_help = "Examples:\n  rewrite eval model.onnx --adapter lora/ --data test.jsonl\n  \
                      rewrite eval model.onnx --adapter lora/ --data test.jsonl --metrics final_number --max-new-tokens 100"
    )]
    Eval(Box<EvalArgs>),
    /// Generate text with a model, adapted or not
    #[command(
        after_help = "Examples:\n  rewrite generate model.onnx --interface qwen3 --adapter lora/ --prompt 'The cat' --max-new-tokens 50\n  \
                      echo 'The cat' | rewrite generate model.onnx\n  \
                      rewrite generate model.onnx --prompts questions.txt --chat\n  \
                      rewrite generate model.onnx\n\n\
                      Without a prompt, all of standard input is one (`--prompts -` reads one a line); on a terminal a conversation begins: \
                      /help lists its commands, Ctrl-C ends an answer, Ctrl-D the conversation.\n\n\
                      With --json, stdout is a stream of events, one JSON object a line: `begin` (texts), `text` (index, text) for what is new, \
                      `answer` (index, prompt, prompt_text, ids, text, finish_reason) for a text that is done, at last `end` (new_tokens, \
                      tokens_per_second, cache), or `error` (errors)."
    )]
    Generate(Box<GenerateArgs>),
    /// Fold adapters into the base weights, quantized ones too, or take them out again
    #[command(
        after_help = "Examples:\n  rewrite merge model.onnx --adapter lora/ -o merged.onnx\n  \
                      rewrite merge model.onnx --adapter a=lora/ --adapter b=other/ --combination-type ties --weights 0.7,0.3 --density 0.5 -o merged.onnx\n  \
                      rewrite merge merged.onnx --adapter lora/ --reset -o model.onnx"
    )]
    Merge(Box<MergeArgs>),
    /// Make a graph whose adapters are optional inputs, and an .onnx_adapter file for each: one model, many small files
    #[command(
        name = "export-adapter",
        after_help = "Examples:\n  rewrite export-adapter model.onnx --adapter math/ --adapter poems/ -o served/\n  \
                      rewrite export-adapter served/model.onnx --adapter more/ -o served/\n\n\
                      ONNX Runtime loads such a file with LoraAdapter.Load, onnxruntime-genai with Adapters.load. Without one, the graph computes \
                      what the base model does. The second command adds an adapter to a graph that is there."
    )]
    ExportAdapter(Box<ExportArgs>),
    /// Take adapters out of a rewritten graph again
    #[command(after_help = "Example:\n  rewrite strip model.lora.onnx -o model.onnx")]
    Strip {
        /// A model with adapters, as this program wrote it
        model: PathBuf,
        /// Name of the only adapter to take out (default: all)
        #[arg(long)]
        name: Option<String>,
        /// File that the model without them goes to
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Replace an existing output
        #[arg(long)]
        force: bool,
    },
    /// Adapters of one graph, of which its input `adapter_ids` chooses one for each sample: list, add, remove, extract
    #[command(
        subcommand,
        after_help = "Example:\n  rewrite tenants list tenants.onnx"
    )]
    Tenants(TenantsCommand),
    /// Adapter folders and methods
    #[command(
        subcommand,
        after_help = "Example:\n  rewrite adapter summary model.lora.onnx"
    )]
    Adapter(AdapterCommand),
    /// Graph difference by module
    #[command(after_help = "Example:\n  rewrite diff model.onnx model.lora.onnx")]
    Diff {
        /// The model before
        a: PathBuf,
        /// The model after
        b: PathBuf,
        /// Exit with 1 when the graphs differ
        #[arg(long)]
        exit_code: bool,
    },
    /// The graph as text: the same model always gives the same text
    #[command(
        after_help = "Examples:\n  rewrite print model.onnx --module layers.0\n  \
                      rewrite print model.onnx --after fuse-blocks\n  \
                      rewrite print model.onnx --adapter 'lora[r=8]' --pipeline training --after gradient --mode portable\n  \
                      rewrite print model.onnx --after list"
    )]
    Print(Box<PrintArgs>),
    /// A picture of the model by module: equal layers folded, adapters in colour, those that train marked
    #[command(after_help = "Examples:\n  rewrite graph model.onnx -o model.svg\n  \
                      rewrite graph model.onnx --adapter 'lora[r=8]' -o adapted.html\n  \
                      rewrite graph model.lora.onnx | dot -Tpdf -o model.pdf")]
    Graph(Box<GraphArgs>),
    /// Say whether an exported model is good for adapting, training and generating, what is missing, and how to export it better
    #[command(after_help = "Example:\n  rewrite check model.onnx")]
    Check {
        /// The ONNX file, its folder, or hub:ORG/NAME
        model: PathBuf,
        #[command(flatten)]
        of: VariantArgs,
        /// Interface that selects the layers (default: that of the model)
        #[arg(short, long, value_name = "FILE|NAME", value_parser = values::interface(), hide_possible_values = true)]
        interface: Option<String>,
    },
    /// One HTML page that compares training runs: their curves together, and the settings in which they differ
    #[command(after_help = "Example:\n  rewrite report out-a out-b -o comparison.html")]
    Report {
        /// Output folders of runs
        #[arg(required = true, value_name = "RUN")]
        runs: Vec<PathBuf>,
        /// The page
        #[arg(short, long, value_name = "FILE", default_value = "comparison.html")]
        output: PathBuf,
        /// Replace an existing page
        #[arg(long)]
        force: bool,
    },
    /// Compare two graphs numerically on generated or given inputs
    #[command(
        after_help = "Example:\n  rewrite verify model.onnx merged.onnx --inputs in.safetensors"
    )]
    Verify(VerifyArgs),
    /// Models, tokenizers, interfaces, adapters and datasets from the Hugging Face Hub, and adapters to it
    #[command(
        subcommand,
        after_help = "Example:\n  rewrite hub pull onnx-community/Qwen3-0.6B-ONNX --list"
    )]
    Hub(HubCommand),
    /// Shell completions
    #[command(
        after_help = "Example:\n  rewrite completions bash > ~/.local/share/bash-completion/completions/rewrite"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Manual pages: of the program on stdout, or of it and every command as files in a folder
    #[command(
        after_help = "Examples:\n  rewrite man | man -l -\n  rewrite man ~/.local/share/man/man1"
    )]
    Man {
        /// Folder that rewrite.1, rewrite-train.1 and all others go to
        #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
        folder: Option<PathBuf>,
        /// Replace existing pages
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum InterfaceCommand {
    /// Names of the built-in specs
    #[command(after_help = "Example:\n  rewrite interface list")]
    List,
    /// A built-in spec, as JSON
    #[command(after_help = "Example:\n  rewrite interface show qwen3 > qwen3.json")]
    Show {
        /// Its name
        #[arg(value_parser = values::interface_name(), hide_possible_values = true)]
        name: String,
    },
    /// Validate a spec, and resolve it on a model
    #[command(after_help = "Example:\n  rewrite interface check qwen3.json model.onnx")]
    Check {
        /// adapter_interface.json, or the name of a built-in spec
        #[arg(value_parser = values::interface_name(), hide_possible_values = true)]
        interface: String,
        /// The model to resolve it on
        model: Option<PathBuf>,
        #[command(flatten)]
        of: VariantArgs,
    },
    /// Propose a spec from the graph alone
    #[command(after_help = "Example:\n  rewrite interface infer model.onnx -o interface.json")]
    Infer {
        /// The ONNX file, its folder, or hub:ORG/NAME
        model: PathBuf,
        #[command(flatten)]
        of: VariantArgs,
        /// File that the spec goes to (default: stdout)
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Replace an existing output
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdapterCommand {
    /// The library's summary table of adapter folders or of the adapters in a model
    #[command(after_help = "Example:\n  rewrite adapter summary model.lora.onnx")]
    Summary {
        /// Adapter folders, or one rewritten model
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// All configuration identifiers and the method each belongs to
    #[command(after_help = "Example:\n  rewrite adapter methods")]
    Methods,
    /// Formula, places, fields and parameters of an identifier, or of a configuration string
    #[command(after_help = "Example:\n  rewrite adapter show lora\n  rewrite adapter show mam")]
    Show {
        /// The identifier, or a configuration such as `lora[use_gating=True]|seq_bn`
        #[arg(value_parser = values::method(), hide_possible_values = true)]
        method: String,
    },
    /// The weighted average of adapters of one configuration, as a new adapter folder
    #[command(
        after_help = "Example:\n  rewrite adapter average both --adapter a/ --adapter b/ --weights 0.3,0.7 -o both/"
    )]
    Average(AverageArgs),
    /// The same adapter under another name, as a new folder; the old one stays
    #[command(after_help = "Example:\n  rewrite adapter rename lora/ polite -o polite/")]
    Rename {
        /// The adapter folder
        folder: PathBuf,
        /// The new name
        name: String,
        /// The new folder (default: one of the new name beside the old one)
        #[arg(short, long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
        output: Option<PathBuf>,
        /// Replace existing outputs
        #[arg(long)]
        force: bool,
    },
    /// Replace the network that makes the prefixes of a prefix tuning by the prefixes themselves
    #[command(after_help = "Example:\n  rewrite adapter eject prefix_tuning/ -o flat/")]
    Eject {
        /// The adapter folder
        folder: PathBuf,
        /// The new folder
        #[arg(short, long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
        output: PathBuf,
        /// Replace existing outputs
        #[arg(long)]
        force: bool,
    },
    /// Delete an adapter folder: the files of a saved adapter, and the folder if nothing else is in it
    #[command(after_help = "Example:\n  rewrite adapter delete lora/")]
    Delete {
        /// The adapter folder
        folder: PathBuf,
    },
    /// Convert an adapter between AdapterHub's, PEFT's and ONNX Runtime's formats
    #[command(
        after_help = "Examples:\n  rewrite adapter convert lora/ --to peft -o lora-peft/\n  \
                      rewrite adapter convert lora-peft/ --to adapterhub --interface qwen3 -o lora/\n  \
                      rewrite adapter convert lora-peft/ --to onnx-adapter -o lora.onnx_adapter\n  \
                      rewrite adapter convert other.onnx_adapter --to peft -o other/\n\n\
                      An .onnx_adapter file has the names that a graph gave it. This command takes and gives those of Olive; for a graph of one's \
                      own, `rewrite export-adapter` writes graph and files together."
    )]
    Convert(ConvertArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum HubCommand {
    /// Bring files into the cache that Hugging Face's own tools use, or into a folder. The data files of ONNX models come along
    #[command(
        after_help = "Examples:\n  rewrite hub pull onnx-community/Qwen3-0.6B-ONNX --include 'onnx/model.onnx' --include '*.json' -o qwen3\n  \
                      rewrite hub pull datasets/openai/gsm8k:main/ -o gsm8k\n  \
                      rewrite hub pull org/adapter@v1.0\n\n\
                      Environment: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE"
    )]
    Pull(PullArgs),
    /// Push an adapter folder, or any other, as one commit. An adapter without a README.md gets a model card
    #[command(
        after_help = "Example:\n  rewrite hub push out/lora org/qwen3-gsm8k --create --private --license apache-2.0\n\n\
                      Environment: HF_ENDPOINT, HF_TOKEN (one that may write), HF_HOME"
    )]
    Push(PushArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// ORG/NAME, with @REVISION and :PATH as needed; datasets/ORG/NAME for a dataset
    #[arg(value_name = "REPO[@REV][:PATH]")]
    pub(crate) repo: String,
    /// Pull one variant of an ONNX model, with its configuration and tokenizer: fp32, fp16, q8, q4, q4f16, …
    #[arg(long, value_name = "NAME", conflicts_with_all = ["include", "exclude", "list"])]
    pub(crate) variant: Option<String>,
    /// Pattern of the files that are pulled; `*` also crosses folders (default: all files). May be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(crate) include: Vec<String>,
    /// Pattern of files that are left out. May be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude: Vec<String>,
    /// Branch, tag or commit, as in @REVISION
    #[arg(long, value_name = "REV")]
    pub(crate) revision: Option<String>,
    /// What the repository holds
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) repo_type: Option<RepoType>,
    /// Folder that the files are copied to (default: they are in the cache only)
    #[arg(short, long, value_name = "DIR", value_hint = clap::ValueHint::DirPath, alias = "local-dir")]
    pub(crate) output: Option<PathBuf>,
    /// Replace files that are there
    #[arg(long, requires = "output")]
    pub(crate) force: bool,
    /// List the files of the repository, and pull nothing
    #[arg(long)]
    pub(crate) list: bool,
}

#[derive(Debug, Default, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command")]
pub(crate) struct PushArgs {
    /// The folder to push; hidden files are left out
    pub(crate) folder: PathBuf,
    /// ORG/NAME, with @BRANCH as needed
    #[arg(value_name = "REPO[@BRANCH]")]
    pub(crate) repo: String,
    /// What the repository holds
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) repo_type: Option<RepoType>,
    /// Make the repository if there is none
    #[arg(long)]
    pub(crate) create: bool,
    /// Make the new repository a private one
    #[arg(long, requires = "create")]
    pub(crate) private: bool,
    /// First line of the commit's message
    #[arg(long, value_name = "TEXT", alias = "message")]
    pub(crate) commit_message: Option<String>,
    /// The rest of the commit's message
    #[arg(long, value_name = "TEXT")]
    pub(crate) commit_description: Option<String>,
    /// Open a pull request instead of changing the branch
    #[arg(long)]
    pub(crate) create_pr: bool,
    /// Record of the training that the card is made from (default: run.json beside the folder)
    #[arg(long, value_name = "FILE")]
    pub(crate) run: Option<PathBuf>,
    /// Card: the base model on the Hub
    #[arg(long, value_name = "REPO")]
    pub(crate) base_model: Option<String>,
    /// Card: a dataset on the Hub. May be repeated
    #[arg(long, value_name = "REPO")]
    pub(crate) dataset: Vec<String>,
    /// Card: a further tag, such as adapterhub:nli/multinli. May be repeated
    #[arg(long, value_name = "TAG")]
    pub(crate) tag: Vec<String>,
    /// Card: a language, as a code. May be repeated
    #[arg(long, value_name = "CODE")]
    pub(crate) language: Vec<String>,
    /// Card: the licence, as the Hub names it
    #[arg(long, value_name = "ID")]
    pub(crate) license: Option<String>,
    /// Write a new card even where there is a README.md
    #[arg(long, conflicts_with = "no_card")]
    pub(crate) overwrite_card: bool,
    /// Make no card
    #[arg(long)]
    pub(crate) no_card: bool,
    /// Print the card, and push nothing
    #[arg(long, conflicts_with = "no_card")]
    pub(crate) dry_run: bool,
}

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RepoType {
    Model,
    Dataset,
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// The adapter folder, or an .onnx_adapter file
    pub(crate) folder: PathBuf,
    /// The format to write
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) to: AdapterFormat,
    /// Interface that says which module is which, needed for AdapterHub's format: a file, or a built-in name
    #[arg(
        short,
        long,
        value_name = "FILE|NAME",
        value_parser = values::interface(),
        hide_possible_values = true,
        required_if_eq("to", "adapterhub")
    )]
    pub(crate) interface: Option<String>,
    /// Name of the adapter in AdapterHub's format (default: that of the folder)
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The new folder, or the new .onnx_adapter file
    #[arg(short, long, value_name = "DIR|FILE")]
    pub(crate) output: PathBuf,
    /// Replace existing outputs
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The ONNX file, its folder, or hub:ORG/NAME
    pub(crate) model: PathBuf,
    /// safetensors file with a tensor for each graph input, by name (`input_ids` or `input/input_ids`)
    #[arg(long, value_name = "FILE")]
    pub(crate) inputs: PathBuf,
    /// safetensors file for the results
    #[arg(long, value_name = "FILE")]
    pub(crate) outputs: PathBuf,
    #[command(flatten)]
    pub(crate) select: AdapterArgs,
    /// Name of a graph output or an intermediate value to write (default: all graph outputs). May be repeated
    #[arg(long = "output", value_name = "NAME")]
    pub(crate) wanted: Vec<String>,
    /// causal-lm (tensor `labels`), mse (tensor `target`), or the name of a scalar value
    #[arg(long, value_name = "LOSS")]
    pub(crate) loss: Option<String>,
    /// Gradient of every trainable adapter parameter, or of the named values
    #[arg(long, num_args = 0.., value_name = "NAME")]
    pub(crate) grad: Option<Vec<String>>,
    /// Use the fused kernels of the native pipeline
    #[arg(long)]
    pub(crate) native: bool,
    /// Seed of initial parameter values
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
    /// Replace an existing outputs file
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) exec: ExecArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PrintArgs {
    /// The ONNX file, its folder, or hub:ORG/NAME
    pub(crate) model: PathBuf,
    /// Path of the module whose nodes are printed (default: all nodes)
    #[arg(long, value_name = "PATH")]
    pub(crate) module: Option<String>,
    /// Name of the last pass that runs before the graph is printed; `list` shows the passes of all pipelines, with their reasons
    #[arg(long, value_name = "PASS")]
    pub(crate) after: Option<String>,
    /// Name of the pipeline (default with --after: inference); without --after, all of it runs
    #[arg(long, value_name = "NAME")]
    pub(crate) pipeline: Option<String>,
    /// Operators that the pipeline may use: standard ones, or fused ones of this program's runtime
    #[arg(long, value_enum, default_value = "native")]
    pub(crate) mode: ModeArg,
    /// Loss of the pipelines that have one
    #[arg(long, default_value = "causal-lm", value_name = "LOSS")]
    pub(crate) loss: String,
    #[command(flatten)]
    pub(crate) select: AdapterArgs,
}

/// Operators that a pipeline may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeArg {
    Portable,
    Native,
}

impl ModeArg {
    pub(crate) fn mode(self) -> Mode {
        match self {
            ModeArg::Portable => Mode::Portable,
            ModeArg::Native => Mode::Native,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct GraphArgs {
    /// The ONNX file, its folder, or hub:ORG/NAME
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) select: AdapterArgs,
    /// File that the picture goes to; ends in .svg, .html or .dot (default: DOT, the language of Graphviz, on stdout)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Replace an existing picture
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The model to compare with
    pub(crate) a: PathBuf,
    /// The model to check
    pub(crate) b: PathBuf,
    #[command(flatten)]
    pub(crate) of: VariantArgs,
    /// Engine that executes the graphs: this program's own (candle), or tract, in a build with the `tract` feature
    #[arg(long, value_enum, default_value = "candle")]
    pub(crate) engine: Engine,
    /// safetensors file with a tensor for each graph input, by name (default: generated tensors)
    #[arg(long, value_name = "FILE")]
    pub(crate) inputs: Option<PathBuf>,
    /// Largest absolute difference
    #[arg(long, default_value_t = 1e-4)]
    pub(crate) atol: f64,
    /// Largest relative difference
    #[arg(long, default_value_t = 1e-4)]
    pub(crate) rtol: f64,
    #[command(flatten)]
    pub(crate) exec: ExecArgs,
    /// Seed of generated inputs
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
}

/// Who executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    Candle,
    Tract,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct TrainArgs {
    /// The ONNX file, its folder, hub:ORG/NAME, or a job file (.json)
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) select: AdapterArgs,
    #[command(flatten)]
    pub(crate) exec: ExecArgs,
    /// Replace existing outputs
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) job: Flags<JobArguments>,
    #[command(flatten)]
    pub(crate) model_settings: Flags<ModelSettings>,
    #[command(flatten)]
    pub(crate) data: Flags<DataArguments>,
    #[command(flatten)]
    pub(crate) collate: Flags<CollateArguments>,
    #[command(flatten)]
    pub(crate) training: Flags<TrainingArguments>,
    #[command(flatten)]
    pub(crate) other: OtherFlags,
}

#[derive(Clone, Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command")]
pub(crate) struct GenerateArgs {
    /// The ONNX file, its folder, hub:ORG/NAME, or the job file of a training run (.json)
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) select: AdapterArgs,
    /// Text that the generated text continues; - is all of standard input, which is also read where there is no prompt. May be repeated
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: Vec<String>,
    /// File of prompts, one in each line; or JSON lines with `prompt`, `messages` or `input_ids` in a file named .jsonl. - is standard
    /// input, in either form
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// Talk with the model, turn by turn (default where there is no prompt, on a terminal); from a pipe, each line is a turn
    #[arg(long, conflicts_with_all = ["prompt", "prompts", "chat", "stream"])]
    pub(crate) interactive: bool,
    /// Put each prompt as what a user says into the model's chat template
    #[arg(long)]
    pub(crate) chat: bool,
    /// The chat template, as text or as a file (default: the one that an adapter was trained with, else that of the tokenizer)
    #[arg(long, value_name = "FILE|TEXT")]
    pub(crate) chat_template: Option<String>,
    /// Further variables of the chat template: `enable_thinking=false`, or a JSON object
    #[arg(long, value_name = "KEY=VALUE,…", value_parser = object)]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    /// The adapter that prompts are for, in a model that chooses one for each sample by `adapter_ids` or `task_ids`; `__base__` is none. A
    /// row of a .jsonl file of prompts may say its own: `adapter_ids`
    #[arg(long, value_name = "NAME")]
    pub(crate) adapter_name: Option<String>,
    /// Print the text as it comes (default for one prompt on a terminal)
    #[arg(long)]
    pub(crate) stream: bool,
    /// A text that ends the generation; what is printed ends in front of it. May be repeated
    #[arg(long = "stop-strings", visible_alias = "stop", value_name = "TEXT")]
    pub(crate) stop_strings: Vec<String>,
    /// The tokenizer: tokenizer.json or its folder (default: the one beside the model)
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Run the graph as it was exported, without the native pipeline's fused kernels
    #[arg(long)]
    pub(crate) portable: bool,
    #[command(flatten)]
    pub(crate) generation: Flags<GenerationArguments>,
    #[command(flatten)]
    pub(crate) exec: ExecArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct EvalArgs {
    /// The ONNX file, its folder, hub:ORG/NAME, or the job file of a training run (.json)
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) select: AdapterArgs,
    /// File that gets a line for each prediction
    #[arg(long, value_name = "FILE")]
    pub(crate) predictions: Option<PathBuf>,
    /// Replace an existing file of predictions
    #[arg(long)]
    pub(crate) force: bool,
    /// A text that ends what is generated. May be repeated
    #[arg(long = "stop-strings", visible_alias = "stop", value_name = "TEXT")]
    pub(crate) stop_strings: Vec<String>,
    /// The tokenizer: tokenizer.json or its folder (default: the one beside the model)
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Run the graph as it was exported, without the native pipeline's fused kernels
    #[arg(long)]
    pub(crate) portable: bool,
    #[command(flatten)]
    pub(crate) data: Flags<DataArguments>,
    #[command(flatten)]
    pub(crate) evaluation: Flags<EvalArguments>,
    #[command(flatten)]
    pub(crate) generation: Flags<GenerationArguments>,
    #[command(flatten)]
    pub(crate) exec: ExecArgs,
}
