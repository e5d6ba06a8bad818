"""The options of ``adept-fast serve``: what they become, and which do not go together."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from adept_fast.commands import serve as serve_command
from adept_fast.commands.cli import main
from adept_fast.server.settings import Settings

LOCAL = ("localhost", "127.0.0.1", "::1")


def run(*arguments: str, **environment: str) -> Result:
    """What it prints; the checkpoint is not there, so each mistake must be found before it is opened."""
    arguments = ("serve", "--checkpoint", "/absent", "--port", "0", *arguments)
    return CliRunner(env={"ADEPT_FAST_API_KEY": None, **environment}).invoke(main, arguments)


@pytest.fixture(autouse=True)
def no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name is asked of the network."""
    found = socket.getaddrinfo

    def resolve(host: str, *arguments: Any, **keywords: Any) -> Any:
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return found(host, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings, and other options, of a command line that is not run."""
    seen: list[tuple[dict[str, Any], Settings]] = []
    monkeypatch.setattr(serve_command, "_serve", lambda options, settings: seen.append((options, settings)))

    def of(*arguments: str, **environment: str) -> tuple[dict[str, Any], Settings]:
        result = CliRunner(env={"ADEPT_FAST_API_KEY": None, **environment}).invoke(
            main, ["serve", *arguments]
        )
        assert result.exit_code == 0, result.stderr
        return seen.pop()

    return of


def test_defaults(settings: Any) -> None:
    options, found = settings()
    assert found == Settings("demo", allowed_hosts=(*LOCAL, "127.0.0.1"))
    assert (options["host"], options["port"], options["batch_size"]) == ("127.0.0.1", 8000, 8)
    assert options["warmup"] is True


def test_limits(settings: Any) -> None:
    _, found = settings(
        "--request-seconds", "0", "--grace-seconds", "2.5", "--max-body-bytes", "2048", "--max-prompts", "3",
        "--max-choices", "2", "--max-stops", "4", "--max-stop-characters", "9", "--max-logprobs", "5",
        "--log-prompts", "--model-name", "name",
    )  # fmt: skip
    assert found == Settings(
        "name",
        allowed_hosts=(*LOCAL, "127.0.0.1"),
        request_seconds=None,
        grace_seconds=2.5,
        log_prompts=True,
        max_body_bytes=2048,
        max_prompts=3,
        max_choices=2,
        max_stops=4,
        max_stop_characters=9,
        max_logprobs=5,
    )


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("adept/persimmon-8b-chat", "adept/persimmon-8b-chat"),
        ("/models/persimmon-8b/", "persimmon-8b"),
        ("./8b_chat_model_release.tar", "8b_chat_model_release"),
        ("models/of/mine", "mine"),
    ],
)
def test_a_model_has_the_name_of_its_checkpoint(settings: Any, checkpoint: str, name: str) -> None:
    assert settings("--checkpoint", checkpoint)[1].model_name == name


def test_keys_come_from_an_option_a_variable_and_a_file(settings: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# comment\n\n  one \r\ntwo  # of somebody\nwith#hash\none\n", encoding="utf-8")
    assert settings("--api-key", "a")[1] == Settings("demo", api_keys=("a",), allowed_hosts=None)
    assert settings(ADEPT_FAST_API_KEY="b")[1].api_keys == ("b",)
    _, found = settings("--api-key", "a", "--api-key-file", str(file), "--host", "0.0.0.0")
    assert found.api_keys == ("a", "one", "two", "with#hash")
    assert found.allowed_hosts is None
    assert "two" not in repr(found)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "no-such-host.invalid"])
def test_other_hosts_need_a_key_or_a_decision(settings: Any, host: str) -> None:
    result = run("--host", host)
    assert result.exit_code == 2
    assert f"--host is '{host}'" in result.stderr
    assert "expected --api-key, --api-key-file or --no-auth with it" in result.stderr
    assert settings("--host", host, "--no-auth")[1].allowed_hosts is None
    assert settings("--host", host, "--api-key", "a")[1].api_keys == ("a",)
    assert settings("--host", host, "--no-auth", "--allowed-host", "a.example")[1].allowed_hosts == (
        "a.example",
    )


def test_a_name_with_an_address_that_others_reach_is_not_local(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = ["127.0.0.1", "192.0.2.1"]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (address, 0)) for address in addresses]
    )
    assert run("--host", "both.example").exit_code == 2
    addresses.pop()
    assert settings("--host", "local.example")[1].allowed_hosts == (*LOCAL, "local.example")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--api-key", "a", "--no-auth"], "--no-auth and an API key are both given"),
        (["--api-key", ""], "--api-key is no key"),
        (["--api-key", "two words"], "--api-key is no key"),
        (["--api-key", "caf\xe9"], "--api-key is no key"),
        (["--api-key", "a\n"], "--api-key is no key"),
        (["--api-key", "a" * 513], "--api-key has 513 characters; expected at most 512"),
        (["--cors-origin", "example.org"], "--cors-origin is 'example.org'"),
        (["--cors-origin", "https://example.org/"], "expected *, or a scheme and a host"),
        (["--cors-origin", "https://"], "--cors-origin is 'https://'"),
        (["--port", "65536"], "65536"),
        (["--batch-size", "0"], "--batch-size"),
        (["--log-format", "xml"], "xml"),
        (["--api-key-file", "/absent"], "/absent"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "two words" not in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# nothing\n", "has no key; expected one a line"),
        (b"good\nbad key\n", "line 2 is no key"),
        (b"\xff\n", "not UTF-8 text"),
        (b"a" * (2**20 + 1), "has 1048577 bytes; expected at most 1048576"),
    ],
)
def test_bad_files_of_keys(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    result = run("--api-key-file", str(file))
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert "bad key" not in result.stderr


def test_a_file_of_keys_that_all_can_read_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key\n", encoding="utf-8")
    for mode, is_warned in ((0o600, False), (0o644, True)):
        os.chmod(file, mode)
        result = run("--api-key-file", str(file))
        assert result.exit_code == 1  # there is no such checkpoint
        assert ("all users can read the API keys" in result.stderr) is is_warned
        assert "a-key" not in result.stderr


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else found(name, *rest)
    )
    result = run()
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "uvicorn cannot be found" in result.stderr
    assert "pip install 'adept-fast[serve]'" in result.stderr


def test_an_unknown_host_with_a_key() -> None:
    result = run("--host", "no-such-host.invalid", "--api-key", "a")
    assert result.exit_code == 1
    assert result.stderr == "error: --host is 'no-such-host.invalid', which is no address of this machine\n"


def test_help_needs_none_of_the_packages() -> None:
    result = CliRunner().invoke(main, ["serve", "--help"])
    assert result.exit_code == 0
    assert isinstance(main.commands["serve"], click.Command)
    assert "--grace-seconds" in result.stdout
