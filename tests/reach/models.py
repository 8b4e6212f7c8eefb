#!/usr/bin/env python3
"""Makes MODELS.md: which architectures, in the form that which exporter gives them, are adapted, run and trained.

usage: models.py OUT REWRITE [ARCH...] [--cols REGEX] [--force]     judges what `export.py` wrote to OUT
       models.py OUT --write MODELS.md                              writes the table of what was judged, with its date

A cell is OUT/ARCH/COLUMN/ with model.onnx, inputs.safetensors and meta.json; what is found goes to judged.json there. No interface is
named: the model type of config.json decides, or the graph. Needs numpy, safetensors and onnxruntime.
"""
import argparse, collections, datetime, json, os, re, shutil, subprocess, tempfile

import numpy as np
from safetensors.numpy import load_file

METHODS = ["lora[r=4,alpha=8]", "seq_bn[reduction_factor=4]", "prefix_tuning[prefix_length=3,bottleneck_size=8]"]
LETTERS = {"S": "layers are found without an interface being named", "A": "a LoRA, a bottleneck and a prefix attach, one behind the other",
           "R": "`rewrite run` computes what onnxruntime does, to 1e-3; of quantized and half-precision files, or is as near to the model in float as onnxruntime is", "T": "`rewrite train` trains a LoRA, two steps"}
TOLERANCE = 1e-3
COLUMNS = {"ts": "torch.onnx.export, TorchScript", "dynamo": "torch.onnx.export, dynamo", "dynamo23": "the same with opset 23", "optimum": "optimum",
           "optimum-past": "optimum with cache"}


def call(rewrite, *args):
    env = {**os.environ, "RAYON_NUM_THREADS": "1"}
    try:
        done = subprocess.run(["nice", "-n", "5", rewrite, *map(str, args)], capture_output=True, text=True, timeout=300, env=env)
        return done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        return 124, "", "error[timeout]: not done in 300 s"


