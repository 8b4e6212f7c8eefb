//! Adapters as inputs of a graph: without any it computes what the base model does, with one what that one attached does, and taken out
//! again it is the base model.

use super::support::fixture;
use indexmap::IndexMap;
use onnx_graft::Attach;
use onnx_graft::adapters::folder::to_safetensors;
use onnx_graft::adapters::manifest::{Exchangeable, Manifest};
use onnx_graft::api::{self, Adapted};
use onnx_graft::infer::Verified;
use onnx_graft::ir::{DType, Dim, TensorData, text};
use onnx_graft::job::{exchanging, merge};
use onnx_graft::onnx::{self, ExternalSource};
use onnx_graft::runtime::{CompileOptions, Feeds, Plan, io};
use onnx_graft::select::Interface;

fn base(arch: &str) -> Verified {
    api::open(fixture(arch).join("model.onnx")).unwrap()
}

fn to(model: Verified, arch: &str, specs: &[&str]) -> Attach {
    let interface = Interface::read(&fixture(arch).join("interface.json")).unwrap();
    let adapters = specs.iter().map(|s| api::adapter(s).unwrap());
    Attach::to(model)
        .interface(&interface)
        .adapters(adapters)
        .seed(3)
}

fn exported(arch: &str, specs: &[&str], known: Vec<Exchangeable>) -> Adapted {
    let attach = to(base(arch), arch, specs).exchange(exchanging(DType::Float), known);
    attach.run().unwrap()
}

fn inputs(arch: &str) -> Feeds {
    let mut feeds = Feeds::new();
    let read = io::read(&fixture(arch).join("inputs.safetensors")).unwrap();
    for (name, value) in read.0 {
        if let Some(name) = name.strip_prefix("input/") {
            feeds.insert(name, value);
        }
    }
    feeds
}

/// Runs what is written, as it is read again.
fn run(model: &Verified, feeds: &Feeds) -> Vec<f32> {
    let bytes = onnx::to_bytes(model).unwrap();
    let read = onnx::read(bytes.into(), &ExternalSource::none()).unwrap();
    let model = Verified::check(read).unwrap();
    let graph = &model.model().graph;
    let output = graph.name_of(graph.outputs()[0].value).to_owned();
    let plan = Plan::compile(&model, &CompileOptions::default()).unwrap();
    plan.run(feeds).unwrap()[&*output].to_f32().unwrap()
}

/// The inputs with what an adapter gives.
fn with(feeds: &Feeds, tensors: &IndexMap<Box<str>, TensorData>) -> Feeds {
    let mut feeds = feeds.clone();
    for (name, value) in io::decode(&to_safetensors(tensors).unwrap()).unwrap().0 {
        feeds.insert(&name, value);
    }
    feeds
}

fn worst(found: &[f32], want: &[f32]) -> f32 {
    assert_eq!(found.len(), want.len());
    let each = found.iter().zip(want).map(|(f, w)| (f - w).abs());
    each.fold(0.0, f32::max)
}

/// Every kind, of two sizes where it has one.
const KINDS: [(&str, [&str; 2]); 17] = [
    (
        "qwen3",
        [
            "a=lora[r=4,init_weights='bert',alpha=400]",
            "b=lora[r=8,init_weights='bert',alpha=90,attn_matrices=['q','o'],output_lora=True]",
        ],
    ),
    (
        "gpt2",
        [
            "a=lora[r=4,init_weights='bert',alpha=400]",
            "b=lora[r=2,init_weights='bert',alpha=90,attn_matrices=['k']]",
        ],
    ),
    (
        "gpt2",
        [
            "a=ia3[init_weights='bert',alpha=30]",
            "b=ia3[init_weights='bert',alpha=40,attn_matrices=['q']]",
        ],
    ),
    (
        "bert",
        [
            "a=lora[use_gating=True,init_weights='bert']",
            "b=lora[use_gating=True,r=3,init_weights='bert']",
        ],
    ),
    (
        "bert",
        [
            "a=ia3[init_weights='bert',alpha=30]",
            "b=ia3[init_weights='bert',alpha=40,attn_matrices=['q'],output_lora=True]",
        ],
    ),
    (
        "bert",
        [
            "a=vera[r=3,vera_b=0.5,alpha=90]",
            "b=vera[r=8,vera_b=0.3,alpha=90]",
        ],
    ),
    (
        "bert",
        [
            "a=dora[init_weights='bert',alpha=80]",
            "b=dora[r=4,init_weights='bert',alpha=40]",
        ],
    ),
    (
        "bert",
        [
            "a=seq_bn[reduction_factor=4,init_weights='houlsby']",
            "b=seq_bn[reduction_factor=2,scaling=3.0]",
        ],
    ),
    (
        "bert",
        [
            "a=double_seq_bn[non_linearity='sigmoid',reduction_factor=2]",
            "b=double_seq_bn[non_linearity='sigmoid',reduction_factor=4]",
        ],
    ),
    (
        "qwen3",
        [
            "a=par_bn[reduction_factor=4,init_weights='houlsby',scaling=40.0]",
            "b=par_bn[reduction_factor=2,init_weights='houlsby']",
        ],
    ),
    (
        "qwen3",
        [
            "a=seq_bn_inv[reduction_factor=4]",
            "b=seq_bn_inv[reduction_factor=2,inv_adapter_reduction_factor=4]",
        ],
    ),
    (
        "bert",
        [
            "a=compacter[reduction_factor=4,phm_c_init='uniform']",
            "b=compacter[reduction_factor=2,phm_c_init='uniform']",
        ],
    ),
    ("bert", ["a=loreft[r=1]", "b=loreft[r=3]"]),
    (
        "qwen3",
        [
            "a=noreft[r=2,suffix_positions=2]",
            "b=noreft[r=1,suffix_positions=2]",
        ],
    ),
    (
        "qwen3",
        [
            "a=prefix_tuning[prefix_length=3]",
            "b=prefix_tuning_flat[prefix_length=5]",
        ],
    ),
    (
        "bert",
        [
            "a=prefix_tuning[prefix_length=3,use_gating=True]",
            "b=prefix_tuning[prefix_length=1,use_gating=True]",
        ],
    ),
    (
        "vit",
        [
            "a=lora[r=2,init_weights='bert',alpha=90]|seq_bn[reduction_factor=4]",
            "b=prefix_tuning[prefix_length=4]|par_bn[reduction_factor=4,init_weights='houlsby']",
        ],
    ),
];

