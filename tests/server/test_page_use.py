"""The web page in a real browser: text, keyboard, screen reader, themes, phone and motion."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright", reason="the page is tested with playwright")
pytest.importorskip("uvicorn", reason="the page is served by uvicorn")

from playwright.sync_api import expect
from scripted_server import Failure, ScriptedServer

if TYPE_CHECKING:
    from page_visit import OpenPage, Visit

pytest_plugins = ["page_visit"]
pytestmark = pytest.mark.slow


def test_a_models_text_is_text_and_keeps_its_whitespace(visit: Visit, server: ScriptedServer) -> None:
    prose = "a  b\n   <b>c</b> <img src=x onerror=\"document.title='run'\">"
    text = f"{prose}\n\n```python\nif x:\n    y = '<i>'\n```\nend"
    server.answers.append([*text])
    visit.ask("Show <code>")
    paragraph, code, end = (visit.answer(0).locator("> *").nth(at) for at in range(3))
    expect(end).to_have_text("end")
    assert paragraph.text_content() == prose
    expect(paragraph).to_have_css("white-space-collapse", "preserve")
    assert code.evaluate("node => node.tagName") == "PRE"
    assert code.text_content() == "if x:\n    y = '<i>'"
    assert visit.page.locator(".question").text_content() == "Show <code>"
    assert visit.page.locator("main :is(b, img, i)").count() == 0
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.button("Copy").click()
    expect(visit.button("Copied")).to_be_visible()
    assert visit.page.evaluate("navigator.clipboard.readText()") == text


def test_an_answer_is_copied_where_the_clipboard_is_for_secure_pages_alone(
    visit: Visit, server: ScriptedServer
) -> None:
    visit.page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    visit.page.reload()
    visit.ask("Hello")
    expect(visit.answer(0)).to_have_text("You said: Hello")
    visit.button("Copy").click()
    expect(visit.button("Copied")).to_be_focused()
    visit.message.press("ControlOrMeta+v")
    expect(visit.message).to_have_value("You said: Hello")


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
        "Skip to the message field", "New conversation", "Settings", "Dark theme", "Copy", "Regenerate",
        "message", "Send",
    ]  # fmt: skip

    server.answers.append(["Endless", threading.Event()])
    visit.message.focus()
    press("Shift+Tab")
    press("Enter")  # Regenerate
    expect(visit.answer(0)).to_have_text("Endless")
    expect(visit.message).to_be_focused()
    visit.button("Settings").focus()
    press("Enter")
    expect(visit.page.get_by_role("dialog")).to_be_visible()
    press("Escape")  # closes the dialog alone
    expect(visit.page.get_by_role("dialog")).to_be_hidden()
    expect(visit.button("Settings")).to_be_focused()
    expect(visit.button("Stop")).to_be_visible()
    press("Escape")
    assert server.left.wait(10)
    expect(visit.page.get_by_text("Stopped.", exact=True)).to_be_visible()

    skip.focus()
    press("Enter")
    expect(visit.message).to_be_focused()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_light_and_dark(open_page: OpenPage, server: ScriptedServer, theme: str) -> None:
    """The page begins as the system is, and the button changes it for good."""
    visit = open_page(color_scheme=theme)
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


@pytest.mark.parametrize("width", [360, 320])
def test_a_phone_scrolls_in_one_direction(open_page: OpenPage, server: ScriptedServer, width: int) -> None:
    size = {"width": width, "height": 640}
    visit = open_page(viewport=size, is_mobile=True, has_touch=True)
    server.answers.append(["w" * 300, " ", "line\n" * 60, "```\n" + "code " * 100 + "\n```"])
    visit.message.fill("q" * 200)
    visit.button("Send").tap()
    expect(visit.message).not_to_be_focused()  # its keyboard would cover the answer
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


def test_motion_can_be_reduced(open_page: OpenPage, server: ScriptedServer) -> None:
    visit = open_page(reduced_motion="reduce")
    server.answers.append([threading.Event()])
    visit.ask("Hello")
    expect(visit.page.get_by_text("Waiting for the first token")).to_be_visible()
    assert visit.page.evaluate("document.getAnimations().length") == 0


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
