"""Adapters for exported Transformers: what the command ``rewrite`` does, as calls.

Every function takes keyword arguments with the names of the command's flags, and says what it does to ``on_event``, a function of one
dictionary. What goes wrong is an :class:`Error`. Ctrl-C ends a training after its current step, with a checkpoint.
"""

from types import SimpleNamespace as _Namespace

from . import _native
from ._error import Error
from ._native import __version__

__all__ = [
    "Error",
    "Model",
    "Report",
    "attach",
    "command",
    "convert",
    "evaluate",
    "export_adapter",
    "generate",
    "graph",
    "inspect",
    "merge",
    "run",
    "train",
]


class Report(_Namespace):
    """What a job did: the fields of the document that ``rewrite --json`` prints."""


def _report(document):
    return Report(**document)


def _plain(value):
    """A value as JSON has it: paths are texts."""
    if hasattr(value, "__fspath__"):
        return value.__fspath__()
    if isinstance(value, dict):
        return {str(name): _plain(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item") and not getattr(value, "shape", ()):
        return value.item()
    return value


def _settings(given):
    """Keyword arguments as settings of a job: what is None is not said."""
    named = {name: _plain(value) for name, value in given.items() if value is not None}
    if "adapters" in named:
        named["adapter"] = named.pop("adapters")
    return named


def _specs(adapters):
    """Adapters, each as SPEC or NAME=SPEC."""
    adapters = _plain(adapters)
    if adapters is None:
        return []
    if isinstance(adapters, str):
        return [adapters]
    if isinstance(adapters, dict):
        return [f"{name}={spec}" for name, spec in adapters.items()]
    return adapters


def _flags(given):
    """Keyword arguments as flags of a command."""
    flags = []
    for name, value in given.items():
        value = _plain(value)
        flag = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            flags.append(flag)
        elif name in ("adapters", "fusion"):
            flags += [f"--{name.rstrip('s')}={spec}" for spec in _specs(value)]
        elif isinstance(value, list):
            flags.append(f"{flag}=" + ",".join(map(str, value)))
        else:
            flags.append(f"{flag}={value}")
    return flags


def command(*arguments, on_event=None):
    """Any command of ``rewrite`` in this process: ``command("diff", "a.onnx", "b.onnx")``. Gives what ``--json`` prints."""
    return _native.command([str(_plain(a)) for a in arguments], on_event)


def attach(model, adapters=None, *, on_event=None, **options):
    """Attaches adapters to a model, and writes it and the adapters' folders."""
    return _report(command(*_flags({"adapters": adapters, **options}), "--", model, on_event=on_event))


def merge(model, adapters, output, *, on_event=None, **options):
    """Folds adapters into the weights of a model, or takes them out again with ``reset=True``."""
    flags = _flags({"adapters": adapters, "output": output, **options})
    return _report(command("merge", *flags, "--", model, on_event=on_event))


def export_adapter(model, adapters, output, *, on_event=None, **options):
    """Makes a graph whose adapters are optional inputs, and an ``.onnx_adapter`` file for each."""
    flags = _flags({"adapters": adapters, "output": output, **options})
    return _report(command("export-adapter", *flags, "--", model, on_event=on_event))


def convert(folder, to, output, *, on_event=None, **options):
    """Converts an adapter between the formats ``adapterhub``, ``peft`` and ``onnx-adapter``."""
    flags = _flags({"to": to, "output": output, **options})
    return _report(command("adapter", "convert", *flags, "--", folder, on_event=on_event))


def graph(model, output, *, adapters=None, on_event=None, **options):
    """Draws a model by module, with its adapters: an ``.svg``, ``.html`` or ``.dot`` file."""
    flags = _flags({"adapters": adapters, "output": output, **options})
    return command("graph", *flags, "--", model, on_event=on_event)


def inspect(model, *, on_event=None, **options):
    """What a graph holds, and what an interface selects in it."""
    return command("inspect", *_flags(options), "--", model, on_event=on_event)


def _job(job, given, path):
    """The file of a job, and the settings over it: a job is a file, a model, or a dictionary of settings."""
    settings = _settings(given)
    if isinstance(job, dict):
        settings = {**_settings(job), **settings}
        job = None
    if job is None:
        job = settings.pop(path, None)
        if job is None:
            raise TypeError(f"the job names no {path}")
    return _plain(job), settings


def train(job=None, *, on_event=None, **settings):
    """Trains adapters. A job is a job file, a model, or a dictionary; settings stand over it."""
    return _report(_native.train(*_job(job, settings, "model"), on_event))


def evaluate(job=None, *, on_event=None, **settings):
    """Measures a model on data."""
    return _report(_native.evaluate(*_job(job, settings, "model"), on_event))


def generate(job, prompts=(), *, on_event=None, **settings):
    """Generates texts. Prompts are one text or several, or the file of them (``prompts_file``)."""
    file, settings = _job(job, settings, "model")
    if "prompts_file" in settings:
        settings["prompts"] = settings.pop("prompts_file")
    if isinstance(prompts, str):
        prompts = [prompts]
    report = _report(_native.generate(file, list(prompts), settings, on_event))
    report.results = [_report(result) for result in report.results]
    report.texts = [result.text for result in report.results]
    return report


# Names of element types here and in ONNX's text form.
_TYPES = {
    "float32": "f32",
    "float64": "f64",
    "float16": "f16",
    "bfloat16": "bf16",
    "int8": "i8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
    "uint8": "u8",
    "uint16": "u16",
    "uint32": "u32",
    "uint64": "u64",
    "bool": "bool",
}


def _given(name, value, numpy):
    array = numpy.asarray(value)
    kind = _TYPES.get(array.dtype.name)
    if kind is None:
        raise TypeError(f"input {name}: arrays of {array.dtype} are not computed with")
    little = array.dtype.newbyteorder("<")
    return kind, list(array.shape), numpy.ascontiguousarray(array, little).tobytes()


def _made(kind, shape, data, numpy):
    if kind == "bf16":
        # NumPy has no such type: the upper half of a float32.
        wide = numpy.frombuffer(data, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(shape)
    name = next(name for name, k in _TYPES.items() if k == kind)
    # What the bytes are in is ours: the array may be written to, and nothing is copied.
    return numpy.frombuffer(data, numpy.dtype(name).newbyteorder("<")).reshape(shape)


class Model:
    """A model that is compiled once and executed any number of times, from any number of threads."""

    def __init__(self, model, adapters=None, *, on_event=None, grad=None, **settings):
        if grad is True:
            grad = []
        elif grad is False:
            grad = None
        elif isinstance(grad, str):
            grad = [grad]
        settings = _settings({"adapters": adapters, "grad": grad, **settings})
        self._run = _native.compile(_plain(model), settings, on_event)

    def __call__(self, inputs):
        """Executes on arrays by input name; gives arrays by output name."""
        import numpy

        given = [(name, _given(name, value, numpy)) for name, value in inputs.items()]
        return {name: _made(*made, numpy) for name, made in self._run(given)}


def run(model, inputs, *, adapters=None, **settings):
    """Executes a model once: ``Model(model, adapters, ...)(inputs)``."""
    return Model(model, adapters, **settings)(inputs)
