"""Conversion as a whole: all or nothing, in either direction, from Python and from the command line."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from saving import assert_same, assert_same_weights, checkpoint_of

from adept_fast.checkpoint import CheckpointError, atomic, open_checkpoint, weight_files
from adept_fast.checkpoint.base import StoredTensor
from adept_fast.checkpoint.convert import convert
from adept_fast.checkpoint.save import save_adept, save_huggingface
from adept_fast.commands.cli import convert as convert_command

ROOT = Path(__file__).resolve().parents[2]


class TestAllOrNothing:
    @pytest.mark.parametrize("save", [save_huggingface, save_adept])
    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
    def test_a_failure_midway_leaves_nothing(
        self, tmp_path: Path, monkeypatch, save: Callable[..., Any], error: Any
    ) -> None:
        source = checkpoint_of(tmp_path / "source")
        calls: list[list[str]] = []
        read = weight_files.read_as

        def fail_late(tensor: StoredTensor, dtype: torch.dtype | None) -> torch.Tensor:
            calls.append([path.name for path in tmp_path.iterdir()])
            if len(calls) == 20:
                raise error
            return read(tensor, dtype)

        monkeypatch.setattr(weight_files, "read_as", fail_late)
        with pytest.raises(error if isinstance(error, type) else type(error)):
            save(source, tmp_path / "saved")
        assert len(calls) == 20
        assert any(name.startswith(".saved.partial-") for name in calls[-1])
        assert not any("saved" in names for names in calls)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]

    def test_an_interrupt_while_renaming_leaves_nothing(self, tmp_path: Path, monkeypatch) -> None:
        source = checkpoint_of(tmp_path / "source")

        def interrupt(*_arguments: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(atomic.os, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_adept(source, tmp_path / "saved")
        assert [path.name for path in tmp_path.iterdir()] == ["source"]

    @pytest.mark.parametrize("save", [save_huggingface, save_adept])
    def test_a_taken_destination_is_refused_before_any_work(
        self, tmp_path: Path, monkeypatch, save: Callable[..., Any]
    ) -> None:
        source = checkpoint_of(tmp_path / "source")
        monkeypatch.setattr(weight_files, "read_as", lambda *_: pytest.fail("a weight was read"))
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "mine.txt").write_text("mine")
        (tmp_path / "file").write_text("mine")
        (tmp_path / "dangling").symlink_to(tmp_path / "file")
        for name in ("folder", "file", "dangling", "source"):
            with pytest.raises(
                CheckpointError, match="exists already; expected a new name or an empty directory"
            ):
                save(source, tmp_path / name)
        assert (tmp_path / "folder" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"
        with pytest.raises(CheckpointError, match="absent: there is no such directory to write saved to"):
            save(source, tmp_path / "absent" / "saved")

    def test_an_empty_directory_is_filled(self, tmp_path: Path) -> None:
        source = checkpoint_of(tmp_path / "source")
        (tmp_path / "empty").mkdir()
        save_huggingface(source, tmp_path / "empty")
        assert_same(open_checkpoint(tmp_path / "empty"), source)

    def test_what_appears_meanwhile_is_not_replaced(self, tmp_path: Path, monkeypatch) -> None:
        source = checkpoint_of(tmp_path / "source")
        read = weight_files.read_as

        def meanwhile(tensor: StoredTensor, dtype: torch.dtype | None) -> torch.Tensor:
            (tmp_path / "saved").mkdir(exist_ok=True)
            (tmp_path / "saved" / "mine.txt").write_text("mine")
            return read(tensor, dtype)

        monkeypatch.setattr(weight_files, "read_as", meanwhile)
        with pytest.raises(OSError, match="not empty"):
            save_adept(source, tmp_path / "saved")
        assert {path.name for path in tmp_path.iterdir()} == {"source", "saved"}
        assert [path.name for path in (tmp_path / "saved").iterdir()] == ["mine.txt"]

    @pytest.mark.parametrize("save", [save_huggingface, save_adept])
    def test_a_full_disk_is_noticed_first(
        self, tmp_path: Path, monkeypatch, save: Callable[..., Any]
    ) -> None:
        source = checkpoint_of(tmp_path / "source")
        total = sum(tensor.read().nbytes for tensor in source.tensors.values())
        usage = argparse.Namespace(free=total)
        monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _path: usage)
        with pytest.raises(CheckpointError, match=r"needs [\d.]+ MB of disk space; [\d.]+ MB are free"):
            save(source, tmp_path / "saved")
        usage.free = 2 * total + 10**7
        save(source, tmp_path / "saved")

    def test_modes_follow_the_umask(self, tmp_path: Path) -> None:
        source = checkpoint_of(tmp_path / "source")
        previous = os.umask(0o027)
        try:
            save_adept(source, tmp_path / "saved")
        finally:
            os.umask(previous)
        assert (tmp_path / "saved").stat().st_mode & 0o777 == 0o750


class TestConvert:
    def test_the_other_format_is_the_default(self, tmp_path: Path) -> None:
        checkpoint_of(tmp_path / "source")
        there = convert(tmp_path / "source", tmp_path / "adept", progress=False)
        back = convert(tmp_path / "adept", tmp_path / "huggingface", progress=False)
        assert (there.source_format, there.format) == ("huggingface", "adept")
        assert (back.source_format, back.format) == ("adept", "huggingface")
        assert there.saved.path == tmp_path / "adept"
        assert back.saved.tensors == len(open_checkpoint(tmp_path / "source").tensors)
        assert back.saved.tokenizer_check.startswith("equal to sentencepiece on ")

    def test_the_same_format_can_be_asked_for(self, tmp_path: Path) -> None:
        source = checkpoint_of(tmp_path / "source", shards=3)
        report = convert(source.path, tmp_path / "one", to="huggingface", progress=False)
        assert "model.safetensors" in report.saved.files
        assert_same(open_checkpoint(tmp_path / "one"), source)

    def test_the_demo(self, tmp_path: Path) -> None:
        report = convert("demo", tmp_path / "adept", progress=False)
        assert report.saved.files["iter_0000001/mp_rank_00/model_optim_rng.pt"] > 10**7
        assert_same_weights(open_checkpoint(tmp_path / "adept"), open_checkpoint("demo"))

    def test_unknown_formats_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="the format is 'gguf'; expected 'huggingface' or 'adept'"):
            convert("demo", tmp_path / "saved", to="gguf", progress=False)  # type: ignore[arg-type]


class TestCommand:
    def run(self, *arguments: object) -> Any:
        return CliRunner().invoke(convert_command, [str(argument) for argument in arguments])

    def test_a_conversion_is_reported_on_stderr(self, tmp_path: Path) -> None:
        checkpoint_of(tmp_path / "source")
        result = self.run(tmp_path / "source", tmp_path / "adept", "--dtype", "bfloat16")
        assert (result.exit_code, result.stdout) == (0, "")
        assert "model_optim_rng.pt" in result.stderr
        assert open_checkpoint(tmp_path / "adept").dtype == torch.bfloat16
        quiet = self.run(tmp_path / "adept", tmp_path / "back", "--quiet", "--shard-size", "600 kB")
        assert (quiet.exit_code, quiet.output) == (0, "")
        assert len(list((tmp_path / "back").glob("*.safetensors"))) == 3

    def test_errors_are_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "file").touch()
        result = self.run("demo", tmp_path / "taken")
        assert result.exit_code == 1
        assert result.stderr == (
            f"error: {tmp_path / 'taken'}: exists already; expected a new name or an empty directory\n"
        )

    @pytest.mark.parametrize("size", ["0", "-1", "many", "5XB", "1e3", ""])
    def test_sizes_that_are_none(self, tmp_path: Path, size: str) -> None:
        result = self.run("demo", tmp_path / "saved", f"--shard-size={size}")
        assert result.exit_code == 2
        assert "expected a number with a unit" in result.stderr
        assert not (tmp_path / "saved").exists()

    @pytest.mark.parametrize(
        ("text", "size"), [("5GB", 5 * 10**9), ("1.5 mib", 3 * 2**19), ("1000000", 10**6), ("2KB", 2000)]
    )
    def test_sizes(self, tmp_path: Path, monkeypatch, text: str, size: int) -> None:
        seen = {}

        def record(*_arguments: Any, **options: Any) -> None:
            seen.update(options)
            raise ValueError("enough")

        monkeypatch.setattr("adept_fast.commands.convert.convert_checkpoint", record)
        self.run("demo", tmp_path / "saved", "--shard-size", text)
        assert seen["max_shard_bytes"] == size

    def test_the_tool_is_the_same_program(self, tmp_path: Path, monkeypatch, capsys) -> None:
        monkeypatch.setattr(sys, "argv", ["convert.py", "demo", str(tmp_path / "absent" / "saved")])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "tools" / "convert.py"), run_name="__main__")
        assert ended.value.code == 1
        shown = capsys.readouterr().err
        assert shown == f"error: {tmp_path / 'absent'}: there is no such directory to write saved to\n"
