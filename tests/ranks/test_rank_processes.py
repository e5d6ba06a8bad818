"""Ranks as processes: the texts of one rank's Runtime, and how all end when one does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_adept, write_huggingface
from own_process import ROOT

from adept_fast import Runtime, SamplingParams
from adept_fast.arguments import ParameterError
from adept_fast.checkpoint import CheckpointError
from adept_fast.checkpoint.convert import convert
from adept_fast.engine.ranks import team
from adept_fast.engine.ranks.watch import RankError, Watch

pytestmark = pytest.mark.slow

PROMPTS = ["human: What is the capital of Peru?\n\nadept:", "Once upon a time", "The", "A list: one, two,"]
DRAWN = [
    SamplingParams(max_new_tokens=20, temperature=0.9, top_p=0.9, seed=seed, logprobs=2) for seed in range(4)
]


@contextlib.contextmanager
def loaded(checkpoint: str | Path = "demo", ranks: int = 2, **settings: Any) -> Iterator[Runtime]:
    threads = torch.get_num_threads()
    runtime = Runtime.load(checkpoint, tensor_parallel=ranks, progress=False, **settings)
    try:
        yield runtime
    finally:
        runtime.close()
        assert torch.get_num_threads() == threads
        assert not any(map(is_running, processes_of(runtime)))


def processes_of(runtime: Runtime) -> list[int]:
    assert runtime.team is not None
    return [peer.process_id for peer in runtime.team.watch.peers]


def is_running(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("ranks", [2, 4])
def test_texts_are_those_of_one_rank(ranks: int) -> None:
    """Greedy and drawn, alone and in a batch that shares steps, with the same ids."""
    one = Runtime.load("demo", progress=False)
    with loaded(ranks=ranks, max_batch_size=3) as several:
        assert several.ranks == ranks
        for found, expected in zip(
            several.generate(PROMPTS, max_new_tokens=30),
            one.generate(PROMPTS, max_new_tokens=30),
            strict=True,
        ):
            assert found.token_ids == expected.token_ids
        together = several.generate(PROMPTS, DRAWN)
        for found, expected, prompt, params in zip(
            together, one.generate(PROMPTS, DRAWN), PROMPTS, DRAWN, strict=True
        ):
            assert found.token_ids == expected.token_ids
            alone = several.generate(prompt, params)
            assert (alone.token_ids, alone.logprobs) == (found.token_ids, found.logprobs)
        drafted = several.generate(PROMPTS[0], max_new_tokens=30, prompt_lookup=4)
        assert drafted.token_ids == several.generate(PROMPTS[0], max_new_tokens=30).token_ids
        scores = zip(several.score(PROMPTS), one.score(PROMPTS), strict=True)
        for score, whole in scores:
            assert score.logprobs[1:] == pytest.approx(whole.logprobs[1:], abs=2e-3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config()
    folder = tmp_path_factory.mktemp("plain")
    return write_huggingface(folder, config, random_tensors(config), demo_tokenizer())


def same_texts(path: Path, ranks: int, **settings: Any) -> None:
    ids = [[5, 9, 4001, 77], [3] * 40]
    one = Runtime.load(path, progress=False, **settings).generate(ids, max_new_tokens=12, ignore_eos=True)
    with loaded(path, ranks, **settings) as several:
        found = several.generate(ids, max_new_tokens=12, ignore_eos=True)
    assert [text.token_ids for text in found] == [text.token_ids for text in one]


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_release_of_two_and_four_ranks(tmp_path: Path, ranks: int) -> None:
    config = small_config()
    for stored in (2, 4):
        path = write_adept(
            tmp_path / f"{stored}", config, random_tensors(config), demo_tokenizer(), ranks=stored
        )
        same_texts(path, ranks)


@pytest.mark.parametrize(("weights", "ranks"), [("int8", 2), ("int4", 4), ("int4-g32", 2)])
def test_packed_weights(tmp_path: Path, plain: Path, weights: str, ranks: int) -> None:
    """Packed while loading, by scales that the ranks agree on, and packed in the file."""
    same_texts(plain, ranks, weights=weights)
    convert(plain, tmp_path / "packed", weights=weights, progress=False)
    same_texts(tmp_path / "packed", ranks)


def at_activity(runtime: Runtime, activity: str, act: Callable[[], None]) -> threading.Thread:
    """Calls ``act`` when the runtime is seen to do this."""
    assert runtime.team is not None
    watch, is_over = runtime.team.watch, threading.Event()

    def run() -> None:
        while watch.activity != activity and not is_over.is_set():
            is_over.wait(1e-4)
        act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def generate_for_ever(runtime: Runtime, words: str) -> None:
    while True:
        runtime.generate(words, max_new_tokens=60, ignore_eos=True)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(("activity", "words"), [("decoding", "a b c"), ("reading prompts", "word " * 400)])
def test_a_rank_that_is_killed_ends_the_others(activity: str, words: str, rank: int) -> None:
    with loaded(ranks=4) as runtime:
        killed = processes_of(runtime)[rank - 1]
        thread = at_activity(runtime, activity, lambda: os.kill(killed, signal.SIGKILL))
        message = rf"^rank {rank} \(process {killed}\) was ended by SIGKILL while {activity}; "
        with pytest.raises(RankError, match=message):
            generate_for_ever(runtime, words)
        thread.join()
        with pytest.raises(RankError, match=message):
            runtime.generate("x")


def test_a_rank_that_hangs_is_ended_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adept_fast.engine.ranks.watch.SILENT_TURNS", 4)
    with loaded() as runtime:
        (stopped,) = processes_of(runtime)
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(RankError, match=rf"^rank 1 \(process {stopped}\) gave no sign of life for 2 s"):
            runtime.generate("x", max_new_tokens=5)


def test_a_rank_that_lives_and_does_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread that tells of its life goes on."""
    monkeypatch.setattr(team, "STEP_SECONDS", 1.0)
    with loaded() as runtime:
        assert runtime.team is not None
        real = runtime.team._commands
        runtime.team._commands = []  # so it is not told to take part
        with pytest.raises(RankError, match="^rank 1 did not do its part of a step within 30 s"):
            runtime.generate("x", max_new_tokens=5)
        runtime.team._commands = real
        with pytest.raises(RankError, match="^rank 1 did not do its part"):
            runtime.generate("x", max_new_tokens=5)


