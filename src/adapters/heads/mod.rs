//! Prediction heads, as the library's flexible heads are: what they read, which layers they have, what they give.
//!
//! A head is trained with an adapter and saved in its folder, but is no part of it: its parameters are `heads.NAME.…`. A head that the
//! exported model has itself stays as it is; a saved one of the same class is taken in its place.

pub(crate) mod classes;
pub(crate) mod files;
pub(crate) mod join;
pub(crate) mod noted;

use crate::adapters::methods::act;
use crate::adapters::param::{Init, ParamSpec, Size};
use crate::diag::{Diagnostic, nearest};
use crate::ir::{Builder, Val, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub(crate) use classes::is_head_key;
pub(crate) use files::{Head, HeadBase, SavedHead, StaticHead, file, owner};
pub(crate) use join::Joined;
pub(crate) use noted::Noted;

/// What a head predicts, under the library's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HeadType {
    /// One class of several for an example; with one label, a number.
    #[default]
    Classification,
    /// Any number of labels for an example.
    MultilabelClassification,
    /// One of several texts that belong together: consecutive rows of the batch.
    MultipleChoice,
    /// One class for each token.
    Tagging,
    /// Where an answer begins and ends.
    QuestionAnswering,
    /// Classes or labels of a picture.
    ImageClassification,
    /// The next token.
    CausalLm,
    /// A decoder's next token.
    Seq2seqLm,
    /// The token that was masked.
    MaskedLm,
}

/// All of them, by name.
const TYPES: [(&str, HeadType); 9] = [
    ("classification", HeadType::Classification),
    (
        "multilabel_classification",
        HeadType::MultilabelClassification,
    ),
    ("multiple_choice", HeadType::MultipleChoice),
    ("tagging", HeadType::Tagging),
    ("question_answering", HeadType::QuestionAnswering),
    ("image_classification", HeadType::ImageClassification),
    ("causal_lm", HeadType::CausalLm),
    ("seq2seq_lm", HeadType::Seq2seqLm),
    ("masked_lm", HeadType::MaskedLm),
];

impl HeadType {
    /// The type of this name.
    fn named(name: &str) -> Result<Self, Diagnostic> {
        if let Some((_, found)) = TYPES.iter().find(|(n, _)| *n == name) {
            return Ok(*found);
        }
        let names = TYPES.map(|(n, _)| n);
        let mut found = Diagnostic::error("head", format!("a head of type `{name}` is not known"));
        if let Some(near) = nearest(name, names) {
            found = found.note(format!("the nearest one is `{near}`"));
        }
        Err(found.help(format!("known are {}", names.join(", "))))
    }

    /// Whether it gives scores of the words of a vocabulary.
    pub(crate) fn of_words(self) -> bool {
        matches!(
            self,
            HeadType::CausalLm | HeadType::Seq2seqLm | HeadType::MaskedLm
        )
    }

    /// Whether it reads one position of the sequence, rather than each.
    pub(crate) fn of_examples(self) -> bool {
        !self.of_words() && !matches!(self, HeadType::Tagging | HeadType::QuestionAnswering)
    }

    fn usual_layers(self) -> usize {
        match self {
            HeadType::Tagging
            | HeadType::QuestionAnswering
            | HeadType::CausalLm
            | HeadType::Seq2seqLm => 1,
            HeadType::Classification
            | HeadType::MultilabelClassification
            | HeadType::MultipleChoice
            | HeadType::ImageClassification
            | HeadType::MaskedLm => 2,
        }
    }

    fn usual_activation(self) -> Option<&'static str> {
        match self {
            HeadType::MaskedLm => Some("gelu"),
            HeadType::CausalLm | HeadType::Seq2seqLm => None,
            HeadType::Classification
            | HeadType::MultilabelClassification
            | HeadType::MultipleChoice
            | HeadType::Tagging
            | HeadType::QuestionAnswering
            | HeadType::ImageClassification => Some("tanh"),
        }
    }

    /// The fields that the library's class has, besides those of every type.
    fn fields(self) -> &'static [&'static str] {
        match self {
            HeadType::Classification | HeadType::MultilabelClassification => {
                &["num_labels", "use_pooler", "bias", "dropout_prob"]
            }
            HeadType::MultipleChoice => &["num_choices", "use_pooler", "dropout_prob"],
            HeadType::Tagging | HeadType::QuestionAnswering => &["num_labels", "dropout_prob"],
            HeadType::ImageClassification => &[
                "num_labels",
                "multilabel",
                "use_pooler",
                "bias",
                "dropout_prob",
            ],
            HeadType::CausalLm => &[
                "vocab_size",
                "embedding_size",
                "layer_norm",
                "bias",
                "shift_labels",
                "dropout_prob",
            ],
            HeadType::Seq2seqLm => &["vocab_size", "layer_norm", "bias", "shift_labels"],
            HeadType::MaskedLm => &[
                "vocab_size",
                "embedding_size",
                "layer_norm",
                "bias",
                "shift_labels",
            ],
        }
    }
}

