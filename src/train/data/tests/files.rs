//! Files, their formats and their faults.

use super::*;

#[test]
fn a_compression_that_is_not_read_is_named() {
    let zstd = std::fs::read(fixture("data/gsm8k/zstd.parquet")).unwrap();
    // The codec of a column in the footer, field 4 before field 5 (`num_values`): Zstandard is 6, Brotli 4, LZ4_RAW 7.
    for (codec, name) in [(4u8, "Brotli"), (7, "LZ4")] {
        let mut bytes = zstd.clone();
        let footer = bytes.len() - 8;
        let length = u32::from_le_bytes(bytes[footer..footer + 4].try_into().unwrap()) as usize;
        for at in footer - length..footer - 3 {
            if bytes[at..at + 3] == [0x15, 12, 0x16] {
                bytes[at + 1] = codec * 2;
            }
        }
        let e = load_as("t.parquet", &bytes, &json!({}), None)
            .unwrap_err()
            .to_string();
        assert!(
            e.contains(&format!("compressed with {name}")) && e.contains("Snappy, gzip"),
            "{e}"
        );
    }
}

#[test]
fn tables_and_lists_have_places_and_faults_of_their_own() {
    let skip = json!({"on_bad_row": "skip"});
    let csv = "\u{feff}input_ids,note\n\"[1, 2]\",\"two\nlines\"\n\"[1, 2, 3]\"\n\"[4, 5]\",x\n";
    let (loaded, _) = load_as("t.csv", csv, &skip, None).unwrap();
    assert_eq!(loaded.train.lengths(), [2, 2]);
    assert!(
        loaded.report.data.reasons[0].contains("line 4: 1 values for the 2 columns"),
        "{:?}",
        loaded.report.data.reasons
    );
    for (csv, line) in [
        ("input_ids,note\r\n\"[1, 2]\",\"two\r\nlines\"\r\nx\r\n", 4),
        ("input_ids,note\n\n\n\"[1, 2]\",a\n\nx\n", 6),
    ] {
        let (loaded, _) = load_as("t.csv", csv, &skip, None).unwrap();
        let reason = &loaded.report.data.reasons[0];
        assert!(
            reason.contains(&format!("line {line}: 1 values")),
            "{reason}"
        );
    }
    // As `datasets` reads them: objects over several lines, one behind another.
    let many = "{\n  \"input_ids\": [1, 2],\n  \"s\": \"}\\\"{\"\n}\n{\n \"input_ids\": [3]} {\"input_ids\": [4, 5, 6]}\n";
    let (loaded, _) = load_as("o.json", many, &json!({}), None).unwrap();
    assert_eq!(loaded.train.lengths(), [2, 1, 3]);
    let torn = format!("{many}x\n{{\"input_ids\": [7]\n");
    let (loaded, _) = load_as("o.json", &torn, &skip, None).unwrap();
    let reasons = &loaded.report.data.reasons;
    assert!(
        reasons[0].contains("row 4: not a JSON object"),
        "{reasons:?}"
    );
    assert!(reasons[1].contains("row 5: not valid JSON"), "{reasons:?}");
    let list = " [\n{\"input_ids\": [1, 2], \"s\": \"]},\\\"[\"},\n 7, {\"input_ids\": [3, 4]}]";
    let (loaded, _) = load_as("l.json", list, &skip, None).unwrap();
    assert_eq!(loaded.train.lengths(), [2, 2]);
    assert!(
        loaded.report.data.reasons[0].contains("row 2: not a JSON object"),
        "{:?}",
        loaded.report.data.reasons
    );
    let e = load_as("l.json", &list[..30], &skip, None)
        .unwrap_err()
        .to_string();
    assert!(e.contains("is the file complete"), "{e}");
    let e = load_as("t.csv", "a,a\n1,2\n", &skip, None)
        .unwrap_err()
        .to_string();
    assert!(e.contains("two columns are named `a`"), "{e}");
    let e = load_as("t.csv", b"text\n\xff\n", &json!({}), None)
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("`text` is not UTF-8") && e.contains("line 2"),
        "{e}"
    );
    let e = load_as(
        "t.parquet",
        "version https://git-lfs.github.com/spec/v1",
        &skip,
        None,
    )
    .unwrap_err()
    .to_string();
    assert!(e.contains("not a readable Parquet file"), "{e}");
    let e = load_as("t.jsonl.gz", "not gzip", &skip, None)
        .unwrap_err()
        .to_string();
    assert!(e.contains("cannot read"), "{e}");
    let e = load_as("t.doc", "x", &skip, None).unwrap_err().to_string();
    assert!(e.contains("names of data files end in"), "{e}");
}

