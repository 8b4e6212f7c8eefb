#!/usr/bin/env python3
"""Measures what docs/ has tables of, and writes the tables. Needs Python's standard library, a release build, and a machine at rest.

usage: figures.py quantized REWRITE [--write]     the loss that a float model and its quantized ones learn to: a minute
       figures.py speed REWRITE MODEL [--write]   tokens a second and peak memory of training MODEL: about ten minutes

REWRITE is the binary (`cargo build --release`). MODEL is a Qwen3-shaped export. One of the size of Qwen3-0.6B is written by
`cargo run --release --example synth -- big/model.onnx 28 151936`: 3 GB, with weights that are zeros, which take as long as others.

The table is printed; with --write it also takes the place of the one between `<!-- figures: NAME -->` and `<!-- end -->` in its page.
"""
import datetime
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SKILL = ROOT / "fixtures" / "skill"

# The job of fixtures/jobs/word-problems.json.
LORA = "math=lora[r=8,alpha=16,attn_matrices=['q','k','v'],intermediate_lora=True,output_lora=True]"
WORDS = ["--data", str(SKILL / "train.jsonl"), "--tokenizer", str(SKILL / "tokenizer.json"),
         "--prompt-template", "Question: {{ question }}\n\nAnswer:", "--completion-template", " {{ answer }} <|endoftext|>"]
MODELS = {"float": "model.onnx", "four bits (`MatMulNBits`)": "model.int4.onnx", "eight bits (`quantize_dynamic`)": "model.int8.onnx"}

# Variants of the article's job: what stands in the table, and the flags.
ARTICLE = ["--interface", "qwen3", "--adapter", "seq_bn[reduction_factor=32]", "--learning-rate", "1e-4"]
PADDED = ["--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "8"]
PACKED = ["--packing", "--max-seq-length", "2048", "--per-device-train-batch-size", "1", "--gradient-accumulation-steps", "2"]
VARIANTS = [
    ("padded, `--bf16`", [*PADDED, "--bf16", "true"]),
    ("padded, f32", PADDED),
    ("`--packing`, rows of 2048 tokens, `--bf16`", [*PACKED, "--bf16", "true"]),
    ("the same with `--gradient-checkpointing`", [*PACKED, "--bf16", "true", "--gradient-checkpointing"]),
]
STEPS = 2


def run(*command):
    """What a command prints on stdout, and its peak memory in bytes."""
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(command, stdout=out, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            sys.exit(f"this failed: {' '.join(map(str, command))}")
        out.seek(0)
        return out.read().decode(), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def number(pattern, text):
    found = re.search(pattern, text)
    if found is None:
        sys.exit(f"{pattern!r} is not in:\n{text}")
    return float(found.group(1))


def quantized(rewrite):
    lines = ["| weights | loss before | loss after 300 steps |", "|---|---|---|"]
    for what, name in MODELS.items():
        model = str(SKILL / name)
        test = ["--data", str(SKILL / "test.jsonl"), *WORDS[2:]]
        with tempfile.TemporaryDirectory() as out:
            run(rewrite, "train", model, "--interface", "qwen3", "--adapter", LORA, *WORDS, "--per-device-train-batch-size", "4",
                "--learning-rate", "5e-3", "--max-steps", "300", "--output-dir", out + "/run", "--quiet")
            losses = []
            for adapter in ([], ["--adapter", out + "/run/math"]):
                text, _ = run(rewrite, "eval", model, "--interface", "qwen3", *test, *adapter, "--quiet")
                losses.append(number(r"(?m)^loss\s+([0-9.e-]+)", text))
        lines.append(f"| {what} | {losses[0]:.4f} | {losses[1]:.4f} |")
    return lines, "one run each"


def speed(rewrite, model):
    lines = ["| | tokens/s | peak memory |", "|---|---|---|"]
    draw = random.Random(7)
    # About as long as GSM8K's questions with their answers in Qwen3's tokens.
    lengths = [draw.randint(95, 295) for _ in range(256)]
    with tempfile.TemporaryDirectory() as folder:
        rows = pathlib.Path(folder, "rows.jsonl")
        rows.write_text("".join(f'{{"input_ids": {[draw.randint(1, 900) for _ in range(n)]}}}\n' for n in lengths))
        for at, (what, flags) in enumerate(VARIANTS):
            text, peak = run(rewrite, "train", model, "--data", str(rows), *ARTICLE, *flags, "--max-steps", str(STEPS),
                             "--output-dir", f"{folder}/{at}", "--save-strategy", "no", "--quiet")
            lines.append(f"| {what} | {number(r', ([0-9.]+) tokens/s', text):.0f} | {peak / 1e9:.1f} GB |")
    size = sum(f.stat().st_size for f in pathlib.Path(model).parent.iterdir() if f.name.startswith(pathlib.Path(model).stem))
    return lines, f"{STEPS} steps each, a model of {size / 1e9:.1f} GB, rows of {sum(lengths) / len(lengths):.0f} tokens on average"


def machine():
    try:
        cpus = pathlib.Path("/proc/cpuinfo").read_text()
        name = re.search(r"model name\s*:\s*(.*)", cpus).group(1)
    except (OSError, AttributeError):
        name = os.uname().machine
    return f"{os.cpu_count()} cores of {name}"


def main():
    args = [a for a in sys.argv[1:] if a != "--write"]
    tables = {"quantized": (quantized, 2), "speed": (speed, 3)}
    if not args or args[0] not in tables or len(args) != tables[args[0]][1]:
        sys.exit(__doc__)
    name, (make, _) = args[0], tables[args[0]]
    version, _ = run(args[1], "--version")
    lines, how = make(*args[1:])
    day = datetime.date.today().isoformat()
    table = "\n".join([*lines, "", f"{version.strip()}, {machine()}, {day}; {how}."])
    print(table)
    if "--write" in sys.argv:
        page = ROOT / "docs" / f"{name}.md"
        text, count = re.subn(rf"(?s)(<!-- figures: {name} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}\n{table}\n\n{m[2]}", page.read_text())
        if count != 1:
            sys.exit(f"{page} has no place for it")
        page.write_text(text)


if __name__ == "__main__":
    main()
