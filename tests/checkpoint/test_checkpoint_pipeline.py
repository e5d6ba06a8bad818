"""Adept's checkpoints as training leaves them: pipeline stages, and either name of a rank's file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from checkpoints import (
    adept_args,
    adept_model,
    assert_holds,
    assert_refused,
    random_tensors,
    rank_path,
    saved,
    small_config,
    write_adept,
    write_directory,
    write_tar,
)
from pipeline_checkpoints import CONFIG, HOME, TENSORS, TOKENIZER, pipeline_files, stage_of, stage_path

from adept_fast.checkpoint import CheckpointError, open_checkpoint


class TestStages:
    @pytest.mark.parametrize(("stages", "ranks"), [(1, 1), (2, 1), (4, 1), (2, 2), (4, 2)])
    @pytest.mark.parametrize("tar", [False, True])
    def test_they_are_one_model(self, tmp_path: Path, stages: int, ranks: int, tar: bool) -> None:
        write = write_tar if tar else write_directory
        checkpoint = open_checkpoint(write(tmp_path / "release", pipeline_files(stages, ranks)))
        assert checkpoint.config == CONFIG
        assert_holds(checkpoint, TENSORS)

    def test_a_stage_stands_for_all(self, tmp_path: Path) -> None:
        write_directory(tmp_path, pipeline_files(2))
        assert_holds(open_checkpoint(tmp_path / HOME / "mp_rank_00_001"), TENSORS)

    def test_twelve_stages_are_in_order(self, tmp_path: Path) -> None:
        """Their names have three digits, and stage 10 is after 9."""
        config = small_config(num_hidden_layers=12)
        tensors = random_tensors(config, dtype=torch.float16)
        assert_holds(
            open_checkpoint(write_directory(tmp_path, pipeline_files(12, 1, config, tensors))), tensors
        )

    @pytest.mark.parametrize("untie", [False, None])
    def test_tied_embeddings_have_a_copy_in_the_last_stage(self, tmp_path: Path, untie: bool | None) -> None:
        """Megatron saves the embedding there again; without an argument it is read as any output matrix."""
        config = small_config(num_hidden_layers=4, tie_word_embeddings=True)
        tied = random_tensors(config, dtype=torch.float16)
        both = tied | {"lm_head.weight": tied["model.embed_tokens.weight"]}
        path = write_directory(tmp_path, pipeline_files(2, 2, config, both, untie_embeddings=untie))
        checkpoint = open_checkpoint(path)
        assert checkpoint.config.tie_word_embeddings is (untie is False)
        assert_holds(checkpoint, tied if untie is False else both)

    def test_a_copy_that_differs(self, tmp_path: Path) -> None:
        config = small_config(num_hidden_layers=4, tie_word_embeddings=True)
        tied = random_tensors(config, dtype=torch.float16)
        both = tied | {"lm_head.weight": tied["model.embed_tokens.weight"] + 1}
        path = write_directory(tmp_path, pipeline_files(2, 1, config, both, untie_embeddings=False))
        stored = open_checkpoint(path).tensors["model.embed_tokens.weight"]
        with pytest.raises(CheckpointError, match=r"word_embeddings_for_head.weight is not equal"):
            stored.read()

    def test_unequal_shares(self, tmp_path: Path) -> None:
        files = pipeline_files(2)
        share = stage_of(TENSORS, 0, 2, 4)
        fewer = {name: tensor for name, tensor in share.items() if "layers.1." not in name}
        args = adept_args(CONFIG, pipeline_model_parallel_size=2)
        files[stage_path(0, 0)] = saved({"model": adept_model(fewer), "args": args})
        path = write_directory(tmp_path, files)
        assert_refused(path, stage_path(0, 0), "stage 0 of 2 has 1 layers", "expected 2", "num_layers is 4")

    def test_layers_numbered_throughout(self, tmp_path: Path) -> None:
        files = pipeline_files(2)
        share = stage_of(TENSORS, 1, 2, 4)
        moved = {
            re.sub(r"layers\.(\d)", lambda at: f"layers.{int(at[1]) + 2}", name): share[name]
            for name in share
        }
        args = adept_args(CONFIG, pipeline_model_parallel_size=2)
        files[stage_path(0, 1)] = saved({"model": adept_model(moved), "args": args})
        path = write_directory(tmp_path, files)
        assert_refused(path, stage_path(0, 1), "has 2 layers, one of them numbered 2", "numbered from 0")

    def test_layers_that_cannot_be_shared_out(self, tmp_path: Path) -> None:
        path = write_directory(tmp_path, pipeline_files(2, num_layers=5))
        assert_refused(path, "args.num_layers is 5", "multiple of 2")

    @pytest.mark.parametrize(
        ("name", "stage"),
        [("model.embed_tokens.weight", 1), ("lm_head.weight", 0), ("model.final_layernorm.bias", 0)],
    )
    def test_a_tensor_of_another_stage(self, tmp_path: Path, name: str, stage: int) -> None:
        files = pipeline_files(2)
        share = stage_of(TENSORS, stage, 2, 4) | {name: TENSORS[name]}
        args = adept_args(CONFIG, pipeline_model_parallel_size=2)
        files[stage_path(0, stage)] = saved({"model": adept_model(share), "args": args})
        path = write_directory(tmp_path, files)
        assert_refused(
            path, stage_path(0, stage), f"is in pipeline stage {stage}", f"stage {1 - stage} alone"
        )

    def test_a_tensor_twice(self, tmp_path: Path) -> None:
        files = pipeline_files(2)
        args = adept_args(CONFIG, pipeline_model_parallel_size=2)
        for stage in range(2):
            model = adept_model(stage_of(TENSORS, stage, 2, 4)) | {"pooler": torch.ones(1)}
            files[stage_path(0, stage)] = saved({"model": model, "args": args})
        assert_refused(write_directory(tmp_path, files), "tensor pooler is in an earlier pipeline stage too")

    def test_stages_that_the_arguments_do_not_count(self, tmp_path: Path) -> None:
        path = write_directory(tmp_path, pipeline_files(2, pipeline_model_parallel_size=4))
        assert_refused(
            path, "args.pipeline_model_parallel_size is 4", "expected 2, as that many stages are there"
        )

    def test_a_missing_stage(self, tmp_path: Path) -> None:
        path = write_directory(tmp_path, pipeline_files(2, 2))
        (path / stage_path(1, 0)).unlink()
        assert_refused(path, "mp_rank_01_000", "model_optim_rng.pt is missing")
        (path / stage_path(1, 0)).parent.rmdir()
        assert_refused(path, "mp_rank_01_000 is missing", "2 ranks", "each in 2 stages")

    def test_both_kinds_of_folders(self, tmp_path: Path) -> None:
        write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER)
        write_directory(tmp_path, pipeline_files(2))
        assert_refused(tmp_path, HOME, "with and without the number of a pipeline stage")

    @pytest.mark.parametrize("keys", [("model0", "model1"), ("model0",)])
    def test_interleaved_stages(self, tmp_path: Path, keys: tuple[str, ...]) -> None:
        files = pipeline_files(2)
        args = adept_args(CONFIG, pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
        model = adept_model(stage_of(TENSORS, 0, 2, 4))
        files[stage_path(0, 0)] = saved({**dict.fromkeys(keys, model), "args": args})
        assert_refused(
            write_directory(tmp_path, files), stage_path(0, 0), "'model0'", "interleaved (virtual)"
        )

    def test_interleaved_stages_by_the_arguments(self, tmp_path: Path) -> None:
        path = write_directory(tmp_path, pipeline_files(2, virtual_pipeline_model_parallel_size=2))
        assert_refused(path, "args.virtual_pipeline_model_parallel_size is 2", "interleaved")


class TestNameOfTheFile:
    def renamed(self, path: Path, ranks: tuple[int, ...] = (0, 1)) -> Path:
        write_adept(path, CONFIG, TENSORS, TOKENIZER, ranks=2)
        for rank in ranks:
            (path / rank_path(rank)).rename((path / rank_path(rank)).with_name("model_rng.pt"))
        return path

    def test_that_of_the_distributed_optimizer(self, tmp_path: Path) -> None:
        path = self.renamed(tmp_path)
        (path / rank_path(0)).with_name("optim.pt").write_bytes(b"not looked at")
        checkpoint = open_checkpoint(path)
        assert_holds(checkpoint, TENSORS)
        assert checkpoint.left_unread == ("optim.pt beside model_rng.pt",)

    def test_in_a_tar(self, tmp_path: Path) -> None:
        path = self.renamed(tmp_path / "release")
        files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
        checkpoint = open_checkpoint(write_tar(tmp_path / "release.tar", files))
        assert_holds(checkpoint, TENSORS)
        assert checkpoint.left_unread == ()

    def test_of_both_the_usual_one_is_read(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, ranks=2)
        (path / rank_path(1)).with_name("model_rng.pt").write_bytes(b"not looked at")
        checkpoint = open_checkpoint(path)
        assert_holds(checkpoint, TENSORS)
        assert checkpoint.left_unread == ("model_rng.pt beside model_optim_rng.pt",)

    def test_ranks_with_different_names(self, tmp_path: Path) -> None:
        path = self.renamed(tmp_path, ranks=(1,))
        assert_refused(path, "mp_rank_01", "model_optim_rng.pt is missing")
