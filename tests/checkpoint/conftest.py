"""A hub on localhost for the tests of hub ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from hub_repository import CARD, ID, NOT_NEEDED
from hub_server import HubServer, Repository, files_below
from huggingface_hub import constants


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository in shards, with much else in it."""
    config = small_config()
    tokenizer = demo_tokenizer()
    path = write_huggingface(tmp_path_factory.mktemp("small"), config, random_tensors(config), tokenizer, 3)
    others = {"README.md": CARD, "tokenizer_config.json": b"{}"} | dict.fromkeys(NOT_NEEDED, b"not needed")
    return files_below(path) | others


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub, the only one that huggingface_hub knows, and an empty cache."""
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        yield server
        huggingface_hub.close_session()  # another hub may get this one's port


@pytest.fixture
def repository(server: HubServer, files: dict[str, bytes]) -> Repository:
    server.repositories[ID] = repository = Repository()
    repository.commit(files, "main")
    return repository
