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
# Why a cell is empty, by column.
EMPTY = [
    (r".*\+.*", "made for twelve architectures, of all kinds of blocks, from either exporter; from optimum's files for three"),
    (r"tf[45]-dynamo23", "tried for the same twelve architectures"),
    (r"tf[45]-(ts|dynamo)", "this version of transformers does not know the architecture, or cannot build or run the tiny configuration"),
    (r"tf4-(dynamo|ts)-(f16|bf16)", "tried for one architecture of each kind"),
    (r"optimum", "optimum writes more than one file for an encoder-decoder (the columns behind this one); what only transformers 5 knows was not tried"),
    (r"optimum-(decoder|encoder)", "optimum writes one file for a model that is no encoder-decoder"),
    (r"optimum-past.*", "a model without a decoder has no cache; optimum writes one file, or several, as without a cache"),
    (r"genai-.*", "onnxruntime-genai's builder was tried for the decoders that it has a class for"),
]
# What stands for an exporter's long text.
SAID = [
    (r"GuardOnDataDependentSymNode", "torch.export cannot decide a branch that depends on data"),
    (r"Cannot view a tensor w", "torch's decomposition for ONNX cannot view a tensor that is not contiguous"),
    (r"convert the exported program to an ONNX model", "torch has no translation to ONNX for one of its operators"),
    (r"custom or unsupported architecture", "optimum has no export configuration for it"),
    (r"model type `\S+` but Transformers does not recognize", "the transformers that optimum needs does not know it"),
    (r"is not supported by this version of the model builder|NotImplementedError: The .* model is not currently supported", "the builder has no class for it"),
]
# What a message does not say of itself.
MEANS = [
    (r"^input `target`: axis 1: `sequence_length` is", "the file declares its output as long as the samples that go in, which it is not"),
    (r"made by Conv in \d+ groups", "a convolution in groups has no one matrix that LoRA or the q, k and v of an interface mean"),
    (r"^the scores are made by ScatterND", "scores that are put together from sliding chunks have no row of keys that a prefix could stand in front of"),
]


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


def exporter_said(meta):
    """The exporter's error in one sentence."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(meta.get("error", "no message")))
    if 'File "' in text and "## Exception summary" not in text:  # the end of a traceback
        text = text.strip().splitlines()[-1]
    for pattern, sentence in SAID:
        if re.search(pattern, text):
            return sentence
    runs = "onnxruntime cannot run it: " if "ONNXRuntimeError" in text else ""
    if "## Exception summary" in text:
        step = re.search(r"Failed to (.*?)\. This is step", text)
        text = (step.group(1) if step else "export") + " fails: " + text.split("## Exception summary", 1)[1]
    text = re.sub(r"(?<=')[^' ]+/(\w+)'", r"\1'", text) if runs else text
    text = re.sub(r"\w+::\w+::\w+\([^)]*\) |\w+ onnxruntime::\w+::\w+\([^)]*\) |_?Name:'[^']*' |Status Message: ", "", text) if runs else text
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |Non-zero status code returned while running |onnxruntime cannot run what was made: |/\S*/onnxruntime/core/\S+ |<class '|'>|/tmp/\S+", " ", text)
    text = re.sub(r"^\w+: +(?=\S)", "", " ".join(text.split())) if runs else " ".join(text.split())
    whole = len(str(meta.get("error", ""))) < 595 and len(text) < 260
    text = text if whole else text[:260].rsplit(" ", 1)[0]
    return (runs + text).rstrip(". :(")


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
            narrow = any(k in os.path.basename(cell) for k in ("+", "int4", "f16"))
            float_model = tensors.get("base/" + meta["output"]) if narrow else None
            # Where torch's outputs are not there, the cell that this one was made of.
            of = os.path.basename(cell).split("+")[0].replace("int4", "fp32")
            wide = os.path.join(os.path.dirname(cell), of, "model.onnx")
            if narrow and float_model is None and wide != model and os.path.exists(wide):
                float_model = reference(wide, feeds, meta["output"])
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
    found, failed = {}, collections.defaultdict(list)
    for arch, column, cell, meta in cells(out, [], columns):
        path = os.path.join(cell, "judged.json")
        if not meta.get("ok"):
            found[arch, column] = None
            failed[exporter_said(meta)].append(f"{arch} ({column})")
        elif os.path.exists(path):
            found[arch, column] = json.load(open(path))
    archs, cols = sorted({a for a, _ in found}), sorted({c for _, c in found})
    tried = [r for r in found.values() if r]
    text = ["# Models", ""]
    text += ["Which architectures are adapted, run and trained, in the form that which exporter gives them: tiny models with random weights, no",
             "interface named. Written by `tests/reach/models.py` on " + today + "; do not edit it by hand. `rewrite inspect model.onnx` ends with the",
             "same for a file of yours: what can be adapted, with which methods, and why not with others.", ""]
    text += [f"- {letter}: {about}" for letter, about in LETTERS.items()]
    text += ["- `-` in the place of a letter: not; the reason is below. `x`: the exporter fails, or onnxruntime cannot run what it writes; the reason is in the last list but one. Empty: not",
             "  tried; the last list says why.", "",
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
            why = re.sub(r"`(/|node_)[^`]*`", "a node", why)
            why += next((f" ({means})" for pattern, means in MEANS if re.search(pattern, why)), "")
            reasons[letter, why].append(f"{arch} ({column})")
    text += ["", "## Why not", ""]
    for (letter, why), where in sorted(reasons.items(), key=lambda x: ("SART".index(x[0][0]), -len(x[1]), x[0][1])):
        text.append(f"- {letter}, {', '.join(where)}: {why}")
    text += ["", "## Why `x`", "", "What the exporter says, or onnxruntime of what it writes.", ""]
    text += [f"- {', '.join(where)}: {why}" for why, where in sorted(failed.items(), key=lambda x: (-len(x[1]), x[0]))]
    text += ["", "## Why empty", ""]
    text += [f"- {', '.join(of)}: {why}" for pattern, why in EMPTY if (of := [c for c in cols if next(p for p, _ in EMPTY if re.fullmatch(p, c)) == pattern])]
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
