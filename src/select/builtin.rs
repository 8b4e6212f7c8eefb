//! The built-in interfaces, embedded.

macro_rules! interfaces {
    ($($name:literal),* $(,)?) => {
        /// Name and JSON text, sorted by name.
        pub(super) const INTERFACES: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../schemas/interfaces/", $name, ".json")))),*];
    };
}

interfaces! {
    "albert",
    "bart",
    "beit",
    "bert",
    "bert-generation",
    "clip",
    "clip_text_model",
    "clip_vision_model",
    "deberta",
    "deberta-v2",
    "distilbert",
    "eat",
    "electra",
    "encoder-decoder",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gptj",
    "llama",
    "mbart",
    "mistral",
    "modernbert",
    "mt5",
    "phi",
    "plbart",
    "qwen2",
    "qwen3",
    "roberta",
    "t5",
    "vit",
    "whisper",
    "xlm-roberta",
    "xmod",
}
