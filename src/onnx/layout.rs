//! Which files of a folder or a repository are a model: the parts it is in, and the variants there are of them, as Optimum and
//! transformers.js name them. Only names are looked at: `onnx/decoder_model_merged_q4f16.onnx` is the part `decoder_model_merged` of the
//! variant `q4f16`, and `model.onnx` is the model in full precision, `fp32`.

use crate::diag::{Diagnostic, nearest};

/// The word for files without a suffix.
pub(crate) const FULL: &str = "fp32";
/// The only file of a model.
const WHOLE: &str = "model";
/// The encoder of an encoder-decoder.
const ENCODER: &str = "encoder_model";
/// Decoders that need no cache, the best first.
const DECODERS: [&str; 2] = ["decoder_model", "decoder_model_merged"];
/// The decoder that goes on behind a cache.
const WITH_PAST: &str = "decoder_with_past_model";
/// The parts, a longer name before the one that it begins with.
const PARTS: [&str; 5] = [
    "decoder_model_merged",
    "decoder_with_past_model",
    "decoder_model",
    ENCODER,
    WHOLE,
];

/// A file as a listing has it: its path with slashes, and its size where that is known.
pub(crate) type Listed<'a> = (&'a str, Option<u64>);

/// The files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The model, or the encoder.
    pub(crate) model: String,
    /// The decoder, where it is a file of its own.
    pub(crate) decoder: Option<String>,
    /// Further forms of the decoder: merged, with a cache.
    pub(crate) more: Vec<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Unclear {
    /// No file is named like a model's.
    Strange,
    /// What there is instead.
    Told(Diagnostic),
}

/// What the name of a file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named<'a> {
    path: &'a str,
    folder: &'a str,
    part: &'a str,
    variant: &'a str,
}

/// The folder and the part of a path.
fn named(path: &str) -> Option<Named<'_>> {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = file.strip_suffix(".onnx")?;
    PARTS.iter().find_map(|part| {
        let rest = stem.strip_prefix(part)?;
        let variant = match rest {
            "" => FULL,
            rest => rest.strip_prefix('_').filter(|v| !v.is_empty())?,
        };
        Some(Named {
            path,
            folder,
            part,
            variant,
        })
    })
}

/// The suffixes that a word may mean, the best first: transformers.js calls `model_quantized.onnx` `q8`.
fn meant(word: &str) -> Vec<&str> {
    match word {
        "q8" => vec!["q8", "quantized", "int8", "uint8"],
        word => vec![word],
    }
}

/// The variant that the name of a file says.
pub(crate) fn variant_of(path: &str) -> Option<&str> {
    named(path).map(|n| n.variant)
}

/// Whether the name of a file is an encoder's, which has a decoder beside it.
pub(crate) fn is_encoder(path: &str) -> bool {
    named(path).is_some_and(|n| n.part == ENCODER)
}

/// Whether the file of this path is of this variant, whatever its part is called.
pub(crate) fn is_variant(path: &str, variant: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.strip_suffix(".onnx").unwrap_or(file);
    let of = |word: &str| match variant_of(path) {
        Some(found) => found == word,
        None => stem.strip_suffix(word).is_some_and(|s| s.ends_with('_')),
    };
    meant(variant).into_iter().any(of)
}

