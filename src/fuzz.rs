//! Doors for fuzzing: one function for each parser of foreign bytes.
//!
//! A door takes any bytes. What can be read it holds to the law of its format, and panics where that is broken. The targets in `fuzz/`
//! open one door each; the unit tests send seeds and mutations of them through all.

use crate::adapters::{Config, Setup, UnknownKeys, folder, torch};
use crate::infer::Verified;
use crate::ir::text as graph_text;
use crate::onnx::{self, ExternalSource};
use crate::select::Interface;
use bytes::Bytes;

/// An ONNX file: what verifies is written, and reads as the same model.
pub fn wire(data: &[u8]) {
    let read = |bytes: Bytes| onnx::read(bytes, &ExternalSource::none());
    let Ok(Ok(model)) = read(Bytes::copy_from_slice(data)).map(Verified::check) else {
        return;
    };
    let text = graph_text::print(model.model());
    let written =
        onnx::to_bytes(&model).expect("invariant: a model that was read is small enough to write");
    let again = read(written.into()).expect("invariant: what is written can be read");
    assert_eq!(graph_text::print(&again), text);
}

/// A file of `torch.save` (zip and pickle): the dictionary is written, where it can be, and reads as the same.
pub fn torch_file(data: &[u8]) {
    let Ok(tensors) = torch::read(&Bytes::copy_from_slice(data)) else {
        return;
    };
    if let Ok(written) = torch::write("archive", &tensors) {
        let again = torch::read(&written.into()).expect("invariant: what is written can be read");
        assert_eq!(again, tensors);
    }
}

/// A safetensors file: the tensors are written, and read as the same.
pub fn safetensors(data: &[u8]) {
    let Ok(tensors) = folder::read_safetensors(&Bytes::copy_from_slice(data)) else {
        return;
    };
    let written =
        folder::to_safetensors(&tensors).expect("invariant: every element type has a name");
    let again =
        folder::read_safetensors(&written.into()).expect("invariant: what is written can be read");
    assert_eq!(again, tensors);
}

/// An adapter file of ONNX Runtime's: the tensors are written, and read as the same; what is LoRA becomes a folder of PEFT's.
pub fn served(data: &[u8]) {
    use crate::adapters::onnx_adapter::{read, write};
    use crate::adapters::peft::from_served;
    let Ok(adapter) = read(&Bytes::copy_from_slice(data)) else {
        return;
    };
    let written = write(&adapter).expect("invariant: what was read is small enough to write");
    let again = read(&written.into()).expect("invariant: what is written can be read");
    assert_eq!(again, adapter);
    let _ = from_served(&adapter);
}

/// The text form of a graph: what is printed reads as what prints the same.
pub fn text(data: &[u8]) {
    let Ok(Ok(model)) = std::str::from_utf8(data).map(graph_text::parse) else {
        return;
    };
    let printed = graph_text::print(&model);
    let again = graph_text::parse(&printed).expect("invariant: what is printed can be read");
    assert_eq!(graph_text::print(&again), printed);
}

/// A configuration string (`lora[r=8]|par_bn`), and a setup (`Stack(a, b)`): the dictionary and the JSON read as the same.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(config) = Config::parse(text) {
        let dict = config.to_dict();
        let again = Config::from_dict(&dict, UnknownKeys::Refuse)
            .expect("invariant: a valid configuration");
        assert_eq!(again.to_dict(), dict);
        assert_eq!(again.hash(), config.hash());
    }
    if let Ok(setup) = Setup::parse(text) {
        let again = Setup::from_json(&setup.to_json()).expect("invariant: a valid setup");
        assert_eq!(again, setup);
    }
}

/// An adapter interface in JSON: what is written reads as what is written the same.
pub fn interface(data: &[u8]) {
    let Ok(Ok(interface)) = std::str::from_utf8(data).map(|t| Interface::parse(t, "fuzz")) else {
        return;
    };
    let json = interface.to_json();
    let again = Interface::parse(&json, "fuzz").expect("invariant: what is written can be read");
    assert_eq!(again.to_json(), json);
}