/// The position of the sequence that a head of whole examples reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pooling {
    /// The first one: encoders.
    First,
    /// The last one that is no padding: decoders.
    Last,
    /// The last end-of-sequence token: BART's family and T5.
    Eos,
    /// The model's own pooler: the output `pooler_output`.
    Pooler,
}

/// A head, under the library's field names. What is not given is as in the library for a head of its type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HeadConfig {
    /// What it predicts.
    #[serde(skip)]
    pub head_type: HeadType,
    /// Number of classes or labels (default: 2); 1 for a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_labels: Option<usize>,
    /// Of multiple choice: number of texts that belong together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_choices: Option<usize>,
    /// Number of linear layers (default: 2 for classes and masked words, else 1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// Activation between them (default: tanh; gelu for masked words; none for other language models).
    #[serde(skip_serializing_if = "Usual::is_default")]
    #[schemars(with = "Option<String>")]
    pub activation_function: Usual,
    /// Names of the labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label2id: Option<BTreeMap<String, i64>>,
    /// Whether the last linear has a bias (default: yes; no for language models that are not masked).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bias: Option<bool>,
    /// Dropout before each linear (default: that of the model's classifiers, else of its hidden states).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout_prob: Option<f64>,
    /// Whether the model's own pooler is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_pooler: Option<bool>,
    /// Of pictures: whether any number of labels is right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multilabel: Option<bool>,
    /// Of language models: number of words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
    /// Of language models: width in front of the words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_size: Option<usize>,
    /// Of language models: whether a layer norm follows each layer but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer_norm: Option<bool>,
    /// Of language models: whether a position is scored against the next label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift_labels: Option<bool>,
    /// The position that is read (default: as the library's class for the model does).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
}

/// An activation, or none; or what is usual for the type, where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Usual {
    /// What is usual.
    #[default]
    Default,
    /// This one; null for none.
    Given(Option<String>),
}

impl Usual {
    fn is_default(&self) -> bool {
        *self == Usual::Default
    }
}

impl<'de> Deserialize<'de> for Usual {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Option::deserialize(d).map(Usual::Given)
    }
}

/// One layer of a head. The numbers are places in the library's `nn.Sequential`.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Dropout, in training.
    Dropout,
    /// A linear.
    Linear {
        /// Its place.
        at: usize,
        /// Width of what it reads.
        from: Size,
        /// Width of what it makes.
        to: Size,
        /// Whether it has a bias.
        bias: bool,
        /// Whether it makes scores of words, as the transposed table of embeddings does.
        words: bool,
    },
    /// The activation.
    Activation,
    /// A layer norm.
    Norm {
        /// Its place.
        at: usize,
        /// Its width.
        width: Size,
    },
}

impl HeadConfig {
    /// A head of this type, as the library makes it.
    pub(crate) fn of(head_type: HeadType) -> Self {
        HeadConfig {
            head_type,
            ..HeadConfig::default()
        }
    }

    /// The configuration in a `head_config.json`.
    pub(crate) fn from_file(config: Value) -> Result<Self, Diagnostic> {
        let bad = |m: String| Diagnostic::error("head", m);
        let Value::Object(mut fields) = config else {
            return Err(bad("`config` is no object".into()));
        };
        let named = fields.shift_remove("head_type");
        let named = named.as_ref().and_then(Value::as_str).unwrap_or_default();
        let head_type = HeadType::named(named)?;
        if let Some(Value::Object(labels)) = fields.shift_remove("id2label")
            && fields.get("label2id").is_none_or(Value::is_null)
        {
            let turned = labels.into_iter().filter_map(|(id, label)| {
                Some((label.as_str()?.to_owned(), json!(id.parse::<i64>().ok()?)))
            });
            fields.insert("label2id".into(), Value::Object(turned.collect()));
        }
        let read: HeadConfig = serde_json::from_value(Value::Object(fields))
            .map_err(|e| bad(format!("of type `{named}`: {e}")))?;
        Ok(HeadConfig { head_type, ..read })
    }

