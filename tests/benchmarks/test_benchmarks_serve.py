"""``python -m benchmarks serve``: servers are started, take turns, and are ended; a toy run of it."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.cases import serve
from benchmarks.result_file import check_report
from benchmarks.serving import measure, servers
from benchmarks.serving.servers import Kind, Server, ServerVariant, Setting
from benchmarks.workers import OURS, AbsentError

FAKE = Path(__file__).with_name("fake_server.py")
IN_A_CLONE = pytest.mark.skipif(
    not (Path(__file__).resolve().parents[2] / ".git").exists(),
    reason="a result names its commit, so it takes a clone",
)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that behave as their names say; ours is good."""

    def kind(behaviour: str) -> Kind:
        return Kind(
            ("bfloat16",),
            lambda start: [start.program, str(FAKE), str(start.port), behaviour],
            "/ready",
            lambda setting: {"model": setting.checkpoint.name},
            packages=("click",),
        )

    behaviours = {OURS: "good", "transformers": "bad", "llama-cpp-python": "dead"}
    monkeypatch.setattr(servers, "KINDS", {name: kind(each) for name, each in behaviours.items()})
    monkeypatch.setattr(serve, "KINDS", servers.KINDS)
    monkeypatch.setattr(measure, "LEAD_SECONDS", 0.1)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


def start(tmp_path: Path, name: str = OURS, programs: dict[str, str] | None = None) -> Server:
    setting = Setting(tmp_path / "model", "bfloat16", 1, 2, 100)
    return Server(ServerVariant(name, "bfloat16"), programs or {}, setting, tmp_path)


def test_a_server_is_paused_goes_on_and_is_ended(fakes: None, tmp_path: Path) -> None:
    server = start(tmp_path)
    try:
        assert state_of(server.pid) != "T"
        server.pause()
        limit = time.monotonic() + 10
        while state_of(server.pid) != "T":
            assert time.monotonic() < limit
        assert server.versions()["click"].startswith("8.")
    finally:
        server.close()
    assert not Path(f"/proc/{server.pid}").exists()


def test_a_server_that_does_not_end_by_itself_is_killed(
    fakes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "STOP_SECONDS", 0.1)
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    monkeypatch.setattr(servers, "environment", lambda: {"PYTHONPATH": str(tmp_path)})
    (tmp_path / "sitecustomize.py").write_text(script, encoding="utf-8")
    server = start(tmp_path)
    server.close()
    assert server._process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "programs", "reason"),
    [
        ("llama-cpp-python", {}, "it ended with 1: no model there"),
        ("transformers", {"transformers": "/none/python"}, "there is no program /none/python"),
    ],
)
def test_a_server_that_cannot_run_is_absent(
    fakes: None, tmp_path: Path, name: str, programs: dict[str, str], reason: str
) -> None:
    with pytest.raises(AbsentError, match=reason):
        start(tmp_path, name, programs)


@pytest.mark.parametrize("name", servers.KINDS)
def test_a_command_starts_the_server_on_loopback_with_the_setting(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "gguf", lambda python, setting: f"{python} {setting.checkpoint.name}.gguf")
    setting = Setting(tmp_path / "model", "bfloat16", 3, 5, 300)
    command = servers.KINDS[name].command(servers.Start("/program", "/python", 1234, setting))
    options = dict(zip(command, command[1:], strict=False))
    assert command[0] == "/program"
    assert (options["--host"], options["--port"]) == ("127.0.0.1", "1234")
    expected = {
        OURS: {"--checkpoint": str(tmp_path / "model"), "--dtype": "bfloat16", "--batch-size": "5"},
        "transformers": {"serve": str(tmp_path / "model"), "--dtype": "bfloat16", "--cb-num-blocks": "10"},
        "llama-cpp-python": {"--model": "/python model.gguf", "--n_threads": "3", "--n_ctx": "300"},
        "llama-server": {"--model": "/python model.gguf", "--parallel": "5", "--ctx-size": "1500"},
    }[name]
    assert {key: options[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["--server", "vllm:bfloat16"],
            "'vllm:bfloat16' is no server and format; expected one of adept-fast:",
        ),
        (["--server", "llama-server:float32"], "expected one of adept-fast:"),
        (["--python", "llama.cpp=/x"], "'llama.cpp=/x'; expected SERVER=PATH, SERVER one of adept-fast, "),
        (["--python", "transformers"], "'transformers'; expected SERVER=PATH"),
        (["--shortest-prompt", "9", "--longest-prompt", "8"], "--longest-prompt is 8; expected at least 9"),
        (["--model", "9b"], "--model is '9b'; expected demo, tiny, 0.7g, small, 8b or a directory"),
    ],
)
def test_a_wrong_option_is_named(options: list[str], reason: str) -> None:
    result = CliRunner().invoke(serve.main, options)
    assert result.exit_code == 2
    assert reason in " ".join(result.output.replace("│", "").split())


def run(tmp_path: Path, *options: str) -> tuple[dict[str, Any], str]:
    output = tmp_path / "serve.json"
    toy = [
        "--model",
        "demo",
        "--clients",
        "2",
        "--longest-prompt",
        "32",
        "--max-tokens",
        "8",
        "--threads",
        "1",
    ]
    any_sample = ["--max-others-share", "9", "--output", str(output)]
    result = CliRunner().invoke(serve.main, [*toy, *any_sample, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(output.read_text(encoding="utf-8")), result.output


@IN_A_CLONE
def test_servers_take_turns_and_failures_are_named(fakes: None, tmp_path: Path) -> None:
    chosen = [part for name in servers.KINDS for part in ("--server", f"{name}:bfloat16")]
    report, output = run(
        tmp_path, *chosen, "--long-prompt", "60", "--rate", "40", "--samples", "1", "--seconds", "2"
    )
    check_report(report)
    loads = ("closed loop", "open loop 40", "no long prompt")
    rows = [f"{name}:bfloat16, {load}" for load in loads for name in (OURS, "transformers")]
    assert list(report["measured"]) == [*rows, f"{OURS}:bfloat16, long prompt"]
    assert "no model there" in report["absent"].pop("llama-cpp-python:bfloat16")
    assert "status 400" in report["absent"].pop("transformers:bfloat16, long prompt")
    assert not report["absent"]
    for row, values in report["measured"].items():
        assert values["clean_samples"] == 1
        assert values["tokens_per_event"] == 1
        assert row in output
    arrived = report["measured"][f"{OURS}:bfloat16, open loop 40"]["answers_per_second"]
    assert arrived["median"] > 0
    ratios = report["ratios"][f"{OURS}:bfloat16, closed loop"]
    assert list(ratios) == ["transformers:bfloat16, closed loop"]
    assert "times the tokens/s of transformers:bfloat16" in output
    assert report["servers"][f"{OURS}:bfloat16"].startswith("…/python")


@IN_A_CLONE
def test_our_server_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    report, _ = run(
        tmp_path,
        *("--server", f"{OURS}:float32", "--python", f"{OURS}={sys.executable}"),
        *("--long-prompt", "100", "--samples", "1", "--seconds", "2"),
    )
    check_report(report)
    values = report["measured"][f"{OURS}:float32, closed loop"]
    assert values["tokens_per_second"]["median"] > 0
    assert 16 <= values["mean_prompt_tokens"] <= 33  # with BOS
    assert report["measured"][f"{OURS}:float32, long prompt"]["long_prompts"]["median"] >= 1
