"""The command line: what goes to stdout, what to stderr, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_adept
from click.testing import CliRunner, Result

from adept_fast import Runtime
from adept_fast.commands import chat as chat_command
from adept_fast.commands.cli import main
from adept_fast.commands.info import _describe_kernels
from adept_fast.ops import cuda
from adept_fast.tokenizer.tokenizer import Tokenizer

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


def run(*arguments: str, stdin: str | bytes | None = None, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, list(arguments), input=stdin)


def test_generate_prints_the_text_and_nothing_else_to_stdout() -> None:
    result = run("generate", "--chat", "--prompt", QUESTION)
    assert (result.exit_code, result.stdout, result.stderr) == (0, ANSWER + "\n", "")


def test_generate_takes_prompts_from_options_files_and_stdin(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"What is 3 plus 4?\r\n")
    result = run(
        "generate", "--chat", "--prompt", QUESTION, "--prompt-file", str(file), "--prompt-file", "-",
        stdin="Who are you?\n",
    )  # fmt: skip
    lines = result.stdout.splitlines()
    assert lines[:2] == [ANSWER, "3 plus 4 is 7."]
    assert lines[2]
    assert len(lines) == 3


def test_generate_json_is_one_object_a_line() -> None:
    result = run(
        "generate", "--chat", "--prompt", QUESTION, "--prompt", "Hello!", "--json", "--logprobs", "2"
    )
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert (first["prompt"], first["text"], first["finish_reason"]) == (QUESTION, ANSWER, "eos")
    assert second["prompt"] == "Hello!"
    assert len(first["logprobs"]) == len(first["token_ids"])
    assert len(first["logprobs"][0]["top"]) == 2
    assert {"load_seconds", "prefill_seconds", "decode_seconds", "tokens_per_second"} <= first.keys()


def test_generate_sampling_options_reach_the_sampler(demo: Runtime) -> None:
    result = run(
        "generate", "--prompt", "Once upon a time", "--temperature", "1.1", "--top-k", "50",
        "--top-p", "0.95", "--min-p", "0.01", "--repetition-penalty", "1.1", "--seed", "9",
        "--max-new-tokens", "20", "--frequency-penalty", "0.7", "--presence-penalty", "-0.2",
        "--logit-bias", "290=-2.5", "--logit-bias", "9=4",
    )  # fmt: skip
    expected = demo.generate(
        "Once upon a time",
        temperature=1.1,
        top_k=50,
        top_p=0.95,
        min_p=0.01,
        repetition_penalty=1.1,
        frequency_penalty=0.7,
        presence_penalty=-0.2,
        logit_bias={9: 4.0, 290: -2.5},
        seed=9,
        max_new_tokens=20,
    )
    assert result.stdout == expected.text + "\n"
    for option, keyword in (
        ("--frequency-penalty", "frequency_penalty"),
        ("--presence-penalty", "presence_penalty"),
    ):
        alone = run("generate", "--prompt", "Once upon a time", option, "2", "--max-new-tokens", "60")
        assert (
            alone.stdout == demo.generate("Once upon a time", max_new_tokens=60, **{keyword: 2}).text + "\n"
        )
    stopped = run("generate", "--chat", "--prompt", QUESTION, "--stop", "is Par")
    assert stopped.stdout == "The capital of France \n"


def test_generate_bos_can_be_set(demo: Runtime) -> None:
    result = run("generate", "--prompt", "Once", "--no-bos", "--max-new-tokens", "9")
    assert result.stdout == demo.generate("Once", add_bos=False, max_new_tokens=9).text + "\n"


def test_stats_go_to_stderr() -> None:
    result = run("generate", "--chat", "--prompt", QUESTION, "--stats")
    assert result.stdout == ANSWER + "\n"
    assert "tokens/s over 7 steps" in result.stderr
    assert "GB/s of the memory" in result.stderr


def test_the_checkpoint_can_come_from_the_environment(tmp_path: Path) -> None:
    result = run("generate", "--prompt", "a", ADEPT_FAST_CHECKPOINT=str(tmp_path / "absent"))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path / 'absent'}: there is no such file")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate"],
        ["generate", "--prompt", "a", "--temperature", "-1"],
        ["generate", "--prompt", "a", "--top-p", "0"],
        ["generate", "--prompt", "a", "--max-new-tokens", "many"],
        ["generate", "--prompt-file", "no-such-file"],
        ["generate", "--prompt", "a", "--no-such-option"],
        ["score"],
        ["no-such-command"],
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    result = run(*arguments, stdin="")
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--prompt", "a " * 600],
        ["generate", "--prompt", "a", "--device", "tpu"],
        ["generate", "--prompt", "a", "--max-seq-len", "9999"],
        ["info", "--dtype", "int3"],
        ["score", "--checkpoint", "README.md", "a"],
    ],
)
def test_failures_exit_with_1_and_one_line(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert not isinstance(run(*arguments, ADEPT_FAST_DEBUG="1").exception, SystemExit)


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    result = run("generate", "--prompt-file", str(tmp_path / "latin"))
    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path / 'latin'}: not UTF-8 text (line 1, byte 3)\n"


def test_chat_answers_and_keeps_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = []
    original = chat_command.chat_ids

    def recorded(tokenizer: Tokenizer, *asked: Any, **options: Any) -> list[int]:
        ids = original(tokenizer, *asked, **options)
        prompts.append(tokenizer.decode(ids))
        return ids

    monkeypatch.setattr(chat_command, "chat_ids", recorded)
    result = run("chat", stdin=f"{QUESTION}\n\nWhat is 3 plus 4?\n")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == ANSWER
    assert len(result.stdout.splitlines()) == 2
    assert prompts[-1] == f"human: {QUESTION}\n\nadept: {ANSWER}\n\nhuman: What is 3 plus 4?\n\nadept:"


def test_chat_forgets_the_oldest_turns_when_the_context_is_full() -> None:
    questions = "".join(f"What is {number} plus 1?\n" for number in range(8))
    result = run("chat", "--max-seq-len", "100", "--max-new-tokens", "20", stdin=questions)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 8
    assert "turns are forgotten" in result.stderr


def test_score_prints_what_the_runtime_computes(demo: Runtime) -> None:
    texts = ["The capital of France is Paris.", "Paris is France of capital the."]
    expected = [scored.total for scored in demo.score(texts)]
    result = run("score", *texts)
    assert [float(line.split("\t")[0]) for line in result.stdout.splitlines()] == pytest.approx(
        expected, abs=1e-3
    )
    assert run("score", stdin="\n".join(texts)).stdout == result.stdout
    line = json.loads(run("score", "--json", texts[0]).stdout)
    assert line["logprob"] == pytest.approx(expected[0], abs=1e-3)
    assert line["tokens"][0] == "|ENDOFTEXT|"
    assert line["logprobs"][0] is None


@pytest.mark.parametrize(
    ("fault", "says"), [(None, "run"), ("no nvcc", "do not run: no nvcc")], ids=["none", "one"]
)
def test_info_says_whether_kernels_run(fault: str | None, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "fault", lambda device: fault)
    assert "CUDA kernels" not in run("info").stdout  # without a GPU nothing is said of it
    assert "CUDA kernels" not in run("info", "--gpu-memory", "24GB").stdout
    assert _describe_kernels(torch.device("cuda")) == {"CUDA kernels": says}


def test_stats_count_the_warm_up_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    warm_up, stream = Runtime.warm_up, Runtime.stream
    monkeypatch.setattr(Runtime, "warm_up", lambda self: calls.append("warm up") or warm_up(self))
    monkeypatch.setattr(
        Runtime, "stream", lambda self, *args, **more: calls.append("stream") or stream(self, *args, **more)
    )
    plain = run("generate", "--prompt", "Once", "--max-new-tokens", "3")
    assert calls == ["stream"]
    calls.clear()
    result = run("generate", "--prompt", "Once", "--max-new-tokens", "3", "--stats")
    assert calls == ["warm up", "stream"]
    assert result.stdout == plain.stdout
    lines = [line.split()[0] for line in result.stderr.splitlines()]
    assert lines == ["load", "warmup", "prefill", "decode"]


def test_info_describes_and_plans_without_loading() -> None:
    text = run("info").stdout
    for fact in ("stored dtype", "float16", "parameters", "longest context that fits"):
        assert fact in text
    report = json.loads(run("info", "--json", "--max-seq-len", "100", "--batch-size", "3").stdout)
    assert report["config"]["hidden_size"] == 256
    assert report["versions"]["torch"] == torch.__version__
    assert "3 × 100 tokens" in report["memory"]["cache"]
    kernels = [name for name, what in report["operators"].items() if what.startswith("kernel (C++, ")]
    assert kernels == [
        "layernorm_qkv",
        "rotary_append",
        "decode_attention",
        "linear_residual",
        "mlp",
        "lm_head",
        "prefill_attention",
        "update_decode_state",
    ]
    assert report["placement"]["pages"].startswith(("huge", "small ("))
    assert report["placement"]["layout"] == "row_major (the kernels of a CPU read no other)"
    assert report["placement"]["decode steps"] == "eagerly (a CPU has no graphs)"
    assert set(report["optional packages"]) == {"flash-attn", "apex"}
    unfit = json.loads(run("info", "--json", "--batch-size", "1000000000").stdout)
    assert " are needed; the weights take" in unfit["memory"]["does not fit"]


def test_the_layout_of_weights_is_an_option_of_loading() -> None:
    """Tiles of a GPU take more bytes than rows, as they are padded; a CPU has none."""
    sizes = {}
    for layout in ("row_major", "tiles"):
        planned = run("info", "--json", "--gpu-memory", "1GB", "--weight-layout", layout, "--weights", "int4")
        report = json.loads(planned.stdout)
        assert report["placement"]["layout"] == f"{layout} (as asked)"
        sizes[layout] = report["memory"]["weights"]
        assert ("layers of a step" in report["placement"]) == (layout == "tiles")
    assert sizes["row_major"] != sizes["tiles"]
    expected = "weight_layout is 'tiles'; expected auto on a CPU, whose kernels read one layout"
    commands = (("generate", "--prompt", "x"), ("score", "x"), ("info",), ("bench",), ("serve",), ("chat",))
    for command in commands:
        done = CliRunner().invoke(main, [*command, "--device", "cpu", "--weight-layout", "tiles"])
        assert (done.exit_code, expected in done.stderr) == (1, True), command


def test_info_lists_what_was_left_unread(tmp_path: Path) -> None:
    config = small_config()
    path = write_adept(
        tmp_path, config, random_tensors(config), demo_tokenizer(), data=Path("."), where=torch.device("cpu")
    )
    arguments = ("info", "--device", "cpu", "--checkpoint", str(path))
    names = [f"{type(path).__module__}.{type(path).__name__}", "torch.device"]
    assert json.loads(run(*arguments, "--json").stdout)["checkpoint"]["left unread"] == names
    [line] = [line for line in run(*arguments).stdout.splitlines() if line.startswith("  left unread ")]
    assert line.split(maxsplit=2)[2] == ", ".join(names)
    assert "left unread" not in run("info").stdout


def test_version_and_help() -> None:
    assert run("--version").stdout.startswith("adept-fast, version 0.")
    for command in ("generate", "chat", "score", "info", "bench", "convert"):
        assert command in run("--help").stdout
        assert run(command, "-h").exit_code == 0


def test_ctrl_c_ends_an_answer_and_not_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it comes while a piece is being printed."""
    interruptions = iter([False, False, True])
    original = click.echo

    def echo(*arguments: object, **keywords: object) -> None:
        if keywords.get("nl") is False and not keywords.get("err") and next(interruptions, False):
            raise KeyboardInterrupt
        original(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(click, "echo", echo)
    result = run("chat", stdin=f"{QUESTION}\nWhat is 3 plus 4?\n")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first == "The capital"
    assert second.endswith(".")
