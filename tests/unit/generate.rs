//! Generation: the same tokens as transformers, with and without a cache, alone and in batches.

use onnx_graft::adapters::Adapter;
use onnx_graft::generate::{
    Decoder, DecoderOptions, Dialogue, FinishReason, GenerationArguments, Heard, Memory, Prompt,
    Settings, generate,
};
use onnx_graft::runtime::CompileOptions;
use onnx_graft::text::Tokenizer;
use onnx_graft::{Attach, Interface, Verified, api};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Clone, Deserialize)]
struct Case {
    model: String,
    adapter: Option<String>,
    args: GenerationArguments,
    prompt: Vec<i64>,
    ids: Vec<i64>,
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string("fixtures/generate/texts.json").unwrap();
    serde_json::from_str(&text).unwrap()
}

fn options(use_cache: bool) -> DecoderOptions {
    DecoderOptions {
        use_cache,
        compile: CompileOptions {
            threads: Some(1),
            ..CompileOptions::default()
        },
        ..DecoderOptions::default()
    }
}

/// A model with adapters, and a decoder of it.
fn decoder(file: &str, interface: &str, adapters: &[&str], options: DecoderOptions) -> Decoder {
    let model: Verified = api::open(Path::new("fixtures").join(file)).unwrap();
    let interface = Interface::resolve(interface).unwrap();
    let adapters: Vec<Adapter> = adapters.iter().map(|a| api::adapter(a).unwrap()).collect();
    if adapters.is_empty() {
        let selection = interface.select(&model).unwrap();
        return Decoder::new(model, Some(&selection), options).unwrap();
    }
    let adapted = Attach::to(model)
        .interface(&interface)
        .adapters(adapters)
        .seed(1)
        .run()
        .unwrap();
    Decoder::new(adapted.model, Some(&adapted.selection), options).unwrap()
}

fn settings(args: GenerationArguments) -> Settings {
    Settings::new(args, None, None)
}

fn ids(decoder: &Decoder, prompts: &[Vec<i64>], args: GenerationArguments) -> Vec<Vec<i64>> {
    let prompts: Vec<Prompt> = prompts.iter().cloned().map(Prompt::from).collect();
    let out = generate(decoder, None, &prompts, &settings(args), &mut |_, _| Ok(())).unwrap();
    out.into_iter().map(|g| g.ids).collect()
}

/// All texts of transformers for one model, one by one and in batches.
fn check(file: &str, model: &str, adapter: Option<&str>, use_cache: bool, memory: Memory) {
    let all: Vec<Case> = cases()
        .into_iter()
        .filter(|c| c.model == model && c.adapter.as_deref() == adapter)
        .collect();
    assert!(!all.is_empty());
    let folder = adapter.map(|a| format!("fixtures/{model}/{a}"));
    let adapters: Vec<&str> = folder.as_deref().into_iter().collect();
    let decoder = decoder(file, model, &adapters, options(use_cache));
    assert_eq!(decoder.memory(), memory, "{file}: {:?}", decoder.warnings());
    let mut groups: BTreeMap<String, Vec<Case>> = BTreeMap::new();
    for case in all {
        groups
            .entry(serde_json::to_string(&case.args).unwrap())
            .or_default()
            .push(case);
    }
    for group in groups.into_values() {
        let prompts: Vec<Vec<i64>> = group.iter().map(|c| c.prompt.clone()).collect();
        let want: Vec<Vec<i64>> = group.iter().map(|c| c.ids.clone()).collect();
        let args = GenerationArguments {
            max_new_tokens: 12,
            ..group[0].args.clone()
        };
        for batch_size in [1, 3] {
            let args = GenerationArguments {
                batch_size,
                ..args.clone()
            };
            assert_eq!(
                ids(&decoder, &prompts, args),
                want,
                "{file}, batches of {batch_size}"
            );
        }
    }
}

#[test]
fn qwen3_without_a_cache_says_what_transformers_says() {
    check("qwen3/model.onnx", "qwen3", None, false, Memory::None);
    check(
        "qwen3/model.torchscript.onnx",
        "qwen3",
        None,
        false,
        Memory::None,
    );
}

