#!/usr/bin/env python3
"""Exports tiny random models for the reach matrix.

usage: export.py OUT torch    [ARCH...] [--exporters dynamo,dynamo23,ts]   any transformers; columns tf4-… and tf5-…
       export.py OUT optimum  ARCH...                                       environment with optimum; reads OUT/ARCH/hf4
       export.py OUT genai    ARCH...                                       environment with onnxruntime-genai; reads OUT/ARCH/hf5
       export.py OUT derive   ARCH... --src tf4-ts,tf5-dynamo,optimum --how ort-ext,ort-opt,fp16,int8,qdq,q4,slim,sim

With REACH=strangers the architectures are those of strangers.py, which nothing here was made for.

A cell is OUT/ARCH/COLUMN/: model.onnx, config.json, inputs.safetensors (input/*, labels or target, base/<output> of torch), meta.json.
"""
import argparse, copy, inspect, json, logging, os, re, shutil, subprocess, sys, tempfile, time, warnings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import numpy as np
import torch

torch.set_num_threads(1)
import archs as A  # noqa: E402

if os.environ.get("REACH") == "strangers":
    import strangers  # noqa: E402, F401
from archs import ARCHS, B, S  # noqa: E402


def quiet():
    import transformers
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    return int(transformers.__version__.split(".")[0])


def maker(a):
    return a.get("inputs") or A.text


def axes(a, inputs):
    d = {}
    for k, v in inputs.items():
        if k in ("pixel_values", "input_features") or (k == "input_values" and v.ndim == 3):
            d[k] = {0: "batch"}
        elif k == "decoder_input_ids":
            d[k] = {0: "batch", 1: "decoder_sequence"}
        else:
            d[k] = {0: "batch", 1: "sequence"}
    return d


def limit_forward(model, names, out):
    """forward() with the exported inputs only, as optimum does it: defaulted int arguments would become graph inputs."""
    orig = model.forward

    def forward(*args, **kw):
        kw.update(zip(names, args))
        return orig(**kw)[out]

    forward.__signature__ = inspect.Signature([inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names])
    model.forward = forward
    return model


def export(model, a, path, kind):
    inputs = maker(a)(b=2, s=7, seed=11)
    if a.get("dtype"):
        inputs = {k: v.to(a["dtype"]) if v.is_floating_point() else v for k, v in inputs.items()}
    names = list(inputs)
    ax = axes(a, inputs)
    if kind.startswith("dynamo"):
        kw = {"opset_version": int(kind[6:])} if kind[6:] else {}
        D = torch.export.Dim
        last = None
        for dim in (D.DYNAMIC, D.AUTO):
            try:
                ds = {k: {i: dim for i in x} for k, x in ax.items()}
                torch.onnx.export(model, (), path, kwargs=inputs, dynamo=True, dynamic_shapes=ds, input_names=names, output_names=[a["out"]],
                                  external_data=False, verbose=False, **kw)
                return "AUTO" if dim is D.AUTO else None
            except Exception as e:  # noqa: BLE001
                last = last or e
        raise last
    da = dict(ax)
    da[a["out"]] = {0: "batch"} if not a.get("dyn_seq", True) or a.get("dyn_out") is False else {0: "batch", 1: "out_sequence"}
    limit_forward(model, names, a["out"])
    torch.onnx.export(model, tuple(inputs.values()), path, dynamo=False, opset_version=17, dynamic_axes=da, input_names=names,
                      output_names=[a["out"]], do_constant_folding=True)
    return None


def session(path, extra=None):
    import onnxruntime as ort
    so = ort.SessionOptions()
    so.intra_op_num_threads = 1
    so.log_severity_level = 4
    if extra:
        extra(so)
    return ort.InferenceSession(path, so, providers=["CPUExecutionProvider"])


NP = {"tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bool)": np.bool_}


