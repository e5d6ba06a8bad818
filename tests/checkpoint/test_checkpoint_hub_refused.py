"""Hub ids that are not found: what the hub refuses, answers wrongly or lacks, each in one sentence."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from checkpoints import demo_tokenizer
from hub_repository import ID, INDEX, SHARDS, refused
from hub_server import HubServer, Repository
from huggingface_hub import constants

from adept_fast import CheckpointError
from adept_fast.checkpoint import hub, locate
from adept_fast.config import ConfigError


class TestRefusals:
    @pytest.mark.parametrize(
        ("statuses", "needles"),
        [
            (
                {"config.json": (403, "GatedRepo", "ask for access")},
                ["is gated", "HF_TOKEN", f"/{ID}"],
            ),
            (
                {"": (401, "", "Invalid username or password.")},
                ["is neither a path here nor a public model on http://", "a private one needs a token"],
            ),
            ({"": (403, "", "Access to this resource is disabled.")}, ["is disabled on http://"]),
            ({"": (500, "", "boom")}, ["answered with status 500"]),
            ({SHARDS[2]: (404, "EntryNotFound", "gone")}, [SHARDS[2], "although the repository lists it"]),
        ],
    )
    def test_by_status(
        self, server: HubServer, repository: Repository, statuses: dict[str, Any], needles: list[str]
    ) -> None:
        server.statuses |= statuses
        refused(*needles)

    def test_a_token_that_is_refused(
        self, server: HubServer, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_expired")
        server.statuses[""] = (401, "", "Invalid credentials in Authorization header")
        assert "hf_expired" not in refused("refuses the token (HF_TOKEN, or that of hf auth login)")

    def test_no_such_repository_or_revision(
        self, server: HubServer, repository: Repository, files: dict[str, bytes]
    ) -> None:
        refused(f"has no revision 'v9' on {server.url}; expected a branch, a tag or a commit", revision="v9")
        locate(ID)
        refused("has no revision 'v9'", revision="v9")
        del server.repositories[ID]
        with pytest.warns(
            UserWarning, match="is neither a path here nor a public model on .*; commit .* is used"
        ):
            locate(ID)
        with pytest.raises(CheckpointError, match=r"^adept/other: is neither a path here nor a public model"):
            locate("adept/other")

    @pytest.mark.parametrize(
        ("without", "needle"),
        [
            (["config.json"], "config.json is missing"),
            (["tokenizer.model"], "tokenizer.model and tokenizer.json are missing"),
            ([INDEX, *SHARDS, "pytorch_model.bin"], "has no weights; expected model.safetensors.index.json,"),
            ([SHARDS[0]], f"{INDEX} names '{SHARDS[0]}', which is missing"),
        ],
    )
    def test_a_needed_file_is_not_in_the_repository(
        self,
        server: HubServer,
        repository: Repository,
        files: dict[str, bytes],
        without: list[str],
        needle: str,
    ) -> None:
        repository.commit({name: data for name, data in files.items() if name not in without}, "main")
        refused(needle)
        assert not set(SHARDS) & set(server.downloaded())

    @pytest.mark.parametrize("shard", ["../escaped.json", "original/config.json", "/etc/passwd", 7, None])
    def test_an_index_names_files_of_the_top_folder(
        self, server: HubServer, repository: Repository, files: dict[str, bytes], shard: object
    ) -> None:
        index = json.dumps({"weight_map": {"x": SHARDS[0], "y": shard}}).encode()
        repository.commit(files | {INDEX: index}, "main")
        refused(f"{INDEX} names {shard!r}, which is missing")
        assert server.downloaded()[-1] == INDEX

    def test_another_architecture_costs_no_download(
        self, server: HubServer, repository: Repository, files: dict[str, bytes]
    ) -> None:
        repository.commit(files | {"config.json": b'{"model_type": "llama"}'}, "main")
        refused("model_type is 'llama'; expected 'persimmon'", error=ConfigError)
        assert server.downloaded() == ["config.json"]

    @pytest.mark.parametrize(
        ("answer", "needle"),
        [
            (b"<html>log in</html>", "does not answer as a hub does"),
            (b"[]", "does not answer as a hub does"),
            (b'{"id": "x"}', "the commit is None"),
            (b'{"id": "x", "sha": "../../x"}', "the commit is '../../x'"),
            (b'{"id": "x", "sha": "' + b"a" * 40 + b'", "siblings": 7}', "does not answer as a hub does"),
            (b'{"id": "x", "sha": "' + b"a" * 40 + b'", "siblings": [{}]}', "does not answer as a hub does"),
            (b'{"id": "x", "sha": "' + b"a" * 40 + b'"}', "config.json is missing"),
        ],
    )
    def test_answers_that_are_no_hubs(self, server: HubServer, answer: bytes, needle: str) -> None:
        server.lists = answer
        refused(needle)

    def test_a_listing_is_bounded(self, server: HubServer, repository: Repository) -> None:
        repository.commit({f"{number}.txt": b"" for number in range(10_001)}, "main")
        refused("has 10001 files; expected at most 10000")

    def test_a_file_that_holds_no_weights_is_bounded(
        self, server: HubServer, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hub, "_MAX_SMALL_BYTES", len(demo_tokenizer()) - 1)
        refused("tokenizer.model has", "bytes; expected at most")
        assert "tokenizer.model" not in server.downloaded()

    def test_files_of_two_commits_are_not_mixed(self, server: HubServer, repository: Repository) -> None:
        server.says_commit = "b" * 40
        refused(f"config.json is of commit {'b' * 40}", "try again")

    @pytest.mark.parametrize("endpoint", ["hub.example", "ftp://x", "http://", "http://[", "http://x:99999"])
    def test_a_malformed_endpoint(
        self, server: HubServer, monkeypatch: pytest.MonkeyPatch, endpoint: str
    ) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        with pytest.raises(CheckpointError) as caught:
            locate(ID)
        assert str(caught.value) == f"HF_ENDPOINT is {endpoint!r}; expected the URL of a hub"

    @pytest.mark.parametrize("revision", [3, "", "../main", "a//b", "/x", "a\nb", "x" * 251, "."])
    def test_a_malformed_revision(self, server: HubServer, revision: Any) -> None:
        refused("expected a branch, a tag or a commit", revision=revision)
        assert not server.requests

    def test_without_the_package(self, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        refused("there is no such file or directory here", "huggingface_hub", "pip install 'adept-fast[hub]'")