#[test]
fn a_quote_that_never_closes_is_a_bad_row() {
    use std::io::Write;
    let skip = json!({"on_bad_row": "skip"});
    let first = "note,input_ids\n\"a\nb\",\"[1, 2]\"\n";
    for (rest, line) in [
        ("x,\"[1, 2]\n", 4),
        ("x,\"[1, 2]\ny,[3]\nz,[4]\n", 4),
        ("x,\"[1, 2]\r\ny,[3]\r\n", 4),
        ("\"c\nd\",\"[1, 2]\n\ny,[3]", 5),
        ("\"x,[1, 2]\ny,[3]\n", 4),
        ("x,\"", 4),
    ] {
        let text = format!("{first}{rest}");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(text.as_bytes()).unwrap();
        let gzip = gzip.finish().unwrap();
        let want = format!("the quote that opens on line {line} never closes");
        for (name, bytes) in [("t.csv", text.as_bytes()), ("t.csv.gz", &gzip)] {
            let e = load_as(name, bytes, &json!({}), None)
                .unwrap_err()
                .to_string();
            assert!(e.contains(&want) && e.contains("line 4"), "{rest:?}: {e}");
            let (loaded, _) = load_as(name, bytes, &skip, None).unwrap();
            let r = loaded.report.data;
            assert_eq!((r.examples, r.skipped), (1, 1), "{rest:?}");
            assert!(r.reasons[0].contains(&want), "{:?}", r.reasons);
        }
        let tabs = text.replace("x,", "x\t").replace("note,", "note\t");
        let tabs = tabs.replace("\",", "\"\t");
        let e = load_as("t.tsv", tabs, &json!({}), None)
            .unwrap_err()
            .to_string();
        assert!(e.contains(&want), "{rest:?}: {e}");
    }
    let e = load_as("t.csv", "\"input_ids\n[1, 2]\n", &skip, None)
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("the quote that opens on line 1 never closes"),
        "{e}"
    );
    // What ends without a line break, or in an escaped quote, is closed.
    for (end, text) in [
        ("\"a b\"", "a b"),
        ("a b", "a b"),
        ("\"a b\"\r", "a b"),
        ("\"a b\"\r\n\r\n", "a b"),
        ("\"say \"\"a\"\"\"", "say \"a\""),
    ] {
        let csv = format!("text\n{end}");
        let (loaded, _) = load_as("t.csv", csv, &json!({}), Some(&tokenizer("bpe"))).unwrap();
        let e = loaded.train.get(0).unwrap();
        assert_eq!((loaded.train.len(), learned(&e).as_str()), (1, text));
    }
}

#[test]
fn a_row_without_end_is_not_read_into_memory() {
    let long = format!(
        "{{\"input_ids\": [1, 2]}}\n{{\"x\": \"{}\"}}\n{{\"input_ids\": [3, 4]}}\n",
        "y".repeat(1 << 21)
    );
    let (loaded, _) = load_as("rows.jsonl", &long, &json!({"on_bad_row": "skip"}), None).unwrap();
    assert_eq!(loaded.train.len(), 2);
    assert!(loaded.report.data.reasons[0].contains("line 2: longer than 1 MiB"));
    let e = load_as(
        "t.csv",
        format!("a\n\"{}", "y".repeat(1 << 21)),
        &json!({}),
        None,
    )
    .unwrap_err()
    .to_string();
    assert!(e.contains("is a quote left open"), "{e}");
}

#[test]
fn folders_say_which_of_their_files_are_meant() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "{\"input_ids\": [1, 2]}\n").unwrap();
    };
    let files = |folder: &str, options: Value| {
        let mut args: DataArguments = serde_json::from_value(options).unwrap();
        args.data = Some(Files::One(dir.path().join(folder).display().to_string()));
        let read = |r: ReadReport| {
            r.files
                .iter()
                .map(|f| {
                    Path::new(f)
                        .strip_prefix(dir.path())
                        .unwrap()
                        .display()
                        .to_string()
                })
                .collect::<Vec<_>>()
        };
        args.load(None, None, 0, &mut |_| {})
            .map(|l| (read(l.report.data), l.report.eval_data.map(read)))
    };
    put("plain/b.jsonl");
    put("plain/a.jsonl");
    put("plain/dataset_infos.json");
    assert_eq!(
        files("plain", json!({})).unwrap().0,
        ["plain/a.jsonl", "plain/b.jsonl"]
    );
    put("split/data/train-00000-of-00002.jsonl");
    put("split/data/train-00001-of-00002.jsonl");
    put("split/data/validation-00000-of-00001.jsonl");
    let (train, eval) = files("split", json!({"eval_split": "validation"})).unwrap();
    assert_eq!(
        (train.len(), eval.unwrap()),
        (
            2,
            vec!["split/data/validation-00000-of-00001.jsonl".to_owned()]
        )
    );
    put("folders/train/x.jsonl");
    put("folders/test/x.jsonl");
    assert_eq!(
        files("folders", json!({"train_split": "test"})).unwrap().0,
        ["folders/test/x.jsonl"]
    );
    put("two/main/a.jsonl");
    put("two/socratic/a.jsonl");
    assert!(
        files("two", json!({}))
            .unwrap_err()
            .to_string()
            .contains("several data sets")
    );
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    assert!(
        files("empty", json!({}))
            .unwrap_err()
            .to_string()
            .contains("no data files")
    );
    let e = files("plain/a.jsonl", json!({"eval_split": "test"}))
        .unwrap_err()
        .to_string();
    assert!(e.contains("all of it is `train`"), "{e}");
}