/// A chat template: it renders a conversation, or says why not; the turns of the assistant are parts of the text.
#[cfg(feature = "train")]
pub fn template(data: &[u8]) {
    use crate::text::{ChatOptions, ChatTemplate};
    use serde_json::{Map, Value, json};

    let Ok(source) = std::str::from_utf8(data) else {
        return;
    };
    let mut special = Map::new();
    special.insert("bos_token".to_owned(), "<s>".into());
    special.insert("eos_token".to_owned(), "</s>".into());
    let dated = ChatTemplate::new(source, special).and_then(|t| t.dated(Some("2025-02-03")));
    let Ok((template, _)) = dated else {
        return;
    };
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    let talk: [Value; 3] = [
        turn("system", "Be brief."),
        turn("user", "What is \"é\"?"),
        turn("assistant", "A letter."),
    ];
    let tools = json!([{ "type": "function", "function": { "name": "look_up" } }]);
    let options = ChatOptions {
        add_generation_prompt: true,
        tools: Some(&tools),
        kwargs: None,
    };
    let _ = template.render(&talk[..2], options);
    if let Ok((text, spans)) = template.turns(&talk, ChatOptions::default()) {
        assert!(spans.into_iter().all(|span| text.get(span).is_some()));
    }
}

/// The card of a data set: the files of the splits that it tells are files of the data set.
#[cfg(feature = "train")]
pub fn card(data: &[u8]) {
    use crate::train::Splits;

    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let names = [
        "a.jsonl",
        "main/train-0.jsonl",
        "main/test-0.jsonl",
        "de/x.csv",
    ];
    let files = names.map(str::to_owned);
    for config in [None, Some("main"), Some("de")] {
        if let Ok(splits) = Splits::of(&files, Some(text), config, "fuzz") {
            let mut told = splits.all.iter().flat_map(|(_, told)| told);
            assert!(told.all(|f| files.contains(f)));
        }
    }
}

/// The configuration of an adapter of PEFT's, with the weights of one matrix: what becomes an adapter has a valid configuration.
pub fn peft(data: &[u8]) {
    use crate::adapters::peft::{PeftFolder, from_peft};
    use crate::ir::TensorData;

    let Ok(config) = serde_json::from_slice(data) else {
        return;
    };
    let module = "base_model.model.layers.0.self_attn.q_proj";
    let tensor = |part: &str, dims: [u64; 2]| {
        let values = vec![0.5; (dims[0] * dims[1]) as usize];
        (
            format!("{module}.{part}.weight").into(),
            TensorData::from_f32(&dims[..], &values),
        )
    };
    let tensors = [tensor("lora_A", [2, 4]), tensor("lora_B", [4, 2])];
    let tensors = tensors.into_iter().collect();
    if let Ok(adapter) = from_peft(&PeftFolder { config, tensors }, "fuzz", None) {
        let dict = adapter.config.to_dict();
        let again = Config::from_dict(&dict, UnknownKeys::Refuse)
            .expect("invariant: a valid configuration");
        assert_eq!(again.to_dict(), dict);
    }
}

/// A job file: the settings that are read are written, and read as the same.
#[cfg(feature = "train")]
pub fn job(data: &[u8]) {
    use crate::job::JobSettings;

    let Ok(options) = serde_json::from_slice(data) else {
        return;
    };
    let Ok(settings) = JobSettings::read(options) else {
        return;
    };
    let file = settings.to_file();
    let options = file.as_object().cloned().unwrap_or_default();
    let again = JobSettings::read(options).expect("invariant: what is written can be read");
    assert_eq!(again.to_file(), file);
}

/// Rows of data; the first byte says in which format. The rows of a JSON file, as lines, are the same rows.
#[cfg(feature = "train")]
pub fn rows(data: &[u8]) {
    use crate::train::{Format, rows_of};
    use serde_json::Value;

    let Some((first, bytes)) = data.split_first() else {
        return;
    };
    let format = match first {
        b'c' => Format::Csv,
        b't' => Format::Tsv,
        b'l' => Format::JsonLines,
        b'x' => Format::Text,
        _ => Format::Json,
    };
    let rows = rows_of(format, bytes.to_vec());
    if matches!(format, Format::Json | Format::JsonLines) {
        let lines: Vec<String> = rows
            .iter()
            .map(|row| Value::from(row.clone()).to_string())
            .collect();
        let again = rows_of(Format::JsonLines, lines.join("\n").into_bytes());
        assert_eq!(again, rows);
    }
}
