"""The classes without transformers: what they can do equals what they do where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from own_process import run_python
from test_modeling import HEADS, ids_of, labels_of, pair_of

WITHOUT = "import sys; sys.modules['transformers'] = None\n"


def in_another_process(program: str, *arguments: object) -> Any:
    """What a program without transformers prints as JSON."""
    done = run_python(WITHOUT + program, *map(str, arguments))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


STEP = """
import json, torch
from pathlib import Path
from adept_fast import modeling
head, path, recompute = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "True"
model = getattr(modeling, f"Persimmon{head}").from_pretrained(path).train()
given = torch.load(path / "given.pt")
if recompute:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
out = model(**given)
if head != "Model":
    out.loss.backward()
gradients = [float(each.grad.double().square().sum()) for each in model.parameters() if each.grad is not None]
model.save_pretrained(path / "again")
counts = [model.num_parameters(), model.num_parameters(exclude_embeddings=True)]
print(json.dumps([out[0].double().sum().item(), gradients, counts, model.config.id2label[1]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_a_step_of_training(tmp_path: Path, head: str, recompute: bool) -> None:
    ours, _ = pair_of(head)
    ours.save_pretrained(tmp_path)
    given = {"input_ids": ids_of(ours), "labels": labels_of(head, ours, ids_of(ours))}
    given = {name: value for name, value in given.items() if value is not None}
    torch.save(given, tmp_path / "given.pt")
    first, gradients, counts, label = in_another_process(STEP, head, tmp_path, recompute)
    out = ours.train()(**given)
    if head != "Model":
        out.loss.backward()
    expected = [
        each.grad.double().square().sum().item() for each in ours.parameters() if each.grad is not None
    ]
    assert first == pytest.approx(out[0].double().sum().item(), rel=1e-4, abs=1e-3)
    assert gradients == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert counts == [ours.num_parameters(), ours.num_parameters(exclude_embeddings=True)]
    assert label == ours.config.id2label[1]
    again = type(ours).from_pretrained(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))
    new = {"dtype": None, "architectures": None, "_name_or_path": None}
    assert again.config.to_dict() | new == ours.config.to_dict() | new
    assert "_name_or_path" not in json.loads((tmp_path / "again/config.json").read_text())


REST = """
import json, torch
from adept_fast import modeling
model = modeling.PersimmonForCausalLM.from_pretrained("demo", dtype="float32", device_map="cpu")
config = modeling.PersimmonConfig.from_pretrained("demo", num_labels=3)
ids = torch.tensor([[5, 6, 7]])
cached = model(ids[:, :2], use_cache=True)
last = model(ids[:, 2:], past_key_values=cached.cache).logits
mask = torch.ones(1, 1, 3, 3).tril().bool()
same = torch.allclose(last, model(ids, attention_mask=mask).logits[:, -1:], atol=1e-4)
tied = modeling.PersimmonForCausalLM(modeling.PersimmonConfig(
    vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
    tie_word_embeddings=True))
try:
    model.generate(ids)
except ImportError as error:
    message = str(error)
print(json.dumps([same, config.num_labels, config.id2label[2], config.eos_token_id, message,
    tied.lm_head.weight is tied.get_input_embeddings().weight, tied.num_parameters(exclude_embeddings=True)]))
"""


@pytest.mark.slow
def test_the_rest() -> None:
    same, labels, label, end, message, tied, parameters = in_another_process(REST)
    assert same
    assert tied
    assert (labels, label, end) == (3, "LABEL_2", 1)
    assert message.startswith("generate needs the package transformers, which is not installed: pip install")
    assert parameters > 0