def feeds(sess, base, cfg, past=0):
    """A value for every graph input: the model's own, or what runtimes pass for it."""
    rng = np.random.default_rng(5)
    ids = base.get("input_ids")
    if ids is None and "decoder_input_ids" in base:
        ids = base["decoder_input_ids"]
    n = len(ids) if ids is not None else len(next(iter(base.values())))
    f = {}
    seq = ids.shape[1] if ids is not None else S
    for i in sess.get_inputs():
        ty = NP[i.type]
        name = i.name
        if name in base:
            v = base[name]
        elif name == "position_ids":
            v = np.broadcast_to(np.arange(seq), (n, seq))
        elif name == "token_type_ids":
            v = np.zeros((n, seq))
        elif name == "use_cache_branch":
            v = np.array([past > 0])
        elif name == "encoder_attention_mask":
            v = base.get("attention_mask", np.ones((n, S)))
        elif name == "cache_position":
            v = np.arange(seq)
        elif name in ("past_key_values_length", "past_seq_len"):
            v = np.array([past])
        else:  # caches, encoder states
            dims = []
            for d in i.shape:
                if isinstance(d, int):
                    dims.append(d)
                elif d == "kv_cache_dim":
                    dims.append((cfg or {}).get("head_dim") or 16)
                elif "past" in str(d) and "+" not in str(d):
                    dims.append(past)
                elif "batch" in str(d):
                    dims.append(n)
                elif "encoder" in str(d):
                    dims.append(S if name != "past" else past)
                else:
                    dims.append(seq)
            v = rng.standard_normal(dims) * 0.5
        f[name] = np.ascontiguousarray(np.asarray(v).astype(ty))
    return f


def finish(d, sess, f, out, loss, ref=None, note=None, tol=1e-4, cfg=None):
    """Runs the graph in onnxruntime; writes inputs and meta."""
    from safetensors.numpy import save_file
    names = [o.name for o in sess.get_outputs()] if sess else [out]
    want = out if out in names else names[0]
    y = sess.run([want], f)[0] if sess else ref
    t = {f"input/{k}": v for k, v in f.items()}
    if loss == "causal-lm" and y.ndim == 3 and "input_ids" in f and y.shape[:2] == f["input_ids"].shape:
        lab = f["input_ids"].astype(np.int64).copy()
        if "attention_mask" in f and f["attention_mask"].shape == lab.shape:
            lab[f["attention_mask"] == 0] = -100
        t["labels"] = lab
    else:
        loss = "mse"
        t["target"] = np.random.default_rng(9).standard_normal(y.shape).astype(np.float32)
    if ref is not None:
        t["base/" + want] = ref
    save_file({k: np.ascontiguousarray(v) for k, v in t.items()}, os.path.join(d, "inputs.safetensors"))
    diff = None
    if ref is not None and ref.shape == y.shape:
        diff = float(np.abs(y.astype(np.float64) - ref).max())
    return {"ok": True, "output": want, "outputs": names, "loss": loss, "inputs": {k: [str(v.dtype), list(v.shape)] for k, v in f.items()},
            "max_abs_diff_vs_torch": diff, "note": note, "ort": bool(sess)}


def cell(out, arch, col):
    d = os.path.join(out, arch, col)
    shutil.rmtree(d, ignore_errors=True)
    os.makedirs(d)
    return d


def done(d, meta, t0):
    meta["seconds"] = round(time.time() - t0, 1)
    json.dump(meta, open(os.path.join(d, "meta.json"), "w"), indent=1, default=str)
    p = d.rstrip("/").split("/")
    print(*p[-2:], "ok" if meta.get("ok") else "FAIL " + str(meta.get("error", ""))[:160].replace("\n", " "), meta.get("max_abs_diff_vs_torch"), meta["seconds"], flush=True)


def write_config(d, cfg, cls):
    c = dict(cfg)
    c.pop("_name_or_path", None)
    c["architectures"] = [cls]
    json.dump(c, open(os.path.join(d, "config.json"), "w"), indent=1, default=str)


def clean(path):
    import onnx
    m = onnx.load(path)
    for n in list(m.graph.node) + [n for f in m.functions for n in f.node]:
        for i, k in reversed(list(enumerate(n.metadata_props))):
            if k.key == "pkg.torch.onnx.stack_trace":
                del n.metadata_props[i]
    onnx.save(m, path)


def said(e):
    """An error in short; of torch's exporter the summary at its end."""
    text = str(e)
    head, _, tail = text.partition("## Exception summary")
    return f"{type(e).__name__}: {head[:160] + '## Exception summary' + tail[:400] if tail else text[:600]}"