#[test]
fn qwen3_with_a_cache_says_what_transformers_says() {
    check("qwen3/model.onnx", "qwen3", None, true, Memory::Added);
    check(
        "qwen3/model.torchscript.onnx",
        "qwen3",
        None,
        true,
        Memory::Added,
    );
    check(
        "qwen3/model.dynamo23.onnx",
        "qwen3",
        None,
        true,
        Memory::Added,
    );
    check(
        "qwen3/extra/optimum.onnx",
        "qwen3",
        None,
        true,
        Memory::Added,
    );
}

#[test]
fn an_attached_lora_says_what_transformers_says_with_it_in_the_weights() {
    let lora = Some("plugin/lora_qv");
    check("qwen3/model.onnx", "qwen3", lora, false, Memory::None);
    check("qwen3/model.onnx", "qwen3", lora, true, Memory::Added);
    check(
        "qwen3/model.torchscript.onnx",
        "qwen3",
        lora,
        true,
        Memory::Added,
    );
}

#[test]
fn a_graph_with_its_own_cache_says_what_transformers_says() {
    check("generate/qwen3-past.onnx", "qwen3", None, true, Memory::Own);
}

#[test]
fn llama_and_gpt2_say_what_transformers_says() {
    for model in ["llama", "gpt2"] {
        for file in ["model.onnx", "model.torchscript.onnx"] {
            let file = format!("{model}/{file}");
            check(&file, model, None, true, Memory::Added);
            check(&file, model, None, false, Memory::None);
        }
    }
}

/// Largest difference of logits with and without a cache over some steps, for rows of different lengths.
fn difference(file: &str, interface: &str, adapters: &[&str]) -> f32 {
    let with = decoder(file, interface, adapters, options(true));
    assert_eq!(
        with.memory(),
        Memory::Added,
        "{file} {adapters:?}: {:?}",
        with.warnings()
    );
    let without = decoder(file, interface, adapters, options(false));
    let prompts = [vec![5, 9, 12, 30, 41], vec![7, 3]];
    let (mut a, x) = with.begin(&prompts, None).unwrap();
    let (mut b, y) = without.begin(&prompts, None).unwrap();
    let distance = |x: &[f32], y: &[f32]| {
        x.iter()
            .zip(y)
            .map(|(x, y)| (x - y).abs())
            .fold(0.0, f32::max)
    };
    let mut most = distance(x.row(0), y.row(0)).max(distance(x.row(1), y.row(1)));
    for next in [[1, 9], [20, 21], [33, 2], [4, 4], [10, 11], [40, 45]] {
        let next = next.map(Some);
        let (x, y) = (a.step(&next).unwrap(), b.step(&next).unwrap());
        most = most
            .max(distance(x.row(0), y.row(0)))
            .max(distance(x.row(1), y.row(1)));
    }
    most
}

/// Sums of some hundred terms of size one in f32, in another order.
const ROUNDING: f32 = 1e-5;

#[test]
fn cached_logits_are_the_uncached_ones_with_every_kind_of_adapter() {
    let adapters = [
        &["lora[r=4,attn_matrices=[q,k,v],output_lora=True]"][..],
        &["seq_bn"],
        &["par_bn"],
        &["ia3"],
        &["prefix_tuning_flat[prefix_length=3]"],
        &["lora", "seq_bn"],
    ];
    for adapters in adapters {
        let d = difference("qwen3/model.onnx", "qwen3", adapters);
        assert!(d < ROUNDING, "{adapters:?}: {d}");
    }
}

#[test]
fn cached_logits_are_the_uncached_ones_in_every_export() {
    for (file, interface) in [
        ("llama/model.onnx", "llama"),
        ("llama/model.torchscript.onnx", "llama"),
        ("gpt2/model.onnx", "gpt2"),
        ("gpt2/model.torchscript.onnx", "gpt2"),
    ] {
        for adapters in [&["prefix_tuning_flat[prefix_length=3]"][..], &["lora"]] {
            let d = difference(file, interface, adapters);
            assert!(d < ROUNDING, "{file} {adapters:?}: {d}");
        }
    }
}

