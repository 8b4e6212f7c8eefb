from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from types import SimpleNamespace
from typing import Any, Literal

from numpy.typing import ArrayLike, NDArray
from typing_extensions import Unpack

from ._error import Error as Error
from ._native import __version__ as __version__
from ._options import TrainOptions

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

_Path = str | PathLike[str]
_Adapters = _Path | Sequence[_Path] | Mapping[str, _Path]
_OnEvent = Callable[[dict[str, Any]], object] | None

class Report(SimpleNamespace):
    """What a job did: the fields of the document that ``rewrite --json`` prints."""

class _Attached(Report):
    model: str
    bytes: int
    adapters: list[str]
    selected: dict[str, Any]
    summary: list[dict[str, Any]]
    full_model: int

class _Merged(Report):
    model: str
    bytes: int
    weights: int

class _Exported(Report):
    model: str | None
    inputs: int
    adapters: list[dict[str, Any]]
    beside: list[str]

class _Trained(Report):
    adapters: list[str]
    steps: int
    first_loss: float
    last_loss: float
    losses: list[float]
    tokens_per_second: float
    best_step: int | None
    best_metric: float | None
    dry_run: dict[str, Any] | None

class _Evaluated(Report):
    metrics: dict[str, float]
    samples: int
    items: int
    runtime: float
    file: str | None
    predictions: list[dict[str, Any]]

class _Text(Report):
    text: str
    ids: list[int]

class _Generated(Report):
    texts: list[str]
    results: list[_Text]
    new_tokens: int
    tokens_per_second: float

def command(*arguments: _Path, on_event: _OnEvent = None) -> Any:
    """Any command of ``rewrite`` in this process: ``command("diff", "a.onnx", "b.onnx")``. Gives what ``--json`` prints."""

def attach(
    model: _Path,
    adapters: _Adapters | None = None,
    *,
    on_event: _OnEvent = None,
    output: _Path | None = None,
    interface: _Path | None = None,
    variant: str | None = None,
    active: _Path | None = None,
    fusion: _Adapters | None = None,
    skip_layers: Sequence[int] | None = None,
    skip_layers_input: bool = False,
    output_adapter_gating_scores: bool = False,
    output_adapter_fusion_attentions: bool = False,
    adapter_ids: bool = False,
    route: Literal["native", "plugin"] | None = None,
    allow_other_base: bool = False,
    format: Literal["adapterhub", "peft", "both"] | None = None,
    seed: int | None = None,
    dry_run: bool = False,
    force: bool = False,
) -> _Attached:
    """Attaches adapters to a model, and writes it and the adapters' folders."""

def merge(
    model: _Path,
    adapters: _Adapters,
    output: _Path,
    *,
    on_event: _OnEvent = None,
    interface: _Path | None = None,
    variant: str | None = None,
    active: _Path | None = None,
    skip_layers: Sequence[int] | None = None,
    allow_other_base: bool = False,
    combination_type: str | None = None,
    weights: Sequence[float] | None = None,
    density: float | None = None,
    majority_sign_method: Literal["total", "frequency"] | None = None,
    svd_rank: int | None = None,
    seed: int | None = None,
    reset: bool = False,
    force: bool = False,
) -> _Merged:
    """Folds adapters into the weights of a model, or takes them out again with ``reset=True``."""

def export_adapter(
    model: _Path,
    adapters: _Adapters,
    output: _Path,
    *,
    on_event: _OnEvent = None,
    interface: _Path | None = None,
    variant: str | None = None,
    allow_other_base: bool = False,
    dtype: Literal["f32", "f16", "bf16"] | None = None,
    seed: int | None = None,
    force: bool = False,
) -> _Exported:
    """Makes a graph whose adapters are optional inputs, and an ``.onnx_adapter`` file for each."""

def convert(
    folder: _Path,
    to: Literal["adapterhub", "peft", "onnx-adapter"],
    output: _Path,
    *,
    on_event: _OnEvent = None,
    interface: _Path | None = None,
    name: str | None = None,
    force: bool = False,
) -> Report:
    """Converts an adapter between the formats ``adapterhub``, ``peft`` and ``onnx-adapter``."""

def graph(
    model: _Path,
    output: _Path,
    *,
    adapters: _Adapters | None = None,
    on_event: _OnEvent = None,
    interface: _Path | None = None,
    variant: str | None = None,
    force: bool = False,
) -> Any:
    """Draws a model by module, with its adapters: an ``.svg``, ``.html`` or ``.dot`` file."""

def inspect(
    model: _Path, *, on_event: _OnEvent = None, interface: _Path | None = None, variant: str | None = None
) -> dict[str, Any]:
    """What a graph holds, and what an interface selects in it."""

def train(
    job: _Path | Mapping[str, Any] | None = None, *, on_event: _OnEvent = None, **settings: Unpack[TrainOptions]
) -> _Trained:
    """Trains adapters. A job is a job file, a model, or a dictionary; settings stand over it."""

def evaluate(
    job: _Path | Mapping[str, Any] | None = None,
    *,
    on_event: _OnEvent = None,
    adapters: _Adapters | None = None,
    data: _Path | Sequence[_Path] | Mapping[str, _Path] | None = None,
    metrics: Sequence[str] | str | None = None,
    max_eval_samples: int | None = None,
    predictions: _Path | None = None,
    **settings: Any,
) -> _Evaluated:
    """Measures a model on data."""

def generate(
    job: _Path | Mapping[str, Any],
    prompts: str | Sequence[str] = (),
    *,
    on_event: _OnEvent = None,
    adapters: _Adapters | None = None,
    prompts_file: _Path | None = None,
    chat: bool | None = None,
    max_new_tokens: int | None = None,
    do_sample: bool | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    **settings: Any,
) -> _Generated:
    """Generates texts. Prompts are one text or several, or the file of them (``prompts_file``)."""

class Model:
    """A model that is compiled once and executed any number of times, from any number of threads."""

    def __init__(
        self,
        model: _Path,
        adapters: _Adapters | None = None,
        *,
        on_event: _OnEvent = None,
        outputs: Sequence[str] | None = None,
        loss: str | None = None,
        grad: bool | str | Sequence[str] | None = None,
        interface: _Path | None = None,
        variant: str | None = None,
        active: _Path | None = None,
        fusion: _Adapters | None = None,
        skip_layers: Sequence[int] | None = None,
        route: Literal["native", "plugin"] | None = None,
        allow_other_base: bool | None = None,
        portable: bool | None = None,
        device: str | None = None,
        dtype: Literal["f32", "bf16", "f16"] | None = None,
        threads: int | None = None,
        seed: int | None = None,
    ) -> None: ...
    def __call__(self, inputs: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
        """Executes on arrays by input name; gives arrays by output name."""

def run(
    model: _Path,
    inputs: Mapping[str, ArrayLike],
    *,
    adapters: _Adapters | None = None,
    on_event: _OnEvent = None,
    outputs: Sequence[str] | None = None,
    loss: str | None = None,
    grad: bool | str | Sequence[str] | None = None,
    interface: _Path | None = None,
    variant: str | None = None,
    active: _Path | None = None,
    fusion: _Adapters | None = None,
    skip_layers: Sequence[int] | None = None,
    route: Literal["native", "plugin"] | None = None,
    allow_other_base: bool | None = None,
    portable: bool | None = None,
    device: str | None = None,
    dtype: Literal["f32", "bf16", "f16"] | None = None,
    threads: int | None = None,
    seed: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Executes a model once: ``Model(model, adapters, ...)(inputs)``."""
