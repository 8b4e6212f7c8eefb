//! What a model does with a few examples, as a run found it and as the run leaves it.

use serde::{Deserialize, Serialize};

/// A closer look at a model, before a run and after it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Look {
    /// Whether the examples are evaluation data; else they were trained on.
    pub evaluation: bool,
    /// Wall time that it took, in seconds.
    pub seconds: f64,
    /// What was left out, and why.
    pub notes: Vec<String>,
    /// A few examples with the model's answers.
    pub samples: Vec<Sample>,
    /// A few texts by tokens, each with its loss.
    pub tokens: Vec<Vec<TokenLoss>>,
    /// Which classes were taken for which.
    pub classes: Option<Classes>,
    /// Numbers that were estimated.
    pub numbers: Vec<Estimate>,
}

/// An example with the model's answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Sample {
    /// What the model is given.
    pub given: String,
    /// What is right.
    pub expected: String,
    /// What it answered before the run; none where there was no time left for it.
    pub before: Option<Vec<Guess>>,
    /// What it answers after it.
    pub after: Option<Vec<Guess>>,
}

/// An answer, with its probability where it has one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Guess {
    /// The answer.
    pub text: String,
    /// Its probability.
    pub share: Option<f64>,
}

/// A token of a text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct TokenLoss {
    /// Its text.
    pub text: String,
    /// Its loss before the run; none for a token that is not learned.
    pub before: Option<f64>,
    /// Its loss after it.
    pub after: Option<f64>,
}

/// Classes that were answered, against those that are right.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Classes {
    /// Names of the classes, in the order of their ids; empty where they have none.
    pub names: Vec<String>,
    /// Class that is right, class that was answered, how often, after the run.
    pub pairs: Vec<(i64, i64, u64)>,
    /// Share of right answers before the run.
    pub before: Option<f64>,
}

impl Classes {
    /// The name of a class.
    pub(crate) fn name(&self, class: i64) -> String {
        let named = usize::try_from(class).ok().and_then(|c| self.names.get(c));
        named.map_or_else(|| class.to_string(), Clone::clone)
    }
}

/// A number that was estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Estimate {
    /// What is right.
    pub right: f64,
    /// What was answered before the run.
    pub before: Option<f64>,
    /// What is answered after it.
    pub after: Option<f64>,
}