def do_torch(out, names, exporters):
    major = quiet()
    for arch in names or ARCHS:
        a = ARCHS[arch]
        if major not in a.get("vers", (4, 5)):
            continue
        try:
            base, _ = A.build(arch)
        except Exception as e:  # noqa: BLE001
            print(arch, "cannot build", e)
            continue
        inputs = maker(a)()
        try:
            with torch.no_grad():
                ref = base(**inputs)[a["out"]].numpy()
        except Exception as e:  # noqa: BLE001
            print(arch, f"tf{major}", "cannot run", repr(e)[-300:], flush=True)
            continue
        hf = os.path.join(out, arch, f"hf{major}")
        try:
            base.save_pretrained(hf)
        except Exception as e:  # noqa: BLE001
            print(arch, "save_pretrained", e)
        mods = {n: type(m).__name__ for n, m in base.named_modules()}
        os.makedirs(os.path.join(out, arch), exist_ok=True)
        json.dump({"model_type": base.config.model_type, "base_model_prefix": base.base_model_prefix, "modules": mods, "class": a["cls"],
                   "params": {n: list(p.shape) for n, p in base.named_parameters()}}, open(os.path.join(out, arch, f"modules{major}.json"), "w"))
        for ex in exporters:
            t0 = time.time()
            d = cell(out, arch, f"tf{major}-{ex}")
            write_config(d, base.config.to_dict(), a["cls"])
            p = os.path.join(d, "model.onnx")
            try:
                if ex.endswith(("-f16", "-bf16")):
                    dt = torch.float16 if ex.endswith("-f16") else torch.bfloat16
                    note = export(copy.deepcopy(base).to(dt), dict(a, dtype=dt), p, ex.rsplit("-", 1)[0])
                else:
                    try:
                        note = export(copy.deepcopy(base), a, p, ex)
                    except Exception:  # noqa: BLE001  (experts of transformers 5: grouped_mm has no ONNX form, batched_mm has one)
                        if not hasattr(base, "set_experts_implementation") or not any("xperts" in type(m).__name__ for m in base.modules()):
                            raise
                        m = copy.deepcopy(base)
                        m.set_experts_implementation("batched_mm")
                        note = "experts: batched_mm; " + (export(m, a, p, ex) or "")
                clean(p)
                s = session(p)
                f = {k: v.numpy() for k, v in inputs.items() if k in [i.name for i in s.get_inputs()]}
                lost = [k for k in inputs if k not in f]
                try:
                    meta = finish(d, s, feeds(s, f, None), a["out"], a["loss"], ref, note)
                except Exception as e:  # noqa: BLE001  (opset 23: batch 1 only)
                    one = maker(a)(b=1)
                    with torch.no_grad():
                        r1 = base(**one)[a["out"]].numpy()
                    meta = finish(d, s, {k: v.numpy() for k, v in one.items() if k in f}, a["out"], a["loss"], r1, f"onnxruntime runs batch 1 only: {str(e)[:120]}")
                if lost:
                    meta["lost_inputs"] = lost
            except Exception as e:  # noqa: BLE001
                meta = {"ok": False, "error": said(e)}
                if ex.endswith("-bf16") and os.path.exists(p):  # onnxruntime has no such kernels on CPUs: torch is the reference
                    with torch.no_grad():
                        r = copy.deepcopy(base).to(torch.bfloat16)(**{k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in inputs.items()})[a["out"]].float().numpy()
                    meta = finish(d, None, {k: v.numpy() for k, v in inputs.items()}, a["out"], a["loss"], r, "not runnable in onnxruntime: " + meta["error"][:120])
                elif os.path.exists(p):
                    os.remove(p)
            meta.update(arch=arch, column=f"tf{major}-{ex}", major=major)
            done(d, meta, t0)


TASKS = {"logits": "text-generation-with-past", "last_hidden_state": "feature-extraction"}


def task_of(arch, a):
    if maker(a) is A.encdec:
        return "text2text-generation"
    if arch == "whisper":
        return "automatic-speech-recognition"
    if a["cls"].endswith("ForCausalLM") or a["cls"] == "GPT2LMHeadModel":
        return "text-generation"
    if a["cls"].endswith("ForMaskedLM"):
        return "fill-mask"
    if a["cls"].endswith("ForSequenceClassification"):
        return "text-classification"
    if a["cls"].endswith("ForImageClassification"):
        return "image-classification"
    if a["cls"] == "Wav2Vec2ForCTC":
        return "automatic-speech-recognition"
    if arch == "clip":
        return "zero-shot-image-classification"
    return "feature-extraction"


