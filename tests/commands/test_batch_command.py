"""``adept-fast batch``: exit codes, what it prints, and what kill -9 leaves."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from batch_inputs import CHAT, PLACEMENT, QUESTION, opened, request, write_lines
from click.testing import CliRunner, Result
from own_process import ROOT, run_python

from adept_fast.commands import batch as batch_command
from adept_fast.commands.cli import main
from adept_fast.server.batch.job import BatchJob

ANSWER = " The capital of Peru is Lima."
LINES = [{"prompt": QUESTION, "custom_id": "a"}, {"prompt": "Once", "max_new_tokens": 2}]
SECONDS = 120  # to wait for what must happen; nothing takes that long


def run(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["batch", str(folder / "in.jsonl"), str(folder / "out.jsonl"), *options])


def test_the_answers_are_in_the_file_and_a_summary_on_stderr(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", LINES)
    result = run(tmp_path)
    assert (result.exit_code, result.stdout) == (0, "")
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["a", None]
    assert answers[0]["text"] == ANSWER
    assert re.fullmatch(
        r".*/out\.jsonl: 2 lines\n\d+ tokens of prompts and 9 generated, [\d.]+ tokens/s\n", result.stderr
    )
    again = run(tmp_path)
    assert (again.exit_code, again.stdout) == (0, "")
    assert again.stderr == f"{tmp_path}/out.jsonl: is complete\n"


def test_quiet_prints_errors_only(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", LINES)
    for _ in range(2):
        result = run(tmp_path, "--quiet")
        assert (result.exit_code, result.output) == (0, "")


def test_lines_that_failed_have_an_exit_code(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", [*LINES, b"no JSON"])
    result = run(tmp_path)
    assert result.exit_code == 3
    assert "out.jsonl: 3 lines, 1 with an error\n" in result.stderr
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 3
    assert run(tmp_path).exit_code == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "1"], "exists, and is not what this input gives with these options; expected a new name"),
        (["--checkpoint", "/absent"], "/absent: there is no such file or directory; expected a checkpoint"),
        (["--tensor-parallel", "2"], "is not what this input gives"),  # whose sums have another order
    ],
)
def test_it_is_refused_in_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    write_lines(tmp_path / "in.jsonl", LINES)
    assert run(tmp_path).exit_code == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    result = run(tmp_path, *options)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("name", ["--batch-size=0", "--seed=-1", f"--seed={2**63}", "--temperature=1"])
def test_usage_errors(tmp_path: Path, name: str) -> None:
    write_lines(tmp_path / "in.jsonl", LINES)
    assert run(tmp_path, name).exit_code == 2
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_a_context_that_memory_gave_stays_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a prompt of 300 tokens would be too long for one process, and not for the next."""
    lines = [{"prompt": "Once", "max_new_tokens": 999}, {"prompt": [5] * 300, "max_new_tokens": 1}]
    write_lines(tmp_path / "in.jsonl", lines)
    add = BatchJob.add

    def interrupted(job: BatchJob, index: int, answer: bytes) -> None:
        if index == 0:
            raise KeyboardInterrupt
        add(job, index, answer)

    with monkeypatch.context() as patch:
        load = batch_command.load_runtime
        patch.setattr(
            batch_command, "load_runtime", lambda c, o, **more: load(c, {**o, "max_seq_len": 256}, **more)
        )
        patch.setattr(BatchJob, "add", interrupted)
        assert run(tmp_path).exit_code == 130
    assert run(tmp_path).exit_code == 3
    first, second = (json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines())
    assert first["prompt_tokens"] + first["completion_tokens"] <= 257
    assert second["error"]["code"] == "context_length_exceeded"


def test_the_extra_is_named_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "fastapi" else find(name, *more)
    )
    write_lines(tmp_path / "in.jsonl", LINES)
    assert run(tmp_path).exit_code == 0
    (tmp_path / "out.jsonl").unlink()
    write_lines(tmp_path / "in.jsonl", [*LINES, b"", request("b", {"messages": []}, CHAT)])
    result = run(tmp_path)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {tmp_path}/in.jsonl: line 4 is a request of OpenAI's API, and fastapi cannot be found; "
        f"expected plain lines, or the packages that pip install 'adept-fast[serve]' installs\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_options_of_ray_need_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "in.jsonl", LINES)
    result = run(tmp_path, "--ray-workers", "2")
    assert result.exit_code == 2
    assert "--ray-workers is given without --ray; expected both or none" in result.stderr
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more)
    )
    result = run(tmp_path, "--ray", "local")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: ray cannot be found; expected the packages that pip install 'adept-fast[ray]' installs\n",
    )


