"""Stubs say what there is, and are checked as strictly as mypy can."""

import importlib.util
import pathlib
import subprocess
import sys

import onnx_graft
import pytest

HERE = pathlib.Path(__file__).resolve().parent


def test_options_are_those_of_the_schema():
    spec = importlib.util.spec_from_file_location("options", HERE.parent / "options.py")
    options = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(options)
    written = (HERE.parent / "onnx_graft/_options.pyi").read_text(encoding="utf-8")
    assert written == options.text(), "run python/options.py"


def test_names_are_documented():
    for name in onnx_graft.__all__:
        assert getattr(onnx_graft, name).__doc__, name


@pytest.mark.parametrize("tool", [["mypy", "--strict", str(HERE / "typed.py")], ["mypy.stubtest", "onnx_graft", "--allowlist", "stubs.txt"]])
def test_types_are_right(tool, tmp_path):
    pytest.importorskip("mypy")
    # Types alone, which nothing needs at run time.
    (tmp_path / "stubs.txt").write_text("onnx_graft._options\n")
    done = subprocess.run([sys.executable, "-m", *tool], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
