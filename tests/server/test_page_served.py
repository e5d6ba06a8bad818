"""The page and the terminal with the real server and the demo."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright", reason="the page is tested with playwright")
pytest.importorskip("uvicorn", reason="the page is served by uvicorn")

from click.testing import CliRunner
from playwright.sync_api import expect
from server_process import SLOW_MODEL, ServerProcess

from adept_fast.commands.cli import main

if TYPE_CHECKING:
    from page_visit import OpenPage

pytest_plugins = ["page_visit"]
pytestmark = pytest.mark.slow

QUESTIONS = ["What is the capital of Peru?", "Which country has Nairobi as its capital?", "Tell me a story."]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(before=SLOW_MODEL) as server:
        yield server


def running(server: ServerProcess) -> float:
    """How many answers are generated, as the server's metrics say."""
    with server.client() as client:
        text = client.get("/metrics").text
    found = re.search(r"^adept_fast_answers_running (\S+)", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


def test_a_conversation(open_page: OpenPage, server: ServerProcess) -> None:
    visit = open_page()
    expect(visit.page.get_by_text("demo", exact=True)).to_be_visible()
    visit.set(Temperature="0")
    visit.ask(QUESTIONS[0])
    expect(visit.answer(0)).to_have_text("The capital of Peru is Lima.")
    visit.ask(QUESTIONS[1])
    expect(visit.answer(1)).to_have_text("Nairobi is the capital of Kenya.")
    figures = visit.page.locator(".figures").nth(1)
    expect(figures).to_contain_text(
        re.compile(r"7 tokens.*\d tokens/s.*first token after .* prompt tokens cached")
    )
    visit.ask("\n\n".join(["word " * 60] * 10))
    expect(
        visit.page.get_by_text(re.compile(r"The server says: .*tokens; expected at most 512"))
    ).to_be_visible()


def test_an_answer_is_stopped(open_page: OpenPage, server: ServerProcess) -> None:
    visit = open_page()
    visit.set(Temperature="0")
    visit.ask(QUESTIONS[2])
    expect(visit.answer(0)).to_contain_text("Once upon a time")
    visit.page.keyboard.press("Escape")
    expect(visit.page.get_by_text("Stopped.", exact=True)).to_be_visible()
    partial = visit.answer(0).text_content() or ""
    assert len(partial) < 300
    visit.ask(QUESTIONS[0])
    expect(visit.answer(1)).to_have_text("The capital of Peru is Lima.")
    assert running(server) == 0
    assert visit.answer(0).text_content() == partial


def test_a_seed_gives_the_same_answer_twice(open_page: OpenPage, server: ServerProcess) -> None:
    visit = open_page()
    visit.set(Temperature="1.5", Max_tokens="20", Seed="7")
    texts = []
    for seed in ("7", "7", "8"):
        visit.set(Seed=seed)
        visit.button("New conversation").click()
        visit.ask(QUESTIONS[2])
        expect(visit.page.locator(".figures:not(:empty)")).to_be_visible()
        texts.append(visit.answer(0).text_content())
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_the_terminal_has_the_answers_of_a_model_that_is_loaded_there(server: ServerProcess) -> None:
    options = ["chat", "--temperature", "0.9", "--seed", "5", "--top-k", "50", "--max-new-tokens", "20"]
    stdin = "\n".join(QUESTIONS)
    remote = CliRunner().invoke(main, [*options, "--server", server.url], input=stdin)
    local = CliRunner().invoke(main, options, input=stdin)
    assert (remote.exit_code, remote.stderr) == (0, "\n")
    assert remote.stdout == local.stdout


def test_a_server_that_ends(open_page: OpenPage) -> None:
    with ServerProcess(before=SLOW_MODEL) as other:
        visit = open_page(url=other.url)
        visit.ask(QUESTIONS[2])
        expect(visit.answer(0)).to_contain_text(re.compile(r"\w+ \w+"))
        other.signal(signal.SIGKILL)
        expect(visit.page.get_by_text("The connection broke before the answer was complete.")).to_be_visible()
        visit.ask("Are you there?")
        expect(visit.page.get_by_text("The server does not answer.")).to_be_visible()
