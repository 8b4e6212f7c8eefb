//! Splits, configurations and parts of them are those of `datasets`: `fixtures/data/splits.json`, written by `fixtures/make_datasets.py`.

use super::*;

/// Writes the files of a tree. Every row has another number; the files are numbered in the order of their names.
fn write(root: &Path, tree: &serde_json::Map<String, Value>) {
    let mut files: Vec<_> = tree.iter().collect();
    files.sort_by_key(|(name, _)| name.as_str());
    let mut number = 0;
    for (name, rows) in files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let Some(rows) = rows.as_u64() else {
            std::fs::write(path, rows.as_str().unwrap()).unwrap();
            continue;
        };
        let numbers = number..number + rows;
        let end = Path::new(name).extension().unwrap().to_str().unwrap();
        let objects = numbers.clone().map(|n| json!({"input_ids": [n, 0]}));
        let separator = if end == "csv" { ',' } else { '\t' };
        let text = match end {
            "csv" | "tsv" => {
                let lines = numbers.map(|n| format!("\"[{n}, 0]\"{separator}x"));
                let head = format!("input_ids{separator}x");
                let lines: Vec<String> = std::iter::once(head).chain(lines).collect();
                lines.join("\n") + "\n"
            }
            "json" if !tree.contains_key("train.csv") => objects.collect::<Value>().to_string(),
            _ => {
                let lines: Vec<String> = objects.map(|o| o.to_string()).collect();
                lines.join("\n") + "\n"
            }
        };
        let mut bytes = text.into_bytes();
        if end == "gz" {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut gzip, &bytes).unwrap();
            bytes = gzip.finish().unwrap();
        }
        number += rows;
        std::fs::write(path, bytes).unwrap();
    }
}

fn ids(data: &Dataset) -> Vec<i64> {
    let first = |i| data.get(i).unwrap().input_ids[0];
    (0..data.len()).map(first).collect()
}

fn trees() -> (tempfile::TempDir, Value) {
    let text = std::fs::read_to_string(fixture("data/splits.json")).unwrap();
    let table: Value = serde_json::from_str(&text).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, tree) in table["trees"].as_object().unwrap() {
        write(&dir.path().join(name), tree.as_object().unwrap());
    }
    (dir, table)
}

fn args(folder: &Path, options: &Value) -> DataArguments {
    let mut args: DataArguments = serde_json::from_value(options.clone()).unwrap();
    args.data = Some(Files::One(folder.display().to_string()));
    args
}

#[test]
fn splits_are_those_of_datasets() {
    let (dir, table) = trees();
    let cases = table["cases"].as_array().unwrap();
    let mut wrong = Vec::new();
    for case in cases {
        let folder = dir.path().join(case["tree"].as_str().unwrap());
        let options = json!({"train_split": case["split"], "data_config": case["config"]});
        let found = args(&folder, &options).load(None, None, 0, &mut |_| {});
        let want: Option<Vec<i64>> = serde_json::from_value(case["ids"].clone()).unwrap();
        // A part without rows, which there is one kind of in `datasets`, cannot be trained on.
        let want = want.filter(|ids| !ids.is_empty());
        let found = found.map(|l| ids(&l.train));
        if found.as_ref().ok() != want.as_ref() {
            wrong.push(format!("{case}\n  {found:?}"));
        }
    }
    assert!(cases.len() > 80 && wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_not_there_is_named_with_what_is() {
    let (dir, _) = trees();
    let error = |tree: &str, options: Value| {
        let args = args(&dir.path().join(tree), &options);
        let found = args.load(None, None, 0, &mut |_| {});
        found.unwrap_err().to_string()
    };
    for (tree, options, says) in [
        (
            "gsm",
            json!({}),
            &["configurations: main, socratic", "`data_config`"][..],
        ),
        (
            "gsm",
            json!({"data_config": "mian"}),
            &["did you mean `main`"],
        ),
        (
            "names",
            json!({"train_split": "extra"}),
            &["no split `extra`", "train, validation, test"],
        ),
        (
            "plain",
            json!({"eval_split": "test"}),
            &["all of it is `train`", "`eval_data`"],
        ),
        (
            "plain",
            json!({"data_config": "x"}),
            &["no configuration `x`"],
        ),
        (
            "long",
            json!({"train_split": "train[5]"}),
            &["`train_split`", "`train[5]` is no split"],
        ),
    ] {
        let e = error(tree, options);
        assert!(says.iter().all(|s| e.contains(s)), "{e}");
    }
    let folder = dir.path().join("several");
    for name in ["en/a.jsonl", "de/a.jsonl"] {
        write(
            &folder,
            &serde_json::Map::from_iter([(name.to_owned(), json!(1))]),
        );
    }
    let e = error("several", json!({}));
    assert!(
        e.contains("several data sets") && e.contains("de, en"),
        "{e}"
    );
    let one = args(&folder, &json!({"data_config": "de"}));
    assert_eq!(one.load(None, None, 0, &mut |_| {}).unwrap().train.len(), 1);
    write(
        &folder,
        &serde_json::Map::from_iter([("Test.jsonl".to_owned(), json!(1))]),
    );
    // `datasets` would train on it.
    let e = error("several", json!({}));
    assert!(e.contains("no split `train`"), "{e}");
}

#[test]
fn parts_of_one_split_are_trained_and_evaluated_on() {
    let (dir, _) = trees();
    let long = dir.path().join("long");
    let both = |options: Value| {
        let mut notes = Vec::new();
        let loaded = args(&long, &options).load(None, None, 0, &mut |n| notes.push(n));
        let loaded = loaded.unwrap();
        (loaded.train.len(), loaded.eval.unwrap().len(), notes)
    };
    let apart = both(json!({"train_split": "train[:90%]", "eval_split": "train[90%:]"}));
    assert_eq!((apart.0, apart.1, apart.2.len()), (130, 15, 0));
    let (.., notes) = both(json!({"train_split": "train[:91%]", "eval_split": "train[90%:]"}));
    assert!(notes[0].contains("overlap"), "{notes:?}");
    let (_, eval, notes) = both(json!({"eval_split": "train[:1]+test"}));
    assert_eq!((eval, notes.len()), (8, 1));
    // Evaluation data of its own: the validation split, else the test split, else all.
    for (eval_data, rows) in [("names", 3), ("long", 7), ("plain", 5)] {
        let eval_data = dir.path().join(eval_data).display().to_string();
        let (_, eval, _) = both(json!({"eval_data": eval_data}));
        assert_eq!(eval, rows, "{eval_data}");
    }
    // Files by split, as `data_files` of `datasets`; several data sets.
    let at = |file: &str| dir.path().join(file).display().to_string();
    let by_split = json!({"train": at("names/train.jsonl"), "eval": [at("long/test.jsonl"), at("plain/a.jsonl")]});
    let options = json!({"data": [by_split, at("plain/b.jsonl")], "eval_split": "eval"});
    let given: DataArguments = serde_json::from_value(options).unwrap();
    let loaded = given.load(None, None, 0, &mut |_| {}).unwrap();
    assert_eq!((loaded.train.len(), loaded.eval.unwrap().len()), (7, 10));
}
