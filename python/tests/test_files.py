"""What reads and writes files: the commands as calls."""

import json
import os
import subprocess
import sys

import onnx_graft
import pytest


def test_attach_writes_a_model_and_folders(desk):
    said = []
    report = onnx_graft.attach(desk / "model.onnx", {"a": "lora[r=2]", "b": "seq_bn"}, interface="qwen3", on_event=said.append)
    assert os.path.exists(report.model)
    assert [os.path.basename(p) for p in report.adapters] == ["a", "b"]
    assert [row["name"] for row in report.summary] == ["a", "b"]
    assert report.selected["layers"] == 2
    assert any(e["event"] == "detail" and e["message"].startswith("read ") for e in said)


def test_an_error_has_its_parts(desk):
    with pytest.raises(onnx_graft.Error) as caught:
        onnx_graft.attach(desk / "model.onnx", "lora[r=two]")
    error = caught.value
    assert error.code and error.message in str(error)
    assert error.findings[0]["severity"] == "error"
    onnx_graft.attach(desk / "model.onnx", "lora", interface="qwen3")
    with pytest.raises(onnx_graft.Error) as caught:
        onnx_graft.attach(desk / "model.onnx", "lora", interface="qwen3")
    assert caught.value.code == "exists" and "--force" in caught.value.help
    onnx_graft.attach(desk / "model.onnx", "lora", interface="qwen3", force=True)


def test_a_wrong_option_is_an_error_of_usage(desk):
    with pytest.raises(onnx_graft.Error) as caught:
        onnx_graft.merge(desk / "model.onnx", "lora", desk / "m.onnx", no_such_option=1)
    assert caught.value.kind == "usage" and "--no-such-option" in caught.value.message


def test_merge_and_diff(desk, fixtures):
    onnx_graft.train(
        desk / "model.onnx",
        adapters="lora[r=2]",
        data=fixtures / "train/ids.jsonl",
        output_dir=desk / "out",
        max_steps=2,
        learning_rate=1e-2,
    )
    merged = onnx_graft.merge(desk / "model.onnx", desk / "out/lora", desk / "merged.onnx")
    assert os.path.samefile(merged.model, desk / "merged.onnx")
    assert onnx_graft.command("diff", desk / "model.onnx", desk / "model.onnx") != onnx_graft.command("diff", desk / "model.onnx", desk / "merged.onnx")


def test_convert_there_and_back(desk):
    report = onnx_graft.attach(desk / "model.onnx", {"a": "lora[r=2]"}, interface="qwen3")
    onnx_graft.convert(report.adapters[0], "peft", desk / "peft")
    assert json.loads((desk / "peft/adapter_config.json").read_text())["peft_type"] == "LORA"
    back = onnx_graft.convert(desk / "peft", "adapterhub", desk / "back", interface="qwen3", name="a")
    assert back.name == "a"


def test_exported_adapters_are_files(desk):
    made = onnx_graft.attach(desk / "model.onnx", {"a": "lora[r=2]"}, interface="qwen3")
    report = onnx_graft.export_adapter(desk / "model.onnx", {"a": made.adapters[0]}, desk / "served", interface="qwen3")
    assert report.inputs > 0 and report.adapters[0]["file"].endswith(".onnx_adapter")


def test_a_picture_is_drawn(desk):
    if "Usage: rewrite graph" not in onnx_graft.command("graph", "--help"):
        pytest.skip("this build draws no pictures")
    onnx_graft.graph(desk / "model.onnx", desk / "model.svg", adapters="lora[r=2]")
    assert "<svg" in (desk / "model.svg").read_text(encoding="utf-8")


def test_inspect_tells_what_there_is(desk):
    assert "adapting" in onnx_graft.inspect(desk / "model.onnx")
    assert onnx_graft.inspect(desk / "model.onnx", interface="qwen3")["fields"]


def test_the_listener_ends_a_command(desk):
    def stop(event):
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        onnx_graft.attach(desk / "model.onnx", "lora", on_event=stop)
    assert not (desk / "model.lora.onnx").exists()


def test_the_command_is_in_the_wheel(desk):
    name = "rewrite.exe" if os.name == "nt" else "rewrite"
    command = os.path.join(os.path.dirname(sys.executable), name)
    if not os.path.exists(command):
        pytest.skip("the package is not installed into this environment")
    out = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["rewrite", onnx_graft.__version__]
    again = subprocess.run([command, "inspect", "model.onnx", "--json"], cwd=desk, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout) == onnx_graft.inspect(desk / "model.onnx")
