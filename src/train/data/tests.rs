//! Rows, roles and what is said about bad ones.

mod files;
mod forms;
mod splits;

use super::*;
use crate::adapters::Choice;
use crate::error::Result;
use crate::text::Tokenizer;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// `bpe`: byte-level with special tokens; `pair`: words and the special tokens of BERT.
fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::open(&fixture("data").join(name)).unwrap()
}

fn load_as(
    name: &str,
    text: impl AsRef<[u8]>,
    options: &Value,
    tokenizer: Option<&Tokenizer>,
) -> Result<(Loaded, Vec<String>)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    let mut args: DataArguments = serde_json::from_value(options.clone()).unwrap();
    args.data = Some(Files::One(path.display().to_string()));
    let mut notes = Vec::new();
    let loaded = args.load(tokenizer, Some(600), 3, &mut |n| notes.push(n))?;
    Ok((loaded, notes))
}

fn load(rows: &[Value], options: &Value) -> Result<(Loaded, Vec<String>)> {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    let text = lines.join("\n");
    load_as("rows.jsonl", text, options, Some(&tokenizer("bpe")))
}

fn one(row: Value, options: &Value) -> Example {
    load(&[row], options).unwrap().0.train.get(0).unwrap()
}

/// What is learned of an example, as text.
fn learned(e: &Example) -> String {
    let Labels::Tokens(labels) = &e.labels else {
        return String::new();
    };
    let ids: Vec<i64> = labels.iter().copied().filter(|&l| l != IGNORE).collect();
    tokenizer("bpe").decode(&ids, false).unwrap()
}

fn read(text: &str) -> Result<Dataset> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let options = ReadOptions {
        max_length: 4,
        vocab: Some(10),
        ..ReadOptions::default()
    };
    Dataset::read_jsonl(file.path(), &options)
}

#[test]
fn long_rows_are_cut_and_counted() {
    let d = read("{\"input_ids\": [1, 2, 3, 4, 5, 6]}").unwrap();
    assert_eq!((d.lengths(), d.truncated()), (&[4][..], 1));
}

#[test]
fn bad_rows_say_where_and_what() {
    for (row, want) in [
        ("{\"input_idz\": [1]}", "did you mean `input_idz`"),
        ("{\"input_ids\": [11]}", "token id 11 is outside 0..10"),
        (
            "{\"input_ids\": [1, 2], \"labels\": [1]}",
            "1 labels for 2 input_ids",
        ),
        ("{\"input_ids\": [1, \"x\"]}", "not a list of whole numbers"),
        ("{\"input_ids\": []}", "no tokens"),
        ("{\"text\": \"a\"}", "needs a tokenizer"),
        ("{\"question\": \"a\"}", "`input_ids` is null"),
        ("{\"text\": null}", "is null"),
        ("{\"id\": 1, \"messages\": null}", "is null"),
        ("{\"input_ids\": null}", "`input_ids` is null"),
        ("not json", "not a JSON object"),
        ("{\"input_ids\": [1}", "not valid JSON"),
    ] {
        let e = read(&format!("{{\"input_ids\": [1, 2]}}\n{row}\n"))
            .unwrap_err()
            .to_string();
        assert!(e.contains(want) && e.contains("line 2"), "{e}");
    }
}

#[test]
fn skipped_rows_are_counted_and_named() {
    let rows = "{\"input_ids\": [1, 2]}\n\nnot json\n{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [900]}\n\u{ff}\n";
    let (loaded, notes) =
        load_as("rows.jsonl", rows, &json!({"on_bad_row": "skip"}), None).unwrap();
    let r = &loaded.report.data;
    assert_eq!(
        (r.rows, r.examples, r.skipped, r.tokens, r.labels),
        (5, 2, 3, 5, 3)
    );
    assert!(
        r.reasons[0].contains("rows.jsonl, line 3: not a JSON object"),
        "{:?}",
        r.reasons
    );
    assert!(
        r.reasons[1].contains("line 5: token id 900 is outside 0..600"),
        "{:?}",
        r.reasons
    );
    assert!(notes[0].contains("3 of 5 rows were left out"), "{notes:?}");
    let e = load_as("rows.jsonl", "x\n", &json!({"on_bad_row": "skip"}), None)
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("all 1 rows are bad") && e.contains("rows.jsonl, line 1: not a JSON object"),
        "{e}"
    );
}

