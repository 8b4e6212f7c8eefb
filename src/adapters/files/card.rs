//! The model card of an adapter: the README.md of its repository, as AdapterHub's cards are.

use crate::adapters::folder::{AdapterFolder, file};
use serde_json::Value;
use std::fmt::Write;

/// What a card says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Card {
    /// The repository, `org/name`.
    pub repo: String,
    /// Name of the adapter.
    pub name: String,
    /// The base model on the Hub, `org/name`.
    pub base_model: Option<String>,
    /// Whether the folder is of PEFT's format.
    pub peft: bool,
    /// The exported model that it was made for, as a command takes it: `hub:org/name@COMMIT:PATH`.
    pub model: Option<String>,
    /// Its `model_type`.
    pub model_type: String,
    /// The adapter's configuration.
    pub config: Value,
    /// Name of its architecture.
    pub architecture: String,
    /// Whether the adapter has an interface file, for models that the Adapters library does not know.
    pub interface: bool,
    /// Whether a prediction head stands beside the adapter: it says classes or numbers then, and no text.
    pub head: bool,
    /// Datasets on the Hub that it was trained on.
    pub datasets: Vec<String>,
    /// Further tags, `adapterhub:nli/multinli` for one.
    pub tags: Vec<String>,
    /// Languages, as codes.
    pub languages: Vec<String>,
    /// The licence, as the Hub names it.
    pub license: Option<String>,
    /// Lines of description.
    pub description: Option<String>,
    /// File name of the picture of the model with the adapter, in the same folder.
    pub picture: Option<String>,
    /// Results by name of the measure.
    pub results: Vec<(String, f64)>,
    /// Training arguments by name.
    pub arguments: Vec<(String, String)>,
    /// The adapters' summary table.
    pub summary: Option<String>,
}

impl Card {
    /// What a folder says of itself.
    pub(crate) fn new(repo: &str, folder: &AdapterFolder) -> Card {
        let named = &folder.meta.model_name;
        Card {
            repo: repo.to_owned(),
            name: folder.name.clone(),
            base_model: on_hub(named).then(|| named.clone()),
            model_type: folder.meta.model_type.clone(),
            config: folder.config.to_dict(),
            architecture: folder.config.architecture().to_owned(),
            interface: folder.interface.is_some(),
            ..Card::default()
        }
    }

    /// The card.
    pub(crate) fn text(&self) -> String {
        let mut out = self.head();
        let base = self.base_model.as_deref();
        let model = base.map_or_else(|| "its base model".to_owned(), |b| format!("`{}`", code(b)));
        let _ = write!(out, "\n# Adapter `{}` for {model}\n\n", code(&self.repo));
        let kind = match self.architecture.as_str() {
            "" => String::new(),
            a => format!(" (`{}`)", code(a)),
        };
        let on = match self.datasets.as_slice() {
            [] => String::new(),
            list => {
                let links = list.iter().map(|d| {
                    let name = plain(d);
                    format!("[{name}](https://huggingface.co/datasets/{name})")
                });
                format!(
                    " that was trained on {}",
                    links.collect::<Vec<_>>().join(", ")
                )
            }
        };
        let library = if self.peft {
            "[PEFT](https://github.com/huggingface/peft)"
        } else {
            "the [Adapters](https://github.com/Adapter-Hub/adapters) library"
        };
        let _ = writeln!(
            out,
            "An [adapter](https://adapterhub.ml){kind} for {model}{on}. It is in the format of {library}, \
             and runs with exported (ONNX) models as well."
        );
        if let Some(text) = &self.description {
            let _ = write!(out, "\n{}\n", text.trim());
        }
        if let Some(picture) = &self.picture {
            let name = plain(&self.name);
            let _ = write!(
                out,
                "\n![The model by module, with the adapter `{name}` in it]({})\n",
                plain(picture)
            );
        }
        self.usage(&mut out);
        self.training(&mut out);
        if !self.results.is_empty() {
            out += "\n## Evaluation results\n\n| Measure | Value |\n|---|---:|\n";
            for (name, value) in &self.results {
                let _ = writeln!(out, "| {} | {} |", cell(name), number(*value));
            }
        }
        out
    }

