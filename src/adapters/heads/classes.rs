//! What classes of models say of their heads: which position the library's flexible head reads in a model of each type, and what the
//! head of a Transformers class is as a flexible one (the library's `STATIC_TO_FLEX_HEAD_MAP`).

use super::{HeadConfig, HeadType, Pooling, Usual};

/// Model types with a class of flexible heads: `config.model_type`, the class without `AdapterModel`, and the position that is read.
const FLEXIBLE: [(&str, &str, Pooling); 25] = [
    ("albert", "Albert", Pooling::First),
    ("bart", "Bart", Pooling::Eos),
    ("beit", "Beit", Pooling::Pooler),
    ("bert", "Bert", Pooling::First),
    ("bert-generation", "BertGeneration", Pooling::First),
    ("clip", "CLIP", Pooling::First),
    ("deberta", "Deberta", Pooling::First),
    ("deberta-v2", "DebertaV2", Pooling::First),
    ("distilbert", "DistilBert", Pooling::First),
    ("electra", "Electra", Pooling::First),
    ("encoder-decoder", "EncoderDecoder", Pooling::First),
    ("gpt2", "GPT2", Pooling::Last),
    ("gptj", "GPTJ", Pooling::Last),
    ("llama", "Llama", Pooling::Last),
    ("mbart", "MBart", Pooling::Eos),
    ("mistral", "Mistral", Pooling::Last),
    ("mt5", "MT5", Pooling::Eos),
    ("plbart", "PLBart", Pooling::Eos),
    ("roberta", "Roberta", Pooling::First),
    ("t5", "T5", Pooling::Eos),
    ("vit", "ViT", Pooling::First),
    ("whisper", "Whisper", Pooling::Eos),
    ("xlm-roberta", "XLMRoberta", Pooling::First),
    ("xmod", "Xmod", Pooling::First),
    ("modernbert", "", Pooling::First),
];

/// Decoders that the library has no flexible heads for: Transformers' classes read their last token.
const DECODERS: [&str; 24] = [
    "bloom",
    "cohere",
    "cohere2",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox",
    "granite",
    "mixtral",
    "mpt",
    "olmo",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "stablelm",
];

/// The position that a head reads in a model of this type; `None` where that is not known.
pub(crate) fn pooling(model_type: &str) -> Option<Pooling> {
    let flexible = FLEXIBLE.iter().find(|(t, _, _)| *t == model_type);
    let decodes = || DECODERS.contains(&model_type).then_some(Pooling::Last);
    flexible.map(|(_, _, p)| *p).or_else(decodes)
}

/// The library's class of flexible heads for a model type.
pub(crate) fn flexible(model_type: &str) -> Option<String> {
    let found = FLEXIBLE.iter().find(|(t, _, _)| *t == model_type);
    let class = found.map(|(_, class, _)| *class).filter(|c| !c.is_empty());
    class.map(|c| format!("{c}AdapterModel"))
}

