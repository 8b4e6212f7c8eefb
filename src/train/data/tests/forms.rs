//! Rows of known forms, and what is shown of examples.

use super::*;

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn conversations_of_sharegpt_are_messages() {
    let options = json!({"chat_template": CHATML, "assistant_only_loss": true});
    let turns = |from: &str, value: &str, human: &str, gpt: &str, system: &str, tool: &str| {
        json!([
            {from: system, value: "be brief"}, {from: human, value: "one"}, {from: gpt, value: "two"},
            {from: tool, value: "three"}, {from: gpt, value: "four"},
        ])
    };
    let want = turns("role", "content", "user", "assistant", "system", "tool");
    let want = one(json!({"messages": want}), &options);
    assert_eq!(learned(&want), "two<|im_end|>\nfour<|im_end|>\n");
    for (human, gpt, tool) in [("human", "gpt", "observation"), ("user", "chatgpt", "tool")] {
        let given = turns("from", "value", human, gpt, "system", tool);
        assert_eq!(one(json!({"conversations": given}), &options), want);
        assert_eq!(one(json!({"messages": given}), &options), want);
    }
    // A table holds a list as JSON text.
    let given = turns("from", "value", "human", "gpt", "system", "tool").to_string();
    assert_eq!(one(json!({"conversations": given}), &options), want);
    let calls = "{% for m in messages %}{{ m.role }}{{ m.tool_calls | tojson if m.tool_calls else m.content }};{% endfor %}";
    let talk = json!([
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
        {"from": "function_response", "value": "1"},
    ]);
    let called = one(
        json!({"conversations": talk}),
        &json!({"chat_template": calls}),
    );
    assert_eq!(
        learned(&called),
        "usera;assistant[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": {\"x\": 1}}}];tool1;"
    );
    // A template that has no place for calls still says them.
    let said = one(json!({"conversations": talk}), &options);
    assert_eq!(
        learned(&said),
        "{\"name\": \"f\", \"arguments\": {\"x\": 1}}<|im_end|>\n"
    );
    // A table has an empty text where a row has no tools.
    let with = one(json!({"conversations": talk, "tools": ""}), &options);
    assert_eq!(with, said);
    for (message, says) in [
        (
            json!({"from": "alien", "value": "x"}),
            "message 0 is from `alien`; known are human",
        ),
        (json!({"from": "human"}), "message 0 has no `value`"),
        (
            json!({"from": "function_call", "value": "f()"}),
            "is no JSON object",
        ),
        (
            json!({"from": "function_call", "value": "{}"}),
            "has no `name`",
        ),
        (json!({"content": "x"}), "\"from\": \"human\""),
    ] {
        let rows = [json!({"conversations": [message]})];
        let e = load(&rows, &options).unwrap_err().to_string();
        assert!(e.contains(says), "{e}");
    }
}

#[test]
fn a_fault_of_the_template_is_no_bad_row() {
    let rows = [json!({"q": "a"}), json!({"q": "b"})];
    for skip in [json!("error"), json!("skip")] {
        let options = json!({"template": "{{ q | slugify }}", "on_bad_row": skip});
        let e = load(&rows, &options).unwrap_err().to_string();
        assert!(
            e.contains("slugify") && e.contains("the template, line 1"),
            "{e}"
        );
        assert!(
            !e.contains("on_bad_row") && !e.contains("rows are bad"),
            "{e}"
        );
    }
}

#[test]
fn nothing_beside_a_conversation_is_lost() {
    let options = json!({"chat_template": CHATML, "assistant_only_loss": true});
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let talk = json!([turn("human", "one"), turn("gpt", "two")]);
    let row = one(
        json!({"conversations": talk, "system": "be brief"}),
        &options,
    );
    let with = json!([
        turn("system", "be brief"),
        turn("human", "one"),
        turn("gpt", "two")
    ]);
    assert_eq!(row, one(json!({"conversations": with}), &options));
    assert_eq!(
        row,
        one(
            json!({"conversations": with, "system": "be brief"}),
            &options
        )
    );
    let none = one(json!({"conversations": talk, "system": ""}), &options);
    assert_eq!(none, one(json!({"conversations": talk}), &options));
    let said = |weight: serde_json::Value| {
        json!([
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": weight},
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1},
        ])
    };
    let weighed = one(json!({"messages": said(json!(0))}), &options);
    assert_eq!(learned(&weighed), "d<|im_end|>\n");
    let both = one(json!({"messages": said(json!(1))}), &options);
    assert_eq!(learned(&both), "b<|im_end|>\nd<|im_end|>\n");
    let shout = json!({"chat_template": "{{ messages[0].content ~ loud }}", "chat_template_kwargs": {"loud": "?"}});
    let own = json!({"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"loud": "!"}});
    assert_eq!(learned(&one(own, &shout)), "a!");
    let whole = json!({"chat_template": CHATML});
    for (row, options, says) in [
        (
            json!({"conversations": with, "system": "be long"}),
            &options,
            "say different things",
        ),
        (
            json!({"messages": said(json!(0))}),
            &whole,
            "set `assistant_only_loss`",
        ),
        (
            json!({"messages": said(json!(0.5))}),
            &options,
            "`weight` of a message is 0.5",
        ),
        (
            json!({"instruction": "a", "output": "b", "history": [["c", "d"]]}),
            &whole,
            "`history` has no place",
        ),
        (
            json!({"instruction": "a", "output": "b", "system": "c"}),
            &whole,
            "`system` has no place",
        ),
    ] {
        let e = load(&[row], options).unwrap_err().to_string();
        assert!(e.contains(says), "{e}");
    }
    let plain = json!({"instruction": "a", "output": "b", "history": [], "system": ""});
    assert!(load(&[plain], &whole).is_ok());
}

#[test]
fn instructions_of_alpaca_have_its_words() {
    let end = "<|endoftext|>";
    let head = "Below is an instruction that describes a task";
    let with = one(
        json!({"instruction": "Add.", "input": "1 2", "output": "3"}),
        &json!({}),
    );
    let text = tokenizer("bpe").decode(&with.input_ids, false).unwrap();
    assert_eq!(
        text,
        format!(
            "{head}, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3{end}"
        )
    );
    assert_eq!(learned(&with), format!("3{end}"));
    for input in [json!(""), Value::Null] {
        let row = json!({"instruction": "Say a.", "input": input, "output": "a"});
        let without = one(row, &json!({}));
        let text = tokenizer("bpe").decode(&without.input_ids, false).unwrap();
        assert_eq!(
            text,
            format!(
                "{head}. Write a response that appropriately completes the request.\n\n### Instruction:\nSay a.\n\n### Response:\na{end}"
            )
        );
    }
    let row = json!({"instruction": "Say a.", "output": "a"});
    let (_, notes) = load(std::slice::from_ref(&row), &json!({})).unwrap();
    assert!(
        notes[0].contains("1 of 1 examples") && notes[0].contains("### Response:"),
        "{notes:?}"
    );
    // What the configuration says stands over it.
    let columns = json!({"columns": {"prompt": "instruction", "completion": "output"}});
    let own = tokenizer("bpe")
        .decode(&one(row.clone(), &columns).input_ids, false)
        .unwrap();
    assert_eq!(own, format!("Say a.a{end}"));
    let template = json!({"template": "{{ instruction }}={{ output }}"});
    let own = tokenizer("bpe")
        .decode(&one(row, &template).input_ids, false)
        .unwrap();
    assert_eq!(own, "Say a.=a");
    let e = load(&[json!({"instruction": "x"})], &json!({}))
        .unwrap_err()
        .to_string();
    assert!(e.contains("`instruction` and `output`"), "{e}");
}

#[test]
fn a_beginning_that_stands_twice_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let from = fixture("tokenizer/settings.json");
    let table: Value = serde_json::from_str(&std::fs::read_to_string(from).unwrap()).unwrap();
    let text = table.to_string();
    assert!(
        text.contains("add_bos_token"),
        "the table has a tokenizer with one"
    );
    let mut file: Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("data/bpe/tokenizer.json")).unwrap())
            .unwrap();
    let bos = "<|im_start|>";
    let id = tokenizer("bpe").token_id(bos).unwrap();
    file["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
    });
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    let config = json!({"bos_token": bos}).to_string();
    std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let own = Tokenizer::open(folder.path()).unwrap();
    let notes = |text: &str, options: Value| {
        let row = json!({"text": text}).to_string();
        load_as("rows.jsonl", row, &options, Some(&own)).unwrap().1
    };
    let told = notes("<|im_start|>a", json!({}));
    assert!(
        told[0].contains("1 of 1 examples begin with the beginning"),
        "{told:?}"
    );
    assert!(notes("a", json!({})).is_empty());
    assert!(notes("<|im_start|>a", json!({"add_special_tokens": false})).is_empty());
}