#[test]
fn empty_lines_are_rows_of_nothing() {
    let bpe = tokenizer("bpe");
    let text = "pens and cups\n\n2 cups\n";
    let (loaded, notes) = load_as("rows.txt", text, &json!({}), Some(&bpe)).unwrap();
    let r = &loaded.report.data;
    assert_eq!((r.rows, r.examples, r.skipped, r.empty), (3, 2, 0, 1));
    let said = notes.iter().any(|n| n.contains("1 of 3 rows are empty"));
    assert!(said, "{notes:?}");
}

#[test]
fn objects_over_several_lines_are_read_whatever_the_file_is_called() {
    let bpe = tokenizer("bpe");
    let text = "{\n \"text\": \"pens\"\n}\n{\n \"text\": \"2 cups\"\n}\n";
    for name in ["rows.json", "rows.jsonl"] {
        let (loaded, _) = load_as(name, text, &json!({}), Some(&bpe)).unwrap();
        assert_eq!(loaded.train.len(), 2, "{name}");
    }
}

#[test]
fn a_prompt_is_read_and_its_completion_learned_to_the_end() {
    let e = one(
        json!({"q": "Question: 2 pens?\nAnswer:", "a": " 2"}),
        &json!({"columns": {"prompt": "q", "completion": "a"}}),
    );
    assert_eq!(learned(&e), " 2<|endoftext|>");
    let e = one(
        json!({"q": "2 pens?", "a": "2"}),
        &json!({"prompt_template": "Q: {{ q }}\nA:", "completion_template": " {{ a }}", "append_eos": false}),
    );
    assert_eq!(
        (learned(&e), e.input_ids.len() > 4),
        (" 2".to_owned(), true)
    );
    // A text that ends so already is not ended twice, and one that is cut does not end.
    let e = one(
        json!({"prompt": "A:", "completion": " 2<|endoftext|>"}),
        &json!({}),
    );
    assert_eq!(learned(&e), " 2<|endoftext|>");
    let e = one(
        json!({"prompt": "A:", "completion": " 2 pens and 3 cups"}),
        &json!({"max_seq_length": 5}),
    );
    assert!(!learned(&e).contains("<|endoftext|>"));
}

/// Prompt, completion, the ids of both, and how many of them are read.
const CONTINUED: &[(&str, &str, &[i64], usize)] = &[
    ("Answer: ", "pens", &[324, 29, 364, 0], 3),
    (
        "Question: 2 pen",
        "s and 3 cups",
        &[325, 29, 329, 364, 389, 354, 414, 0],
        5,
    ),
    ("Answer:  ", "2", &[324, 29, 224, 329, 0], 4),
];

#[test]
fn where_the_joint_text_has_other_tokens_it_is_taken_as_in_trl() {
    // Recorded from the tokens and the mask that TRL 0.17 makes of these rows (`SFTTrainer`, with the end-of-sequence token).
    for (prompt, completion, ids, read) in CONTINUED {
        let rows = [json!({"prompt": prompt, "completion": completion})];
        let (loaded, notes) = load(&rows, &json!({})).unwrap();
        let e = loaded.train.get(0).unwrap();
        assert_eq!(e.input_ids, *ids, "{prompt:?} {completion:?}");
        let labels: Vec<i64> = e
            .input_ids
            .iter()
            .enumerate()
            .map(|(i, id)| if i < *read { IGNORE } else { *id })
            .collect();
        assert_eq!(e.labels, Labels::Tokens(labels));
        assert_eq!(loaded.report.data.apart, 1);
        assert!(
            notes
                .iter()
                .any(|n| n.contains("other ones than in the whole text")),
            "{notes:?}"
        );
    }
}

