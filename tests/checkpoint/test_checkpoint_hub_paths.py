"""Paths and hub ids: which of them a name is, and that every reader and command takes both."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from click.testing import CliRunner
from hub_repository import CARD, ID
from hub_server import HubServer, Repository, files_below
from own_process import python

from adept_fast import CheckpointError, Runtime
from adept_fast.checkpoint import demo_path, hub, locate, open_checkpoint
from adept_fast.commands.cli import main
from adept_fast.modeling import PersimmonForCausalLM


class OtherPath:
    """A path that is neither a str nor a Path."""

    def __fspath__(self) -> str:
        return ID


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

    @pytest.mark.slow
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
                [*python(), "-m", "adept_fast", *arguments],
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
