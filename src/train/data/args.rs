//! What the data is and how its rows become examples: options with the names of transformers, datasets and TRL where they have one.

use crate::adapters::Choice;
use crate::diag::{Diagnostic, nearest};
use crate::error::{Error, ErrorKind, Result};
use crate::options::Options;
use crate::text::Tokenizer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Files or folders of data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Files {
    /// One of them.
    One(String),
    /// Several, read in this order.
    Many(Vec<DataSet>),
    /// Files by split.
    Splits(BTreeMap<String, Paths>),
}

/// One of several data sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum DataSet {
    /// A file or folder.
    Path(String),
    /// Files by split.
    Splits(BTreeMap<String, Paths>),
}

/// Files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Paths {
    /// One of them.
    One(String),
    /// Several, read in this order.
    Many(Vec<String>),
}

impl Files {
    /// All of them.
    pub(super) fn sets(&self) -> Vec<DataSet> {
        match self {
            Files::One(one) => vec![DataSet::Path(one.clone())],
            Files::Many(many) => many.clone(),
            Files::Splits(splits) => vec![DataSet::Splits(splits.clone())],
        }
    }

    /// The file, if it is one.
    pub(crate) fn single(&self) -> Option<PathBuf> {
        match &*self.sets() {
            [DataSet::Path(path)] => Some(PathBuf::from(path)),
            _ => None,
        }
    }
}

/// Where evaluation data is taken from when it has no files of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum EvalSplit {
    /// A number of examples.
    Count(usize),
    /// A share of the examples, below 1.
    Share(f64),
    /// A split of the data, by name, or a part of one.
    Named(String),
}

/// A text, or the token ids it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Tokens {
    /// Text; tokenized without special tokens.
    Text(String),
    /// Token ids.
    Ids(Vec<i64>),
}

/// A token by its text or its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum TokenRef {
    /// Its id.
    Id(i64),
    /// Its text.
    Text(String),
}

/// What the model is trained to do with the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Task {
    /// Predict each next token.
    #[default]
    CausalLm,
    /// Produce a target text from a source text, with an encoder-decoder.
    Seq2seq,
    /// Choose one class for a text or a pair of texts.
    Classification,
    /// Estimate a number, or several, for a text or a pair of texts.
    Regression,
    /// Choose any number of classes for a text or a pair of texts.
    MultiLabel,
    /// Choose a class for each word: rows with `tokens` and `labels` (or `ner_tags`, `pos_tags`, `chunk_tags`).
    TokenClassification,
    /// Find the answer to a question in a text: rows with `question`, `context` and `answers`, as in `SQuAD`.
    QuestionAnswering,
    /// Tell words that are masked.
    MaskedLm,
}

impl Task {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Task::CausalLm => "causal-lm",
            Task::Seq2seq => "seq2seq",
            Task::Classification => "classification",
            Task::Regression => "regression",
            Task::MultiLabel => "multi-label",
            Task::TokenClassification => "token-classification",
            Task::QuestionAnswering => "question-answering",
            Task::MaskedLm => "masked-lm",
        }
    }

    /// Whether it learns the tokens that it reads.
    pub(super) fn of_tokens(self) -> bool {
        matches!(self, Task::CausalLm | Task::MaskedLm)
    }

    /// Whether its labels are classes.
    pub(crate) fn has_classes(self) -> bool {
        matches!(
            self,
            Task::Classification | Task::MultiLabel | Task::TokenClassification
        )
    }
}

/// Which end of a sequence is cut when it is too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Side {
    /// The beginning.
    Left,
    /// The end.
    #[default]
    Right,
}

/// What happens with a row that cannot be read or used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnBadRow {
    /// It is an error, with its place.
    #[default]
    Error,
    /// It is left out, counted, and reported.
    Skip,
}

/// Which turns of a conversation are learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum AssistantLoss {
    /// Those of the assistant when true, otherwise all of the text.
    Turns(bool),
    /// One of them.
    One(AssistantTurn),
}

/// One turn of the assistant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AssistantTurn {
    /// The last.
    Last,
}