/// The head of a Transformers class as a flexible one, with the modules of its layers.
pub(crate) struct Static {
    /// The head.
    pub config: HeadConfig,
    /// Module of each place of the flexible head that has parameters.
    pub modules: Vec<(usize, &'static str)>,
}

/// What a class's name ends with, before which the model's name stands.
const ENDS: [(&str, HeadType); 8] = [
    ("ForSequenceClassification", HeadType::Classification),
    ("ForTokenClassification", HeadType::Tagging),
    ("ForQuestionAnswering", HeadType::QuestionAnswering),
    ("ForMultipleChoice", HeadType::MultipleChoice),
    ("ForImageClassification", HeadType::ImageClassification),
    ("ForMaskedLM", HeadType::MaskedLm),
    ("ForConditionalGeneration", HeadType::Seq2seqLm),
    ("ForCausalLM", HeadType::CausalLm),
];

/// First parts of the paths of a head's modules, in the classes of Transformers and in the library's.
const MODULES: [&str; 17] = [
    "answer_class",
    "classification_head",
    "classifier",
    "cls",
    "embed_out",
    "generator_lm_head",
    "generator_predictions",
    "heads",
    "lm_head",
    "output_projection",
    "pre_classifier",
    "predictions",
    "proj_out",
    "qa_outputs",
    "score",
    "vocab_projector",
    "vocab_transform",
];

/// Whether a tensor of an adapter's file is part of a head.
pub(crate) fn is_head_key(key: &str) -> bool {
    let first = key.split('.').next().unwrap_or(key);
    MODULES.binary_search(&first).is_ok()
}

/// The head of a Transformers class. Classes that the library does not convert are none.
pub(crate) fn of_class(class: &str) -> Option<Static> {
    let class = match class {
        "GPT2LMHeadModel" => "GPT2ForCausalLM",
        "BertLMHeadModel" => "BertForCausalLM",
        "BertGenerationDecoder" => "BertGenerationForCausalLM",
        other => other,
    };
    let (model, head_type) = ENDS
        .iter()
        .find_map(|(end, t)| Some((class.strip_suffix(end)?, *t)))?;
    let base = HeadConfig::of(head_type);
    let one = |module: &'static str| {
        let config = HeadConfig {
            layers: Some(1),
            activation_function: Usual::Given(None),
            ..base.clone()
        };
        Some((config, vec![(1, module)]))
    };
    let two = |activation: &str, first: &'static str, last: &'static str| {
        let config = HeadConfig {
            layers: Some(2),
            activation_function: Usual::Given(Some(activation.into())),
            ..base.clone()
        };
        Some((config, vec![(1, first), (4, last)]))
    };
    let words = |activation: &str, [dense, norm, last]: [&'static str; 3]| {
        let config = HeadConfig {
            layers: Some(2),
            activation_function: Usual::Given(Some(activation.into())),
            layer_norm: Some(true),
            bias: Some(true),
            ..base.clone()
        };
        Some((config, vec![(0, dense), (2, norm), (3, last)]))
    };
    let last = |module: &'static str, bias: bool| {
        let config = HeadConfig {
            bias: Some(bias),
            ..base.clone()
        };
        Some((config, vec![(0, module)]))
    };
    let bert = [
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
    ];
    let roberta = ["lm_head.dense", "lm_head.layer_norm", "lm_head.decoder"];
    let electra = [
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        "generator_lm_head",
    ];
    let (mut config, modules) = match (head_type, model) {
        (HeadType::Classification, "Albert" | "Bert")
        | (HeadType::MultipleChoice, "Albert" | "Bert" | "Roberta" | "XLMRoberta" | "Xmod")
        | (HeadType::ImageClassification, "Beit") => {
            one("classifier").map(|(c, m)| (pooled(c), m))?
        }
        (HeadType::Classification, "Roberta" | "XLMRoberta" | "Xmod") => {
            two("tanh", "classifier.dense", "classifier.out_proj")?
        }
        (HeadType::Classification, "Bart" | "MBart" | "PLBart" | "T5" | "MT5") => two(
            "tanh",
            "classification_head.dense",
            "classification_head.out_proj",
        )?,
        (HeadType::Classification | HeadType::MultipleChoice, "DistilBert") => {
            two("relu", "pre_classifier", "classifier")?
        }
        (HeadType::Classification | HeadType::MultipleChoice, "Deberta" | "DebertaV2") => {
            two("gelu", "pooler.dense", "classifier")?
        }
        (HeadType::Classification, "Electra") => {
            two("gelu", "classifier.dense", "classifier.out_proj")?
        }
        (HeadType::MultipleChoice, "Electra") => {
            two("gelu", "sequence_summary.summary", "classifier")?
        }
        // Decoders, those that the library has no class for among them.
        (HeadType::Classification, _) => one("score").map(|(c, m)| {
            let bias = Some(false);
            (HeadConfig { bias, ..c }, m)
        })?,
        (HeadType::Tagging, "Llama" | "Mistral") => one("score")?,
        (HeadType::Tagging, _) | (HeadType::ImageClassification, "ViT") => one("classifier")?,
        (HeadType::QuestionAnswering, _) => one("qa_outputs")?,
        (HeadType::MaskedLm, "Bert" | "Deberta" | "DebertaV2") | (HeadType::CausalLm, "Bert") => {
            words("gelu", bert)?
        }
        (HeadType::MaskedLm, "Albert") => words(
            "gelu_new",
            [
                "predictions.dense",
                "predictions.LayerNorm",
                "predictions.decoder",
            ],
        )?,
        (HeadType::MaskedLm, "DistilBert") => words(
            "gelu",
            ["vocab_transform", "vocab_layer_norm", "vocab_projector"],
        )?,
        (HeadType::MaskedLm | HeadType::CausalLm, "Roberta" | "XLMRoberta" | "Xmod") => {
            words("gelu", roberta)?
        }
        (HeadType::MaskedLm | HeadType::CausalLm, "Electra") => words("gelu", electra)?,
        (HeadType::CausalLm, "BertGeneration") => last("lm_head.decoder", true)?,
        (HeadType::CausalLm, "GPTJ") => last("lm_head", true)?,
        (HeadType::Seq2seqLm, "Whisper") => last("proj_out", false)?,
        (HeadType::CausalLm | HeadType::Seq2seqLm, _) => last("lm_head", false)?,
        _ => return None,
    };
    config.head_type = head_type;
    Some(Static { config, modules })
}

fn pooled(config: HeadConfig) -> HeadConfig {
    HeadConfig {
        use_pooler: Some(true),
        ..config
    }
}
