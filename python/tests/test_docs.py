"""The examples of docs/python.md run as they stand."""

import re
import shutil

import pytest
from conftest import FIXTURES, ROOT

TEXT = (ROOT / "docs/python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def test_there_are_examples():
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("block", BLOCKS)
def test_examples(block, tmp_path, monkeypatch, capsys):
    pytest.importorskip("numpy")
    for name in ["qwen3", "gpt2", "skill", "train"]:
        shutil.copytree(FIXTURES / name, tmp_path / "fixtures" / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/python.md", "exec"), {})
    print(capsys.readouterr().out)