/// The data of a job, and how its rows become examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DataArguments {
    /// The data that is trained on, or measured: a file, several, a folder, a data set on the Hub (`hub:datasets/org/name`), or files by split
    /// (`{"train": "a.jsonl", "test": "b.jsonl"}`). Names end in .jsonl, .json, .csv, .tsv (also with .gz) or .parquet. What is which
    /// split of a folder or of a data set on the Hub is decided as in `datasets`: by its card, then by names of folders and files.
    pub data: Option<Files>,
    /// Evaluation data in files of its own. Of a folder or a data set on the Hub, the validation or test split is read.
    pub eval_data: Option<Files>,
    /// The configuration of a data set that has several: one that its card lists, or a folder in it.
    pub data_config: Option<String>,
    /// The split that is trained on, or a part of it, or several: `train[:1000]`, `train[10%:20%]`, `train[-5:]`, `train+validation`.
    pub train_split: String,
    /// Evaluation data that is taken from the training data: a share below 1 or a whole number of examples, drawn by the seed, or a split
    /// of the data or a part of one (`test`, `train[90%:]`).
    pub eval_split: Option<EvalSplit>,
    /// Number of examples that are trained on, the first of the data (default: all).
    pub max_train_samples: Option<usize>,
    /// Number of examples that are evaluated on, the first of the data (default: all).
    pub max_eval_samples: Option<usize>,
    /// The task that the rows are for.
    pub task: Task,
    /// The column of each role, where their names differ: `{"prompt": "question", "completion": "answer"}`. Roles: text, `text_pair`,
    /// prompt, completion, source, target, messages, tools, tokens, question, context, answers, label, `task_ids`, `adapter_ids`, `input_ids`, `attention_mask`, `token_type_ids`, labels.
    /// Without it, `conversations` are messages too (`ShareGPT`: `from` and `value`), and rows with `instruction` and `output` (and `input`)
    /// are prompts and completions in the words of Stanford Alpaca, from "Below is an instruction" to "Response:".
    pub columns: BTreeMap<String, String>,
    /// A Jinja template over the columns that makes the whole text of an example.
    pub template: Option<String>,
    /// A Jinja template that makes the prompt, which is read and not learned, or the source of an encoder-decoder.
    pub prompt_template: Option<String>,
    /// A Jinja template that makes the completion, which is learned.
    pub completion_template: Option<String>,
    /// The chat template of rows with messages, as text or as a file (default: that of the tokenizer).
    pub chat_template: Option<String>,
    /// Further variables of the chat template: `{"enable_thinking": false}`.
    pub chat_template_kwargs: Map<String, Value>,
    /// The date that `strftime_now` of a chat template gives, such as `2025-01-31` (default: the day on which the run began; `run.json`
    /// keeps it).
    pub chat_date: Option<String>,
    /// Learns what the assistant says (true), its last turn (`last`), or the whole conversation (false).
    pub assistant_only_loss: AssistantLoss,
    /// Ends texts with the end-of-sequence token unless they have it (default: for prompts with completions, as in TRL, and not for others).
    pub append_eos: Option<bool>,
    /// Adds the special tokens of the tokenizer's post-processor (default: unless the rows are conversations, which have those of their template).
    pub add_special_tokens: bool,
    /// Length of the longest sequence in tokens; longer ones are cut (default: what the tokenizer names, at most 2048).
    pub max_seq_length: Option<usize>,
    /// Length of the longest target of an encoder-decoder in tokens (default: `max_seq_length`).
    pub max_target_length: Option<usize>,
    /// The end of a sequence that is cut when it is too long.
    pub truncation_side: Side,
    /// Learns only what follows this text (or these token ids) in a sequence, the last time it occurs, as TRL's completion-only collator does.
    pub response_template: Option<Tokens>,
    /// Text (or token ids) that each instruction of a conversation begins with. It goes with `response_template`: what follows every response is learned.
    pub instruction_template: Option<Tokens>,
    /// The padding token, as text or id (default: that of the tokenizer, else its end-of-sequence token). With `response_template` it is
    /// never learned.
    pub pad_token: Option<TokenRef>,
    /// The classes by name, in the order of their ids (default: the order in which they first occur).
    pub label_names: Option<Vec<String>>,
    /// Of the task token-classification: whether every token of a word has its class, and not the first alone.
    pub label_all_tokens: bool,
    /// Of the task question-answering: number of tokens that two parts of a long text have in common.
    pub doc_stride: usize,
    /// Of the task masked-lm: share of the tokens that are to be told. Of these, 80 % are masked, and 10 % are another word (Devlin et al.
    /// 2018).
    pub mlm_probability: f64,
    /// The tasks that the column `task_ids` may name, in the order of their ids (default: the adapters, where the graph chooses one for each
    /// sample; the column may be called `adapter_ids` too).
    pub task_names: Option<Vec<String>>,
    /// Number of positions that the model was made for, where that is known. No option: it comes from the model.
    #[serde(skip)]
    pub positions: Option<usize>,
    /// What each row chooses from, where it does. No option: it comes from the adapters.
    #[serde(skip)]
    pub(crate) choice: Option<Choice>,
    /// What happens with a row that cannot be used: `error` ends the job, `skip` leaves the row out, counts it and reports it.
    pub on_bad_row: OnBadRow,
    /// Number of bytes of tokenized data that are kept in memory; what is more goes to a temporary file.
    pub in_memory_max_size: u64,
    /// The folder of that temporary file (default: that of the system).
    pub cache_dir: Option<String>,
}