#[test]
fn the_left_end_is_cut_when_asked() {
    let ids = |e: Example| e.input_ids;
    let row = json!({"input_ids": [1, 2, 3, 4], "attention_mask": [0, 1, 1, 1]});
    assert_eq!(
        ids(one(
            row.clone(),
            &json!({"max_seq_length": 2, "truncation_side": "left"})
        )),
        [3, 4]
    );
    assert_eq!(ids(one(row, &json!({"max_seq_length": 2}))), [2, 3]);
}

#[test]
fn a_response_template_that_tokenizes_otherwise_is_named_with_its_ids() {
    let rows = [
        json!({"text": "Q 2\nAnswer: 2"}),
        json!({"text": "Q 3\nAnswer: 3"}),
    ];
    let (loaded, _) = load(&rows, &json!({"response_template": "Answer:"})).unwrap();
    assert_eq!(learned(&loaded.train.get(0).unwrap()), " 2");
    // A template that ends with a space has another last token than the text.
    let e = load(&rows, &json!({"response_template": "Answer: "}))
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("found in no example") && e.contains("give these ids"),
        "{e}"
    );
    let mixed = [rows[0].clone(), json!({"text": "nothing"})];
    let (loaded, notes) = load(&mixed, &json!({"response_template": "Answer:"})).unwrap();
    assert_eq!(
        (loaded.report.data.not_found, loaded.report.data.unlabelled),
        (1, 1)
    );
    assert!(
        notes
            .iter()
            .any(|n| n.contains("1 of 2 examples do not have the response template")),
        "{notes:?}"
    );
}

#[test]
fn the_template_that_is_missing_is_the_one_that_is_named() {
    let both = json!({"response_template": "Answer:", "instruction_template": "Q:"});
    let rows = [
        json!({"text": "Q: 2\nAnswer: 2"}),
        json!({"text": "2\nAnswer: 2"}),
        json!({"text": "Q: 2"}),
    ];
    let (loaded, notes) = load(&rows, &both).unwrap();
    let r = &loaded.report.data;
    assert_eq!((r.not_found, r.no_instruction), (2, 1));
    for name in ["response", "instruction"] {
        let want = format!("1 of 3 examples do not have the {name} template");
        assert!(notes.iter().any(|n| n.contains(&want)), "{notes:?}");
    }
    let e = load(&rows[1..2], &both).unwrap_err().to_string();
    assert!(
        e.contains("the instruction template is found in no example"),
        "{e}"
    );
    let space = json!({"response_template": "Answer:", "instruction_template": "Q: "});
    let e = load(&rows[..1], &space).unwrap_err().to_string();
    assert!(
        e.contains("the instruction template is found") && e.contains("as `instruction_template`"),
        "{e}"
    );
    // What the cut took away has no tokens that could be named.
    for length in 2..5 {
        let cut = json!({"response_template": "Answer:", "max_seq_length": length});
        let e = load(&rows[..1], &cut).unwrap_err().to_string();
        assert!(
            e.contains("the response template is found in no example") && !e.contains("tokens ["),
            "{length}: {e}"
        );
    }
}

#[test]
fn the_padding_token_is_never_learned_behind_a_response_template() {
    let row = json!({"text": "Answer: 2<|endoftext|>"});
    let options = |pad: Value| json!({"response_template": "Answer:", "pad_token": pad});
    assert_eq!(
        learned(&one(row.clone(), &options(json!("<|pad|>")))),
        " 2<|endoftext|>"
    );
    let (loaded, notes) = load(&[row], &options(json!("<|endoftext|>"))).unwrap();
    assert_eq!(
        (learned(&loaded.train.get(0).unwrap()), loaded.pad_id),
        (" 2".to_owned(), 0)
    );
    assert!(notes[0].contains("never learned"), "{notes:?}");
    let e = load(&[], &options(json!("<nothing>")))
        .unwrap_err()
        .to_string();
    assert!(e.contains("no token \"<nothing>\""), "{e}");
    let e = load(&[], &options(json!(6000))).unwrap_err().to_string();
    assert!(e.contains("6000 is outside 0..600"), "{e}");
}