#[test]
fn a_cache_of_the_graph_gives_what_the_whole_text_gives() {
    let sizes = DecoderOptions {
        cache_size: Some([2, 8]),
        ..options(true)
    };
    for file in ["generate/qwen3-past.onnx", "onnx/qwen3-genai-int4.onnx"] {
        let model = api::open(Path::new("fixtures").join(file)).unwrap();
        let decoder = Decoder::new(model, None, sizes.clone()).unwrap();
        assert_eq!(decoder.memory(), Memory::Own);
        let text = [5, 9, 12, 30, 41, 2];
        let (mut session, mut logits) = decoder.begin(&[text[..2].to_vec()], None).unwrap();
        for n in 2..text.len() {
            let (_, whole) = decoder.begin(&[text[..n].to_vec()], None).unwrap();
            let far = logits
                .row(0)
                .iter()
                .zip(whole.row(0))
                .map(|(x, y)| (x - y).abs())
                .fold(0.0, f32::max);
            assert!(far < ROUNDING, "{file}, {n} tokens: {far}");
            logits = session.step(&[Some(text[n])]).unwrap();
        }
    }
}

/// Prompts of one model with everything that is drawn or held back.
fn texts(
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    prompts: &[&str],
    args: &GenerationArguments,
) -> Vec<(String, FinishReason)> {
    let prompts: Vec<Prompt> = prompts
        .iter()
        .map(|p| Prompt::new(p, true, Some(tokenizer)).unwrap())
        .collect();
    let settings = Settings::new(args.clone(), Some(tokenizer), Some(64));
    let mut shown = vec![String::new(); prompts.len() * args.num_return_sequences];
    let out = generate(
        decoder,
        Some(tokenizer),
        &prompts,
        &settings,
        &mut |i, heard| {
            if let Heard::Piece(piece) = heard {
                shown[i] += piece;
            }
            Ok(())
        },
    );
    let out = out.unwrap();
    for (g, shown) in out.iter().zip(shown) {
        assert_eq!(g.text, shown, "what is streamed is the text");
    }
    out.into_iter().map(|g| (g.text, g.finish_reason)).collect()
}

#[test]
fn what_is_drawn_depends_on_the_seed_and_not_on_the_batch_or_the_threads() {
    let tokenizer = Tokenizer::open("fixtures/tokenizer".as_ref()).unwrap();
    let one = decoder("qwen3/model.onnx", "qwen3", &[], options(true));
    let prompts = ["the cat", "a dog sat on", "sun"];
    let args = GenerationArguments {
        do_sample: true,
        temperature: 2.0,
        max_new_tokens: 10,
        num_return_sequences: 2,
        ..GenerationArguments::default()
    };
    let alone = texts(
        &one,
        &tokenizer,
        &prompts,
        &GenerationArguments {
            batch_size: 1,
            ..args.clone()
        },
    );
    assert_eq!(
        alone,
        texts(
            &one,
            &tokenizer,
            &prompts,
            &GenerationArguments {
                batch_size: 4,
                ..args.clone()
            }
        )
    );
    let mut threads = options(true);
    threads.compile.threads = Some(2);
    let two = decoder("qwen3/model.onnx", "qwen3", &[], threads);
    assert_eq!(alone, texts(&two, &tokenizer, &prompts, &args));
    assert_ne!(
        alone,
        texts(
            &one,
            &tokenizer,
            &prompts,
            &GenerationArguments { seed: 7, ..args }
        )
    );
}

