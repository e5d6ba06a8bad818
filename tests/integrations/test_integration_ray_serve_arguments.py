"""The arguments of an application on Ray: those of ``adept-fast serve``, and how many replicas there are."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed")

import click
import yaml
from ray.serve.schema import ServeDeploySchema

from adept_fast import Runtime
from adept_fast.arguments import ParameterError
from adept_fast.commands.cli import main
from adept_fast.integrations.ray_serve import app
from adept_fast.integrations.ray_serve.arguments import ServeArguments
from adept_fast.server.settings import Settings

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ray_serve.yaml"
SERVE = main.get_command(click.Context(main), "serve")
assert SERVE is not None
OPTIONS = {option.name: option for option in SERVE.params if option.expose_value}
RAYS_OWN = {"host", "port"}  # Ray has an HTTP server
NOT_FOR_ALL = {"api_key"}  # Ray shows arguments to all users of a cluster
REPLICAS = {
    "replicas", "min_replicas", "max_replicas", "target_answers", "tensor_parallel", "cpus", "gpus",
    "ingress_on_head",
}  # fmt: skip


def test_the_arguments_are_the_options_of_adept_fast_serve() -> None:
    names = set(ServeArguments.model_fields)
    assert names - REPLICAS == set(OPTIONS) - RAYS_OWN - NOT_FOR_ALL - REPLICAS


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - RAYS_OWN - NOT_FOR_ALL))
def test_a_default_is_that_of_the_option(name: str) -> None:
    defaults = {"warmup": True}  # of this command
    option = OPTIONS[str(name)]
    wanted = defaults.get(name, None if option.default is None else option.get_default(click.Context(SERVE)))  # type: ignore[arg-type]
    found = getattr(ServeArguments(), name)
    assert (found or None) == (wanted if isinstance(wanted, (int, float, str)) and wanted else None)


@pytest.mark.parametrize(
    "name", sorted({"batch_size", "max_queue", "request_seconds", "max_stops", "max_logprobs"})
)
def test_bounds_are_those_of_the_option(name: str) -> None:
    bounds: Any = OPTIONS[name].type
    for value in (bounds.min, bounds.max):
        assert getattr(ServeArguments.read({name: value}), name) == value
    for value in (bounds.min - 1, bounds.max + 1):
        with pytest.raises(ParameterError, match=f"^{name} is .*; expected at "):
            ServeArguments.read({name: value})


def test_text_stands_for_numbers_as_serve_run_has_it() -> None:
    found = ServeArguments.read({"batch_size": "4", "warmup": "false", "cpus": "2.5", "weights": "int8"})
    assert (found.batch_size, found.warmup, found.cpus, found.weights) == (4, False, 2.5, "int8")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batchsize": 1}, "batchsize is no argument of the application; expected one of checkpoint, "),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"batch_size": "many"}, "batch_size is 'many'; expected "),
        ({"log_format": "xml"}, "log_format is 'xml'; expected 'text' or 'json'"),
        ({"cors_origins": ["x"]}, "cors_origins is 'x'; expected *, or a scheme and a host"),
        ({"api_key": "secret"}, "api_key is given, which Ray would show"),
        ({"min_replicas": 1}, "min_replicas and max_replicas: expected both or none"),
        ({"replicas": 2, "min_replicas": 1, "max_replicas": 2}, "replicas and max_replicas are both given"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas is 3; expected at most max_replicas, 2"),
        ({"target_answers": 3}, "target_answers is given without max_replicas"),
        ({"tensor_parallel": 0}, "tensor_parallel is 0; expected at least 1"),
    ],
)
def test_a_mistake_is_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as raised:
        app(given)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_what_a_runtime_is_loaded_with() -> None:
    found = ServeArguments(checkpoint="/models/8b", batch_size=16, max_seq_len=64).loading()
    assert set(found) <= set(inspect.signature(Runtime.load).parameters)
    assert found["path_or_name"] == "/models/8b"
    assert (found["max_batch_size"], found["step_tokens"], found["max_waiting"]) == (16, "auto", None)
    assert "tensor_parallel" not in found
    assert ServeArguments(tensor_parallel=2).loading()["tensor_parallel"] == 2


def test_settings_are_those_of_adept_fast_serve() -> None:
    assert ServeArguments().settings((), None) == Settings("demo")
    found = ServeArguments(checkpoint="/models/8b.tar", request_seconds=0, max_choices=2, log_prompts=True)
    assert found.settings(("a",), None) == Settings(
        "8b", api_keys=("a",), request_seconds=None, max_choices=2, log_prompts=True
    )


def test_the_example_is_a_config_file() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")))
    (application,) = config.applications
    assert application.import_path == f"{app.__module__.rpartition('.')[0]}:app"
    assert ServeArguments.read(application.args) == ServeArguments(replicas=1)
    commented = [
        line.strip("# ") for line in EXAMPLE.read_text().splitlines() if line.strip().startswith("# ")
    ]
    names = {line.partition(":")[0] for line in commented} & set(ServeArguments.model_fields)
    assert names == {"tensor_parallel", "min_replicas", "max_replicas", "api_key_file"}
