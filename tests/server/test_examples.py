"""The programs in examples/, as they stand, against ``adept-fast serve``."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="an example uses OpenAI's client")
pytest.importorskip("uvicorn", reason="the server runs on uvicorn")

from server_process import ServerProcess

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ABOUT_ITSELF = "I am a tiny demo model with the Persimmon architecture."


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--api-key", "secret") as server:
        yield server


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120
    )


def test_openai_client(server: ServerProcess) -> None:
    done = run(
        sys.executable,
        str(EXAMPLES / "openai_client.py"),
        OPENAI_BASE_URL=f"{server.url}/v1",
        OPENAI_API_KEY="secret",
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer, cached, story, kenya, seven, itself = done.stdout.splitlines()
    assert answer == "The capital of Peru is Lima."
    assert cached.endswith("of 16 prompt tokens were cached)")
    assert story.startswith("Once upon a time, ")
    assert [kenya, seven] == ["Nairobi is the capital of Kenya.", "3 plus 4 is 7."]
    assert itself.startswith(ABOUT_ITSELF)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(server: ServerProcess) -> None:
    done = run("sh", str(EXAMPLES / "curl.sh"), ADEPT_FAST_SERVER=server.url, ADEPT_FAST_API_KEY="secret")
    assert (done.returncode, done.stderr) == (0, "")
    models, answer, *stream, logprobs, tokens = filter(None, done.stdout.splitlines())
    assert json.loads(models)["data"][0]["id"] == "demo"
    assert json.loads(answer)["choices"][0]["message"]["content"] == "The capital of Peru is Lima."
    *chunks, usage, end = (line.removeprefix("data: ") for line in stream)
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == "3 plus 4 is 7."
    assert json.loads(usage)["usage"]["completion_tokens"] == 10
    assert end == "[DONE]"
    assert len(json.loads(logprobs)["choices"][0]["logprobs"]["top_logprobs"][0]) == 3
    assert json.loads(tokens)["count"] == len(json.loads(tokens)["tokens"])


def test_a_key_that_is_wrong_is_an_error(server: ServerProcess) -> None:
    done = run("sh", str(EXAMPLES / "curl.sh"), ADEPT_FAST_SERVER=server.url, ADEPT_FAST_API_KEY="wrong")
    assert done.returncode != 0
    assert json.loads(done.stdout.splitlines()[0])["error"]["code"] == "invalid_api_key"


def test_langchain(server: ServerProcess) -> None:
    pytest.importorskip("langchain_openai", reason="an example uses LangChain")
    done = run(
        sys.executable,
        str(EXAMPLES / "langchain_chat.py"),
        OPENAI_BASE_URL=f"{server.url}/v1",
        OPENAI_API_KEY="secret",
    )
    assert done.returncode == 0, done.stderr
    *capitals, itself = done.stdout.splitlines()
    assert capitals == [
        "The capital of Peru is Lima.",
        "The capital of Kenya is Nairobi.",
        "The capital of Japan is Tokyo.",
    ]
    assert itself.startswith(ABOUT_ITSELF)


def test_they_begin_with_the_address_that_a_server_has_by_default() -> None:
    texts = {file.name: file.read_text(encoding="utf-8") for file in EXAMPLES.iterdir() if file.is_file()}
    assert texts.keys() == {"openai_client.py", "curl.sh", "langchain_chat.py", "ray_serve.yaml"}
    assert all("http://127.0.0.1:8000" in text for text in texts.values())
    for name, text in texts.items():
        assert not name.endswith(".py") or ast.get_docstring(ast.parse(text))
