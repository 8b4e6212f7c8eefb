"""A program that a type checker looks at; nobody runs it."""

from pathlib import Path

import numpy as np
import onnx_graft


def all_of_it(model: Path) -> None:
    attached = onnx_graft.attach(model, {"a": "lora[r=8]"}, interface="qwen3", format="both", force=True)
    names: list[str] = attached.adapters
    report = onnx_graft.train(model, adapters=names, data=model.parent, output_dir="out", learning_rate=1e-3, bf16=True, report_to=["jsonl"])
    losses: list[float] = report.losses
    onnx_graft.train({"model": model, "adapter": "lora"}, on_event=lambda event: print(event["event"], losses))
    onnx_graft.merge(attached.model, names[0], model.with_suffix(".merged.onnx"), weights=[0.5], combination_type="ties")
    measured: float = onnx_graft.evaluate(model, adapters=names, data="x.jsonl").metrics["loss"]
    outputs = onnx_graft.run(model, {"input_ids": np.zeros((1, 2), dtype=np.int64)}, outputs=["logits"], grad=True)
    print(outputs["logits"].shape, measured, onnx_graft.generate(model, "a", max_new_tokens=3).texts[0])
    onnx_graft.train(model, learning_rate="fast")  # type: ignore[arg-type]
    onnx_graft.train(model, learning_rat=1.0)  # type: ignore[call-arg]
    try:
        onnx_graft.command("diff", model, "b.onnx")
    except onnx_graft.Error as error:
        print(error.code, error.help, error.findings[0]["message"])