#[test]
fn one_graph_is_the_base_model_and_every_adapter() {
    for (arch, specs) in KINDS {
        let feeds = inputs(arch);
        let plain = run(&base(arch), &feeds);
        let made = exported(arch, &specs, Vec::new());
        // Magnitudes divide by a norm and multiply by it again.
        let alone = worst(&run(&made.model, &feeds), &plain);
        assert!(
            alone <= 2e-6,
            "{arch} {specs:?}: without an adapter {alone}"
        );
        for (spec, (name, tensors)) in specs.iter().zip(&made.exchanged) {
            let attached = to(base(arch), arch, &[spec]).run().unwrap();
            let want = run(&attached.model, &feeds);
            let effect = worst(&want, &plain);
            assert!(effect > 1e-3, "{arch} {spec}: {effect}");
            let feeds = with(&feeds, tensors);
            // Sums in another order.
            let off = worst(&run(&made.model, &feeds), &want);
            assert!(
                off <= 1e-5 + 1e-5 * effect,
                "{arch} {name}: {off} of {effect}"
            );
        }
    }
}

/// Nothing of it stays behind, names of values included.
#[test]
fn inputs_are_taken_out_again() {
    for (arch, specs) in KINDS {
        let made = exported(arch, &specs, Vec::new());
        let bytes = onnx::to_bytes(&made.model).unwrap();
        let read = onnx::read(bytes.into(), &ExternalSource::none()).unwrap();
        let stripped = api::strip(Verified::check(read).unwrap(), None).unwrap();
        // Operators that were opened for it stay open: the base model with an adapter attached and taken out is the measure.
        let attached = to(base(arch), arch, &specs[..1]).run().unwrap();
        let want = api::strip(attached.model, None).unwrap();
        assert_eq!(
            text::print(stripped.model()),
            text::print(want.model()),
            "{arch} {specs:?}"
        );
    }
}

/// An adapter that comes later finds the inputs that are there, whatever else the graph was made for.
#[test]
fn a_further_adapter_has_the_names_that_are_there() {
    let both = [
        "a=seq_bn[reduction_factor=4]",
        "b=seq_bn[reduction_factor=4,non_linearity='gelu']",
    ];
    let first = exported("bert", &both, Vec::new());
    let [(_, a), (_, b)] = &first.exchanged[..] else {
        panic!("two adapters");
    };
    assert!(
        a.keys().all(|k| !b.contains_key(k)),
        "two kinds share an input"
    );
    let known = Manifest::read(first.model.model()).unwrap().exchanged;
    assert_eq!(known.len(), 2);
    let later = ["c=seq_bn[reduction_factor=2,non_linearity='gelu']"];
    let second = exported("bert", &later, known);
    assert!(second.exchanged[0].1.keys().eq(b.keys()));
}

/// Runtimes that reuse memory take sizes of one name to be equal: adapters of two kinds at one place have ranks of their own.
#[test]
fn sizes_of_two_kinds_have_two_names() {
    let made = exported("qwen3", &["a=lora[r=4]", "b=dora[r=2]"], Vec::new());
    let graph = &made.model.model().graph;
    let symbols = |at: usize| -> Vec<Dim> {
        let names = made.exchanged[at].1.keys();
        let ports = names.map(|n| {
            let mut ports = graph.inputs().iter();
            ports.find(|p| graph.name_of(p.value) == &**n).unwrap()
        });
        let dims = ports.flat_map(|p| p.ty.as_ref().unwrap().dims().unwrap().to_vec());
        dims.filter(|d| matches!(d, Dim::Symbol(_))).collect()
    };
    let (a, b) = (symbols(0), symbols(1));
    assert!(!a.is_empty() && !b.is_empty());
    assert!(a.iter().all(|d| !b.contains(d)), "{a:?}");
}

