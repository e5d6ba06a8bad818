"""The web page in a real browser, with a server whose answers are known beforehand."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("playwright", reason="the page is tested with playwright")
pytest.importorskip("uvicorn", reason="the page is served by uvicorn")

from playwright.sync_api import expect, sync_playwright
from scripted_server import CUT, Failure, ScriptedServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]

HTTP_ERROR = re.compile("Failed to load resource: (the server responded with a status|net::ERR)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


class Visit:
    """The page in a context of its own, with helpers; ``complaints`` and ``hosts`` are what a test checks."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(10_000)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.hosts: set[str | None] = set()
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.goto(url)

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning") and not HTTP_ERROR.match(message.text):
            self.complaints.append(message.text)

    @property
    def message(self) -> Locator:
        return self.page.get_by_role("textbox", name="Message", exact=True)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def ask(self, question: str) -> None:
        self.message.fill(question)
        self.message.press("Enter")

    def answer(self, number: int) -> Locator:
        return self.page.locator(".answer").nth(number)

    def set(self, **fields: str) -> None:
        self.button("Settings").click()
        for label, value in fields.items():
            self.page.get_by_label(label.replace("_", " "), exact=True).fill(value)
        self.button("Close").click()

    def is_too_wide(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))


@pytest.fixture
def visit(browser: Browser, server: ScriptedServer) -> Iterator[Visit]:
    """The page on a desktop. Nothing may be reported on the console, and no other host may be asked."""
    visit = Visit(browser, server.url)
    yield visit
    assert visit.complaints == []
    assert visit.hosts == {urlsplit(server.url).netloc}
    visit.context.close()


def test_a_conversation_of_two_turns(visit: Visit, server: ScriptedServer) -> None:
    expect(visit.page.get_by_text("scripted-1b")).to_be_visible()
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
    expect(figures).to_contain_text("4 tokens")  # the fourth is empty
    expect(figures).to_contain_text(re.compile(r"\d tokens/s"))
    expect(figures).to_contain_text(re.compile(r"first token after \d+\.\d\d s"))
    expect(figures).to_contain_text("7 of 20 prompt tokens cached")


def test_an_answer_appears_while_it_is_generated_and_can_be_stopped(
    visit: Visit, server: ScriptedServer
) -> None:
    gate = threading.Event()
    server.answers.append(["Once upon ", "a time", gate, " there was"])
    visit.ask("Tell me a story")
    expect(visit.answer(0)).to_have_text("Once upon a time")
    expect(visit.answer(0)).to_have_attribute("aria-busy", "true")
    expect(visit.button("Send")).to_be_hidden()
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
        "Temperature": "0.7", "Top_p": "0.9", "Top_k": "40", "Min_p": "0.05", "Max_tokens": "100", "Seed": "7",
        "System_message": "Be brief.",
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
        ["One", "Two", "Three", "Four"], ["Two", "Three", "Four"], ["Three", "Four"], ["Three", "Four", "Five"]
    ]  # fmt: skip
    server.answers.extend([full] * 9)
    visit.ask("Six")
    expect(visit.page.get_by_text("The server says: the prompt has 600 tokens")).to_be_visible()


def test_a_models_text_is_text_and_keeps_its_whitespace(visit: Visit, server: ScriptedServer) -> None:
    text = "a  b\n   <b>c</b> <img src=x onerror=\"document.title='run'\">\n\n```python\nif x:\n    y = '<i>'\n```\nend"
    server.answers.append([*text])
    visit.ask("Show <code>")
    paragraph, code, end = (visit.answer(0).locator("> *").nth(at) for at in range(3))
    expect(end).to_have_text("end")
    assert paragraph.text_content() == text.partition("\n\n```")[0]
    expect(paragraph).to_have_css("white-space-collapse", "preserve")
    assert code.evaluate("node => node.tagName") == "PRE"
    assert code.text_content() == "if x:\n    y = '<i>'"
    assert visit.page.locator(".question").text_content() == "Show <code>"
    assert visit.page.locator("main :is(b, img, i)").count() == 0
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.button("Copy").click()
    expect(visit.button("Copied")).to_be_visible()
    assert visit.page.evaluate("navigator.clipboard.readText()") == text


def test_a_screen_reader_hears_an_answer_once(visit: Visit, server: ScriptedServer) -> None:
    gate = threading.Event()
    server.answers.append(["Yes, ", gate, "it is."])
    status = visit.page.get_by_role("status")
    expect(status).to_have_attribute("aria-live", "polite")
    visit.ask("Is it?")
    expect(visit.answer(0)).to_have_text("Yes, ")
    expect(status).to_have_text("The model is answering.")
    gate.set()
    expect(status).to_have_text("The answer: Yes, it is.")
    assert visit.page.locator("main [aria-live], main [role=log], main [role=status]").count() == 0