@pytest.mark.slow
def test_plain_lines_need_no_extra(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", [*LINES, b"no JSON"])
    absent = ("fastapi", "pydantic", "starlette", "uvicorn", "prometheus_client", "httpx", "ray", "pyarrow")
    done = run_python(
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "from adept_fast.commands.cli import main\n"
        "main(prog_name='adept-fast')\n",
        "batch",
        tmp_path / "in.jsonl",
        tmp_path / "out.jsonl",
    )
    assert done.returncode == 3, done.stderr
    assert b"Lima" in (tmp_path / "out.jsonl").read_bytes()


def started(folder: Path, before: str = "") -> subprocess.Popen[str]:
    """The program as a process of its own, which reports errors only."""
    program = f"{before}\nfrom adept_fast.commands.cli import main\nmain(prog_name='adept-fast')\n"
    return subprocess.Popen(
        [sys.executable, "-c", program, "batch", str(folder / "in.jsonl"), str(folder / "out.jsonl")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_bytes(process: subprocess.Popen[str], journal: Path, size: int) -> None:
    """Until the journal has that many bytes, or the process has ended."""
    deadline = time.monotonic() + SECONDS
    while process.poll() is None:
        assert time.monotonic() < deadline
        if journal.exists() and journal.stat().st_size >= size:
            return
        time.sleep(0.0005)


def many_lines(count: int) -> list[Any]:
    """Of both kinds, with answers of different lengths, drawn or not, and some errors."""
    lines: list[Any] = []
    for number in range(count):
        prompt, limit = f"Once upon a time {number}", 1 + 7 * number % 40
        if number % 10 == 3:
            lines.append(b"no JSON")
        elif number % 3:
            lines.append(
                {"prompt": prompt, "max_new_tokens": limit, "temperature": number % 2, "logprobs": 1}
            )
        else:
            body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": limit}
            lines.append(request(f"id {number}", body, CHAT))
    return lines


def without_times(output: bytes) -> list[bytes]:
    """The lines without the seconds at which their batch began."""
    return re.sub(rb'"created": \d+', b'"created": 0', output).splitlines()


@pytest.mark.slow
def test_killed_ten_times_it_loses_doubles_and_reorders_no_line(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        folder.mkdir()
        write_lines(folder / "in.jsonl", many_lines(60))
    process = started(whole)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 3, errors
    expected = (whole / "out.jsonl").read_bytes()
    chosen = random.Random(5)
    journal, deaths, sizes = killed / "out.jsonl.partial", 0, [0]
    for size in sorted(chosen.randrange(len(expected)) for _ in range(10)):
        process = started(killed)
        wait_for_bytes(process, journal, size)
        process.kill()
        process.communicate(timeout=SECONDS)
        deaths += process.returncode == -signal.SIGKILL
        if journal.exists():
            assert journal.stat().st_size >= sizes[-1] - 4096  # of which a record may be cut off
            sizes.append(journal.stat().st_size)
        assert not (killed / "out.jsonl").exists() or process.returncode == 3
    assert deaths >= 5
    assert len({*sizes}) >= 5  # it went on each time
    process = started(killed)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 3, errors
    found = (killed / "out.jsonl").read_bytes()
    assert without_times(found) == without_times(expected)
    assert sorted(path.name for path in killed.iterdir()) == ["in.jsonl", "out.jsonl"]


# Before the program: the engine waits once the journal has an answer, until it is interrupted.
HELD = """
import time
from adept_fast.server.batch.job import BatchJob

def held(add):
    def held_add(job, index, answer):
        add(job, index, answer)
        job.files.journal.with_suffix(".held").touch()
        while True:
            time.sleep(0.005)
    return held_add

BatchJob.add = held(BatchJob.add)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_it_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    write_lines(tmp_path / "in.jsonl", LINES)
    with opened(tmp_path) as job:
        job.begin(PLACEMENT)
        header = job.files.journal.stat().st_size
    (tmp_path / "out.jsonl.partial").unlink()
    process = started(tmp_path, HELD)
    wait_for_bytes(process, tmp_path / "out.jsonl.partial", header * 3)
    wait_for_bytes(process, tmp_path / "out.jsonl.held", 0)  # the answer counts
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=SECONDS)
    assert (process.returncode, stdout) == (status, "")
    assert stderr.rstrip() == (
        f"1 of 2 lines are done, and kept in {tmp_path}/out.jsonl.partial: "
        f"the same command goes on with the others"
    )
    result = run(tmp_path)
    assert result.exit_code == 0
    assert "out.jsonl: 2 lines, 1 of them before\n" in result.stderr


@pytest.mark.slow
def test_a_second_process_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", LINES)
    process = started(tmp_path, HELD)
    wait_for_bytes(process, tmp_path / "out.jsonl.partial", 600)
    result = run(tmp_path)
    process.kill()
    process.communicate(timeout=SECONDS)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {tmp_path}/out.jsonl.partial: another process writes this batch; "
        f"expected it to have ended, or another output\n"
    )
