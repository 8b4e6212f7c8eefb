use super::*;
use crate::adapters::Param;
use std::fs;

fn store() -> AdapterStore {
    let mut store = AdapterStore::default();
    let key = "model.layers.0.self_attn.q_proj.loras.a.lora_A";
    store.insert(
        key,
        Param {
            adapter: "a".into(),
            tensor: TensorData::from_f32([1, 2], &[1.0, 2.0]),
            trainable: true,
            idle: false,
            to_identity: None,
            decay: true,
            aliases: vec!["model.second.name.loras.a.x".into()],
        },
    );
    store
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::parse("lora[r=1]").unwrap();
    let meta = Meta {
        hidden_size: Some(2),
        model_type: "qwen3".into(),
        version: Some(VERSION.into()),
        ..Meta::default()
    };
    let folder = AdapterFolder::from_store("a", config, &store(), meta, Some("{}".into()));
    let path = dir.path().join("out").join("a");
    folder.write(&path, WriteOptions::default()).unwrap();
    assert_eq!(AdapterFolder::read(&path).unwrap(), folder);
    fs::remove_file(path.join(file::SAFETENSORS)).unwrap();
    assert_eq!(AdapterFolder::read(&path).unwrap(), folder);
    let again = folder.write(&path, WriteOptions::default()).unwrap_err();
    assert!(again.to_string().contains("--force"));
    let force = WriteOptions {
        force: true,
        ..WriteOptions::default()
    };
    folder.write(&path, force).unwrap();
    let left: Vec<_> = fs::read_dir(dir.path().join("out")).unwrap().collect();
    assert_eq!(left.len(), 1, "no temporary folder stays");
}

/// The library's loader takes the fields of an interface as they are, and crashes at lists and at fields that it does not know.
#[test]
fn an_interface_that_the_library_cannot_read_stands_beside_one_that_it_can() {
    let whole = Interface::builtin("bart").unwrap().unwrap();
    assert!(!whole.is_adapterhub());
    let config = Config::parse("lora[r=1]").unwrap();
    let text = Some(whole.to_json());
    let folder = AdapterFolder::from_store("a", config, &store(), Meta::default(), text);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    folder.write(&path, WriteOptions::default()).unwrap();
    let reduced = Interface::read(&path.join(file::INTERFACE)).unwrap();
    assert!(reduced.is_adapterhub());
    assert_eq!(
        reduced.fields.model_layers.get(0),
        whole.fields.model_layers.get(0)
    );
    let read = AdapterFolder::read(&path).unwrap();
    assert_eq!(read.interface, Some(whole.to_json()));
}

/// Of models of two models, and of paths that are open, there is nothing that it could read.
#[test]
fn an_interface_that_the_library_can_read_nothing_of_is_ours_alone() {
    for name in ["clip", "encoder-decoder", "t5", "albert"] {
        let whole = Interface::builtin(name).unwrap().unwrap();
        let config = Config::parse("lora[r=1]").unwrap();
        let text = Some(whole.to_json());
        let folder = AdapterFolder::from_store("a", config, &store(), Meta::default(), text);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        folder.write(&path, WriteOptions::default()).unwrap();
        assert!(!path.join(file::INTERFACE).exists(), "{name}");
        let read = AdapterFolder::read(&path).unwrap();
        assert_eq!(read.interface, Some(whole.to_json()));
        assert_eq!(read.route(), Route::Plugin);
    }
}

#[test]
fn a_file_without_a_configuration_has_the_librarys_default() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let config = Config::parse("seq_bn").unwrap();
    let meta = Meta {
        version: Some(VERSION.into()),
        ..Meta::default()
    };
    let folder = AdapterFolder::from_store("a", config.clone(), &store(), meta, None);
    folder.write(&path, WriteOptions::default()).unwrap();
    let mut top = object(&folder.config_json()).unwrap();
    top.insert("config".into(), Value::Null);
    for (id, want) in [(None, "seq_bn"), (Some("lora"), "lora")] {
        if let Some(id) = id {
            top.insert("config_id".into(), id.into());
        }
        let text = Value::Object(top.clone()).to_string();
        fs::write(path.join(file::CONFIG), text).unwrap();
        let read = AdapterFolder::read(&path).unwrap();
        assert_eq!(read.config, Config::parse(want).unwrap());
        assert_eq!(read.notes[0].code, "compat-config");
    }
}

#[test]
fn an_invertible_part_that_a_task_adapter_does_not_hold_is_left_out() {
    let dict = || Config::parse("seq_bn_inv").unwrap().to_dict();
    let top = |kind: &str| Map::from_iter([("type".to_owned(), kind.into())]);
    let weights = |key: &str| Weights::new("a", [(key.into(), TensorData::from_f32([1], &[0.0]))]);
    let held = weights("bert.invertible_adapters.a.F.0.weight");
    let not = weights("bert.encoder.layer.0.output.adapters.a.adapter_up.weight");
    assert!(uninverted(&mut dict(), &top("text_task"), &held).is_none());
    assert!(uninverted(&mut dict(), &top("text_lang"), &not).is_none());
    let mut changed = dict();
    assert!(uninverted(&mut changed, &top("text_task"), &not).is_some());
    assert!(changed["inv_adapter"].is_null());
}

#[test]
fn old_files_are_corrected() {
    let fix = |text: &str, version: Option<&str>| {
        let mut v: Value = serde_json::from_str(text).unwrap();
        correct(&mut v, version);
        v
    };
    let lora = r#"{"architecture":"lora","r":8,"alpha":16}"#;
    assert_eq!(fix(lora, Some("adapters.1.0.1"))["alpha"], 8);
    assert_eq!(fix(lora, Some("adapters.1.1.0"))["alpha"], 16);
    assert_eq!(fix(lora, Some("3.2.1"))["alpha"], 16);
    assert_eq!(
        fix(r#"{"non_linearity":"gelu"}"#, None)["non_linearity"],
        "gelu_new"
    );
    assert_eq!(
        fix(r#"{"non_linearity":"gelu"}"#, Some(VERSION))["non_linearity"],
        "gelu"
    );
}

#[test]
fn deleting_takes_only_what_an_adapter_consists_of() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let config = Config::parse("lora[r=1]").unwrap();
    let folder = AdapterFolder::from_store("a", config, &store(), Meta::default(), None);
    folder.write(&path, WriteOptions::default()).unwrap();
    let mine = path.join("notes.txt");
    fs::write(&mine, "mine").unwrap();
    let done = delete(&path).unwrap();
    assert_eq!((done.files.len(), &done.kept), (3, &vec![mine.clone()]));
    assert!(delete(&path).is_err(), "there is no adapter any more");
    fs::write(path.join(file::CONFIG), "{}").unwrap();
    assert!(delete(&path).is_err(), "this is no adapter's");
    assert!(mine.exists() && path.join(file::CONFIG).exists());
    fs::remove_file(mine).unwrap();
    folder
        .write(
            &path,
            WriteOptions {
                force: true,
                ..WriteOptions::default()
            },
        )
        .unwrap();
    delete(&path).unwrap();
    assert!(!path.exists());
}