#[test]
fn a_text_ends_at_its_length_its_last_token_or_a_stop_string() {
    let tokenizer = Tokenizer::open("fixtures/tokenizer".as_ref()).unwrap();
    let decoder = decoder("qwen3/model.onnx", "qwen3", &[], options(true));
    // Without special tokens and with every id a word, the random model's text can be read.
    let args = GenerationArguments {
        max_new_tokens: 6,
        eos_token_id: Some(onnx_graft::generate::Ids::Many(vec![])),
        ..GenerationArguments::default()
    };
    let (text, reason) = texts(&decoder, &tokenizer, &["cat in"], &args).remove(0);
    assert_eq!(reason, FinishReason::Length);
    let word = text.split_whitespace().last().unwrap().to_owned();
    let stop = GenerationArguments {
        stop_strings: vec![word.clone()],
        ..args.clone()
    };
    let (short, reason) = texts(&decoder, &tokenizer, &["cat in"], &stop).remove(0);
    assert_eq!(reason, FinishReason::Stop);
    assert_eq!(short, text[..text.find(&word).unwrap()]);
    let id = tokenizer.token_id(&word).unwrap();
    let eos = GenerationArguments {
        eos_token_id: Some(onnx_graft::generate::Ids::One(id)),
        ..args
    };
    assert_eq!(
        texts(&decoder, &tokenizer, &["cat in"], &eos).remove(0).1,
        FinishReason::Eos
    );
}

#[test]
fn adapters_that_need_the_whole_text_have_no_cache_and_are_computed_alone() {
    for adapter in [
        "loreft[prefix_positions=1,suffix_positions=1]",
        "lora[use_gating=True]",
        "prompt_tuning[prompt_length=3]",
    ] {
        let d = decoder("qwen3/model.onnx", "qwen3", &[adapter], options(true));
        assert_eq!((d.memory(), d.ragged()), (Memory::None, false), "{adapter}");
        assert_eq!(d.warnings().len(), 1, "{adapter}");
        let prompts = [vec![5, 9, 12], vec![7], vec![3, 4, 5]];
        let args = GenerationArguments {
            max_new_tokens: 4,
            ..GenerationArguments::default()
        };
        let together = ids(&d, &prompts, args.clone());
        let alone: Vec<Vec<i64>> = prompts
            .iter()
            .flat_map(|p| ids(&d, std::slice::from_ref(p), args.clone()))
            .collect();
        assert_eq!(together, alone, "{adapter}");
    }
}

#[test]
fn an_encoder_decoder_begins_with_its_first_token() {
    let start = DecoderOptions {
        decoder_start_token_id: Some(0),
        ..options(true)
    };
    let d = decoder("t5/model.onnx", "t5", &[], start);
    let prompts = [vec![5, 9, 12], vec![7]];
    let args = GenerationArguments {
        max_new_tokens: 4,
        ..GenerationArguments::default()
    };
    let together = ids(&d, &prompts, args.clone());
    let alone: Vec<Vec<i64>> = prompts
        .iter()
        .flat_map(|p| ids(&d, std::slice::from_ref(p), args.clone()))
        .collect();
    assert_eq!(together, alone);
    let without = decoder("t5/model.onnx", "t5", &[], options(true));
    assert!(
        without
            .begin(&prompts[..1], None)
            .unwrap_err()
            .to_string()
            .contains("--decoder-start-token-id")
    );
}

#[test]
fn what_cannot_be_generated_is_one_error() {
    let d = decoder("qwen3/model.onnx", "qwen3", &[], options(false));
    let run = |prompt: Vec<i64>, args: GenerationArguments| {
        let settings = Settings::new(args, None, Some(8));
        generate(&d, None, &[prompt.into()], &settings, &mut |_, _| Ok(()))
            .map_err(|e| e.to_string())
    };
    let plain = GenerationArguments::default;
    assert!(
        run(vec![1; 8], plain())
            .unwrap_err()
            .contains("8 tokens; the model has 8 positions")
    );
    assert!(run(vec![], plain()).unwrap_err().contains("no tokens"));
    let stop = GenerationArguments {
        stop_strings: vec!["x".into()],
        ..plain()
    };
    assert!(run(vec![1], stop).unwrap_err().contains("tokenizer"));
    let cold = GenerationArguments {
        do_sample: true,
        temperature: 0.0,
        ..plain()
    };
    assert!(run(vec![1], cold).unwrap_err().contains("`temperature`"));
    assert!(
        Prompt::new("text", true, None)
            .unwrap_err()
            .to_string()
            .contains("--tokenizer")
    );
    // As far as the model has positions, also beside a shorter prompt; gpt2 looks its positions up in a table of 64.
    for use_cache in [true, false] {
        let d = decoder("gpt2/model.onnx", "gpt2", &[], options(use_cache));
        let long = GenerationArguments {
            max_new_tokens: 80,
            ..plain()
        };
        let settings = Settings::new(long, None, Some(64));
        let prompts = [Prompt::from(vec![3; 61]), Prompt::from(vec![4; 2])];
        let out = generate(&d, None, &prompts, &settings, &mut |_, _| Ok(())).unwrap();
        assert_eq!((out[0].ids.len(), out[1].ids.len()), (3, 62));
    }
    assert_eq!(run(vec![1; 3], plain()).unwrap()[0].ids.len(), 5);
}