@pytest.mark.parametrize("when", ["before it loads", "while it loads"])
def test_a_rank_that_is_killed_while_loading(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = team.Team.gather

    def gather(self: team.Team, settings: dict[str, Any]) -> None:
        if when == "before it loads":
            while 1 not in self.watch.processes:
                self.watch.check()
            self.watch.processes[1].kill()
        original(self, settings)
        os.kill(self.watch.peers[0].process_id, signal.SIGKILL)

    monkeypatch.setattr(team.Team, "gather", gather)
    with pytest.raises(RankError, match=r"^rank 1 \(process \d+\) was ended by SIGKILL"):
        Runtime.load("demo", tensor_parallel=2, progress=False)


def test_the_error_of_another_rank_is_raised(tmp_path: Path) -> None:
    config = small_config()
    tensors = random_tensors(config)
    tensors["model.layers.1.mlp.dense_h_to_4h.weight"][-1, 3] = float("nan")  # of the last rank
    path = write_huggingface(tmp_path, config, tensors, demo_tokenizer())
    with pytest.raises(CheckpointError, match=r"^rank 1 \(process \d+\): .*dense_h_to_4h.weight has a NaN"):
        Runtime.load(path, tensor_parallel=2, progress=False)
    tensors["model.layers.1.mlp.dense_h_to_4h.weight"][0, 3] = float("nan")
    path = write_huggingface(tmp_path / "first", config, tensors, demo_tokenizer())
    with pytest.raises(CheckpointError, match="dense_h_to_4h.weight has a NaN"):
        Runtime.load(path, tensor_parallel=2, progress=False)


@pytest.mark.parametrize(
    ("given", "message"), [(3, "tensor_parallel is 3; expected 1 or 2 or 4, as the model"), (0, "1 to")]
)
def test_numbers_that_do_not_divide_the_heads(
    given: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watch, "__init__", lambda *_: pytest.fail("ranks were started"))
    with pytest.raises(ParameterError, match=message):
        Runtime.load("demo", tensor_parallel=given, progress=False)


def test_ctrl_c_ends_the_text_and_not_the_ranks() -> None:
    with loaded() as runtime:
        expected = runtime.generate("Once upon a time", max_new_tokens=10).token_ids
        for _ in range(3):
            thread = at_activity(runtime, "decoding", lambda: signal.raise_signal(signal.SIGINT))
            interrupted = runtime.generate("Once upon a time", max_new_tokens=400, ignore_eos=True)
            assert interrupted.finish_reason == "interrupted"
            thread.join()
            assert runtime.generate("Once upon a time", max_new_tokens=10).token_ids == expected


PROGRAM = """
import os, sys
from adept_fast import Runtime
runtime = Runtime.load("demo", tensor_parallel=3 - 1, progress=False)
print(*[peer.process_id for peer in runtime.team.watch.peers], flush=True)
sys.stdin.readline()
if sys.argv[1] == "kill":
    os.kill(os.getpid(), 9)
if sys.argv[1] == "exit":
    os._exit(3)
if sys.argv[1] == "fork":
    child = os.fork()
    if child == 0:
        try:
            runtime.generate("x")
        except ConnectionError as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
if sys.argv[1] == "stop":
    os.kill(runtime.team.watch.peers[0].process_id, 19)
    os.kill(os.getpid(), 9)
print(runtime.generate("Once", max_new_tokens=3).finish_reason)
"""


@pytest.mark.parametrize("end", ["kill", "stop", "exit", "return", "fork"])
def test_no_process_outlives_the_first_rank(end: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert program.stdout is not None
    others = [int(process_id) for process_id in program.stdout.readline().split()]
    assert len(others) == 1
    assert is_running(others[0])
    out, errors = program.communicate("go\n", timeout=60)
    ended = "adept-fast: rank 0 has ended, so the other ranks end too\n"
    assert errors == (ended if end in ("kill", "stop", "exit") else "")
    assert out == {
        "return": "length\n",
        "fork": "the ranks of this Runtime serve the process that loaded it; this is a fork of it\nlength\n",
    }.get(end, "")
    while is_running(others[0]):  # it has closed its stderr, and ends
        pass


def test_ranks_of_torchrun(tmp_path: Path) -> None:
    """The first rank prints what one process prints; the others print nothing."""
    command = ["-m", "adept_fast", "generate", "--prompt", "Once upon a time", "--max-new-tokens", "12"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def output(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    started = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "0",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    ]
    assert output(*started, *command, "--tensor-parallel", "2") == output(*command)
    refused = subprocess.run(
        [sys.executable, *started, *command, "--tensor-parallel", "4"],
        env=environment, capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert "tensor_parallel is 4; expected 2, the ranks that torchrun has started" in refused.stderr
