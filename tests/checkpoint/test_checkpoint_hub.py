"""Hub ids: what is downloaded from a hub on localhost, what the cache gives, and each way that this fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from checkpoints import assert_holds, demo_tokenizer, random_tensors, small_config, write_huggingface
from click.testing import CliRunner
from hub_server import HubServer, Repository, files_below
from huggingface_hub import constants

from adept_fast import CheckpointError, Runtime
from adept_fast.checkpoint import demo_path, hub, locate, open_checkpoint
from adept_fast.commands.cli import main
from adept_fast.config import ConfigError
from adept_fast.modeling import PersimmonForCausalLM

ID = "adept/small"
SHARDS = [f"model-0000{shard}-of-00003.safetensors" for shard in (1, 2, 3)]
INDEX = "model.safetensors.index.json"
NEEDED = ["config.json", "README.md", "tokenizer.model", "tokenizer_config.json", INDEX, *SHARDS]
NOT_NEEDED = [
    "pytorch_model.bin",
    "model.fp16.safetensors",
    "flax_model.msgpack",
    "tf_model.h5",
    "rust_model.ot",
    ".gitattributes",
    "onnx/model.onnx",
    "../escaped.json",
    "original/config.json",
]
CARD = b"---\nlicense: cc-by-nc-4.0\n---\n"


class OtherPath:
    """A path that is neither a str nor a Path."""

    def __fspath__(self) -> str:
        return ID


@pytest.fixture(scope="module")
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


def refused(*needles: str, error: type[ValueError] = CheckpointError, **how: Any) -> str:
    """The sentence with which finding ID fails."""
    with pytest.raises(error) as caught:
        locate(ID, **how)
    message = str(caught.value)
    assert message.startswith(f"{ID}: ") or error is ConfigError
    assert "\n" not in message
    for needle in needles:
        assert needle in message, message
    return message


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


class TestPathsFirst:
    """A path that exists is never a hub id; what looks like a path is none either."""

    @pytest.fixture(autouse=True)
    def _no_hub(self, server: HubServer) -> Iterator[None]:
        yield
        assert not server.requests

    def test_a_path_that_exists_wins(self, repository: Repository) -> None:
        Path("adept").mkdir()
        Path(ID).symlink_to(demo_path())
        assert locate(ID).path == Path(ID)
        with pytest.raises(
            CheckpointError, match=f"revision is 'main', and {ID} is a path here; expected none"
        ):
            locate(ID, "main")
        with pytest.raises(CheckpointError, match="revision is 'main', and demo is a path here"):
            locate("demo", "main")
        assert locate("demo").path == demo_path()

    @pytest.mark.parametrize(
        ("name", "mentions_hub"),
        [
            ("./adept/small", False),
            ("../adept/small", False),
            ("/adept/small", False),
            ("~/adept/small", False),
            ("~nobody-of-that-name/small", False),
            ("adept/small/", False),
            ("adept/small/model", False),
            (Path("adept/small"), False),
            (OtherPath(), False),
            ("persimmon-8b-chat", True),
            ("release.tar", True),
            ("adept/a--b", True),
            ("adept/a..b", True),
            ("adept/.b", True),
            ("adept/b.git", True),
            ("adept/übung", True),
            ("a" * 300, True),
            ("adept/" + "a" * 97, True),
            ("nul\0", True),
        ],
    )
    def test_what_is_no_hub_id(self, name: str | os.PathLike[str], mentions_hub: bool) -> None:
        with pytest.raises(CheckpointError, match="there is no such file or directory; expected") as caught:
            locate(name)
        assert ("hub" in str(caught.value)) == mentions_hub
        with pytest.raises(CheckpointError, match="revision is 'main', and .* is no hub id"):
            locate(name, "main")

    def test_a_name_in_a_folder_that_exists(self) -> None:
        Path("adept").mkdir()
        with pytest.raises(CheckpointError) as caught:
            locate(ID)
        assert str(caught.value) == (
            "adept/small: there is no such file or directory in the folder adept; expected a checkpoint, "
            "or a hub id with a revision such as main"
        )


def test_a_revision_makes_it_a_hub_id(server: HubServer, repository: Repository) -> None:
    Path("adept").mkdir()
    assert locate(ID, "main").hub is not None


class TestEverywhere:
    def test_runtime_modules_and_convert(self, server: HubServer, tmp_path: Path) -> None:
        server.repositories[ID] = repository = Repository()
        shipped = files_below(demo_path()) | {"README.md": CARD}
        repository.commit({}, "main")
        repository.commit(shipped, "v1")
        runtime = Runtime.load(ID, revision="v1", progress=False)
        assert runtime.generate("human: What is the capital of Peru?\n\nadept:").text == (
            " The capital of Peru is Lima."
        )
        written = tmp_path / "converted"
        arguments = ["convert", ID, str(written), "--revision", "v1", "--to", "huggingface"]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.stderr
        assert b"license: cc-by-nc-4.0" in (written / "README.md").read_bytes()
        bare = {name: data for name, data in shipped.items() if not name.startswith("tokenizer")}
        repository.commit(bare, "bare")
        model = PersimmonForCausalLM.from_pretrained(ID, revision="bare")
        assert model.num_parameters() == runtime.config.num_parameters

    def test_an_open_checkpoint_has_no_revision(self) -> None:
        with pytest.raises(ValueError, match="revision is 'v1'; expected None with an open checkpoint"):
            Runtime.load(open_checkpoint("demo"), revision="v1")

    def test_info_shows_the_commit(self, server: HubServer, repository: Repository) -> None:
        result = CliRunner().invoke(main, ["info", "--checkpoint", ID, "--json"])
        shown = json.loads(result.stdout)["checkpoint"]
        assert (shown["hub"], shown["revision"], shown["commit"]) == (ID, "main", repository.refs["main"])
        assert "hub" not in json.loads(CliRunner().invoke(main, ["info", "--json"]).stdout)["checkpoint"]

    @pytest.mark.parametrize("command", ["generate", "chat", "score", "info", "bench"])
    def test_every_command_takes_a_revision(
        self, server: HubServer, repository: Repository, command: str
    ) -> None:
        more = {"generate": ["--prompt", "a"], "score": ["a"]}.get(command, [])
        result = CliRunner().invoke(main, [command, "--checkpoint", ID, "--revision", "v9", *more])
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: {ID}: has no revision 'v9'")

    def test_progress_can_be_off(
        self, server: HubServer, repository: Repository, monkeypatch: pytest.MonkeyPatch, capfd
    ) -> None:
        monkeypatch.setenv("TQDM_POSITION", "-1")  # bars also where stderr is no terminal
        locate(ID, progress=False)
        assert capfd.readouterr() == ("", "")
        assert not huggingface_hub.utils.are_progress_bars_disabled()

    def test_a_process_downloads_once_and_then_works_offline(
        self, server: HubServer, tmp_path: Path, files: dict[str, bytes]
    ) -> None:
        server.repositories["adept/demo"] = repository = Repository()
        repository.commit(files_below(demo_path()), "main")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "hf_secret",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TQDM_POSITION": "-1",
            "PYTHONPATH": str(Path(hub.__file__).parents[2]),
        }
        arguments = ["generate", "--checkpoint", "adept/demo", "--chat", "--prompt", "What is 6 times 7?"]
        outputs = []
        for more in ({}, {"HF_HUB_OFFLINE": "1"}):
            done = subprocess.run(
                [sys.executable, "-m", "adept_fast", *arguments],
                env=environment | more,
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stdout) == (0, "6 times 7 is 42.\n"), done.stderr
            outputs.append((done.stderr, server.downloaded()))
        (bars, downloaded), (silence, nothing) = outputs
        assert "model.safetensors: 100%" in bars
        assert set(downloaded) == files_below(demo_path()).keys() - {"NOTICE", "questions.jsonl"}
        assert (silence, nothing) == ("", [])
        assert server.tokens == {"Bearer hf_secret"}
        assert (tmp_path / "home" / "hub").is_dir()