#[test]
fn conversations_are_learned_whole_by_turns_or_to_the_last() {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let row = json!({"messages": [turn("user", "one"), turn("assistant", "two"), turn("user", "three"), turn("assistant", "four")]});
    let chatml = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let with = |only: Value| json!({"chat_template": chatml, "assistant_only_loss": only});
    let said = |only: Value| learned(&one(row.clone(), &with(only)));
    assert!(said(json!(false)).starts_with("<|im_start|>user\none"));
    assert_eq!(said(json!(true)), "two<|im_end|>\nfour<|im_end|>\n");
    assert_eq!(said(json!("last")), "four<|im_end|>\n");
    let reply = json!({"prompt": [turn("user", "one")], "completion": [turn("assistant", "two")]});
    assert_eq!(learned(&one(reply, &with(json!(false)))), "two<|im_end|>\n");
    let e = load(
        &[json!({"messages": [{"content": "x"}]})],
        &with(json!(false)),
    )
    .unwrap_err()
    .to_string();
    assert!(e.contains("message 0 has no `role`"), "{e}");
    let e = load(&[row], &json!({})).unwrap_err().to_string();
    assert!(e.contains("messages need a chat template"), "{e}");
}

#[test]
fn classes_come_by_id_by_name_or_in_the_order_in_which_they_occur() {
    let classes = |rows: &[Value], more: &Value| {
        let mut options = json!({"task": "classification"});
        options
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let (loaded, notes) = load(rows, &options)?;
        let label = |i| match loaded.train.get(i).unwrap().labels {
            Labels::Class(c) => c,
            other => panic!("{other:?}"),
        };
        Ok::<_, crate::error::Error>((
            (0..loaded.train.len()).map(label).collect::<Vec<_>>(),
            loaded.report.label_names,
            notes,
        ))
    };
    let rows = |labels: &[Value]| -> Vec<Value> {
        labels
            .iter()
            .map(|l| json!({"text": "a", "label": l}))
            .collect()
    };
    let (found, names, notes) =
        classes(&rows(&[json!("no"), json!("yes"), json!("no")]), &json!({})).unwrap();
    assert_eq!(
        (found, names),
        (vec![0, 1, 0], vec!["no".to_owned(), "yes".to_owned()])
    );
    assert_eq!(notes, ["classes: no, yes"]);
    assert_eq!(
        classes(
            &rows(&[json!(2), json!("1"), json!(true), json!(0.0)]),
            &json!({})
        )
        .unwrap()
        .0,
        [2, 1, 1, 0]
    );
    let named = json!({"label_names": ["yes", "no"]});
    assert_eq!(
        classes(&rows(&[json!("no"), json!(0)]), &named).unwrap().0,
        [1, 0]
    );
    for (label, want) in [
        (json!("yess"), "did you mean `yes`"),
        (json!(2), "class 2 is outside the 2"),
        (json!(-1), "outside"),
        (json!(0.5), "not a class"),
        (Value::Null, "is null"),
    ] {
        let e = classes(&rows(&[label]), &named).unwrap_err().to_string();
        assert!(e.contains(want) && e.contains("line 1"), "{e}");
    }
}