#[test]
fn an_example_is_shown_in_runs() {
    let bpe = tokenizer("bpe");
    let example = one(json!({"prompt": "a b", "completion": " c"}), &json!({}));
    let shown = example.shown(Some(&bpe), &[]);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 2, "{shown}");
    assert!(lines[0].starts_with("  read     \"a b\" ["), "{shown}");
    assert!(
        lines[1].starts_with("  learned  \" c<|endoftext|>\" ["),
        "{shown}"
    );
    // Nothing says the first token.
    let whole = Example::tokens(vec![7, 8, 9], vec![7, 8, IGNORE]);
    assert_eq!(
        whole.shown(None, &[]),
        "  read     [7]\n  learned  [8]\n  read     [9]"
    );
    let class = Example {
        labels: Labels::Class(1),
        ..Example::tokens(vec![4], Vec::new())
    };
    let names = ["no".to_owned(), "yes".to_owned()];
    assert_eq!(
        class.shown(None, &names),
        "  read     [4]\n  learned  class 1 (yes)"
    );
}

#[test]
fn a_chat_template_gets_one_date() {
    let template =
        "{{ strftime_now('%d %B %Y') }}: {% for m in messages %}{{ m.content }}{% endfor %}";
    let row = json!({"messages": [{"role": "user", "content": "a"}]});
    let options = json!({"chat_template": template, "chat_date": "2024-02-29"});
    let (loaded, _) = load(std::slice::from_ref(&row), &options).unwrap();
    assert_eq!(
        learned(&loaded.train.get(0).unwrap()),
        "29 February 2024: a"
    );
    assert_eq!(loaded.chat_date.as_deref(), Some("2024-02-29"));
    assert_eq!(loaded.chat_template.as_deref(), Some(template));
    let bad = json!({"chat_template": template, "chat_date": "29.2.2024"});
    let e = load(std::slice::from_ref(&row), &bad)
        .unwrap_err()
        .to_string();
    assert!(e.contains("`29.2.2024` is no date"), "{e}");
    let plain = json!({"chat_template": CHATML, "chat_date": "2024-02-29"});
    let (loaded, _) = load(&[row], &plain).unwrap();
    assert_eq!(loaded.chat_date, None);
}
