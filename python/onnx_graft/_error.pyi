from collections.abc import Sequence
from typing import Any

class Error(Exception):
    """What the library refuses or cannot do: all findings together."""

    kind: str
    """What kind of work failed: io, decode, unsupported, invalid, interface, method, patch, compile, run, train, hub or usage."""
    findings: list[dict[str, Any]]
    """All that was found: code, severity, message, path, notes, help."""
    code: str
    """The stable code of the first finding."""
    message: str
    path: str
    help: str | None
    """The way out, where there is one."""

    def __init__(self, text: str, kind: str = "run", findings: Sequence[dict[str, Any]] = ()) -> None: ...
