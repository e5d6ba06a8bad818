"""LineError: a line that gets no answer, and why, in the words of OpenAI's API."""

from __future__ import annotations

from typing import Any


class LineError(ValueError):
    """One line of a batch is wrong, or failed; the others go on.

    Args:
        param: the parameter that is wrong, as the line names it.
        code: a word for programs.
        status: the HTTP status that a server would answer with.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = "invalid_value",
        *,
        status: int = 400,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def error(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"message": str(self), "type": kind, "param": self.param, "code": self.code}