#[test]
fn the_score_of_texts_is_the_loss_of_the_graph() {
    use onnx_graft::generate::{Scored, score};
    use onnx_graft::rewrite::passes::loss::{Divisor, Loss};
    use onnx_graft::rewrite::pipelines::{self, Mode};
    use onnx_graft::runtime::{Plan, io};
    let model = || api::open("fixtures/qwen3/model.onnx").unwrap();
    let feeds = io::read("fixtures/qwen3/inputs.safetensors".as_ref())
        .unwrap()
        .plain();
    let loss = Loss::CausalLm {
        logits: None,
        divisor: Divisor::Labels,
    };
    let plan = Plan::compile(
        &pipelines::loss(&loss, Mode::Portable)
            .run(model())
            .unwrap()
            .model,
        &CompileOptions::default(),
    )
    .unwrap();
    let given = feeds.clone().for_plan(&plan);
    let want = plan.run(&given).unwrap()["loss"].to_f32().unwrap()[0];
    let matrix = |name: &str| {
        let width = feeds.0[name].dims()[1];
        feeds.0[name]
            .to_ints()
            .unwrap()
            .chunks(width)
            .map(<[i64]>::to_vec)
            .collect::<Vec<_>>()
    };
    let (ids, mask, labels) = (
        matrix("input_ids"),
        matrix("attention_mask"),
        matrix("labels"),
    );
    // Rows without their padding, which stands behind the end in this file.
    let rows: Vec<Scored> = (0..ids.len())
        .map(|r| {
            let n = mask[r].iter().filter(|m| **m == 1).count();
            Scored {
                ids: ids[r][..n].to_vec(),
                labels: labels[r][..n].to_vec(),
                task_id: None,
            }
        })
        .collect();
    let mut batches = rows
        .chunks(2)
        .map(<[_]>::to_vec)
        .collect::<Vec<_>>()
        .into_iter();
    let sums = score(model(), false, &CompileOptions::default(), || {
        Ok(batches.next())
    })
    .unwrap();
    // The mean of some twenty logarithms in f32.
    assert!(
        (sums.mean() - f64::from(want)).abs() < 1e-5,
        "{} {want}",
        sums.mean()
    );
    assert_eq!(sums.samples, ids.len());
}

#[test]
fn behind_a_window_of_attention_the_cache_is_left() {
    use onnx_graft::ir::TensorData;
    use onnx_graft::{Pass, PassCx, PassError, Pipeline};

    /// The graph hides keys that are six positions away or more.
    struct Window;

    impl Pass for Window {
        fn name(&self) -> &'static str {
            "window"
        }

        fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
            let distance = cx.model().graph.find("val_30").unwrap();
            let mut patch = cx.patch("window", None);
            patch.set_tensor(distance, TensorData::from_i64([], &[6]));
            cx.commit(patch)?;
            Ok(())
        }
    }

    let made = |use_cache| {
        let model = api::open("fixtures/qwen3/model.onnx").unwrap();
        let model = Pipeline::new().with(Window).run(model).unwrap().model;
        let selection = Interface::resolve("qwen3").unwrap().select(&model).unwrap();
        Decoder::new(model, Some(&selection), options(use_cache)).unwrap()
    };
    let (with, without) = (made(true), made(false));
    assert_eq!(
        (with.memory(), without.memory()),
        (Memory::Added, Memory::None)
    );
    let args = GenerationArguments {
        max_new_tokens: 12,
        ..GenerationArguments::default()
    };
    let prompts = [vec![5, 9, 12], vec![7]];
    let windowed = ids(&with, &prompts, args.clone());
    assert_eq!(windowed, ids(&without, &prompts, args.clone()));
    let all = decoder("qwen3/model.onnx", "qwen3", &[], options(true));
    assert_ne!(
        windowed,
        ids(&all, &prompts, args),
        "the window makes a difference"
    );
}

