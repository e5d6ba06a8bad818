"""``python -m benchmarks CASE …``, from the root of a checkout."""

from __future__ import annotations

import importlib

import click

# Case → module of this package, and the command in it.
CASES = {
    "decode": ("cases.speed", "decode"),
    "prefill": ("cases.speed", "prefill"),
    "batch": ("cases.speed", "batch"),
    "load": ("cases.load", "main"),
    "serve": ("cases.serve", "main"),
    "simulate": ("cases.simulate", "main"),
    "memory": ("cases.memory", "main"),
    "scaling": ("cases.scaling", "main"),
    "operators": ("cases.operators", "main"),
    "quality": ("cases.quality", "main"),
    "layouts": ("cases.layouts", "main"),
    "accelerated": ("cases.accelerated", "main"),
    "demo": ("cases.demo", "main"),
    "compare": ("cases.compare", "main"),
    "suite": ("suite", "main"),
    "readme": ("report.readme", "main"),
    "gpu-check": ("gpu_check.check", "main"),
}


class Cases(click.Group):
    """Imports a case when it is asked for: most need torch, and gpu-check must not load the extension."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(CASES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in CASES:
            return None
        module, command = CASES[name]
        found: click.Command = getattr(importlib.import_module(f"benchmarks.{module}"), command)
        return found


@click.command(cls=Cases)
def main() -> None:
    """Measure adept-fast, and compare it with other runtimes."""


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
