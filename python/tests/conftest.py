import pathlib
import shutil

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"


@pytest.fixture
def fixtures():
    return FIXTURES


@pytest.fixture
def desk(tmp_path):
    """A folder with a model of its own."""
    for file in (FIXTURES / "qwen3").iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path / file.name)
    return tmp_path
