"""The application: an ingress without a model, and a deployment of replicas with one."""

from __future__ import annotations

from typing import Any

import torch
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.deployment import Application

from adept_fast.integrations.ray_serve.arguments import ServeArguments
from adept_fast.integrations.ray_serve.ingress import Ingress
from adept_fast.integrations.ray_serve.replica import Replica
from adept_fast.integrations.ray_serve.router import PrefixRouter

_UNBOUNDED = 2**31 - 1  # requests that Serve lets run: the ingress refuses what is too much
_HEALTH_SECONDS = 2.0  # between two checks of a replica
_NO_ACCESS_LOG = {"enable_access_log": False}  # the server has one
_HEAD = {"node:__internal_head__": 0.001}  # the resource that Ray's head node alone has


def app(arguments: dict[str, Any]) -> Application:
    """The application that ``serve run adept_fast.integrations.ray_serve:app`` runs.

    Raises ParameterError for arguments that ``ServeArguments`` does not have, or outside their range.
    """
    return build(ServeArguments.read(arguments))


def build(arguments: ServeArguments) -> Application:
    """The application of these arguments."""
    model = serve.deployment(Replica, name="model").options(
        **replica_resources(arguments),
        **replica_count(arguments),
        max_ongoing_requests=_UNBOUNDED,
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=arguments.grace_seconds,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=_NO_ACCESS_LOG,
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter, request_router_kwargs={"slots": arguments.batch_size}
        ),
    )
    ingress = serve.deployment(serve.ingress()(Ingress), name="ingress").options(
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, **({"resources": _HEAD} if arguments.ingress_on_head else {})},
        max_ongoing_requests=_UNBOUNDED,
        max_surge_percent=100,  # a new one takes requests before the old one stops
        graceful_shutdown_timeout_s=arguments.grace_seconds,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=_NO_ACCESS_LOG,
    )
    replicas = model.bind(arguments.loading(), arguments.log_format)
    found: Application = ingress.bind(arguments, replicas)
    return found


def replica_resources(arguments: ServeArguments) -> dict[str, Any]:
    """What a replica reserves: all of it on one machine, as its processes share memory and devices."""
    processes = arguments.tensor_parallel
    cpus = arguments.cpus * processes
    gpus = float(processes if _wants_gpu(arguments) else 0) if arguments.gpus is None else arguments.gpus
    actor = {"num_cpus": cpus, "num_gpus": gpus}
    if processes == 1:
        return {"ray_actor_options": actor}
    bundle = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
    return {
        "ray_actor_options": actor,
        "placement_group_bundles": [bundle],
        "placement_group_strategy": "STRICT_PACK",
    }


def replica_count(arguments: ServeArguments) -> dict[str, Any]:
    """How many replicas there are: a number, or Serve's autoscaling.

    Each answer is one request of Serve's, so what its policy counts are the answers that run in the engines,
    and those that wait there or for a replica, of however many HTTP requests they are.
    """
    if arguments.max_replicas is None:
        return {"num_replicas": arguments.replicas or 1}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=arguments.min_replicas,
            max_replicas=arguments.max_replicas,
            target_ongoing_requests=arguments.target_answers or arguments.batch_size,
        )
    }


def _wants_gpu(arguments: ServeArguments) -> bool:
    if arguments.device == "auto":
        return torch.cuda.is_available()
    return not arguments.device.startswith("cpu")