def sentence(text):
    """The first error, with the first of its notes."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [i for i, line in enumerate(lines) if line.startswith("error")]
    if not errors:
        return lines[0][:300] if lines else "no message"
    found = re.sub(r"^error(\[[\w-]+\])?: ", "", lines[errors[0]])
    notes = [n for n in lines[errors[0] + 1:] if not n.startswith(("help", "in ", "caused", "error"))]
    return "; ".join([found] + notes[:1])[:300]


def reference(path, feeds, output):
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return session.run([output], {k: v for k, v in feeds.items() if k in names})[0]


def judge(rewrite, cell):
    meta = json.load(open(os.path.join(cell, "meta.json")))
    model, inputs = os.path.join(cell, "model.onnx"), os.path.join(cell, "inputs.safetensors")
    passed, why = "", {}
    with tempfile.TemporaryDirectory() as work:
        code, out, err = call(rewrite, "inspect", model, "--json")
        adapting = json.loads(out)["adapting"] if code == 0 else None
        if adapting and adapting["interface"]:
            passed += "S"
        else:
            why["S"] = sentence(err) if code else "; ".join(adapting["notes"][:2])[:300]
        adapters = [part for i, method in enumerate(METHODS) for part in ("-a", f"a{i}={method}")]
        code, _, err = call(rewrite, *adapters, model, "-o", os.path.join(work, "adapted.onnx"))
        if code == 0:
            passed += "A"
        elif "S" in passed:
            why["A"] = sentence(err)
        tensors = load_file(inputs)
        feeds = {k[6:]: v for k, v in tensors.items() if k.startswith("input/")}
        got = os.path.join(work, "out.safetensors")
        code, _, err = call(rewrite, "run", model, "--inputs", inputs, "--outputs", got)
        if code:
            why["R"] = sentence(err)
        else:
            want, have = reference(model, feeds, meta["output"]), load_file(got)[meta["output"]]
            far = float(np.abs(want.astype(np.float64) - have).max()) if want.shape == have.shape else float("inf")
            # Narrow types round in another order, and onnxruntime's 8-bit products saturate on processors without VNNI: what counts there
            # is how far each is from the model in float.
            float_model = tensors.get("base/" + meta["output"]) if any(k in os.path.basename(cell) for k in ("+", "int4")) else None
            away = lambda x: float(np.abs(x.astype(np.float64) - float_model).max())
            near = float_model is not None and float_model.shape == want.shape == have.shape and away(have) <= 1.1 * away(want) + TOLERANCE
            if far <= TOLERANCE or near:
                passed += "R"
            else:
                why["R"] = f"differs from onnxruntime by {far:.3g}"
        if "S" in passed:
            args = ["train", model, "--adapter", METHODS[0], "--max-steps", "2", "--output-dir", os.path.join(work, "t")]
            if "input_ids" in feeds and meta["loss"] == "causal-lm":
                rows = os.path.join(work, "rows.jsonl")
                with open(rows, "w") as f:
                    for i in range(4):
                        ids = [int(t) for t in np.random.default_rng(i).integers(3, 60, 6 + i)]
                        f.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
                args += ["--data", rows]
            else:
                args += ["--data", inputs, "--loss", "mse"]
            code, _, err = call(rewrite, *args)
            if code:
                why["T"] = sentence(err)
            else:
                passed += "T"
    return {"passed": passed, "why": why, "layers": adapting and adapting["layers"], "methods": {m["method"]: m["why"] for m in adapting["methods"]} if adapting else {}}


def cells(out, archs, columns):
    for arch in archs or sorted(os.listdir(out)):
        folder = os.path.join(out, arch)
        for column in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            meta = os.path.join(folder, column, "meta.json")
            if os.path.exists(meta) and re.fullmatch(columns, column):
                yield arch, column, os.path.join(folder, column), json.load(open(meta))


def table(out, columns, today):
    found = {}
    for arch, column, cell, meta in cells(out, [], columns):
        path = os.path.join(cell, "judged.json")
        if not meta.get("ok"):
            found[arch, column] = None
        elif os.path.exists(path):
            found[arch, column] = json.load(open(path))
    archs, cols = sorted({a for a, _ in found}), sorted({c for _, c in found})
    tried = [r for r in found.values() if r]
    text = ["# Models", ""]
    text += ["Which architectures are adapted, run and trained, in the form that which exporter gives them: tiny models with random weights, no",
             "interface named. Written by `tests/reach/models.py` on " + today + "; do not edit it by hand. `rewrite inspect model.onnx` ends with the",
             "same for a file of yours: what can be adapted, with which methods, and why not with others.", ""]
    text += [f"- {letter}: {about}" for letter, about in LETTERS.items()]
    text += ["- `-` in the place of a letter: not; the reason is below. `x`: the exporter fails, or onnxruntime cannot run what it writes. Empty: not tried.", "",
             "Columns: `tf4` and `tf5` are transformers 4.51 and 5.23; `ts` and `dynamo` are the two exporters of torch. Behind a `+`, what was made of",
             "such a file: `fp16` and `fp16io` by onnxruntime's float16 converter, with inputs and outputs in f32 or not; `int8` and `uint8pc` by its",
             "dynamic quantization, per tensor and per channel; `qdq` by its static one; `q4`, `q4f16` and `bnb4` by its 4-bit quantizers.", ""]
    text += ["| | " + " | ".join(cols) + " |", "|---|" + "---|" * len(cols)]
    for arch in archs:
        row = []
        for column in cols:
            r = found.get((arch, column), "")
            row.append("" if r == "" else "x" if r is None else "".join(k if k in r["passed"] else "-" for k in LETTERS))
        text.append(f"| {arch} | " + " | ".join(row) + " |")
    text += ["", "| of the files that were exported | " + " | ".join(cols) + " | all |", "|---|" + "---|" * (len(cols) + 1)]
    for label, test in [("number", lambda r: True)] + [(k, lambda r, k=k: k in r["passed"]) for k in LETTERS] + [("all four", lambda r: len(r["passed"]) == len(LETTERS))]:
        counts = [sum(test(r) for (_, c), r in found.items() if r and c == column) for column in cols]
        text.append(f"| {label} | " + " | ".join(map(str, counts)) + f" | {sum(test(r) for r in tried)} |")
    reasons = collections.defaultdict(list)
    for (arch, column), r in found.items():
        for letter, why in (r["why"] if r else {}).items():
            why = re.sub(r"`/[^`]*`", "a node", why)
            reasons[letter, why].append(f"{arch} ({column})")
    text += ["", "## Why not", ""]
    for (letter, why), where in sorted(reasons.items(), key=lambda x: ("SART".index(x[0][0]), -len(x[1]), x[0][1])):
        text.append(f"- {letter}, {', '.join(where)}: {why}")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("out")
    ap.add_argument("rewrite", nargs="?")
    ap.add_argument("archs", nargs="*")
    ap.add_argument("--cols", default=".*")
    ap.add_argument("--force", action="store_true")
    ap.add_argument("--write")
    x = ap.parse_args()
    if x.write:
        open(x.write, "w").write(table(x.out, x.cols, datetime.date.today().isoformat()))
    else:
        for arch, column, cell, meta in cells(x.out, x.archs, x.cols):
            path = os.path.join(cell, "judged.json")
            if meta.get("ok") and (x.force or not os.path.exists(path)):
                result = judge(os.path.abspath(x.rewrite), cell)
                json.dump(result, open(path, "w"), indent=1)
                print(f"{arch:20} {column:16} {result['passed']:5} {result['why']}", flush=True)
