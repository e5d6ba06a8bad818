"""The files of the web page, as a browser and as a stranger may ask for them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the page is served by fastapi")

from fastapi import FastAPI
from fastapi.testclient import TestClient

from adept_fast.server import page

DIRECTORY = Path(page.__file__).with_name("page")


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.include_router(page.router())
    return TestClient(app)


def test_every_file_is_served_with_its_type_and_without_rights(client: TestClient) -> None:
    served = {client.get(path).content for path in page.PATHS}
    assert served == {file.read_bytes() for file in DIRECTORY.iterdir()}
    for path in page.PATHS:
        headers = client.get(path).headers
        types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "/": "text/html"}
        assert headers["content-type"].split(";")[0] == types[path.rpartition(".")[2]]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        policy = headers["content-security-policy"].split("; ")
        assert policy[0] == "default-src 'self'"
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in headers["content-security-policy"]


def test_a_copy_that_is_current_is_not_sent_again(client: TestClient) -> None:
    for path in page.PATHS:
        first = client.get(path)
        assert first.headers["cache-control"] == "no-cache"
        tag = first.headers["etag"]
        for known in (tag, f"W/{tag}", f'"other", {tag}'):
            again = client.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert client.get(path, headers={"If-None-Match": '"other"'}).content == first.content
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(first.content))
    tags = [client.get(path).headers["etag"] for path in page.PATHS]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize(
    "path",
    ["/page", "/page/", "/page/index.html", "/page/../page.py", "/page/%2e%2e/page.py", "/page//etc/passwd",
     "/page/chat.js%00", "/page/..%5cpage.py", "/page/chat.js/x", "/index.html"],
)  # fmt: skip
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
    assert client.post("/").status_code == 405


def test_no_request_reads_a_file(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file is read")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)
    monkeypatch.setattr("os.open", refuse)
    monkeypatch.setattr("os.stat", refuse)
    assert [client.get(path).status_code for path in page.PATHS] == [200] * len(page.PATHS)


def test_the_page_is_text_of_its_own() -> None:
    """No file has a script or a style within another language, asks another host, or makes HTML from text."""
    for file in DIRECTORY.iterdir():
        text = file.read_text(encoding="utf-8")
        assert re.findall(r"https?:(?!//www\.w3\.org/2000/svg)", text) == []
        assert (
            re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
            == []
        )
        if file.suffix == ".html":
            assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text) == []
            referred = re.findall(r'(?:src|href)="(?!#)([^"]+)"', text)
            assert {f"/{name}" for name in referred} < set(page.PATHS)
        assert len(text.splitlines()) <= 500