impl Default for DataArguments {
    fn default() -> Self {
        DataArguments {
            data: None,
            eval_data: None,
            data_config: None,
            train_split: "train".to_owned(),
            eval_split: None,
            max_train_samples: None,
            max_eval_samples: None,
            task: Task::CausalLm,
            columns: BTreeMap::new(),
            template: None,
            prompt_template: None,
            completion_template: None,
            chat_template: None,
            chat_template_kwargs: Map::new(),
            chat_date: None,
            assistant_only_loss: AssistantLoss::Turns(false),
            append_eos: None,
            add_special_tokens: true,
            max_seq_length: None,
            max_target_length: None,
            truncation_side: Side::Right,
            response_template: None,
            instruction_template: None,
            pad_token: None,
            label_names: None,
            label_all_tokens: false,
            doc_stride: 128,
            mlm_probability: 0.15,
            task_names: None,
            positions: None,
            choice: None,
            on_bad_row: OnBadRow::Error,
            in_memory_max_size: 64 << 20,
            cache_dir: None,
        }
    }
}

impl Options for DataArguments {
    const ALIASES: &'static [(&'static str, &'static str)] = &[
        ("train_file", "data"),
        ("validation_file", "eval_data"),
        ("dataset_config", "data_config"),
        ("dataset_config_name", "data_config"),
        ("dataset_train_split", "train_split"),
        ("dataset_test_split", "eval_split"),
        ("max_length", "max_seq_length"),
    ];

    fn wrong(&self) -> Vec<Diagnostic> {
        self.values()
    }
}

/// The roles that a column may have.
pub(super) const ROLES: [&str; 21] = [
    "text",
    "text_pair",
    "prompt",
    "completion",
    "source",
    "target",
    "messages",
    "system",
    "tools",
    "chat_template_kwargs",
    "tokens",
    "question",
    "context",
    "answers",
    "label",
    "task_ids",
    "adapter_ids",
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "labels",
];

impl DataArguments {
    /// The longest sequence in tokens.
    pub(crate) fn max_length(&self, tokenizer: Option<&Tokenizer>) -> usize {
        let limit = tokenizer.and_then(Tokenizer::max_length).unwrap_or(2048);
        let limit = limit.min(self.positions.unwrap_or(2048)).min(2048);
        self.max_seq_length.unwrap_or(limit)
    }

    /// Checks values and combinations; every violation is reported.
    pub(crate) fn validate(&self) -> Result<()> {
        let mut found = self.values();
        found.extend(self.combinations());
        if found.is_empty() {
            Ok(())
        } else {
            Err(Error::many(ErrorKind::Train, found))
        }
    }

