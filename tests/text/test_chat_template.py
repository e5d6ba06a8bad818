"""Chat templates: equal to transformers' rendering, and bounded whatever they try."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import CHATML, CONVERSATIONS, INSTRUCTIONS, TEMPLATES, TURNS
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from click.testing import CliRunner, Result
from transformers import AutoTokenizer

from adept_fast import Runtime
from adept_fast.chat.budget import MAX_SOURCE
from adept_fast.chat.chat_template import ChatTemplate
from adept_fast.chat.format import STOP, ChatError, HumanAdeptFormat
from adept_fast.checkpoint import CheckpointError, open_checkpoint
from adept_fast.checkpoint.convert import convert
from adept_fast.checkpoint.save import save_huggingface
from adept_fast.commands.cli import main

CONFIG = small_config(num_hidden_layers=1)
TENSORS = random_tensors(CONFIG, dtype=torch.float16)
ADDED = {"<|im_start|>": 4096, "<|im_end|>": 4097}
SETTINGS = {
    "bos_token": "|ENDOFTEXT|",
    "eos_token": "<|im_end|>",
    "additional_special_tokens": ["<|im_start|>"],
}


def write(path: Path, template: object = None, **changes: Any) -> Path:
    write_huggingface(path, CONFIG, TENSORS, demo_tokenizer())
    settings = SETTINGS | ({} if template is None else {"chat_template": template}) | changes
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "added_tokens.json").write_text(json.dumps(ADDED))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_and_ids_are_those_of_transformers(
    tmp_path: Path, name: str, add_generation_prompt: bool
) -> None:
    source = write(tmp_path / "source", TEMPLATES[name])
    save_huggingface(open_checkpoint(source), tmp_path / "saved")
    ours = open_checkpoint(tmp_path / "saved").tokenizer
    ours.chat_format = ChatTemplate(TEMPLATES[name], name)  # else the built-in one is recognised
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    rendered = 0
    for messages in CONVERSATIONS:
        asked = {"add_generation_prompt": add_generation_prompt}
        try:
            expected = theirs.apply_chat_template(messages, tokenize=False, **asked)
        except Exception:  # noqa: BLE001 (of several kinds)
            with pytest.raises(ChatError):
                ours.apply_chat_template(messages, tokenize=False, **asked)
            continue
        rendered += 1
        assert ours.apply_chat_template(messages, tokenize=False, **asked) == expected
        found = theirs.apply_chat_template(messages, tokenize=True, **asked)["input_ids"]
        assert ours.apply_chat_template(messages, **asked) == found
    assert rendered >= 2


def test_special_tokens_that_are_only_named_are_found_in_what_a_template_writes(tmp_path: Path) -> None:
    source = write(tmp_path / "source", INSTRUCTIONS, eos_token="|ENDOFTEXT|", additional_special_tokens=[])
    (source / "added_tokens.json").unlink()
    save_huggingface(open_checkpoint(source), tmp_path / "saved")
    ours = open_checkpoint(tmp_path / "saved").tokenizer
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    messages = [*TURNS[:2], {"role": "user", "content": "and <unk>?"}]
    ids = ours.apply_chat_template(messages)
    assert ids == theirs.apply_chat_template(messages)["input_ids"]
    assert ids.count(ours.eos_id) == 2  # it begins the text, and ends the answer
    assert ours.eos_id not in ours.encode("text that spells |ENDOFTEXT| is text")


def test_what_a_message_lacks_may_be_null() -> None:
    """As clients of servers send it: a template that asks whether a field is there sees none."""
    template = ChatTemplate("{{ messages[0].name is defined }} {{ messages[0].content }}", "it")
    assert template.text([{"role": "user", "content": "a", "name": None}]) == "False a"
    assert template.text([{"role": "user", "content": "a", "name": "b"}]) == "True a"


def test_a_template_may_refuse_a_conversation() -> None:
    template = ChatTemplate(INSTRUCTIONS, "here")
    with pytest.raises(ChatError, match="the template in here refuses the conversation: Conversation"):
        template.text(CONVERSATIONS[3])


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([], "messages is"),
        ("abc", "messages is 'abc'"),
        ([5], r"messages\[0\] is 5"),
        ([{"content": "x"}], r"messages\[0\] has the role None"),
        ([{"role": 5, "content": "x"}], r"messages\[0\] has the role 5"),
        ([{"role": "user", "content": object()}], r"messages\[0\]\['content'\] holds a object"),
        ([{"role": "user", "content": "x" * 2**21}], "more than 1048576"),
    ],
)
def test_what_is_no_conversation(messages: Any, found: str) -> None:
    with pytest.raises(ChatError, match=found):
        ChatTemplate(CHATML, "here").text(messages)


class TestFiles:
    def test_where_a_template_is_found(self, tmp_path: Path) -> None:
        path = write(tmp_path, "config {{ messages[0].content }}")
        (path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
        assert self.rendered(path) == "config hi"
        (path / "chat_template.jinja").write_bytes(b"jinja\r\n{{ messages[0].content }}\r\n")
        assert self.rendered(path) == "jinja\nhi"
        (path / "chat_template.jinja").unlink()
        (path / "tokenizer_config.json").write_text(json.dumps(SETTINGS | {"chat_template": None}))
        assert self.rendered(path) == "json"

    def test_of_several_the_default_counts(self, tmp_path: Path) -> None:
        named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
        assert self.rendered(write(tmp_path / "list", named)) == "plain"
        assert self.rendered(write(tmp_path / "object", {"default": "plain"})) == "plain"
        with pytest.raises(
            CheckpointError, match="chat_template has 'tool_use'; expected one named 'default'"
        ):
            open_checkpoint(write(tmp_path / "none", named[:1]))

    @pytest.mark.parametrize("template", [None, *map(HumanAdeptFormat().source, (False, True))])
    def test_without_one_of_its_own_the_format_is_the_built_in_one(
        self, tmp_path: Path, template: object
    ) -> None:
        tokenizer = open_checkpoint(write(tmp_path, template)).tokenizer
        assert isinstance(tokenizer.chat_format, HumanAdeptFormat)
        assert tokenizer.chat_format.stop == (STOP,)
        text = tokenizer.apply_chat_template(TURNS[:1], add_generation_prompt=True, tokenize=False)
        assert text == "human:  What a day? \n\nadept:"

    @pytest.mark.parametrize(
        ("template", "found"),
        [
            (5, "chat_template is 5; expected text"),
            (True, "chat_template is True"),
            ([5], r"chat_template\[0\] is 5; expected a name"),
            ([{"name": "default"}], r"chat_template\[0\] is"),
            ([{"name": "default", "template": 5}], "chat_template is 5; expected text"),
            ([], "chat_template has ; expected one named"),
            ("\ud800", "holds a lone surrogate"),
        ],
    )
    def test_what_is_no_template(self, tmp_path: Path, template: object, found: str) -> None:
        with pytest.raises(CheckpointError, match=found) as caught:
            open_checkpoint(write(tmp_path, template))
        assert str(tmp_path / "tokenizer_config.json") in str(caught.value)

    @pytest.mark.parametrize("contents", [b"\xff", b"x" * (4 * MAX_SOURCE + 1)])
    def test_files_that_are_no_template(self, tmp_path: Path, contents: bytes) -> None:
        path = write(tmp_path)
        (path / "chat_template.jinja").write_bytes(contents)
        with pytest.raises(CheckpointError, match=r"chat_template.jinja: (not UTF-8|has 262145 bytes)"):
            open_checkpoint(path)

    @pytest.mark.parametrize("to", ["huggingface", "native"])
    def test_it_survives_conversion(self, tmp_path: Path, to: Any) -> None:
        path = write(tmp_path / "source", CHATML)
        convert(path, tmp_path / "out", to=to, weights="int8" if to == "native" else None, progress=False)
        before, after = open_checkpoint(path).tokenizer, open_checkpoint(tmp_path / "out").tokenizer
        assert after.apply_chat_template(TURNS) == before.apply_chat_template(TURNS)

    def rendered(self, path: Path) -> str:
        tokenizer = open_checkpoint(path).tokenizer
        return tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


def test_bos_can_be_set(tmp_path: Path) -> None:
    tokenizer = open_checkpoint(write(tmp_path, INSTRUCTIONS)).tokenizer
    ids = tokenizer.apply_chat_template(TURNS)
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.apply_chat_template(TURNS, add_bos=True) == ids
    assert tokenizer.apply_chat_template(TURNS, add_bos=False) == ids[1:]
    tokenizer.chat_format = ChatTemplate(CHATML, "here")
    ids = tokenizer.apply_chat_template(TURNS)
    assert ids[0] == ADDED["<|im_start|>"]
    assert tokenizer.apply_chat_template(TURNS, add_bos=True) == [tokenizer.bos_id, *ids]
    assert tokenizer.apply_chat_template(TURNS, add_bos=False) == ids


class TestCommands:
    def run(self, path: Path, *arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, [*arguments, "--checkpoint", str(path)], input=stdin)

    def test_generate_asks_in_the_checkpoints_format(self, tmp_path: Path) -> None:
        path = write(tmp_path, CHATML)
        runtime = Runtime.load(path, progress=False)
        question = [{"role": "user", "content": "How are you?"}]
        ids = runtime.tokenizer.apply_chat_template(question, add_generation_prompt=True)
        (expected,) = runtime.generate([ids], max_new_tokens=8)
        result = self.run(
            path, "generate", "--chat", "--prompt", "How are you?", "--max-new-tokens", "8", "--json"
        )
        found = json.loads(result.stdout)
        assert found["token_ids"] == expected.token_ids
        assert found["prompt_tokens"] == len(ids)

    def test_chat_keeps_the_history_in_it(self, tmp_path: Path) -> None:
        source = (
            "{% if messages | length > 2 %}{{ raise_exception(messages | map(attribute='role') | join) }}"
            "{% endif %}{{ messages[0].content }}"
        )
        result = self.run(write(tmp_path, source), "chat", "--max-new-tokens", "2", stdin="One?\nTwo?\n")
        assert (result.exit_code, len(result.stdout.splitlines())) == (0, 1)  # the second has no answer
        assert "refuses the conversation: userassistantuser" in result.stderr

    def test_a_broken_template_is_one_line(self, tmp_path: Path) -> None:
        result = self.run(write(tmp_path, "{% if"), "generate", "--chat", "--prompt", "x")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "is no jinja template: line 1" in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert self.run(tmp_path, "generate", "--prompt", "x", "--max-new-tokens", "1").exit_code == 0

    def test_info_says_which_it_is(self, tmp_path: Path) -> None:
        found = json.loads(self.run(write(tmp_path, CHATML), "info", "--json").stdout)["checkpoint"]
        assert found["chat format"] == f"the template in {tmp_path / 'tokenizer_config.json'}"
        found = json.loads(self.run(write(tmp_path), "info", "--json").stdout)["checkpoint"]
        assert found["chat format"] == "human: … adept: …"