def do_optimum(out, names):
    quiet()
    from optimum.exporters.onnx import main_export
    from safetensors.numpy import load_file  # noqa: F401
    for arch in names:
        a = ARCHS[arch]
        src = os.path.join(out, arch, "hf4")
        base = {k: v.numpy() for k, v in maker(a)().items()}
        task = task_of(arch, a)
        for suffix in ("", "-with-past"):
            if suffix and task not in ("text-generation", "text2text-generation", "automatic-speech-recognition"):
                continue
            if suffix and arch == "wav2vec2":
                continue
            t0 = time.time()
            t = tempfile.mkdtemp()
            col = "optimum-past" if suffix else "optimum"
            try:
                main_export(src, output=t, task=task + suffix, do_validation=False, device="cpu", library_name="transformers")
            except Exception as e:  # noqa: BLE001
                d = cell(out, arch, col)
                done(d, {"ok": False, "error": f"{type(e).__name__}: {str(e)[:500]}", "arch": arch, "column": col}, t0)
                continue
            files = [f for f in sorted(os.listdir(t)) if f.endswith(".onnx")]
            for f in files:
                c = col if f == "model.onnx" else col + "-" + f.removesuffix(".onnx").replace("_model", "")
                d = cell(out, arch, c)
                shutil.copy(os.path.join(t, f), os.path.join(d, "model.onnx"))
                for side in ("config.json", f + "_data"):
                    if os.path.exists(os.path.join(t, side)):
                        shutil.copy(os.path.join(t, side), os.path.join(d, side))
                try:
                    s = session(os.path.join(d, "model.onnx"))
                    b = dict(base)
                    if "decoder" in f and "decoder_input_ids" in b:
                        b["input_ids"] = b.pop("decoder_input_ids")
                    past = 2 if "with_past" in f else 0
                    ff = feeds(s, b, None, past)
                    if "with_past" in f:
                        ff["input_ids"] = ff["input_ids"][:, :1]
                    meta = finish(d, s, ff, a["out"], a["loss"])
                    meta["file"] = f
                except Exception as e:  # noqa: BLE001
                    meta = {"ok": False, "error": f"{type(e).__name__}: {str(e)[:500]}"}
                meta.update(arch=arch, column=c, major=4, task=task + suffix)
                done(d, meta, t0)
            shutil.rmtree(t)


def tokenizer(d):
    """The builder wants one beside the model."""
    from tokenizers import Tokenizer, models
    t = Tokenizer(models.WordLevel({str(i): i for i in range(A.V)}, unk_token="0"))
    t.save(os.path.join(d, "tokenizer.json"))
    json.dump({"tokenizer_class": "PreTrainedTokenizerFast"}, open(os.path.join(d, "tokenizer_config.json"), "w"))


def do_genai(out, names):
    quiet()
    import onnxruntime_genai
    b = os.path.join(os.path.dirname(onnxruntime_genai.__file__), "models")
    for arch in names:
        a = ARCHS[arch]
        for prec in ("fp32", "int4"):
            t0 = time.time()
            d = cell(out, arch, f"genai-{prec}")
            t = tempfile.mkdtemp()
            tokenizer(os.path.join(out, arch, "hf5"))
            r = subprocess.run([sys.executable, "builder.py", "-m", os.path.abspath(os.path.join(out, arch, "hf5")), "-o", t, "-p", prec, "-e", "cpu", "-c", tempfile.mkdtemp()],
                               cwd=b, capture_output=True, text=True)
            try:
                if r.returncode or not os.path.exists(os.path.join(t, "model.onnx")):
                    raise RuntimeError(r.stderr[-400:])
                for f in ("model.onnx", "model.onnx.data"):
                    if os.path.exists(os.path.join(t, f)):
                        shutil.copy(os.path.join(t, f), d)
                shutil.copy(os.path.join(out, arch, "hf5", "config.json"), d)
                s = session(os.path.join(d, "model.onnx"))
                base = {k: v.numpy() for k, v in maker(a)().items()}
                base["attention_mask"] = np.ones_like(base["attention_mask"])
                meta = finish(d, s, feeds(s, base, json.load(open(os.path.join(d, "config.json"))), 0), "logits", "causal-lm")
            except Exception as e:  # noqa: BLE001
                meta = {"ok": False, "error": f"{type(e).__name__}: {str(e)[-500:]}"}
            meta.update(arch=arch, column=f"genai-{prec}", major=5)
            done(d, meta, t0)
            shutil.rmtree(t)