/// What cannot leave the model as it is, is refused by what it is.
#[test]
fn what_has_no_such_form_is_refused_with_its_reason() {
    for (arch, spec, why) in [
        ("bert", "prompt_tuning", "makes the sequence longer"),
        (
            "gpt2",
            "lora[use_gating=True]",
            "a gate for each of its blocks",
        ),
        (
            "bert",
            "seq_bn[residual_before_ln='post_add',original_ln_before=True]",
            "norms and residuals",
        ),
        ("t5", "prefix_tuning", "a bias by relative position"),
    ] {
        let attach = to(base(arch), arch, &[spec]).exchange(exchanging(DType::Float), Vec::new());
        let found = attach.run().map(|_| ()).unwrap_err().to_string();
        assert!(
            found.contains(why) && found.contains("exchange-method"),
            "{found}"
        );
    }
}

/// Half the size, and what is off is what rounding makes of each number.
#[test]
fn parameters_may_be_of_16_bits() {
    let spec = "a=lora[r=4,init_weights='bert',alpha=400]";
    let feeds = inputs("qwen3");
    let whole = to(base("qwen3"), "qwen3", &[spec]).run().unwrap();
    let want = run(&whole.model, &feeds);
    for (dtype, tolerance) in [(DType::Float16, 2e-2), (DType::Bfloat16, 2e-1)] {
        let how = exchanging(dtype);
        let made = to(base("qwen3"), "qwen3", &[spec]).exchange(how, Vec::new());
        let made = made.run().unwrap();
        let given = &made.exchanged[0].1;
        assert!(given.values().all(|t| t.dtype == dtype));
        let feeds = with(&feeds, given);
        let off = worst(&run(&made.model, &feeds), &want);
        assert!(off < tolerance, "{dtype}: {off}");
    }
}

/// A parameter that an adapter has its own values of is the base model's until they come.
#[test]
fn saved_modules_come_in_as_well() {
    let feeds = inputs("qwen3");
    let plain = run(&base("qwen3"), &feeds);
    let spec = "a=lora[r=2,target_modules=['q_proj'],modules_to_save=['model.norm']]";
    let made = exported("qwen3", &[spec], Vec::new());
    assert!(worst(&run(&made.model, &feeds), &plain) <= 2e-6);
    let mut given = made.exchanged[0].1.clone();
    let norm = given
        .get_mut("model.norm.modules_to_save.weight")
        .expect("the norm comes in");
    let twice: Vec<f32> = norm.to_f32().unwrap().iter().map(|v| v * 2.0).collect();
    *norm = TensorData::from_f32(norm.dims.clone(), &twice);
    let found = run(&made.model, &with(&feeds, &given));
    // The head is linear in what the norm makes.
    let want: Vec<f32> = plain.iter().map(|v| v * 2.0).collect();
    assert!(worst(&found, &want) < 1e-4);
}

/// A linear of a dynamically quantized file reads its input through a node that quantizes it: for it alone, or for others as well, which
/// go on reading what they read.
#[test]
fn what_a_quantizer_reads_is_scaled_for_its_linear() {
    let file = fixture("skill").join("model.int8.onnx");
    let base = api::open(&file).unwrap();
    let ids = TensorData::from_i64([1, 6], &[5, 9, 12, 7, 20, 3]);
    let mask = TensorData::from_i64([1, 6], &[1; 6]);
    let tensors = [("input_ids", ids), ("attention_mask", mask)];
    let feeds = with(
        &Feeds::new(),
        &tensors.map(|(n, t)| (n.into(), t)).into_iter().collect(),
    );
    let plain = run(&base, &feeds);
    for module in ["down_proj", "k_proj"] {
        let spec = format!("a=ia3[target_modules=['{module}'],feedforward_modules=['{module}']]");
        let interface = Interface::resolve("qwen3").unwrap();
        let to = |a| Attach::to(base.clone()).interface(&interface).adapters([a]);
        let made = to(api::adapter(&spec).unwrap()).run().unwrap();
        // A half is exact in the input's scale as in the weight's: both quantize to the numbers that were there.
        let mut store = made.store();
        let rows: Vec<_> = store
            .iter()
            .map(|(n, p)| (n.to_owned(), p.tensor.clone()))
            .collect();
        for (name, row) in rows {
            let half = vec![0.5; row.to_f32().unwrap().len()];
            let dims = row.dims.clone();
            store.set(&name, TensorData::from_f32(dims, &half)).unwrap();
        }
        let folder = || made.folder("a", &store).unwrap().into_adapter(None);
        let attached = to(folder()).run().unwrap();
        let found = run(&attached.model, &feeds);
        let effect = worst(&found, &plain);
        assert!(effect > 0.1, "{module}: {effect}");
        let merged = merge(&base, &interface, vec![folder()]).unwrap();
        let off = worst(&found, &run(&merged, &feeds));
        assert!(off < 1e-4, "{module}: {off} of {effect}");
        let back = api::strip(attached.model, None).unwrap();
        assert_eq!(
            text::print(back.model()),
            text::print(base.model()),
            "{module}"
        );
    }
}