def test_the_page_is_used_with_the_keyboard_alone(visit: Visit, server: ScriptedServer) -> None:
    press, focused = visit.page.keyboard.press, visit.page.locator(":focus")
    expect(visit.message).to_be_focused()
    visit.page.keyboard.type("First line")
    press("Shift+Enter")
    visit.page.keyboard.type("second")
    press("Enter")
    expect(visit.answer(0)).to_have_text("You said: First line\nsecond", use_inner_text=True)

    skip = visit.page.get_by_role("link", name="Skip to the message field")
    skip.focus()
    names = []
    for _ in range(8):
        names.append(
            focused.get_attribute("aria-label") or focused.text_content() or focused.get_attribute("id")
        )
        outline = focused.evaluate("node => getComputedStyle(node).outlineStyle")
        assert outline == "solid" or names[-1] == "message", "the focus is not visible"
        press("Tab")
    assert names == [
        "Skip to the message field", "New conversation", "Settings", "Dark theme", "Copy", "Regenerate", "message",
        "Send",
    ]  # fmt: skip

    server.answers.append(["Endless", threading.Event()])
    visit.message.focus()
    press("Shift+Tab")
    press("Enter")  # Regenerate
    expect(visit.answer(0)).to_have_text("Endless")
    expect(visit.message).to_be_focused()
    press("Escape")
    assert server.left.wait(10)
    expect(visit.page.get_by_text("Stopped.", exact=True)).to_be_visible()

    skip.focus()
    press("Enter")
    expect(visit.message).to_be_focused()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_light_and_dark(browser: Browser, server: ScriptedServer, theme: str) -> None:
    """The page begins as the system is, and the button changes it for good."""
    visit = Visit(browser, server.url, color_scheme=theme)
    other = {"light": "dark", "dark": "light"}[theme]
    root = visit.page.locator("html")
    expect(root).to_have_css("color-scheme", theme)
    visit.button(f"{other.capitalize()} theme").click()
    expect(root).to_have_css("color-scheme", other)
    visit.page.reload()
    expect(root).to_have_css("color-scheme", other)
    visit.button(f"{theme.capitalize()} theme").click()
    visit.page.emulate_media(color_scheme=other)
    expect(root).to_have_css("color-scheme", other)
    assert visit.complaints == []
    visit.context.close()


def test_a_phone_scrolls_in_one_direction(browser: Browser, server: ScriptedServer) -> None:
    size = {"width": 360, "height": 640}
    visit = Visit(browser, server.url, viewport=size, is_mobile=True, has_touch=True)
    server.answers.append(["w" * 300, " ", "line\n" * 60, "```\n" + "code " * 100 + "\n```"])
    visit.message.fill("q" * 200)
    visit.button("Send").tap()
    expect(visit.page.locator("pre")).to_be_in_viewport()  # the end is kept in view
    expect(visit.button("Regenerate")).to_be_in_viewport()
    assert not visit.is_too_wide()
    server.answers.append(Failure(400, "e" * 300))
    visit.ask("x")
    expect(visit.button("Try again")).to_be_in_viewport()
    assert not visit.is_too_wide()
    visit.button("Settings").tap()
    assert visit.page.locator("dialog").evaluate("node => node.scrollWidth <= node.clientWidth")
    for control in visit.page.locator("dialog :is(button, input, textarea)").all():
        box = control.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size["width"]
    assert visit.complaints == []
    visit.context.close()


def test_motion_can_be_reduced(browser: Browser, server: ScriptedServer) -> None:
    visit = Visit(browser, server.url, reduced_motion="reduce")
    server.answers.append([threading.Event()])
    visit.ask("Hello")
    expect(visit.page.get_by_text("Waiting for the first token")).to_be_visible()
    assert visit.page.evaluate("document.getAnimations().length") == 0
    visit.context.close()


def test_the_text_does_not_move_for_who_reads_above(visit: Visit, server: ScriptedServer) -> None:
    gate = threading.Event()
    server.answers.append(["line\n" * 100, gate, "line\n" * 100, "end"])
    visit.ask("Hello")
    question = visit.page.locator(".question")
    expect(question).not_to_be_in_viewport()
    visit.page.evaluate("scrollTo(0, 0)")
    expect(question).to_be_in_viewport()
    gate.set()
    expect(visit.answer(0)).to_contain_text("end")
    drawn = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(scrollY))))"
    assert visit.page.evaluate(drawn) == 0