def derive(how, src, dst, arch, inputs):
    import onnx
    import onnxruntime as ort
    if how == "ort-ext":
        so = ort.SessionOptions()
        so.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        so.optimized_model_filepath = dst
        so.log_severity_level = 4
        ort.InferenceSession(src, so, providers=["CPUExecutionProvider"])
    elif how == "ort-opt":
        from onnxruntime.transformers import optimizer
        from onnxruntime.transformers.fusion_options import FusionOptions
        cfg = json.load(open(os.path.join(os.path.dirname(src), "config.json")))
        mt = {"bert": "bert", "roberta": "bert", "xlm-roberta": "bert", "distilbert": "bert", "electra": "bert", "gpt2": "gpt2", "t5": "t5", "mt5": "t5", "bart": "bart",
              "vit": "vit", "whisper": "bart"}.get(cfg["model_type"], "gpt2")
        o = optimizer.optimize_model(src, model_type=mt, num_heads=4, hidden_size=32, opt_level=0, optimization_options=FusionOptions(mt))
        o.save_model_to_file(dst)
    elif how == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16
        m = onnx.load(src)
        onnx.save(convert_float_to_float16(m, keep_io_types=True), dst)
    elif how == "fp16io":
        from onnxruntime.transformers.float16 import convert_float_to_float16
        m = onnx.load(src)
        onnx.save(convert_float_to_float16(m, keep_io_types=False), dst)
    elif how == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic
        quantize_dynamic(src, dst, weight_type=QuantType.QInt8)
    elif how == "uint8pc":
        from onnxruntime.quantization import QuantType, quantize_dynamic
        quantize_dynamic(src, dst, weight_type=QuantType.QUInt8, per_channel=True)
    elif how == "qdq":
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class R(CalibrationDataReader):
            def __init__(self):
                self.it = iter([inputs] * 2)

            def get_next(self):
                return next(self.it, None)

        quantize_static(src, dst, R(), quant_format=QuantFormat.QDQ, weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8)
    elif how == "q4":
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
        q = MatMulNBitsQuantizer(onnx.load(src), block_size=32, is_symmetric=True)
        q.process()
        q.model.save_model_to_file(dst)
    elif how == "q4f16":
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
        from onnxruntime.transformers.float16 import convert_float_to_float16
        q = MatMulNBitsQuantizer(onnx.load(src), block_size=32, is_symmetric=True)
        q.process()
        onnx.save(convert_float_to_float16(q.model.model, keep_io_types=True), dst)
    elif how == "bnb4":
        from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
        q = MatMulBnb4Quantizer(onnx.load(src), MatMulBnb4Quantizer.NF4, 32)
        q.process()
        q.model.save_model_to_file(dst)
    elif how == "slim":
        import onnxslim
        onnxslim.slim(src, dst)
    elif how == "sim":
        import onnxsim
        m, ok = onnxsim.simplify(onnx.load(src))
        onnx.save(m, dst)
    else:
        raise ValueError(how)


def do_derive(out, names, srcs, hows):
    import onnxruntime  # noqa: F401
    from safetensors.numpy import load_file
    logging.disable(logging.CRITICAL)
    for arch in names:
        a = ARCHS[arch]
        for src in srcs:
            sd = os.path.join(out, arch, src)
            if not os.path.exists(os.path.join(sd, "meta.json")) or not json.load(open(os.path.join(sd, "meta.json"))).get("ok"):
                continue
            sm = json.load(open(os.path.join(sd, "meta.json")))
            inp = load_file(os.path.join(sd, "inputs.safetensors"))
            f = {k[6:]: v for k, v in inp.items() if k.startswith("input/")}
            ref = inp.get("base/" + sm["output"])
            for how in hows:
                t0 = time.time()
                col = f"{src}+{how}"
                d = cell(out, arch, col)
                shutil.copy(os.path.join(sd, "config.json"), d)
                dst = os.path.join(d, "model.onnx")
                try:
                    derive(how, os.path.abspath(os.path.join(sd, "model.onnx")), dst, arch, f)
                    s = session(dst)
                    types = {i.name: NP[i.type] for i in s.get_inputs()}
                    g = {k: v.astype(types[k]) for k, v in f.items() if k in types}
                    try:
                        meta = finish(d, s, g, sm["output"], sm["loss"], ref)
                    except Exception as e:  # noqa: BLE001
                        raise RuntimeError(f"onnxruntime cannot run what was made: {str(e)[:300]}") from e
                except BaseException as e:  # noqa: BLE001
                    if isinstance(e, KeyboardInterrupt):
                        raise
                    meta = {"ok": False, "error": f"{type(e).__name__}: {str(e)[:500]}"}
                meta.update(arch=arch, column=col, major=sm.get("major"))
                done(d, meta, t0)


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("out")
    ap.add_argument("kind")
    ap.add_argument("archs", nargs="*")
    ap.add_argument("--exporters", default="dynamo,dynamo23,ts")
    ap.add_argument("--src", default="tf4-ts,tf4-dynamo")
    ap.add_argument("--how", default="ort-ext,ort-opt,fp16,int8,qdq,q4,slim,sim")
    x = ap.parse_args()
    if x.kind == "torch":
        do_torch(x.out, x.archs, x.exporters.split(","))
    elif x.kind == "optimum":
        do_optimum(x.out, x.archs)
    elif x.kind == "genai":
        do_genai(x.out, x.archs)
    elif x.kind == "derive":
        do_derive(x.out, x.archs, x.src.split(","), x.how.split(","))