/// The files of the model of a variant, of full precision without one: those of the outermost folder that has them.
///
/// # Errors
/// [`Unclear::Told`]: there is no such variant, or it is in several folders; the variants that there are, the nearest first.
pub(crate) fn choose(files: &[Listed<'_>], variant: Option<&str>) -> Result<Layout, Unclear> {
    let all: Vec<Named<'_>> = files.iter().filter_map(|f| named(f.0)).collect();
    for word in meant(variant.unwrap_or(FULL)) {
        let mut found: Vec<(usize, Layout)> = Vec::new();
        let mut folders: Vec<&str> = all.iter().map(|n| n.folder).collect();
        folders.sort_unstable();
        folders.dedup();
        for folder in folders {
            let depth = folder.split('/').filter(|p| !p.is_empty()).count();
            found.extend(inside(&all, folder, word).map(|l| (depth, l)));
        }
        let Some(least) = found.iter().map(|f| f.0).min() else {
            continue;
        };
        found.retain(|f| f.0 == least);
        if found.len() > 1 {
            let places: Vec<&str> = found.iter().map(|f| &*f.1.model).collect();
            let message = "several folders have the model: which one is meant?";
            let d = Diagnostic::error("model-variant", message).note(places.join(", "));
            return Err(Unclear::Told(d));
        }
        if let Some((_, layout)) = found.pop() {
            return Ok(layout);
        }
    }
    if let Some(word) = variant
        && let Some(one) = by_suffix(files, word)
    {
        return Ok(Layout {
            model: one.to_owned(),
            decoder: None,
            more: Vec::new(),
        });
    }
    Err(untold(files, &all, variant))
}

/// The only file whose name ends with the word, of models that are called otherwise.
fn by_suffix<'a>(files: &[Listed<'a>], word: &str) -> Option<&'a str> {
    let onnx = |f: &&Listed<'a>| f.0.strip_suffix(".onnx").is_some() && named(f.0).is_none();
    let mut fitting = files.iter().filter(onnx).filter(|f| is_variant(f.0, word));
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Some(one.0),
        _ => None,
    }
}

/// The model of a variant in one folder.
fn inside(all: &[Named<'_>], folder: &str, variant: &str) -> Option<Layout> {
    let at = |part: &str| {
        let of = |n: &&Named<'_>| n.folder == folder && n.part == part && n.variant == variant;
        // `model.onnx` before `model_fp32.onnx`.
        let plainest = all
            .iter()
            .filter(of)
            .map(|n| n.path)
            .min_by_key(|p| p.len());
        plainest.map(str::to_owned)
    };
    let decoders: Vec<String> = DECODERS.into_iter().filter_map(at).collect();
    let encodes = all.iter().any(|n| n.folder == folder && n.part == ENCODER);
    let mut decoders = decoders.into_iter();
    let alone = |model: String| Layout {
        model,
        decoder: None,
        more: Vec::new(),
    };
    match (at(ENCODER), decoders.next()) {
        (Some(model), Some(decoder)) => Some(Layout {
            model,
            decoder: Some(decoder),
            more: decoders.chain(at(WITH_PAST)).collect(),
        }),
        (_, decoder) => at(WHOLE)
            // A decoder beside an encoder is no model by itself.
            .or(decoder.filter(|_| !encodes))
            .map(alone),
    }
}

/// What there is instead of the variant that was asked for.
fn untold(files: &[Listed<'_>], all: &[Named<'_>], variant: Option<&str>) -> Unclear {
    let mut variants: Vec<&str> = all.iter().map(|n| n.variant).collect();
    variants.sort_unstable();
    variants.dedup();
    if variants.is_empty() {
        return Unclear::Strange;
    }
    let near = variant.and_then(|v| nearest(v, variants.iter().copied()));
    variants.sort_by_key(|v| Some(*v) != near);
    let shown = |variant: &&str| {
        let of = |f: &&Listed<'_>| {
            let graph = f.0.find(".onnx").map(|at| &f.0[..at + ".onnx".len()]);
            graph.and_then(variant_of) == Some(variant)
        };
        let sizes: Option<u64> = files.iter().filter(of).map(|f| f.1).sum();
        match sizes {
            Some(bytes) => format!("`{variant}` ({})", size(bytes)),
            None => format!("`{variant}`"),
        }
    };
    let list: Vec<String> = variants.iter().map(shown).collect();
    let message = match variant {
        Some(asked) => format!("there is no variant `{asked}` of the model"),
        None => "there is no model in full precision; which variant is meant?".to_owned(),
    };
    let only = variants.first().copied().filter(|_| variants.len() == 1);
    let help = match near.or(only) {
        Some(one) => format!("--variant {one}"),
        None => "--variant NAME chooses one of them".to_owned(),
    };
    Unclear::Told(
        Diagnostic::error("model-variant", message)
            .note(format!("there are {}", list.join(", ")))
            .help(help),
    )
}

