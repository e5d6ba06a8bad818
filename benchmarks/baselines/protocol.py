"""The protocol of a benchmark and its workers: JSON objects, one a line, over stdin and stdout.

A worker is one runtime in a process, and an interpreter, of its own. This file needs nothing but the standard
library, so that it runs in whatever environment the runtime is installed in. A request is ``{"op": name,
…arguments}``; the answer is what the worker's method of that name returns, or ``{"error": sentence}``.

The same is timed for every runtime. ``decode``: after the prompt has been read, ``steps`` times a
token id goes in and the most likely next one comes out, known to Python. ``prefill``: the ids of a prompt go
in and the most likely next one comes out.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

OPERATIONS = ("hello", "load", "decode", "prefill")


class Worker:
    """A runtime. Every method returns what the answer holds."""

    def hello(self) -> dict[str, Any]:
        """Import the runtime: ``{"versions": …}``. After an ImportError the runtime is absent."""
        raise NotImplementedError

    def load(
        self, checkpoint: str, format: str, threads: int, context: int, batch: int, device: str = "cpu"
    ) -> dict[str, Any]:
        """Load the weights in ``format``, with room for ``batch`` sequences of ``context`` tokens.

        May be called again with other room; raises Absent if memory does not suffice.

        ``{"weight_bytes": what a step reads of weights, "notes": what a reader has to know}``
        """
        raise NotImplementedError

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        """``{"seconds": of all steps, "bytes_per_step": that had to be read, in the middle step}``"""
        raise NotImplementedError

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        """``{"seconds": …}``"""
        raise NotImplementedError


class Absent(Exception):  # noqa: N818 - a state, not a mistake
    """The runtime cannot take part, in one sentence."""


def serve(worker: Worker) -> None:
    """Answer requests until stdin ends."""
    answers = _take_stdout()
    for line in sys.stdin:
        request = json.loads(line)
        operation = request.pop("op")
        if operation not in OPERATIONS:
            raise ValueError(f"op is {operation!r}; expected one of {', '.join(OPERATIONS)}")
        try:
            answer = getattr(worker, operation)(**request)
        except (Absent, ImportError) as error:
            answer = {"absent": str(error)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the benchmark names it and goes on
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _take_stdout() -> Any:
    """The real stdout; what libraries print there goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def read_config(checkpoint: str) -> dict[str, Any]:
    return json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))


def matrix_elements(config: dict[str, Any]) -> int:
    """Elements of the matrices that a step reads: all but the embedding, of which it looks rows up."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    layer = 4 * hidden * hidden + 2 * hidden * intermediate
    return config["num_hidden_layers"] * layer + config["vocab_size"] * hidden


def vector_elements(config: dict[str, Any]) -> int:
    """Elements of biases and LayerNorms that a step reads, but for the q/k LayerNorms, which are tiny."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    layer = 4 * hidden + 3 * hidden + hidden + intermediate + hidden
    return config["num_hidden_layers"] * layer + 2 * hidden


def cache_elements(config: dict[str, Any]) -> int:
    """Elements of keys and values of one token."""
    return 2 * config["num_hidden_layers"] * config["hidden_size"]
