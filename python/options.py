"""Writes onnx_graft/_options.pyi: the options of jobs as types, from schemas/job.schema.json. Run it when that file has changed."""

import json
import keyword
import pathlib
import textwrap

HERE = pathlib.Path(__file__).resolve().parent
SCHEMA = HERE.parent / "schemas" / "job.schema.json"
TARGET = HERE / "onnx_graft" / "_options.pyi"

HEAD = '''\
# Written by options.py from schemas/job.schema.json.
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

Path = str | PathLike[str]

class TrainOptions(TypedDict, total=False):
    """Options of a job, under the names of a job file."""
'''

# What a text of the job file may also be here.
PATHS = {"model", "output_dir", "tokenizer", "data", "eval_data", "cache_dir", "resume_from_checkpoint", "interface", "fusion", "active"}


def kind(schema, defs, path):
    """The type of a property."""
    if "$ref" in schema:
        return kind(defs[schema["$ref"].split("/")[-1]], defs, path)
    if "const" in schema:
        return f"Literal[{json.dumps(schema['const'])}]"
    if "enum" in schema:
        return "Literal[" + ", ".join(json.dumps(word) for word in schema["enum"] if word is not None) + "]"
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return join(kind(s, defs, path) for s in schema[union])
    types = schema.get("type", "any")
    return join(plain(t, schema, defs, path) for t in (types if isinstance(types, list) else [types]))


def plain(name, schema, defs, path):
    """The type that a word of a schema stands for."""
    if name == "array":
        return f"Sequence[{kind(schema.get('items', {}), defs, path)}]"
    if name == "object":
        inner = schema.get("additionalProperties")
        return f"Mapping[str, {kind(inner, defs, path) if isinstance(inner, dict) else 'Any'}]"
    words = {"string": "Path" if path else "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
    return words.get(name, "Any")


def join(kinds):
    """A union without repetitions."""
    return " | ".join(dict.fromkeys(kinds))


def text():
    """The file's text."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    out = HEAD
    for name, property in schema["properties"].items():
        # `model` is the job itself, and `adapters` the name of `adapter` here.
        if name in ("$schema", "model") or keyword.iskeyword(name):
            continue
        path = name in PATHS or name == "adapter"
        types = kind(property, schema.get("$defs", {}), path)
        out += f"    {name}: {types}\n"
        if name == "adapter":
            out += f"    adapters: {types}\n"
        doc = " ".join(property.get("description", "").split()).replace("\\", "\\\\")
        out += textwrap.indent('"""' + doc + '"""', "    ") + "\n"
    return out


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
