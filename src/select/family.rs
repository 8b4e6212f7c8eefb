//! Families of adapter methods, as interfaces name them.

/// What `adapter_methods` of an interface may name. The words are AdapterHub's; a method says which family it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Bottlenecks.
    Bottleneck,
    /// LoRA and its relatives.
    Lora,
    /// Interventions on representations.
    Reft,
    /// Learned positions in front of the input.
    PromptTuning,
    /// Bottlenecks with an invertible part.
    Invertible,
    /// Learned keys and values.
    PrefixTuning,
    /// LoRA with a part for each task.
    MtlLora,
}

impl Family {
    /// All families.
    pub(crate) const ALL: [Family; 7] = [
        Family::Bottleneck,
        Family::Lora,
        Family::Reft,
        Family::PromptTuning,
        Family::Invertible,
        Family::PrefixTuning,
        Family::MtlLora,
    ];

    /// Those that need no more than the layers and modules that every interface has.
    pub(super) const PLAIN: [Family; 4] = [
        Family::Bottleneck,
        Family::Lora,
        Family::Reft,
        Family::Invertible,
    ];

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Family::Bottleneck => "bottleneck",
            Family::Lora => "lora",
            Family::Reft => "reft",
            Family::PromptTuning => "prompt_tuning",
            Family::Invertible => "invertible",
            Family::PrefixTuning => "prefix_tuning",
            Family::MtlLora => "mtl_lora",
        }
    }

    /// The family of this word.
    pub fn of(name: &str) -> Option<Family> {
        Family::ALL.into_iter().find(|f| f.name() == name)
    }
}
