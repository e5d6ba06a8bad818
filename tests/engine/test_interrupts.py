"""Ctrl-C at any line of the engine: the request that waits is interrupted, and the others lose nothing."""

from __future__ import annotations

import gc
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from checkpoints import write_huggingface
from small_checkpoint import CONFIG, TENSORS, TOKENIZER
from thread_calls import PROMPTS

import adept_fast.engine.engine
from adept_fast import Request, Runtime, SamplingParams

NAMES = ("engine", "scheduler", "model_runner", "decode_state", "sequence", "turn")
FILES = {str(Path(adept_fast.engine.engine.__file__).with_name(f"{name}.py")) for name in NAMES}


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    path = write_huggingface(tmp_path, CONFIG, TENSORS, TOKENIZER)
    # Of int8, a row's sums do not depend on how many rows a step has.
    runtime = Runtime.load(path, device="cpu", weights="int8", max_batch_size=2, progress=False)
    runtime.engine.runner.steps_in_flight = 2  # as on a GPU: one may be lost before one that is not
    return runtime


def in_finalizer(frame: FrameType | None) -> bool:
    """Python prints and ignores what a finalizer raises."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


class Interrupt:
    """Raises KeyboardInterrupt at the ``count``-th line of the engine that runs within it, once."""

    def __init__(self, count: int) -> None:
        self.where = ""
        self._left = count

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in FILES or in_finalizer(frame):
            return None
        if event == "line":
            self._left -= 1
            if self._left == 0:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self._trace


def text_beside(
    runtime: Runtime, request: Request, interrupt: Interrupt, steps_before: int
) -> tuple[list[int], str]:
    """The tokens of a request and their text, beside a later one that is waited for and interrupted."""
    other = runtime.engine.submit(request)
    for _ in range(steps_before):
        runtime.engine.step()
    with suppress(KeyboardInterrupt), interrupt:
        runtime.generate(PROMPTS[1], max_new_tokens=5, repetition_penalty=1.2, seed=1, temperature=0.5)
    for _ in range(100):  # more steps than the rest can take
        if other.sequence.is_finished:
            break
        runtime.engine.step()
    return other.sequence.token_ids, other.sequence.text


@pytest.mark.slow
def test_ctrl_c_at_any_line_of_the_engine(runtime: Runtime) -> None:
    params = SamplingParams(
        max_new_tokens=6, repetition_penalty=1.3, frequency_penalty=0.5, logit_bias={7: 1.0}, ignore_eos=True
    )
    request = Request(runtime.tokenizer.encode(PROMPTS[0]), params)
    result = runtime.engine.submit(request).result()
    expected = result.token_ids, result.text
    places: set[str] = set()
    count = 1
    while True:
        interrupt = Interrupt(count)
        # Every other time it decodes already in the step that reads the later one's prompt.
        assert text_beside(runtime, request, interrupt, count % 2) == expected, interrupt.where
        if not interrupt.where:
            break  # the call was over before
        places.add(interrupt.where)
        count += 3
    assert count > 300
    assert len(places) > 100
    gc.collect()
    assert runtime.engine.submit(request).result().text == result.text