#[test]
fn labels_are_all_names_or_all_numbers() {
    let rows = |labels: &[Value]| -> Vec<Value> {
        let row = |l: &Value| json!({"text": "a", "label": l});
        labels.iter().map(row).collect()
    };
    let task = json!({"task": "classification"});
    let skip = json!({"task": "classification", "on_bad_row": "skip"});
    for (labels, want) in [
        (
            [json!("a"), json!(1), json!("b")],
            "label is 1, but other labels are names: a",
        ),
        (
            [json!("a"), json!("1"), json!("b")],
            "label is 1, but other labels are names: a",
        ),
        (
            [json!(1), json!("b"), json!(0)],
            "label is \"b\", but other labels are numbers: 1",
        ),
        ([json!("a"), Value::Null, json!("b")], "`label` is null"),
        ([json!("a"), json!(""), json!("b")], "`label` is empty"),
        ([json!("a"), json!(["b"]), json!("b")], "not a class"),
        ([json!(1), json!(0.5), json!(0)], "not a class"),
    ] {
        let rows = rows(&labels);
        let e = load(&rows, &task).unwrap_err().to_string();
        assert!(e.contains(want) && e.contains("rows.jsonl, line 2"), "{e}");
        let (loaded, _) = load(&rows, &skip).unwrap();
        let r = loaded.report.data;
        assert_eq!((r.examples, r.skipped), (2, 1));
        assert!(
            r.reasons[0].contains(want) && r.reasons[0].contains("line 2"),
            "{:?}",
            r.reasons
        );
    }
    let missing = [rows(&[json!("a")])[0].clone(), json!({"text": "a"})];
    let e = load(&missing, &task).unwrap_err().to_string();
    assert!(e.contains("`label` is null") && e.contains("line 2"), "{e}");
    let null = [json!({"text": "a", "labels": null})];
    let e = load(&null, &task).unwrap_err().to_string();
    assert!(e.contains("`labels` is null"), "{e}");
    // The training data decides for the evaluation data too.
    let dir = tempfile::tempdir().unwrap();
    let eval = dir.path().join("eval.jsonl");
    for (train, other) in [(json!("a"), json!(0)), (json!(0), json!("a"))] {
        std::fs::write(&eval, rows(&[other])[0].to_string()).unwrap();
        let options = json!({"task": "classification", "eval_data": eval});
        let e = load(&rows(&[train]), &options).unwrap_err().to_string();
        assert!(
            e.contains("but other labels are") && e.contains("eval.jsonl, line 1"),
            "{e}"
        );
    }
}

#[test]
fn evaluation_data_has_the_classes_of_the_training_data() {
    let dir = tempfile::tempdir().unwrap();
    let eval = dir.path().join("eval.jsonl");
    std::fs::write(
        &eval,
        "{\"text\": \"a\", \"label\": \"b\"}\n{\"text\": \"a\", \"label\": \"c\"}\n",
    )
    .unwrap();
    let rows = [
        json!({"text": "a", "label": "a"}),
        json!({"text": "a", "label": "b"}),
    ];
    let e = load(&rows, &json!({"task": "classification", "eval_data": eval}))
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("there is no class \"c\"") && e.contains("eval.jsonl, line 2"),
        "{e}"
    );
}

#[test]
fn numbers_and_sets_of_classes_are_values() {
    let values = |label: Value, options: Value| match load(
        &[json!({"text": "a", "label": label})],
        &options,
    ) {
        Ok((loaded, _)) => match loaded.train.get(0).unwrap().labels {
            Labels::Values(v) => Ok(v),
            other => panic!("{other:?}"),
        },
        Err(e) => Err(e.to_string()),
    };
    let regression = || json!({"task": "regression"});
    assert_eq!(values(json!(1.5), regression()), Ok(vec![1.5]));
    assert_eq!(values(json!("-2"), regression()), Ok(vec![-2.0]));
    assert_eq!(values(json!([1, 2.5]), regression()), Ok(vec![1.0, 2.5]));
    assert!(
        values(json!("high"), regression())
            .unwrap_err()
            .contains("`label` is \"high\", not a finite number")
    );
    let named = || json!({"task": "multi-label", "label_names": ["x", "y", "z"]});
    assert_eq!(values(json!(["z", "x"]), named()), Ok(vec![1.0, 0.0, 1.0]));
    assert_eq!(values(json!([]), named()), Ok(vec![0.0; 3]));
    assert_eq!(values(json!([0, 1, 0]), named()), Ok(vec![0.0, 1.0, 0.0]));
    assert!(
        values(json!(["w"]), named())
            .unwrap_err()
            .contains("there is no class")
    );
    assert!(
        values(json!([0, 1]), named())
            .unwrap_err()
            .contains("2 values for the 3")
    );
    assert!(
        values(json!([0, 2]), json!({"task": "multi-label"}))
            .unwrap_err()
            .contains("each class has 0 or 1")
    );
    let rows = [
        json!({"text": "a", "label": [1, 2]}),
        json!({"text": "a", "label": [1]}),
    ];
    assert!(
        load(&rows, &regression())
            .unwrap_err()
            .to_string()
            .contains("1 values, and the rows before have 2")
    );
}