/// What each turn of a conversation gives, and how many tokens were kept for it.
fn turns(decoder: &Decoder, turns: &[&[i64]]) -> Vec<usize> {
    let args = GenerationArguments {
        max_new_tokens: 4,
        ..GenerationArguments::default()
    };
    let mut dialogue = Dialogue::new(decoder);
    let (mut text, mut kept) = (Vec::new(), Vec::new());
    for turn in turns {
        text.extend_from_slice(turn);
        let prompt = Prompt::from(text.clone());
        let heard = &mut |_: usize, _: Heard<'_>| Ok(());
        let answer = dialogue.answer(None, &prompt, &settings(args.clone()), heard);
        let (answer, reused) = answer.unwrap();
        assert_eq!(answer.ids, ids(decoder, &[text.clone()], args.clone())[0]);
        text.extend(answer.ids);
        kept.push(reused);
    }
    // Another beginning, and one that the cache holds the whole of.
    for other in [vec![text[0], text[1], 7, 8], vec![text[0], text[1]]] {
        let prompt = Prompt::from(other.clone());
        let heard = &mut |_: usize, _: Heard<'_>| Ok(());
        let (answer, reused) = dialogue
            .answer(None, &prompt, &settings(args.clone()), heard)
            .unwrap();
        assert_eq!(answer.ids, ids(decoder, &[other], args.clone())[0]);
        kept.push(reused);
    }
    kept
}

#[test]
fn a_turn_goes_on_with_what_was_computed_for_the_ones_before() {
    let said: [&[i64]; 3] = [&[5, 9, 12], &[3, 4], &[20]];
    // All but the last token of an answer was computed, and the last token of a text is always.
    let kept = [0, 6, 12, 2, 1];
    let added = decoder("qwen3/model.onnx", "qwen3", &[], options(true));
    assert_eq!(added.memory(), Memory::Added);
    assert_eq!(turns(&added, &said), kept);
    let adapted = decoder(
        "qwen3/model.onnx",
        "qwen3",
        &["prefix_tuning"],
        options(true),
    );
    let found = turns(&adapted, &said);
    assert!(found == kept || found == [0; 5], "{found:?}");
    let own = decoder("generate/qwen3-past.onnx", "qwen3", &[], options(true));
    assert_eq!(own.memory(), Memory::Own);
    assert_eq!(turns(&own, &said), kept);
    let none = decoder("qwen3/model.onnx", "qwen3", &[], options(false));
    assert_eq!(turns(&none, &said), [0; 5]);
}

#[test]
fn a_text_that_is_asked_to_end_ends() {
    let decoder = decoder("qwen3/model.onnx", "qwen3", &[], options(true));
    let mut settings = settings(GenerationArguments::default());
    let flag = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    settings.until.flag = Some(flag.clone());
    let prompt = Prompt::from(vec![5, 9, 12]);
    let mut dialogue = Dialogue::new(&decoder);
    flag.store(true, std::sync::atomic::Ordering::Relaxed);
    let (answer, _) = dialogue
        .answer(None, &prompt, &settings, &mut |_, _| Ok(()))
        .unwrap();
    assert_eq!(answer.finish_reason, FinishReason::Interrupted);
    assert!(answer.ids.is_empty());
}
