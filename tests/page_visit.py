"""The web page in a real browser: fixtures, and what a test does with it.

A test module has ``pytest_plugins = ["page_visit"]``, and its fixtures skip if there is no Chromium.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from scripted_server import ScriptedServer

NAMES = "chromium", "chromium-browser", "google-chrome"
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
HTTP_ERROR = re.compile("Failed to load resource: (the server responded with a status|net::ERR)")


@pytest.fixture(scope="module")  # not longer: its event loop keeps other tests from running theirs
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


class Visit:
    """The page in a context of its own, with helpers.

    ``complaints`` are the errors and warnings on its console, ``hosts`` those that it has asked for anything.
    """

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(10_000)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.host = urlsplit(url).netloc
        self.hosts: set[str] = set()
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
        """Send a question, as soon as there is no answer to wait for."""
        expect(self.button("Send")).to_be_visible()
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


OpenPage = Callable[..., Visit]


@pytest.fixture
def open_page(chromium: Browser, server: ScriptedServer) -> Iterator[OpenPage]:
    """Opens the page of the server, or of a URL, in a new context with the options of the call.

    Nothing may be reported on the console, and no other host may be asked.
    """
    visits = []

    def open_page(url: str | None = None, **options: Any) -> Visit:
        visits.append(Visit(chromium, url or server.url, **options))
        return visits[-1]

    yield open_page
    for visit in visits:
        assert visit.complaints == []
        assert visit.hosts == {visit.host}
        visit.context.close()


@pytest.fixture
def visit(open_page: OpenPage) -> Visit:
    """The page on a desktop."""
    return open_page()