    /// The configuration as a graph notes it: what is given, and no more. [`from_file`](Self::from_file) reads it.
    pub(crate) fn to_note(&self) -> Value {
        let mut out = serde_json::to_value(self).unwrap_or_default();
        let name = TYPES.iter().find(|(_, t)| *t == self.head_type);
        if let Value::Object(fields) = &mut out {
            fields.insert("head_type".into(), json!(name.map(|(n, _)| n)));
        }
        out
    }

    /// The same as a file has it, with the fields that the library's class takes. `words` and `embedding` are the sizes of the last
    /// linear.
    pub(crate) fn to_file(&self, words: usize, embedding: usize) -> Value {
        let fields = self.head_type.fields();
        let name = TYPES.iter().find(|(_, t)| *t == self.head_type);
        let mut out = Map::new();
        let mut put = |name: &str, value: Value| {
            let always = ["activation_function", "head_type", "label2id", "layers"];
            if fields.contains(&name) || always.contains(&name) {
                out.insert(name.to_owned(), value);
            }
        };
        put("activation_function", json!(self.activation()));
        put("bias", json!(self.has_bias()));
        put("dropout_prob", json!(self.dropout_prob));
        put("embedding_size", json!(embedding));
        put("head_type", json!(name.map(|(n, _)| n)));
        put("label2id", self.labels_of_file());
        put("layer_norm", json!(self.has_norm()));
        put("layers", json!(self.layers()));
        put("multilabel", json!(self.multilabel.unwrap_or(false)));
        put("num_choices", json!(self.num_choices.unwrap_or(2)));
        put("num_labels", json!(self.num_labels()));
        put("shift_labels", json!(self.shifts()));
        put("use_pooler", json!(self.use_pooler.unwrap_or(false)));
        put("vocab_size", json!(words));
        Value::Object(out)
    }

    fn labels_of_file(&self) -> Value {
        if self.head_type.of_words() {
            return Value::Null;
        }
        let n = match self.head_type {
            HeadType::MultipleChoice => self.num_choices.unwrap_or(2),
            _ => self.num_labels(),
        };
        match &self.label2id {
            Some(ids) => json!(ids),
            None => (0..n).map(|i| (format!("LABEL_{i}"), json!(i))).collect(),
        }
    }

    /// Number of labels.
    pub(crate) fn num_labels(&self) -> usize {
        self.num_labels.unwrap_or(2)
    }

    /// Number of linear layers.
    fn layers(&self) -> usize {
        self.layers.unwrap_or(self.head_type.usual_layers())
    }

    fn activation(&self) -> Option<&str> {
        match &self.activation_function {
            Usual::Given(given) => given.as_deref(),
            Usual::Default => self.head_type.usual_activation(),
        }
    }

    fn has_bias(&self) -> bool {
        let usual = !self.head_type.of_words() || self.head_type == HeadType::MaskedLm;
        self.bias.unwrap_or(usual)
    }

    fn has_norm(&self) -> bool {
        self.layer_norm
            .unwrap_or(self.head_type == HeadType::MaskedLm)
    }

    fn shifts(&self) -> bool {
        self.shift_labels
            .unwrap_or(self.head_type == HeadType::CausalLm)
    }

    /// Refuses values that make no head.
    pub(crate) fn validate(&self) -> Result<(), Diagnostic> {
        let bad = |m: &str| Err(Diagnostic::error("head", m));
        if self.layers() == 0 || self.num_labels == Some(0) || self.num_choices == Some(0) {
            return bad("a head needs at least one label and one layer");
        }
        if self.dropout_prob.is_some_and(|p| !(0.0..1.0).contains(&p)) {
            return bad("`dropout_prob` must be at least 0 and below 1");
        }
        if self.head_type == HeadType::QuestionAnswering && self.num_labels() != 2 {
            return bad("a head for answers has two labels: where they begin, and where they end");
        }
        act::check(self.activation())
    }