#[test]
fn a_source_has_a_target_with_its_own_limit() {
    let options = json!({"task": "seq2seq", "max_seq_length": 4, "max_target_length": 3});
    let text = "source\ttarget\na b c d\te f g h\n";
    let (loaded, _) = load_as("rows.tsv", text, &options, Some(&tokenizer("pair"))).unwrap();
    let e = loaded.train.get(0).unwrap();
    let pair = tokenizer("pair");
    assert_eq!(e.input_ids, pair.encode("a b", true).unwrap());
    assert_eq!(e.labels, Labels::Sequence(pair.encode("e", true).unwrap()));
    assert_eq!(loaded.train.truncated(), 1);
    let e = load(&[json!({"source": "a"})], &json!({"task": "seq2seq"}))
        .unwrap_err()
        .to_string();
    assert!(e.contains("has no `target`"), "{e}");
}

#[test]
fn tasks_have_numbers_or_names() {
    let task = |v: Value, options: Value| {
        load(&[json!({"input_ids": [1, 2], "task_ids": v})], &options)
            .map(|(l, _)| l.train.get(0).unwrap().task_id)
    };
    assert_eq!(task(json!(2), json!({})).unwrap(), Some(2));
    assert_eq!(task(json!([1]), json!({})).unwrap(), Some(1));
    assert_eq!(task(Value::Null, json!({})).unwrap(), None);
    assert_eq!(
        task(json!("k"), json!({"task_names": ["i", "k"]})).unwrap(),
        Some(1)
    );
    assert!(
        task(json!("k"), json!({}))
            .unwrap_err()
            .to_string()
            .contains("names need `task_names`")
    );
    assert!(
        task(json!(5), json!({"task_names": ["i", "k"]}))
            .unwrap_err()
            .to_string()
            .contains("rows.jsonl, line 1")
    );
    let rows = [
        json!({"input_ids": [1, 2], "task_ids": 1}),
        json!({"input_ids": [1, 2], "task_ids": 2}),
    ];
    let lines = rows.map(|r| r.to_string()).join("\n");
    let file = tempfile::NamedTempFile::with_suffix(".jsonl").unwrap();
    std::fs::write(file.path(), lines).unwrap();
    let choice = |n: usize| Choice {
        names: ["i", "j"][..n].iter().map(ToString::to_string).collect(),
        or_none: false,
    };
    let count = |count: Option<usize>, on_bad_row| DataArguments {
        data: Some(Files::One(file.path().display().to_string())),
        choice: count.map(choice),
        on_bad_row,
        ..DataArguments::default()
    };
    let load = |args: DataArguments| args.load(None, None, 0, &mut |_| {});
    assert_eq!(load(count(None, OnBadRow::Error)).unwrap().train.len(), 2);
    let e = load(count(Some(2), OnBadRow::Error))
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("`task_ids` is 2, and ids of tasks are 0 to 1") && e.contains("line 2"),
        "{e}"
    );
    let skipped = load(count(Some(2), OnBadRow::Skip)).unwrap().report.data;
    assert_eq!((skipped.examples, skipped.skipped), (1, 1));
    std::fs::write(file.path(), "{\"input_ids\": [1, 2]}").unwrap();
    assert_eq!(load(count(None, OnBadRow::Error)).unwrap().train.len(), 1);
    let e = load(count(Some(2), OnBadRow::Error))
        .unwrap_err()
        .to_string();
    assert!(e.contains("no `task_ids`") && e.contains("line 1"), "{e}");
    // Of many adapters in one graph, a row may have none.
    let rows = [
        json!({"input_ids": [1, 2], "adapter_ids": "j"}),
        json!({"input_ids": [1, 2], "adapter_ids": "__base__"}),
        json!({"input_ids": [1, 2], "adapter_ids": null}),
        json!({"input_ids": [1, 2], "adapter_ids": 0}),
        json!({"input_ids": [1, 2], "adapter_ids": -1}),
    ];
    std::fs::write(file.path(), rows.map(|r| r.to_string()).join("\n")).unwrap();
    let tenants = |on_bad_row| DataArguments {
        choice: Some(Choice {
            or_none: true,
            ..choice(2)
        }),
        ..count(None, on_bad_row)
    };
    let loaded = load(tenants(OnBadRow::Error)).unwrap().train;
    let found: Vec<_> = (0..5).map(|i| loaded.get(i).unwrap().task_id).collect();
    assert_eq!(found, [1, -1, -1, 0, -1].map(Some));
    std::fs::write(
        file.path(),
        "{\"input_ids\": [1, 2], \"adapter_ids\": \"k\"}",
    )
    .unwrap();
    let e = load(tenants(OnBadRow::Error)).unwrap_err().to_string();
    assert!(
        e.contains("`adapter_ids`") && e.contains("one of i, j"),
        "{e}"
    );
}

