"""What lies beside the weights in a converted directory: the model card and how to generate."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from saving import checkpoint_of
from tokenizers_for_tests import train
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from adept_fast.checkpoint import demo_path, open_checkpoint
from adept_fast.checkpoint.convert import convert
from adept_fast.checkpoint.model_card import known_license
from adept_fast.checkpoint.save import save_huggingface
from adept_fast.checkpoint.save_tokenizer import generation_config
from adept_fast.tokenizer.tokenizer import Tokenizer


def header_of(folder: Path) -> dict[str, object]:
    card = (folder / "README.md").read_text(encoding="utf-8")
    match = re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)
    assert match is not None
    header = yaml.safe_load(match[1])
    assert isinstance(header, dict)
    return header


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_from_adepts_format_to_transformers(tmp_path: Path, dtype: torch.dtype) -> None:
    source = checkpoint_of(tmp_path / "source", dtype=dtype)
    convert(source.path, tmp_path / "adept", to="adept", progress=False)
    convert(tmp_path / "adept", tmp_path / "back", to="huggingface", progress=False)
    for asked in (dtype, "auto", torch.float32):
        model, info = AutoModelForCausalLM.from_pretrained(
            tmp_path / "back", dtype=asked, output_loading_info=True
        )
        assert not any(info.values()), info
        assert model.dtype == (dtype if asked == "auto" else asked)
        state = model.state_dict()
        for name, tensor in source.tensors.items():
            assert torch.equal(state[name], tensor.read().to(model.dtype)), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
    settings = GenerationConfig.from_pretrained(tmp_path / "back")
    assert (settings.bos_token_id, settings.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert (settings.pad_token_id, settings.do_sample) == (tokenizer.unk_token_id, False)
    assert model.generation_config.pad_token_id == tokenizer.unk_token_id


class TestCard:
    def test_it_says_what_it_is(self, tmp_path: Path) -> None:
        save_huggingface(checkpoint_of(tmp_path / "source"), tmp_path / "my-model", dtype=torch.bfloat16)
        header = header_of(tmp_path / "my-model")
        assert header == {
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["persimmon"],
        }
        card = (tmp_path / "my-model" / "README.md").read_text(encoding="utf-8")
        assert "# my-model\n" in card
        assert "bfloat16, 2 layers of width 64, 4 heads, a context of 128 tokens, 4096 pieces" in card
        assert "puts no token first" in card
        assert "did not name it" in card

    def test_the_licence_is_the_sources(self, tmp_path: Path) -> None:
        convert("demo", tmp_path / "once", to="huggingface", progress=False)
        convert(tmp_path / "once", tmp_path / "twice", to="huggingface", progress=False)
        for folder in (demo_path(), tmp_path / "once", tmp_path / "twice"):
            assert header_of(folder)["license"] == "apache-2.0"

    @pytest.mark.parametrize(
        ("card", "found"),
        [
            ("---\nlicense: mit\n---\n", "mit"),
            ("---\ntags:\n- x\nlicense: 'cc-by-nc-4.0'\n---\ntext", "cc-by-nc-4.0"),
            ("---\ntags: [x]\n---\nlicense: mit\n", None),
            ("license: mit\n", None),
            ("---\nlicense: mit\n", None),
            ("---\nlicense: |\n  mit\n---\n", None),
            ("---\nlicense: a b\n---\n", None),
            ("---\nlicense: [mit]\n---\n", None),
            ("", None),
        ],
    )
    def test_licences_in_headers(self, tmp_path: Path, card: str, found: str | None) -> None:
        (tmp_path / "README.md").write_text(card)
        assert known_license(tmp_path) == found

    def test_a_card_that_is_no_text(self, tmp_path: Path) -> None:
        assert known_license(tmp_path) is None
        (tmp_path / "README.md").write_bytes(b"---\nlicense: mit\xff\n---\n")
        assert known_license(tmp_path) is None

    @pytest.mark.slow
    def test_its_code_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        convert("demo", tmp_path / "saved", to="huggingface", progress=False)
        monkeypatch.chdir(tmp_path)
        card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
        blocks = re.findall(r"^```python\n(.*?)^```$", card, flags=re.MULTILINE | re.DOTALL)
        assert len(blocks) == 2
        shown = []
        for block in blocks:
            exec(compile(block, "README.md", "exec"), {"__name__": "card"})  # noqa: S102
            shown.append(capsys.readouterr().out.removesuffix("\n"))
        ours, theirs = shown
        assert theirs == f"|ENDOFTEXT| human: How are you?\n\nadept:{ours}|ENDOFTEXT|"


def test_the_shipped_directory_is_as_it_would_be_written(tmp_path: Path) -> None:
    save_huggingface(open_checkpoint("demo"), tmp_path / "demo")
    written = {path.name for path in (tmp_path / "demo").iterdir()}
    assert written | {"NOTICE", "questions.jsonl"} == {path.name for path in demo_path().iterdir()}
    for name in written - {"model.safetensors"}:
        assert (tmp_path / "demo" / name).read_bytes() == (demo_path() / name).read_bytes(), name
    settings = json.loads((demo_path() / "generation_config.json").read_text(encoding="utf-8"))
    assert settings["eos_token_id"] == open_checkpoint("demo").tokenizer.eos_id


def test_no_padding_where_a_text_may_hold_the_unknown_piece() -> None:
    assert generation_config(Tokenizer(train()))["pad_token_id"] == 0
    assert "pad_token_id" not in generation_config(Tokenizer(train(byte_fallback=False)))