    /// Values that are wrong by themselves.
    fn values(&self) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        let mut say = |ok: bool, message: String, help: &str| {
            if !ok {
                found.push(Diagnostic::error("data-argument", message).help(help));
            }
        };
        for role in self.columns.keys() {
            let help = match nearest(role, ROLES) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("roles are {}", ROLES.join(", ")),
            };
            say(
                ROLES.contains(&role.as_str()),
                format!("`columns`: there is no role `{role}`"),
                &help,
            );
        }
        for (name, value) in [
            ("max_seq_length", self.max_seq_length),
            ("max_target_length", self.max_target_length),
        ] {
            say(
                value != Some(0) && value != Some(1),
                format!("`{name}` must be at least 2"),
                "leave it out for the default",
            );
        }
        for (name, value) in [
            ("max_train_samples", self.max_train_samples),
            ("max_eval_samples", self.max_eval_samples),
        ] {
            say(
                value != Some(0),
                format!("`{name}` must be at least 1"),
                "leave it out for all examples",
            );
        }
        let empty = |t: &Option<Tokens>| match t {
            Some(Tokens::Text(text)) => text.is_empty(),
            Some(Tokens::Ids(ids)) => ids.is_empty(),
            None => false,
        };
        for (name, value) in [
            ("response_template", &self.response_template),
            ("instruction_template", &self.instruction_template),
        ] {
            say(!empty(value), format!("`{name}` is empty"), "leave it out");
        }
        say(
            self.mlm_probability > 0.0 && self.mlm_probability < 1.0,
            "`mlm_probability` must be above 0 and below 1".to_owned(),
            "leave it out for the usual 0.15",
        );
        match &self.eval_split {
            Some(EvalSplit::Count(n)) => say(
                *n > 0,
                "`eval_split` is 0".to_owned(),
                "leave it out to evaluate on nothing",
            ),
            Some(EvalSplit::Share(share)) => say(
                *share > 0.0 && *share < 1.0,
                format!("`eval_split` is {share:?}"),
                "a share is above 0 and below 1, and a number of examples is a whole number, such as 100",
            ),
            Some(EvalSplit::Named(_)) | None => {}
        }
        found
    }

    fn combinations(&self) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        let mut say = |ok: bool, message: &str, help: &str| {
            if !ok {
                found.push(Diagnostic::error("data-argument", message).help(help));
            }
        };
        let causal = self.task == Task::CausalLm;
        say(
            self.instruction_template.is_none() || self.response_template.is_some(),
            "`instruction_template` needs `response_template`",
            "give what a response begins with as well",
        );
        say(
            causal || self.response_template.is_none(),
            "`response_template` is for the task causal-lm",
            "leave it out, or set `task`",
        );
        let pair = self.prompt_template.is_some() || self.completion_template.is_some();
        say(
            self.template.is_none() || !pair,
            "`template` makes the whole text, `prompt_template` and `completion_template` its parts",
            "give either the one or the others",
        );
        say(
            !(pair && self.response_template.is_some()),
            "`response_template` finds the completion in a whole text, `completion_template` makes it",
            "give either",
        );
        let seq2seq_or_causal = causal || self.task == Task::Seq2seq;
        say(
            !pair || seq2seq_or_causal,
            "`prompt_template` and `completion_template` are for the tasks causal-lm and seq2seq",
            "use `template` for the text to classify",
        );
        say(
            self.template.is_none() || self.task != Task::Seq2seq,
            "an encoder-decoder has a source and a target",
            "use `prompt_template` and `completion_template` instead of `template`",
        );
        say(
            self.task != Task::MultiLabel
                || self.label_names.as_ref().is_none_or(|n| !n.is_empty()),
            "`label_names` is empty",
            "leave it out when rows hold one 0 or 1 for each class",
        );
        let named = matches!(self.eval_split, None | Some(EvalSplit::Named(_)));
        say(
            self.eval_data.is_none() || named,
            "both `eval_data` and `eval_split` give evaluation data",
            "leave one out",
        );
        found
    }
}