    /// The metadata.
    fn head(&self) -> String {
        let library = if self.peft { "peft" } else { "adapters" };
        let mut out = format!("---\nlibrary_name: {library}\n");
        if let Some(base) = &self.base_model {
            let _ = writeln!(out, "base_model: {}", yaml(base));
        }
        if let Some(license) = &self.license {
            let _ = writeln!(out, "license: {}", yaml(license));
        }
        let mut list = |name: &str, items: &[String]| {
            if !items.is_empty() {
                let _ = writeln!(out, "{name}:");
                for item in items {
                    let _ = writeln!(out, "- {}", yaml(item));
                }
            }
        };
        // `adapter-transformers` is the tag by which the Hub knows the library.
        let mut tags = vec!["onnx".to_owned()];
        if !self.peft {
            tags.insert(0, "adapter-transformers".to_owned());
        }
        let own = [self.model_type.clone(), self.architecture.clone()];
        for tag in own.into_iter().chain(self.tags.iter().cloned()) {
            if !tag.is_empty() && !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        list("tags", &tags);
        list("datasets", &self.datasets);
        list("language", &self.languages);
        let metrics: Vec<String> = self.results.iter().map(|r| r.0.clone()).collect();
        list("metrics", &metrics);
        out + "---\n"
    }

    fn usage(&self, out: &mut String) {
        let repo = code(&self.repo);
        let class = if self.head {
            "AutoModel"
        } else {
            "AutoModelForCausalLM"
        };
        // By its name the adapter needs no command of its own.
        let (pull, model, adapter) = match &self.model {
            Some(model) => (String::new(), code(model), format!("hub:{repo}")),
            None => (
                format!("rewrite hub pull {repo} -o adapter\n"),
                "model.onnx".to_owned(),
                "adapter".to_owned(),
            ),
        };
        let command = if self.head {
            format!("rewrite {model} --adapter {adapter} -o adapted.onnx")
        } else {
            format!("rewrite generate {model} --adapter {adapter} --prompt \"...\"")
        };
        let library = if self.peft {
            "PEFT (`pip install peft`)"
        } else {
            "Adapters (`pip install adapters`)"
        };
        let _ = write!(
            out,
            "\n## Usage\n\nWith an exported model and [onnx-graft](https://crates.io/crates/onnx-graft):\n\n```sh\n\
             {pull}{command}\n```\n\
             \nWith PyTorch and {library}:\n\n```python\n"
        );
        let base = self.base_model.as_deref();
        let exported = base.filter(|base| {
            let from = self.model.as_deref().and_then(|m| m.strip_prefix("hub:"));
            from.and_then(|m| m.split(['@', ':']).next()) == Some(base)
        });
        // What was exported cannot be loaded in PyTorch.
        if let Some(repo) = exported {
            let _ = writeln!(
                out,
                "# The PyTorch model that {} was made from.",
                code(repo)
            );
        }
        let base = base.filter(|_| exported.is_none());
        let base = base.map_or_else(|| "BASE_MODEL".to_owned(), code);
        if self.peft {
            let _ = write!(
                out,
                "from peft import PeftModel\nfrom transformers import {class}\n\n\
                 model = {class}.from_pretrained({base:?})\n\
                 model = PeftModel.from_pretrained(model, {repo:?})\n```\n"
            );
        } else if self.interface {
            let _ = write!(
                out,
                "import adapters\nfrom adapters import AdapterModelInterface\nfrom transformers import {class}\n\n\
                 model = {class}.from_pretrained({base:?})\n\
                 adapters.init(model, interface=AdapterModelInterface._load({repo:?}))\n\
                 model.load_adapter({repo:?}, set_active=True)\n```\n"
            );
        } else {
            let _ = write!(
                out,
                "from adapters import AutoAdapterModel\n\nmodel = AutoAdapterModel.from_pretrained({base:?})\n\
                 model.load_adapter({repo:?}, set_active=True)\n```\n"
            );
        }
    }

    fn training(&self, out: &mut String) {
        *out += "\n## Architecture & Training\n\n";
        let text = serde_json::to_string_pretty(&self.config).unwrap_or_default();
        let _ = writeln!(
            out,
            "The configuration (`{}`):\n\n{}",
            file::CONFIG,
            fenced("json", &text)
        );
        if let Some(summary) = self.summary.as_deref().filter(|s| !s.trim().is_empty()) {
            let _ = writeln!(out, "\n{}", fenced("text", summary.trim_end()));
        }
        if !self.arguments.is_empty() {
            *out += "\n| Argument | Value |\n|---|---|\n";
            for (name, value) in &self.arguments {
                let _ = writeln!(out, "| `{}` | {} |", code(name), cell(value));
            }
        }
    }
}

/// Whether a name is one that a repository can have: local paths are no base models for others.
pub(crate) fn on_hub(name: &str) -> bool {
    let part = |p: &str| {
        p.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && p.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
    };
    name.split('/').count() <= 2 && name.split('/').all(part)
}

/// A text as a YAML string: JSON's are among them.
fn yaml(text: &str) -> String {
    let safe = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"._/-".contains(&b));
    let word = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if safe && word && !reserved.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_owned();
    }
    Value::from(text).to_string()
}

