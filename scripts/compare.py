#!/usr/bin/env python3
"""Measures training beside PEFT and Adapters (both on PyTorch) on the same rows, in turn, and prints medians and ratios.

usage: compare.py REWRITE [--job NAME ...] [--rounds 5] [--threads N] [--work FOLDER]

Needs torch, transformers, adapters, peft, onnx and onnxscript (`pip install`), a release build, and a machine at rest. Models
have random weights, so nothing is downloaded. Each contender runs in a process of its own, which says how long its steps took, without
loading and compiling; peak memory is that of the process.

jobs:
  encoder   the shape of MiniLM-L6 (22 M parameters), ten classes, 1,592 short texts, LoRA, batches of 16, one epoch
  lora      a Qwen3 of 41 M parameters, LoRA r=8 on q and v, 2 x 256 tokens
  seq_bn    the same with a bottleneck adapter
"""
import argparse
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

JOBS = {"encoder": ["adapters", "peft"], "lora": ["adapters", "peft"], "seq_bn": ["adapters"]}
RATE = "1e-3"


def base(job):
    """The model of a job, with random weights."""
    import torch
    from transformers import BertConfig, BertModel, Qwen3Config, Qwen3ForCausalLM
    torch.manual_seed(0)
    if job == "encoder":
        return BertModel(BertConfig(vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                                    intermediate_size=1536), add_pooling_layer=False).eval()
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=16000, hidden_size=512, intermediate_size=1536, num_hidden_layers=8,
                                        num_attention_heads=8, num_key_value_heads=4, head_dim=64, tie_word_embeddings=True)).eval()


def rows(job):
    draw = random.Random(1)
    if job == "encoder":
        lengths = [max(4, min(64, int(draw.lognormvariate(2.6, 0.45)))) for _ in range(1592)]
        return [{"input_ids": [101, *(draw.randrange(1000, 30000) for _ in range(n - 2)), 102], "label": draw.randrange(10)} for n in lengths]
    return [{"input_ids": [draw.randrange(5, 15000) for _ in range(256)]} for _ in range(12)]


def export(job, folder):
    """Writes the model, its configuration and the rows, unless they are there."""
    import torch
    folder.mkdir(parents=True, exist_ok=True)
    rows_file = folder / "rows.jsonl"
    rows_file.write_text("".join(json.dumps(r) + "\n" for r in rows(job)))
    if (folder / "model.onnx").exists():
        return
    model = base(job)
    output = "last_hidden_state" if job == "encoder" else "logits"

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, input_ids, attention_mask):
            more = {} if output != "logits" else {"use_cache": False}
            return getattr(self.inner(input_ids=input_ids, attention_mask=attention_mask, **more), output)

    ids = torch.randint(5, 90, (2, 12))
    axes = {0: torch.export.Dim("batch", min=1, max=256), 1: torch.export.Dim("sequence", min=2, max=512)}
    shapes = {"input_ids": axes, "attention_mask": axes}
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    program = torch.onnx.export(Wrapped(), (), kwargs=feeds, dynamo=True, dynamic_shapes=shapes, opset_version=18, output_names=[output],
                                verbose=False)
    program.save(str(folder / "model.onnx"), external_data=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))


def tokens(job):
    return sum(len(r["input_ids"]) for r in rows(job))


def torch_run(job, who, threads):
    """One epoch of the job in PyTorch; prints seconds."""
    import torch
    torch.set_num_threads(threads)
    from transformers import BertForSequenceClassification
    model = base(job)
    if job == "encoder":
        config = model.config
        config.num_labels = 10
        whole = BertForSequenceClassification(config)
        whole.bert.load_state_dict(model.state_dict(), strict=False)
        model = whole
    if who == "peft":
        import peft
        kinds = {"encoder": ("SEQ_CLS", ["query", "value"])}
        task, targets = kinds.get(job, ("CAUSAL_LM", ["q_proj", "v_proj"]))
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type=task))
    else:
        import adapters
        adapters.init(model)
        config = adapters.LoRAConfig(r=8, alpha=16) if job != "seq_bn" else "seq_bn"
        model.add_adapter("a", config=config)
        model.train_adapter("a")
        model.set_active_adapters("a")
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=float(RATE))
    size = 16 if job == "encoder" else 2
    order = list(range(len(rows(job))))
    random.Random(2).shuffle(order)
    all_rows = rows(job)
    started = None
    for at in range(0, len(order), size):
        if at == size:
            started = time.perf_counter()
        batch = [all_rows[i] for i in order[at:at + size]]
        longest = max(len(r["input_ids"]) for r in batch)
        pad = [longest - len(r["input_ids"]) for r in batch]
        ids = torch.tensor([r["input_ids"] + [0] * n for r, n in zip(batch, pad)])
        mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * n for r, n in zip(batch, pad)])
        labels = torch.tensor([r["label"] for r in batch]) if job == "encoder" else ids
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    steps = -(-len(order) // size)
    print("seconds", (time.perf_counter() - started) * steps / (steps - 1))


def measured(command):
    """Seconds that a contender says, and its peak memory in bytes."""
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read().decode(errors="replace")
        if child.returncode != 0:
            sys.exit(f"this failed: {' '.join(command)}\n{text}")
    found = re.findall(r"seconds ([0-9.e-]+)", text)
    return (float(found[-1]) if found else None), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def ours(rewrite, job, folder, threads):
    model = str(folder / "model.onnx")
    adapter = "seq_bn" if job == "seq_bn" else "lora[r=8,alpha=16]"
    out = folder / "out"
    task = ["--task", "classification"] if job == "encoder" else ["--task", "causal-lm"]
    size = "16" if job == "encoder" else "2"
    command = [rewrite, "train", model, "--adapter", adapter, *task, "--data", str(folder / "rows.jsonl"), "--num-train-epochs", "1",
               "--per-device-train-batch-size", size, "--learning-rate", RATE, "--logging-steps", "1", "--output-dir", str(out), "--force",
               "--report-samples", "0", "--threads", str(threads), "--quiet"]
    _, memory = measured(command)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return next(e["runtime"] for e in log if e["event"] == "end"), memory


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rewrite")
    parser.add_argument("--job", action="append", choices=sorted(JOBS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("compare"))
    parser.add_argument("--as", dest="who", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.who:
        return torch_run(args.job[0], args.who, args.threads)
    print("| job | contender | tokens/s (median) | spread | peak memory | time, ours = 1 |\n|---|---|---|---|---|---|")
    for job in args.job or JOBS:
        folder = args.work / job
        export(job, folder)
        count = tokens(job)
        found = {who: [] for who in ["onnx-graft", *JOBS[job]]}
        for _ in range(args.rounds):
            for who, runs in found.items():
                if who == "onnx-graft":
                    runs.append(ours(args.rewrite, job, folder, args.threads))
                else:
                    runs.append(measured([sys.executable, __file__, args.rewrite, "--as", who, "--job", job, "--threads", str(args.threads),
                                          "--work", str(folder)]))
        own = statistics.median(t for t, _ in found["onnx-graft"])
        for who, runs in found.items():
            times = [t for t, _ in runs]
            middle = statistics.median(times)
            spread = f"{count / max(times):.0f}–{count / min(times):.0f}"
            memory = statistics.median(m for _, m in runs) / 2**20
            print(f"| {job} | {who} | {count / middle:.0f} | {spread} | {memory:.0f} MiB | {middle / own:.2f} |", flush=True)


if __name__ == "__main__":
    main()
