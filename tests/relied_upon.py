"""How the tables of test_dependencies.py say what this project takes from a package without its promise."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

import pytest

KINDS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Name:
    """An object that has to be there, and why there is no public way to what it gives."""

    name: str
    why: str

    @property
    def package(self) -> str:
        return self.name.split(".")[0]

    @property
    def changed(self) -> str:
        """How a message about it begins."""
        return f"{self.name} changed in {self.package} {_version(self.package)}"

    def find(self) -> Any:
        """The object itself; skips where its package is not installed, fails where it is gone."""
        if importlib.util.find_spec(self.package) is None:
            pytest.skip(f"{self.package} is not installed")
        parts = self.name.split(".")
        found: Any = importlib.import_module(self.package)
        for at, part in enumerate(parts[1:], 1):
            if not hasattr(found, part) and inspect.ismodule(found):
                self._import(".".join(parts[: at + 1]))
            if not hasattr(found, part):
                pytest.fail(f"{self.changed}: there is no {'.'.join(parts[: at + 1])}; {self.why}")
            found = getattr(found, part)
        return found

    def check(self) -> None:
        self.find()

    def _import(self, module: str) -> None:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            # Of a module itself that is gone, the caller tells; one that it imports is another matter.
            if error.name != module:
                raise


@dataclass(frozen=True)
class Signature(Name):
    """A function, with the parameters that count here.

    ``use``: ``call``, where this project gives it those, so that others need defaults; ``override``, where
    the package calls ours in its place, so that its own must be exactly those.
    """

    parameters: tuple[str, ...]
    use: Literal["call", "override"] = "call"

    def check(self) -> None:
        found = self.find()
        try:
            signature = inspect.signature(found)
        except (ValueError, TypeError) as error:
            pytest.fail(f"{self.changed}: its signature cannot be read ({error}); {self.why}")
        names = tuple(signature.parameters)
        fits = names == self.parameters if self.use == "override" else self._can_be_called(signature)
        assert fits, (
            f"{self.changed}: expected parameters ({', '.join(self.parameters)}), "
            f"found ({', '.join(names)}); {self.why}"
        )

    def _can_be_called(self, signature: inspect.Signature) -> bool:
        parameters = signature.parameters
        takes_any = any(given.kind is inspect.Parameter.VAR_KEYWORD for given in parameters.values())
        known = [name for name in parameters if name in self.parameters]
        rest = [given for name, given in parameters.items() if name not in self.parameters]
        return (
            known == [name for name in self.parameters if name in parameters]  # also where given by place
            and (takes_any or len(known) == len(self.parameters))
            and all(given.kind in KINDS or given.default is not inspect.Parameter.empty for given in rest)
        )


@dataclass(frozen=True)
class Behaviour(Name):
    """What no signature tells: ``probe`` takes the object and an empty directory, and gives ``expected``."""

    probe: Callable[[Any, Any], Any]
    expected: Any

    def check_in(self, directory: Any) -> None:
        found = self.probe(self.find(), directory)
        assert found == self.expected, (
            f"{self.changed}: expected {self.expected!r}, found {found!r}; {self.why}"
        )


def _version(package: str) -> str:
    distributions = metadata.packages_distributions().get(package, [])
    return metadata.version(distributions[0]) if distributions else "of an unknown version"
