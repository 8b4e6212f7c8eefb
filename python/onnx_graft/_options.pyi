# Written by options.py from schemas/job.schema.json.
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

Path = str | PathLike[str]

class TrainOptions(TypedDict, total=False):
    """Options of a job, under the names of a job file."""
    loss: str | None
    """What is minimised: causal-lm, seq2seq, classification, multi-label, regression, token-classification, question-answering, masked-lm, mse, or the name of a scalar value (default: what the task of the data asks for)."""
    head: Mapping[str, Any] | None
    """The prediction head that a base model gets for a task of whole examples, under the library's field names. `num_labels` and `label2id` come from the data."""
    train_head: bool
    """Trains the head that the graph has, too, as the library does with the head of a Transformers class. It is saved beside the adapter."""
    output_dir: Path | None
    """The folder that adapters, checkpoints and reports go to."""
    format: Literal["adapterhub"] | Literal["peft"] | Literal["both"]
    """The format that adapters are written in: adapterhub, peft, or both, NAME/ and NAME-peft/."""
    overwrite_output_dir: bool
    """Replaces the results of an earlier run in the output folder."""
    report_to: Sequence[Literal["jsonl"] | Literal["tensorboard"] | Literal["html"] | Literal["all"] | Literal["none"] | Literal["wandb"] | Literal["mlflow"] | Literal["comet_ml"] | Literal["clearml"] | Literal["neptune"] | Literal["swanlab"] | Literal["trackio"] | Literal["dvclive"] | Literal["codecarbon"] | Literal["azure_ml"] | Literal["dagshub"] | Literal["flyte"]]
    """Where the run is written down while it goes on."""
    report_samples: int
    """Number of examples that the report shows with the model's answers before and after the training; 0 shows none, and nothing else that needs answers, such as which classes were mistaken. Takes 2 seconds or a twentieth of the run's time at most."""
    dry_run: bool
    """Prints steps, tokens and an estimate of the memory, and trains nothing."""
    show_examples: int
    """Number of training examples that are shown before anything is trained: which of their tokens are read, and which are learned."""
    push_to_hub: bool
    """Pushes the adapters to the Hub when training is done."""
    hub_model_id: str | None
    """The repository that is pushed to (default: the name of the output folder)."""
    hub_private_repo: bool
    """Makes a new repository private."""
    variant: str | None
    """The variant of a model that is there in several, by a folder or by its name on the Hub: fp32, fp16, q8, int8, uint8, q4, q4f16, bnb4, or whatever stands behind `model_` in the name of the file (default: full precision, `model.onnx`)."""
    interface: Path | None
    """An `adapter_interface.json`, or the name of a built-in one (default: the one of config.json beside the model, else of the graph)."""
    adapter: None | Path | Sequence[Path] | Mapping[str, Path]
    adapters: None | Path | Sequence[Path] | Mapping[str, Path]
    """The adapters: `SPEC`, `NAME=SPEC`, a list of them, or an object of specs by name. A spec is a configuration string, an `adapter_config.json` or a saved adapter folder."""
    active: Path | None
    """The setup: which adapters are active and how they are composed, in AdapterHub's notation, or an `adapter_setup.json` with the folders of its adapters beside it (default: all, one behind the other)."""
    fusion: None | Path | Sequence[Path] | Mapping[str, Path]
    """The `AdapterFusion` of each `Fuse` in the setup: the folder of a saved one, or `static` or `dynamic` for a fresh one (default: dynamic)."""
    skip_layers: Sequence[int]
    """Layers that get no adapters (`AdapterDrop`)."""
    route: str | None
    """How the Adapters library is to integrate fresh adapters: native, by its own class for the model's type, or plugin, through the interface (default: native where it has such a class and no interface file is named)."""
    allow_other_base: bool
    """Attaches saved adapters to another base model than the one that they were made for."""
    tokenizer: Path | None
    """The tokenizer: tokenizer.json or its folder (default: the one beside the model)."""
    device: str
    """Device to compute on: cpu; cuda or cuda:N in a build with CUDA."""
    threads: int | None
    """Number of threads (default: all cores)."""
    portable: bool
    """Runs the graph as it was exported, without fused kernels."""
    data: Path | Sequence[Path | Mapping[str, Path | Sequence[Path]]] | Mapping[str, Path | Sequence[Path]] | None
    """The data that is trained on, or measured: a file, several, a folder, a data set on the Hub (`hub:datasets/org/name`), or files by split (`{"train": "a.jsonl", "test": "b.jsonl"}`). Names end in .jsonl, .json, .csv, .tsv (also with .gz) or .parquet. What is which split of a folder or of a data set on the Hub is decided as in `datasets`: by its card, then by names of folders and files."""
    eval_data: Path | Sequence[Path | Mapping[str, Path | Sequence[Path]]] | Mapping[str, Path | Sequence[Path]] | None
    """Evaluation data in files of its own. Of a folder or a data set on the Hub, the validation or test split is read."""
    data_config: str | None
    """The configuration of a data set that has several: one that its card lists, or a folder in it."""
    train_split: str
    """The split that is trained on, or a part of it, or several: `train[:1000]`, `train[10%:20%]`, `train[-5:]`, `train+validation`."""
    eval_split: int | float | str | None
    """Evaluation data that is taken from the training data: a share below 1 or a whole number of examples, drawn by the seed, or a split of the data or a part of one (`test`, `train[90%:]`)."""
    max_train_samples: int | None
    """Number of examples that are trained on, the first of the data (default: all)."""
    max_eval_samples: int | None
    """Number of examples that are evaluated on, the first of the data (default: all)."""
    task: Literal["causal-lm"] | Literal["seq2seq"] | Literal["classification"] | Literal["regression"] | Literal["multi-label"] | Literal["token-classification"] | Literal["question-answering"] | Literal["masked-lm"]
    """The task that the rows are for."""
    columns: Mapping[str, str]
    """The column of each role, where their names differ: `{"prompt": "question", "completion": "answer"}`. Roles: text, `text_pair`, prompt, completion, source, target, messages, tools, tokens, question, context, answers, label, `task_ids`, `adapter_ids`, `input_ids`, `attention_mask`, `token_type_ids`, labels. Without it, `conversations` are messages too (`ShareGPT`: `from` and `value`), and rows with `instruction` and `output` (and `input`) are prompts and completions in the words of Stanford Alpaca, from "Below is an instruction" to "Response:"."""
    template: str | None
    """A Jinja template over the columns that makes the whole text of an example."""
    prompt_template: str | None
    """A Jinja template that makes the prompt, which is read and not learned, or the source of an encoder-decoder."""
    completion_template: str | None
    """A Jinja template that makes the completion, which is learned."""
    chat_template: str | None
    """The chat template of rows with messages, as text or as a file (default: that of the tokenizer)."""
    chat_template_kwargs: Mapping[str, Any]
    """Further variables of the chat template: `{"enable_thinking": false}`."""
    chat_date: str | None
    """The date that `strftime_now` of a chat template gives, such as `2025-01-31` (default: the day on which the run began; `run.json` keeps it)."""
    assistant_only_loss: bool | Literal["last"]
    """Learns what the assistant says (true), its last turn (`last`), or the whole conversation (false)."""
    append_eos: bool | None
    """Ends texts with the end-of-sequence token unless they have it (default: for prompts with completions, as in TRL, and not for others)."""
    add_special_tokens: bool
    """Adds the special tokens of the tokenizer's post-processor (default: unless the rows are conversations, which have those of their template)."""
    max_seq_length: int | None
    """Length of the longest sequence in tokens; longer ones are cut (default: what the tokenizer names, at most 2048)."""
    max_target_length: int | None
    """Length of the longest target of an encoder-decoder in tokens (default: `max_seq_length`)."""
    truncation_side: Literal["left"] | Literal["right"]
    """The end of a sequence that is cut when it is too long."""
    response_template: str | Sequence[int] | None
    """Learns only what follows this text (or these token ids) in a sequence, the last time it occurs, as TRL's completion-only collator does."""
    instruction_template: str | Sequence[int] | None
    """Text (or token ids) that each instruction of a conversation begins with. It goes with `response_template`: what follows every response is learned."""
    pad_token: int | str | None
    """The padding token, as text or id (default: that of the tokenizer, else its end-of-sequence token). With `response_template` it is never learned."""
    label_names: Sequence[str] | None
    """The classes by name, in the order of their ids (default: the order in which they first occur)."""
    label_all_tokens: bool
    """Of the task token-classification: whether every token of a word has its class, and not the first alone."""
    doc_stride: int
    """Of the task question-answering: number of tokens that two parts of a long text have in common."""
    mlm_probability: float
    """Of the task masked-lm: share of the tokens that are to be told. Of these, 80 % are masked, and 10 % are another word (Devlin et al. 2018)."""
    task_names: Sequence[str] | None
    """The tasks that the column `task_ids` may name, in the order of their ids (default: the adapters, where the graph chooses one for each sample; the column may be called `adapter_ids` too)."""
    on_bad_row: Literal["error"] | Literal["skip"]
    """What happens with a row that cannot be used: `error` ends the job, `skip` leaves the row out, counts it and reports it."""
    in_memory_max_size: int
    """Number of bytes of tokenized data that are kept in memory; what is more goes to a temporary file."""
    cache_dir: Path | None
    """The folder of that temporary file (default: that of the system)."""
    padding_side: Literal["right"] | Literal["left"] | None
    """Where padding goes (default: where `tokenizer_config.json` says, else right)."""
    pad_to_multiple_of: int | None
    """Makes the length of a batch a multiple of this."""
    group_by_length: bool
    """Puts examples of similar length together, in a random order otherwise."""
    packing: bool
    """Puts several examples into one row of at most `max_seq_length` tokens, with attention and positions of each kept apart, so that no time is spent on padding. `per_device_train_batch_size` counts such rows."""
    learning_rate: float
    """Peak learning rate."""
    per_device_train_batch_size: int
    """Number of rows of one micro-batch."""
    per_device_eval_batch_size: int
    """Number of rows of one batch of an evaluation."""
    gradient_accumulation_steps: int
    """Number of micro-batches of one optimizer step."""
    num_train_epochs: float
    """Number of passes over the data; fractions are allowed. A positive `max_steps` overrides it."""
    max_steps: int
    """Number of optimizer steps in all; -1 leaves it to `num_train_epochs`."""
    optim: Literal["adamw_torch"] | Literal["lion"] | Literal["sgd"] | Literal["rmsprop"] | Literal["adagrad"] | Literal["adafactor"]
    """The optimizer."""
    weight_decay: float
    """Decoupled weight decay of the decayed parameter group."""
    adam_beta1: float
    """First decay rate of the optimizer."""
    adam_beta2: float
    """Second decay rate of the optimizer."""
    adam_epsilon: float
    """Number that is added to the denominator of the update."""
    max_grad_norm: float
    """Largest global gradient norm; 0 turns clipping off."""
    lr_scheduler_type: Literal["linear"] | Literal["cosine"] | Literal["cosine_with_restarts"] | Literal["cosine_with_min_lr"] | Literal["constant"] | Literal["constant_with_warmup"] | Literal["inverse_sqrt"] | Literal["polynomial"]
    """Learning-rate schedule."""
    lr_scheduler_kwargs: Mapping[str, Any]
    """Parameters of the schedule by name: `num_cycles`, `min_lr`, `min_lr_rate`, `power`, `lr_end`, `timescale`."""
    warmup_steps: int
    """Number of steps of linear warmup; a positive one takes precedence over `warmup_ratio`."""
    warmup_ratio: float
    """Share of all steps that is linear warmup."""
    logging_strategy: Literal["no"] | Literal["steps"] | Literal["epoch"]
    """When the loss is logged."""
    logging_steps: float | None
    """Number of optimizer steps from one log entry to the next; a number below 1 is a share of all steps (default: a fiftieth of all steps, at most 500, so that a short run has a curve too; Hugging Face's is 500)."""
    logging_first_step: bool
    """Whether the first step is logged as well."""
    eval_strategy: Literal["no"] | Literal["steps"] | Literal["epoch"]
    """When the evaluation data is evaluated."""
    eval_steps: float | None
    """Number of optimizer steps from one evaluation to the next; a number below 1 is a share of all steps (default: `logging_steps`, else 500)."""
    eval_delay: float
    """Number of steps (or epochs, by the strategy) before the first evaluation."""
    eval_on_start: bool
    """Evaluates before the first step."""
    save_strategy: Literal["no"] | Literal["steps"] | Literal["epoch"] | Literal["best"]
    """When a checkpoint is written."""
    save_steps: float
    """Number of optimizer steps from one checkpoint to the next; a number below 1 is a share of all steps."""
    save_total_limit: int | None
    """Number of checkpoints that are kept, the best one among them (default: all)."""
    load_best_model_at_end: bool
    """Ends with the parameters of the best checkpoint instead of the last ones."""
    metric_for_best_model: str | None
    """The measure that decides what is best."""
    greater_is_better: bool | None
    """Whether more of that measure is better (default: yes, unless its name ends in `loss`)."""
    early_stopping_patience: int | None
    """Number of evaluations in a row without an improvement after which training stops (default: never)."""
    early_stopping_threshold: float
    """Amount by which the measure must change to count as improved."""
    label_smoothing_factor: float
    """Share of the target that is spread over all classes. The loss is the mean over the labelled positions of a step, also with accumulation; Hugging Face's smoother adds up the means of the micro-batches there."""
    bf16: bool
    """Rounds the operands of matrix products to bfloat16; sums and everything else stay in f32."""
    gradient_checkpointing: bool
    """Keeps only what flows from one part of the model to the next, and computes the rest of the forward pass a second time when the backward pass needs it: less memory, more time, the same numbers."""
    train_adapters: Sequence[str] | None
    """Names of the adapters that are trained (default: all that are active); the others of a setup stay as they are, bit by bit."""
    seed: int
    """Seed of initial values, data order and dropout."""
    data_seed: int | None
    """Seed of the data order (default: `seed`)."""
    dataloader_drop_last: bool
    """Drops the last incomplete micro-batch of an epoch."""
    no_shuffle: bool
    """Keeps the data in file order instead of shuffling each epoch. Not an argument of Hugging Face's."""
    resume_from_checkpoint: bool | Path | None
    """Goes on from a checkpoint: true for the last complete one in the output folder, or a folder. `--resume` for short."""