/// A text inside backticks or inside a command.
fn code(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control() && !"`\"$\\".contains(*c))
        .collect()
}

/// A text that is not taken for markup.
fn plain(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control() && !"[]()<>|`*\\".contains(*c))
        .collect()
}

/// A text in a cell of a table.
fn cell(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' => out.extend(['\\', c]),
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A block of code whose fence the text does not end.
fn fenced(language: &str, text: &str) -> String {
    let mut longest = 2;
    let mut run = 0;
    for c in text.chars() {
        run = if c == '`' { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    let fence = "`".repeat(longest + 1);
    format!("{fence}{language}\n{text}\n{fence}")
}

/// A measure with four digits behind the point, without zeros at the end.
fn number(x: f64) -> String {
    if x != 0.0 && x.abs() < 1e-3 {
        return format!("{x:.3e}");
    }
    let text = format!("{x:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn card() -> Card {
        Card {
            repo: "org/qwen-math".into(),
            name: "math".into(),
            base_model: Some("Qwen/Qwen3-1.7B-Base".into()),
            model_type: "qwen3".into(),
            config: json!({"architecture": "lora", "r": 8}),
            architecture: "lora".into(),
            datasets: vec!["openai/gsm8k".into()],
            tags: vec!["adapterhub:math/gsm8k".into()],
            languages: vec!["no".into()],
            license: Some("apache-2.0".into()),
            results: vec![("loss".into(), 0.25), ("exact_match".into(), 0.5)],
            arguments: vec![("learning_rate".into(), "0.0001".into())],
            ..Card::default()
        }
    }

    #[test]
    fn who_says_classes_is_not_asked_for_text() {
        let with = |head| {
            Card {
                head,
                interface: true,
                ..card()
            }
            .text()
        };
        assert!(
            with(false).contains("rewrite generate")
                && with(false).contains("AutoModelForCausalLM")
        );
        assert!(!with(true).contains("generate ") && with(true).contains("import AutoModel\n"));
    }

    #[test]
    fn a_card_begins_with_what_the_hub_reads() {
        let text = card().text();
        let head = text
            .strip_prefix("---\n")
            .unwrap()
            .split("---\n")
            .next()
            .unwrap();
        assert_eq!(
            head,
            "library_name: adapters\nbase_model: Qwen/Qwen3-1.7B-Base\nlicense: apache-2.0\ntags:\n- adapter-transformers\n- onnx\n\
             - qwen3\n- lora\n- \"adapterhub:math/gsm8k\"\ndatasets:\n- openai/gsm8k\nlanguage:\n- \"no\"\nmetrics:\n- loss\n- exact_match\n"
        );
    }

    #[test]
    fn a_card_tells_what_was_trained_how_and_how_well() {
        let text = card().text();
        for part in [
            "# Adapter `org/qwen-math` for `Qwen/Qwen3-1.7B-Base`",
            "[openai/gsm8k](https://huggingface.co/datasets/openai/gsm8k)",
            "rewrite hub pull org/qwen-math -o adapter",
            "model.load_adapter(\"org/qwen-math\", set_active=True)",
            "\"r\": 8",
            "| `learning_rate` | 0.0001 |",
            "| exact\\_match | 0.5 |",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn texts_stay_where_they_are_put() {
        let mut c = card();
        c.license = Some("x\ntags: [evil]".into());
        c.arguments = vec![("a`b".into(), "1 | 2\n<script>".into())];
        c.summary = Some("```\n# not a title".into());
        c.base_model = Some("a\"); import os; (\"".into());
        let text = c.text();
        assert!(text.contains("license: \"x\\ntags: [evil]\""));
        assert!(text.contains("| `ab` | 1 \\| 2 &lt;script&gt; |"));
        assert!(text.contains("````text\n```\n# not a title\n````"));
        assert!(text.contains("from_pretrained(\"a); import os; (\")"));
    }

    #[test]
    fn a_path_is_no_base_model() {
        assert!(on_hub("bert-base-uncased") && on_hub("Qwen/Qwen3-0.6B"));
        assert!(!on_hub("/data/model") && !on_hub("") && !on_hub("a/b/c") && !on_hub("../x"));
    }
}
