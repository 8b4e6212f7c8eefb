"""The one exception of the package."""


class Error(Exception):
    """What the library refuses or cannot do: all findings together."""

    def __init__(self, text, kind="run", findings=()):
        super().__init__(text)
        self.kind = kind
        self.findings = list(findings)
        first = self.findings[0] if self.findings else {}
        self.code = first.get("code", "")
        self.message = first.get("message", text)
        self.path = first.get("path", "")
        self.help = first.get("help")
