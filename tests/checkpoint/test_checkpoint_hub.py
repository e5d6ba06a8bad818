"""Hub ids: what is downloaded from a hub on localhost, what the cache gives, and each way that this fails."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from checkpoints import assert_holds, random_tensors, small_config
from hub_repository import ID, INDEX, NEEDED, SHARDS, refused
from hub_server import HubServer, Repository
from huggingface_hub import constants

from adept_fast import CheckpointError
from adept_fast.checkpoint import hub, locate, open_checkpoint
from adept_fast.checkpoint.location import locate_config
from adept_fast.config import PersimmonConfig


class TestDownload:
    def test_only_needed_files_arrive_and_once(
        self, server: HubServer, repository: Repository, tmp_path: Path
    ) -> None:
        checkpoint = open_checkpoint(ID)
        assert server.downloaded() == NEEDED
        assert {path.name for path in checkpoint.path.iterdir()} == set(NEEDED)
        assert checkpoint.path.name == repository.refs["main"]
        assert_holds(checkpoint, random_tensors(small_config()))
        assert open_checkpoint(ID).path == checkpoint.path
        assert [path for _, path, _ in server.requests] == [f"/api/models/{ID}/revision/main"]
        assert not list(tmp_path.rglob("escaped.json"))

    def test_a_token_is_sent(self, server: HubServer, repository: Repository) -> None:
        locate(ID, token="hf_of_the_caller")
        locate_config(ID, token="hf_of_the_caller")
        assert server.tokens == {"Bearer hf_of_the_caller"}

    def test_a_config_comes_alone(self, server: HubServer, repository: Repository) -> None:
        path = locate_config(ID)
        assert server.downloaded() == ["config.json"]
        assert [file.name for file in path.iterdir()] == ["config.json"]
        assert PersimmonConfig.from_json(path / "config.json") == small_config()
        server.statuses[""] = (503, "", "")
        assert locate_config(ID, repository.refs["main"]) == path
        with pytest.raises(CheckpointError, match=ID):
            locate(ID)

    @pytest.mark.parametrize(
        ("weights", "taken"),
        [
            (["pytorch_model.bin", "model.safetensors"], ["model.safetensors"]),
            (["pytorch_model.bin", "tf_model.h5"], ["pytorch_model.bin"]),
            (["pytorch_model.bin", "model.safetensors", INDEX, "a.safetensors"], [INDEX, "a.safetensors"]),
            (
                ["pytorch_model.bin.index.json", "a.safetensors", "b.bin"],
                ["pytorch_model.bin.index.json", "a.safetensors"],
            ),
        ],
    )
    def test_one_kind_of_weights(
        self, server: HubServer, repository: Repository, files: dict[str, bytes], weights, taken
    ) -> None:
        index = json.dumps({"weight_map": {"x": "a.safetensors", "y": "a.safetensors"}}).encode()
        some = {name: index if name.endswith(".index.json") else name.encode() for name in weights}
        repository.commit({name: files[name] for name in ("config.json", "tokenizer.model")} | some, "main")
        locate(ID)
        assert server.downloaded() == ["config.json", "tokenizer.model", *taken]

    def test_revisions(self, server: HubServer, repository: Repository, files: dict[str, bytes]) -> None:
        first = repository.refs["main"]
        second = repository.commit(files | {"README.md": b"new"}, "main", "v2", "refs/pr/1")
        for revision, commit in [(None, second), ("v2", second), ("refs/pr/1", second), (first, first)]:
            location = locate(ID, revision)
            assert location.hub is not None
            assert (location.hub.revision, location.hub.commit) == (revision or "main", commit)
            assert location.path.name == commit
        assert server.downloaded() == [*NEEDED, "README.md"]  # the commits share the other files
        third = repository.commit(files | {"README.md": b"newer"}, "main")
        assert locate(ID).path.name == third
        assert server.downloaded() == ["README.md"]

    def test_the_token_is_sent(
        self, server: HubServer, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        locate(ID)
        assert server.tokens == {"Bearer hf_secret"}

    def test_an_interruption_is_made_good(
        self, server: HubServer, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
        server.cuts[SHARDS[1]] = 1000
        assert_holds(open_checkpoint(ID), random_tensors(small_config()))
        ranges = [asked for method, path, asked in server.requests if SHARDS[1] in path and method == "GET"]
        assert ranges == [None, "bytes=1000-"]

    def test_after_a_failure_the_rest_is_downloaded(
        self, server: HubServer, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.cuts[SHARDS[1]], server.then[SHARDS[1]] = 1000, 403
        refused("answered with status 403", "files that have arrived are kept, so try again")
        assert server.downloaded() == [*NEEDED[:-1], SHARDS[1]]
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        refused("revision main is not in the cache", "HF_HUB_OFFLINE")
        commit = repository.refs["main"]
        refused(
            "is incomplete, and HF_HUB_OFFLINE forbids to complete it: ",
            f"{INDEX} names '{SHARDS[1]}', which is missing",
            revision=commit,
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        server.statuses.clear()
        assert_holds(open_checkpoint(ID), random_tensors(small_config()))
        assert server.downloaded() == SHARDS[1:]

    def test_a_short_file_is_refused(self, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        def short(*_: object, **__: object) -> str:
            raise OSError("Consistency check failed: file should be of size 9 but has size 8\nplease")

        self.failing(server, monkeypatch, short)
        refused("config.json was interrupted", "size 9 but has size 8", "so try again")

    @pytest.mark.parametrize(
        ("error", "needle"),
        [
            (OSError(28, "No space left on device"), "no space is left for config.json in the cache"),
            (PermissionError(13, "Permission denied", "/cache/blobs"), "/cache/blobs in the cache"),
            (OSError(30, "Read-only file system"), "cannot be written (Read-only file system)"),
            (
                RuntimeError("Data processing error: CAS service\nmore"),
                "(Data processing error: CAS service)",
            ),
            (PermissionError("the token has expired"), "while it was downloaded (the token has expired)"),
            (ValueError("Invalid pointer path"), "(Invalid pointer path)"),
        ],
    )
    def test_local_failures(
        self, server: HubServer, monkeypatch: pytest.MonkeyPatch, error: Exception, needle: str
    ) -> None:
        def fail(*_: object, **__: object) -> str:
            raise error

        self.failing(server, monkeypatch, fail)
        refused(needle)

    @pytest.fixture(autouse=True)
    def _files(self, files: dict[str, bytes]) -> None:
        self.files = files

    def failing(
        self, server: HubServer, monkeypatch: pytest.MonkeyPatch, download: Callable[..., str]
    ) -> None:
        server.repositories[ID] = repository = Repository()
        repository.commit(self.files, "main")
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    def test_a_token_that_cannot_be_read(
        self, server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "home").write_bytes(b"no directory")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
        assert refused("home/token cannot be read (Not a directory)").count("reached") == 0

    def test_too_little_space(
        self, server: HubServer, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = namedtuple("usage", "free")  # noqa: PYI024
        needed = sum(len(self.files[name]) for name in SHARDS)
        monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: usage(needed - 1))
        refused("GB of disk space in the cache", "are free")
        assert not set(SHARDS) & set(server.downloaded())
        monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: usage(needed))
        locate(ID)
        monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: usage(0))
        locate(ID)  # all of it is there


class TestCache:
    def test_offline(
        self, server: HubServer, repository: Repository, monkeypatch: pytest.MonkeyPatch, recwarn
    ) -> None:
        commit = repository.refs["main"]
        repository.refs["v1"] = commit
        locate(ID)
        locate(ID, "v1")
        server.requests.clear()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        for revision in (None, "main", "v1", commit):
            location = locate(ID, revision)
            assert location.hub is not None
            assert (location.path.name, location.hub.commit) == (commit, commit)
        assert not recwarn.list
        refused("revision v2 is not in the cache", "HF_HUB_OFFLINE forbids to download it", revision="v2")
        (location.path / SHARDS[0]).unlink()
        refused("is incomplete", SHARDS[0])
        assert not server.requests

    def test_a_hub_that_does_not_answer(
        self, server: HubServer, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = locate(ID).path
        server.statuses[""] = (503, "", "maintenance")
        with pytest.warns(UserWarning, match=f"answered with status 503.*; commit {path.name} in the cache"):
            assert locate(ID).path == path
        server.statuses.clear()
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
        with pytest.warns(UserWarning, match=f"cannot be reached .*; commit {path.name} in the cache"):
            assert locate(ID).path == path
        (path / SHARDS[2]).unlink()
        refused("is incomplete, and http://127.0.0.1:1 does not list its files: ", SHARDS[2])
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(path / "empty"))
        refused("is not in the cache, and http://", "cannot be reached (", "refused")

    def test_its_folder_is_the_snapshot_of_main(
        self, server: HubServer, repository: Repository, files: dict[str, bytes]
    ) -> None:
        main = locate(ID).path
        repository.commit(files | {"README.md": b"new"}, "v2")
        other = locate(ID, "v2").path
        folder = main.parents[1]
        assert locate(folder).path == locate(str(folder)).path == main
        assert locate(folder).hub is None
        assert locate(main).path == main
        first = min(main, other)
        for contents in (b"../../x", b"\xff" * 40, b"a" * 40, b"a" * 5000):
            (folder / "refs" / "main").write_bytes(contents)
            with pytest.raises(CheckpointError) as caught:
                locate(folder)
            assert str(caught.value) == (
                f"{folder}: is a folder of the hub's cache without a snapshot of main; "
                f"expected the path of a snapshot, such as {first}"
            )