/// Bytes for people, with one digit behind the point.
fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")];
    for (unit, name) in units {
        if bytes >= unit {
            let tenths = bytes / (unit / 10);
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(files: &[&str], variant: Option<&str>) -> String {
        let files: Vec<Listed<'_>> = files.iter().map(|f| (*f, Some(1 << 20))).collect();
        match choose(&files, variant) {
            Ok(l) => {
                let parts = std::iter::once(l.model).chain(l.decoder).chain(l.more);
                parts.collect::<Vec<_>>().join(" ")
            }
            Err(Unclear::Strange) => "strange".to_owned(),
            Err(Unclear::Told(d)) => d.to_string(),
        }
    }

    #[test]
    fn a_variant_is_the_suffix_of_a_name() {
        let repo = [
            "README.md",
            "onnx/model.onnx",
            "onnx/model.onnx_data",
            "onnx/model_q4.onnx",
            "onnx/model_q4f16.onnx",
            "onnx/model_q4f16.onnx_data",
            "onnx/model_quantized.onnx",
        ];
        for (variant, file) in [
            (None, "onnx/model.onnx"),
            (Some("fp32"), "onnx/model.onnx"),
            (Some("q4"), "onnx/model_q4.onnx"),
            (Some("q4f16"), "onnx/model_q4f16.onnx"),
            (Some("q8"), "onnx/model_quantized.onnx"),
            (Some("quantized"), "onnx/model_quantized.onnx"),
        ] {
            assert_eq!(pick(&repo, variant), file);
        }
        let said = pick(&repo, Some("q4f61"));
        assert!(
            said.contains("there are `q4f16` (2.0 MB), `fp32` (2.0 MB), `q4` (1.0 MB)")
                && said.contains("--variant q4f16"),
            "{said}"
        );
    }

    #[test]
    fn without_a_word_it_is_the_full_precision_or_a_question() {
        let said = pick(&["onnx/model_q4.onnx", "onnx/model_fp16.onnx"], None);
        assert!(said.contains("`fp16` (1.0 MB), `q4` (1.0 MB)"), "{said}");
        assert_eq!(pick(&["model_fp32.onnx"], None), "model_fp32.onnx");
        assert_eq!(pick(&["x.onnx", "y.onnx"], None), "strange");
        assert_eq!(
            pick(&["gpt2.onnx", "gpt2_q4.onnx"], Some("q4")),
            "gpt2_q4.onnx"
        );
        assert_eq!(
            pick(&["a/b/model.onnx", "onnx/model.onnx"], None),
            "onnx/model.onnx"
        );
        assert!(
            pick(&["a/model.onnx", "b/model.onnx"], None).contains("a/model.onnx, b/model.onnx")
        );
    }

    #[test]
    fn an_encoder_goes_with_its_decoders() {
        let mut repo = Vec::new();
        for suffix in ["", "_q4"] {
            for part in PARTS.iter().filter(|p| **p != WHOLE) {
                repo.push(format!("onnx/{part}{suffix}.onnx"));
            }
        }
        let repo: Vec<&str> = repo.iter().map(String::as_str).collect();
        assert_eq!(
            pick(&repo, None),
            "onnx/encoder_model.onnx onnx/decoder_model.onnx onnx/decoder_model_merged.onnx onnx/decoder_with_past_model.onnx"
        );
        assert_eq!(
            pick(&repo, Some("q4")),
            "onnx/encoder_model_q4.onnx onnx/decoder_model_q4.onnx onnx/decoder_model_merged_q4.onnx onnx/decoder_with_past_model_q4.onnx"
        );
        // A decoder alone is a model where there is no encoder, and none where the encoder is of another variant.
        assert_eq!(
            pick(&["decoder_model_merged_q4.onnx"], Some("q4")),
            "decoder_model_merged_q4.onnx"
        );
        let torn = ["encoder_model.onnx", "decoder_model_q4.onnx"];
        assert!(pick(&torn, Some("q4")).contains("no variant `q4`"));
    }
}