    /// Its layers on a model of this width, with so many words.
    pub(crate) fn steps(&self, width: usize, words: usize) -> Vec<Step> {
        let mut out = Vec::new();
        let width = Size::new("d", width);
        let linear = |at, from: &Size, to: &Size, bias, words| Step::Linear {
            at,
            from: from.clone(),
            to: to.clone(),
            bias,
            words,
        };
        if self.head_type.of_words() {
            let inner = self.embedding_size.filter(|_| self.layers() > 1);
            let inner = inner.map_or(width.clone(), |e| Size::new("embedding_size", e));
            let mut from = width;
            for _ in 1..self.layers() {
                out.push(linear(out.len(), &from, &inner, true, false));
                if self.activation().is_some() {
                    out.push(Step::Activation);
                }
                if self.has_norm() {
                    out.push(Step::Norm {
                        at: out.len(),
                        width: inner.clone(),
                    });
                }
                from = inner.clone();
            }
            let words = Size::new("vocab_size", self.vocab_size.unwrap_or(words));
            out.push(linear(out.len(), &from, &words, self.has_bias(), true));
            return out;
        }
        let labels = match self.head_type {
            HeadType::MultipleChoice => Size::from(1),
            _ => Size::new("num_labels", self.num_labels()),
        };
        for l in 1..=self.layers() {
            out.push(Step::Dropout);
            if l == self.layers() {
                out.push(linear(out.len(), &width, &labels, self.has_bias(), false));
            } else {
                out.push(linear(out.len(), &width, &width, true, false));
                if self.activation().is_some() {
                    out.push(Step::Activation);
                }
            }
        }
        out
    }

    /// What the head makes of `x`, the positions that it reads. `get` gives the parameter of a place, `epsilon` is that of norms.
    pub(crate) fn build(
        &self,
        b: &Builder,
        x: Val,
        steps: &[Step],
        get: impl Fn(usize, &str) -> Val,
        dropout: impl Fn(Val) -> Val,
        epsilon: f32,
    ) -> Val {
        steps.iter().fold(x, |x, step| match step {
            Step::Dropout => dropout(x),
            Step::Linear { at, bias, .. } => {
                let y = b.linear_t(x, get(*at, "weight"));
                if *bias { b.add(y, get(*at, "bias")) } else { y }
            }
            Step::Activation => act::apply(b, self.activation(), x),
            Step::Norm { at, .. } => norm(b, x, get(*at, "weight"), get(*at, "bias"), epsilon),
        })
    }

    /// Names of the graph outputs that it makes.
    pub(crate) fn outputs(&self) -> &'static [&'static str] {
        outputs(self.head_type)
    }
}

/// A layer norm over the last axis. Its operator is of opset 17.
fn norm(b: &Builder, x: Val, weight: Val, bias: Val, epsilon: f32) -> Val {
    if b.opset() >= 17 {
        let attrs = [("axis", (-1i64).into()), ("epsilon", epsilon.into())];
        return b.op("LayerNormalization", &[x, weight, bias], &attrs);
    }
    let centred = b.sub(x, b.reduce_mean(x, &[-1], true));
    let variance = b.reduce_mean(b.mul(centred, centred), &[-1], true);
    let deviation = b.unary("Sqrt", b.add(variance, b.scalar(epsilon)));
    b.add(b.mul(b.div(centred, deviation), weight), bias)
}

/// Names of the graph outputs of a head of this type.
pub(crate) fn outputs(head_type: HeadType) -> &'static [&'static str] {
    match head_type {
        HeadType::QuestionAnswering => &[contract::START_LOGITS, contract::END_LOGITS],
        _ => &[contract::LOGITS],
    }
}

/// The parameters of a head's layers.
pub(crate) fn params(name: &str, steps: &[Step]) -> Vec<ParamSpec> {
    let mut out = Vec::new();
    let mut put = |at: &usize, kind: &str, shape: &[&Size], init: Init, trained: bool| {
        let spec = ParamSpec::new(format!("heads.{name}.{at}.{kind}"), shape, init);
        out.push(if trained { spec } else { spec.frozen() });
    };
    for step in steps {
        match step {
            Step::Dropout | Step::Activation => {}
            Step::Norm { at, width } => {
                put(at, "weight", &[width], Init::Ones, true);
                put(at, "bias", &[width], Init::Zeros, true);
            }
            Step::Linear {
                at,
                from,
                to,
                bias,
                words,
            } => {
                // The library freezes a model's output embeddings with the rest of the base.
                put(at, "weight", &[to, from], Init::bert(), !words);
                if *bias {
                    put(at, "bias", &[to], Init::Zeros, !words);
                }
            }
        }
    }
    out
}
