"""The web page in a real browser: conversations, settings and errors; the answers are written beforehand."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("playwright", reason="the page is tested with playwright")
pytest.importorskip("uvicorn", reason="the page is served by uvicorn")

from playwright.sync_api import expect
from scripted_server import CUT, Failure, ScriptedServer

if TYPE_CHECKING:
    from page_visit import Visit

pytest_plugins = ["page_visit"]
pytestmark = pytest.mark.slow


def test_a_conversation_of_two_turns(visit: Visit, server: ScriptedServer) -> None:
    expect(visit.page.get_by_text("scripted-1b")).to_be_visible()
    server.answers.append(["You said: ", 0.1, "What is ", "the capital of Peru?"])
    visit.ask("What is the capital of Peru?")
    expect(visit.answer(0)).to_have_text("You said: What is the capital of Peru?")
    visit.ask("And of\nChile?")
    expect(visit.answer(1)).to_have_text("You said: And of\nChile?", use_inner_text=True)
    first, second = server.requests
    assert first == {
        "model": "scripted-1b",
        "messages": [{"role": "user", "content": "What is the capital of Peru?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert second["messages"] == [
        {"role": "user", "content": "What is the capital of Peru?"},
        {"role": "assistant", "content": "You said: What is the capital of Peru?"},
        {"role": "user", "content": "And of\nChile?"},
    ]
    figures = visit.page.locator(".figures").nth(0)
    expect(figures).to_contain_text("3 tokens")
    expect(figures).to_contain_text(re.compile(r"\d tokens/s"))
    expect(figures).to_contain_text(re.compile(r"first token after \d+\.\d\d s"))
    expect(figures).to_contain_text("14 of 28 prompt tokens cached")


def test_an_answer_appears_while_it_is_generated_and_can_be_stopped(
    visit: Visit, server: ScriptedServer
) -> None:
    gate = threading.Event()
    server.answers.append(["Once upon ", "a time", gate, " there was"])
    visit.ask("Tell me a story")
    expect(visit.answer(0)).to_have_text("Once upon a time")
    expect(visit.answer(0)).to_have_attribute("aria-busy", "true")
    expect(visit.button("Send")).to_be_hidden()
    visit.message.fill("Too early")
    visit.message.press("Enter")
    expect(visit.page.get_by_role("status")).to_have_text(
        "Wait for the end of the answer, or stop it with Escape."
    )
    expect(visit.message).to_have_value("Too early")
    visit.button("Stop").click()
    expect(visit.page.get_by_text("Stopped.", exact=True)).to_be_visible()
    assert server.left.wait(10), "the server goes on"
    expect(visit.answer(0)).to_have_text("Once upon a time")
    expect(visit.answer(0)).to_have_attribute("aria-busy", "false")

    visit.ask("Go on")
    expect(visit.answer(1)).to_have_text("You said: Go on")
    assert server.requests[1]["messages"][1] == {"role": "assistant", "content": "Once upon a time"}


def test_a_question_that_was_stopped_before_its_answer_is_not_sent_again(
    visit: Visit, server: ScriptedServer
) -> None:
    server.answers.append([threading.Event()])
    visit.ask("One")
    expect(visit.page.get_by_text("Waiting for the first token")).to_be_visible()
    visit.page.keyboard.press("Escape")
    expect(visit.page.get_by_text("Stopped before the answer began.")).to_be_visible()
    assert server.left.wait(10)
    visit.ask("Two")
    expect(visit.answer(1)).to_have_text("You said: Two")
    assert [message["content"] for message in server.requests[1]["messages"]] == ["Two"]


def test_an_answer_is_generated_again(visit: Visit, server: ScriptedServer) -> None:
    server.answers.extend([["A first answer."], ["A second one."]])
    visit.ask("Well?")
    expect(visit.answer(0)).to_have_text("A first answer.")
    visit.button("Regenerate").click()
    expect(visit.answer(0)).to_have_text("A second one.")
    expect(visit.page.locator(".turn")).to_have_count(1)
    assert server.requests[0] == server.requests[1]
    visit.ask("And then?")
    expect(visit.answer(1)).to_have_text("You said: And then?")
    assert server.requests[2]["messages"][1]["content"] == "A second one."
    expect(visit.button("Regenerate")).to_have_count(1)


def test_an_answer_stays_if_another_one_cannot_be_generated(visit: Visit, server: ScriptedServer) -> None:
    server.answers.extend([["The answer."], Failure(503, "the server is stopping")])
    visit.ask("Well?")
    expect(visit.answer(0)).to_have_text("The answer.")
    visit.button("Regenerate").click()
    expect(visit.page.get_by_text("The server says: the server is stopping")).to_be_visible()
    expect(visit.answer(0)).to_have_text("The answer.")
    visit.button("Try again").click()
    expect(visit.answer(0)).to_have_text("You said: Well?")


def test_a_new_conversation_begins_while_an_answer_is_generated(visit: Visit, server: ScriptedServer) -> None:
    server.answers.append(["Endless", threading.Event()])
    visit.ask("One")
    expect(visit.answer(0)).to_have_text("Endless")
    visit.button("New conversation").click()
    assert server.left.wait(10)
    expect(visit.page.locator(".turn")).to_have_count(0)
    expect(visit.message).to_be_focused()
    visit.ask("Two")
    expect(visit.answer(0)).to_have_text("You said: Two")
    assert [message["content"] for message in server.requests[1]["messages"]] == ["Two"]


def test_settings_are_sent_and_kept(visit: Visit, server: ScriptedServer) -> None:
    fields = {
        "Temperature": "0.7", "Top_p": "0.9", "Top_k": "40", "Min_p": "0.05", "Max_tokens": "100",
        "Seed": "7", "System_message": "Be brief.",
    }  # fmt: skip
    visit.set(**fields)
    for _ in range(2):
        visit.ask("Hello")
        expect(visit.answer(0)).to_have_text("You said: Hello (seed 7)")
        visit.page.reload()
    expected = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 100, "seed": 7}
    for request in server.requests:
        assert request.items() >= expected.items()
        assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    visit.button("Settings").click()
    visit.button("Empty these fields").click()
    visit.page.keyboard.press("Escape")
    visit.ask("Hello")
    expect(visit.answer(0)).to_have_text("You said: Hello")
    assert server.requests[2].keys() == {"model", "messages", "stream", "stream_options"}


def test_a_setting_outside_its_range_is_refused_in_words(visit: Visit, server: ScriptedServer) -> None:
    visit.button("Settings").click()
    temperature = visit.page.get_by_label("Temperature", exact=True)
    temperature.fill("3")
    temperature.press("Tab")
    expect(visit.page.get_by_text("Expected a number from 0 to 2. This value is not used.")).to_be_visible()
    expect(temperature).to_have_attribute("aria-invalid", "true")
    visit.page.get_by_label("Top k", exact=True).fill("1.5")
    visit.button("Close").click()
    visit.ask("Hello")
    expect(visit.answer(0)).to_have_text("You said: Hello")
    assert not {"temperature", "top_k"} & server.requests[0].keys()


def test_an_api_key(visit: Visit, server: ScriptedServer) -> None:
    server.key = "right"
    visit.page.reload()
    expect(visit.page.get_by_role("alert").first).to_have_text(
        "The server asks for an API key. Enter it in the settings."
    )
    visit.set(API_key="wrong")
    expect(visit.page.get_by_role("alert").first).to_have_text("The server refuses this API key.")
    visit.ask("Hello")
    visit.button("Open settings").click()
    expect(visit.page.get_by_label("API key", exact=True)).to_be_focused()
    visit.page.get_by_label("API key", exact=True).fill("right")
    visit.page.keyboard.press("Escape")
    expect(visit.page.get_by_text("scripted-1b")).to_be_visible()
    visit.button("Try again").click()
    expect(visit.answer(0)).to_have_text("You said: Hello")
    assert visit.page.evaluate("Object.values(localStorage).join().includes('right')") is False
    visit.page.reload()
    expect(visit.page.get_by_text("scripted-1b")).to_be_visible()


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Failure(429, "9 wait", headers={"Retry-After": "3"}), "too much to do. Try again in 3 seconds."),
        (Failure(400, "top_p is 3; expected a number"), "The server says: top_p is 3; expected a number"),
        (Failure(500, "the server failed"), "The server says: the server failed"),
        ([Failure(504, "the request took too long")], "The server says: the request took too long"),
    ],
    ids=["429", "400", "500", "event"],
)
def test_errors_in_words(visit: Visit, server: ScriptedServer, failure: Any, words: str) -> None:
    server.answers.append(failure)
    visit.ask("Hello")
    expect(visit.page.get_by_role("alert").filter(has_text=words)).to_be_visible()
    visit.button("Try again").click()
    expect(visit.answer(0)).to_have_text("You said: Hello")
    expect(visit.page.locator(".problem:visible")).to_have_count(0)


def test_a_connection_that_breaks(visit: Visit, server: ScriptedServer) -> None:
    gate = threading.Event()
    server.answers.append(["Half an", gate, CUT])
    visit.ask("Hello")
    expect(visit.answer(0)).to_have_text("Half an")
    gate.set()
    expect(visit.page.get_by_text("The connection broke before the answer was complete.")).to_be_visible()
    expect(visit.answer(0)).to_have_text("Half an")
    visit.ask("Go on")
    expect(visit.answer(1)).to_have_text("You said: Go on")
    assert server.requests[1]["messages"][1]["content"] == "Half an"


def test_a_server_that_is_gone(visit: Visit, server: ScriptedServer) -> None:
    expect(visit.page.get_by_text("scripted-1b")).to_be_visible()
    server.stop()
    visit.ask("Hello")
    expect(visit.page.get_by_text("The server does not answer.")).to_be_visible()
    expect(visit.button("Send")).to_be_visible()


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(
    visit: Visit, server: ScriptedServer
) -> None:
    for question in ("One", "Two", "Three"):
        visit.ask(question)
        expect(visit.page.get_by_text(f"You said: {question}", exact=True)).to_be_visible()
    server.requests.clear()
    full = Failure(400, "the prompt has 600 tokens; expected at most 512", "context_length_exceeded")
    server.answers.extend([full, full])
    visit.ask("Four")
    expect(visit.answer(3)).to_have_text("You said: Four")
    expect(visit.page.get_by_text("the first 2 questions and their answers are forgotten")).to_be_visible()
    visit.ask("Five")
    expect(visit.answer(4)).to_have_text("You said: Five")
    asked = [[entry["content"] for entry in request["messages"][::2]] for request in server.requests]
    assert asked == [
        ["One", "Two", "Three", "Four"],
        ["Two", "Three", "Four"],
        ["Three", "Four"],
        ["Three", "Four", "Five"],
    ]
    server.answers.extend([full] * 9)
    visit.ask("Six")
    expect(visit.page.get_by_text("The server says: the prompt has 600 tokens")).to_be_visible()


def test_turns_are_forgotten_before_there_is_no_room_for_an_answer(
    visit: Visit, server: ScriptedServer
) -> None:
    """Two turns of 40 tokens and a question do not fit into a context of 100, if an answer may have 20."""
    server.context = 100
    visit.page.reload()
    visit.set(Max_tokens="20")
    for at, letter in enumerate("abcd"):
        server.answers.append(["x"] * 10)
        visit.ask(letter * 30)
        expect(visit.answer(at)).to_have_text("x" * 10)
        expect(visit.answer(at)).to_have_attribute("aria-busy", "false")
    asked = [[entry["content"][0] for entry in request["messages"]] for request in server.requests]
    assert asked == [["a"], ["a", "x", "b"], ["b", "x", "c"], ["c", "x", "d"]]
    expect(visit.page.get_by_text("the first question and its answer are forgotten")).to_be_visible()