#[test]
fn arguments_that_make_no_sense_are_all_named() {
    let options = json!({
        "columns": {"promt": "q"}, "max_seq_length": 1, "template": "a", "prompt_template": "b", "instruction_template": "c",
        "eval_split": 1.5, "max_train_samples": 0,
    });
    let e = load(&[], &options).unwrap_err().to_string();
    for want in [
        "did you mean `prompt`",
        "`max_seq_length`",
        "give either the one",
        "needs `response_template`",
        "`eval_split` is 1.5",
        "`max_train_samples`",
    ] {
        assert!(e.contains(want), "{want} in {e}");
    }
    for size in [json!(1.0), json!(5.0), json!(0), json!(0.0), json!(-3)] {
        let e = load(&[], &json!({"eval_split": size}))
            .unwrap_err()
            .to_string();
        assert!(e.contains("`eval_split` is"), "{size}: {e}");
    }
    let rows = [1, 2, 3].map(|i| json!({"input_ids": [i, i]}));
    for (size, count) in [(json!(1), 1), (json!(2), 2), (json!(0.5), 2)] {
        let (loaded, _) = load(&rows, &json!({"eval_split": size})).unwrap();
        assert_eq!(loaded.eval.unwrap().len(), count);
    }
    let e = load(&[], &json!({"template": "{{ a"}))
        .unwrap_err()
        .to_string();
    assert!(e.contains("`template`") && e.contains("line 1"), "{e}");
    let e = load(&[json!({"question": 1})], &json!({"template": "{{ b }}"}))
        .unwrap_err()
        .to_string();
    assert!(e.contains("line 1") && e.contains("default"), "{e}");
    let e = DataArguments::default()
        .load(None, None, 0, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(e.contains("no data was given"), "{e}");
}

#[test]
fn flags_of_a_job_are_understood() {
    let fields = crate::options::fields::<DataArguments>();
    let parse = |name: &str, text: &str| {
        fields
            .iter()
            .find(|f| f.name == name)
            .unwrap()
            .kind
            .parse(text)
            .unwrap()
    };
    assert_eq!(parse("eval_split", "0.1"), json!(0.1));
    assert_eq!(parse("eval_split", "test"), json!("test"));
    assert_eq!(parse("response_template", "Answer:"), json!("Answer:"));
    assert_eq!(parse("response_template", "[1, 2]"), json!([1, 2]));
    assert_eq!(parse("assistant_only_loss", "last"), json!("last"));
    assert_eq!(parse("assistant_only_loss", "true"), json!(true));
    assert_eq!(
        parse("columns", "prompt=question"),
        json!({"prompt": "question"})
    );
    assert_eq!(parse("data", "a.jsonl"), json!(["a.jsonl"]));
    assert!(fields.iter().all(|f| !f.doc.is_empty()));
}
