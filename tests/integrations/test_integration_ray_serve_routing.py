"""Which replica answers: the one that read the beginning of the prompt, if it has a free slot."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("ray", reason="Ray is not installed")

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from adept_fast.integrations.ray_serve.application import replica_count, replica_resources
from adept_fast.integrations.ray_serve.arguments import ServeArguments
from adept_fast.integrations.ray_serve.balance import CHOSEN_SECONDS, Balance
from adept_fast.integrations.ray_serve.prefixes import PrefixMemory, prefix_hashes

FIRST = list(range(100, 120))
SECOND = [*FIRST, 7, 8, 9]
OTHER = list(range(300, 340))


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def balance_of(*replicas: str, slots: int = 4) -> Balance:
    balance = Balance(slots, Clock())
    balance.set_replicas(replicas)
    return balance


def send(balance: Balance, ids: list[int], scope: str = "") -> str | None:
    replica = balance.choose(prefix_hashes(ids, scope))
    if replica is not None:
        balance.sent(replica)
    return replica


def test_a_hash_is_that_of_all_tokens_so_far() -> None:
    hashes = prefix_hashes(SECOND)
    assert len(hashes) == len(SECOND)
    assert hashes[: len(FIRST)] == prefix_hashes(FIRST)
    assert prefix_hashes([5, 6]) != prefix_hashes([6, 5])
    assert prefix_hashes([0, 1])[1] != prefix_hashes([1])[0]
    assert prefix_hashes(FIRST, "a") != prefix_hashes(FIRST, "b")
    assert prefix_hashes([]) == []


def test_hashes_of_different_beginnings_differ() -> None:
    draw = random.Random(1)
    prompts = [tuple(draw.choices((0, 1), k=12)) for _ in range(3000)]
    beginnings = {prompt[: at + 1] for prompt in prompts for at in range(12)}
    hashes = {prompt[: at + 1]: value for prompt in prompts for at, value in enumerate(prefix_hashes(prompt))}
    assert len(set(hashes.values())) == len(beginnings)


def test_a_memory_finds_the_longest_beginning_first() -> None:
    memory = PrefixMemory(10)
    memory.add("a", prefix_hashes(FIRST))
    memory.add("b", prefix_hashes(SECOND))
    assert list(memory.readers(prefix_hashes([*SECOND, 1]))) == ["b", "a"]
    assert list(memory.readers(prefix_hashes([*FIRST, 1, 2]))) == ["a"]
    assert list(memory.readers(prefix_hashes(FIRST[:-1]))) == []  # the prompt goes on otherwise
    assert list(memory.readers(prefix_hashes(OTHER))) == []


def test_a_memory_is_bounded_and_forgets_what_was_used_least_recently() -> None:
    memory = PrefixMemory(2)
    prompts = [prefix_hashes([at, *FIRST]) for at in range(3)]
    memory.add("a", prompts[0])
    memory.add("a", prompts[1])
    memory.add("a", prompts[0])
    memory.add("a", prompts[2])
    assert len(memory) == 2
    assert [list(memory.readers(prompt)) for prompt in prompts] == [["a"], [], ["a"]]
    memory.add("b", prompts[0])
    memory.keep(["b"])
    assert (len(memory), list(memory.readers(prompts[0]))) == (1, ["b"])


def test_short_prompts_are_not_worth_a_choice() -> None:
    memory = PrefixMemory(2)
    memory.add("a", prefix_hashes(FIRST[:15]))
    assert len(memory) == 0
    memory.add("a", prefix_hashes(FIRST[:16]))
    assert len(memory) == 1


def test_a_conversation_returns_though_others_have_less_to_do() -> None:
    balance = balance_of("a", "b")
    first = send(balance, FIRST)
    assert send(balance, OTHER) != first
    balance.done({"a": "b", "b": "a"}[str(first)])
    assert send(balance, SECOND) == first


def test_a_conversation_goes_elsewhere_when_its_replica_is_full() -> None:
    balance = balance_of("a", "b", slots=2)
    first = str(send(balance, FIRST))
    assert send(balance, SECOND) == first
    other = {"a": "b", "b": "a"}[first]
    assert send(balance, [*SECOND, 1]) == other
    balance.done(first)
    assert send(balance, [*FIRST, 1]) == first


def test_keys_share_no_conversation() -> None:
    balance = balance_of("a", "b")
    first = send(balance, FIRST, "one key")
    assert send(balance, SECOND, "another key") != first
    assert send(balance, SECOND, "one key") == first


def test_new_conversations_with_one_system_message_spread() -> None:
    balance = balance_of("a", "b", slots=8)
    system = list(range(50))
    chosen = [send(balance, [*system, 100 + at, *FIRST]) for at in range(8)]
    assert sorted(map(str, chosen)) == ["a"] * 4 + ["b"] * 4


def test_what_is_too_much_waits_unless_it_was_accepted_before() -> None:
    balance = balance_of("a", "b", slots=4)
    draw = random.Random(2)
    prompts = [[draw.randrange(1000) for _ in range(20)] for _ in range(10)]
    assert all(send(balance, prompt) for prompt in prompts)  # 4 slots, and one more that waits, of each
    assert send(balance, OTHER) is None
    assert balance.choose(prefix_hashes(OTHER), is_urgent=True) is not None
    balance.done("b")
    assert send(balance, OTHER) == "b"


def test_a_replica_that_failed_is_avoided() -> None:
    balance = balance_of("a", "b")
    failed = str(send(balance, FIRST))
    assert balance.choose(prefix_hashes(FIRST), avoid={failed}) not in (failed, None)
    balance.set_replicas([failed])
    assert balance.choose(prefix_hashes(FIRST), avoid={failed}, is_urgent=True) is None
    assert balance.choose(prefix_hashes(FIRST)) == failed
    balance.set_replicas([])
    assert balance.choose(prefix_hashes(FIRST)) is None


def test_choices_that_nothing_follows_do_not_count_for_ever() -> None:
    clock = Clock()
    balance = Balance(2, clock)
    balance.set_replicas(["a"])
    assert [balance.choose([]) for _ in range(4)] == ["a", "a", "a", None]
    clock.seconds = CHOSEN_SECONDS
    assert balance.choose([]) == "a"
    assert balance.load("a") == 1


def test_a_replica_that_is_gone_does_not_count_when_its_requests_end() -> None:
    balance = balance_of("a", "b")
    send(balance, FIRST)
    send(balance, OTHER)
    balance.set_replicas(["b", "c"])
    balance.done("a")
    balance.sent("a")
    assert (set(balance.replicas), balance.load("c")) == ({"b", "c"}, 0)


def decision(config: AutoscalingConfig, answers: float, replicas: int) -> int:
    """The replicas that Serve's own policy wants for so many answers that run and wait."""
    context = AutoscalingContext(
        deployment_id=None, deployment_name="model", app_name="a", current_num_replicas=replicas,
        target_num_replicas=replicas, running_replicas=[], total_num_requests=answers,
        total_queued_requests=0.0, aggregated_metrics=None, raw_metrics=None,
        capacity_adjusted_min_replicas=config.min_replicas,
        capacity_adjusted_max_replicas=config.max_replicas,
        policy_state={}, last_scale_up_time=None, last_scale_down_time=None, current_time=0.0, config=config,
    )  # fmt: skip
    wanted, _ = replica_queue_length_autoscaling_policy(context)
    return round(wanted)


def test_replicas_are_as_many_as_the_answers_fill() -> None:
    arguments = ServeArguments(min_replicas=1, max_replicas=9, batch_size=8)
    config = replica_count(arguments)["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas) == (1, 9)
    assert [decision(config, answers, 2) for answers in (8, 16, 40, 72)] == [1, 2, 5, 9]
    half = replica_count(ServeArguments(min_replicas=0, max_replicas=9, target_answers=4))
    assert decision(half["autoscaling_config"], 16, 2) == 4
    assert replica_count(ServeArguments()) == {"num_replicas": 1}
    assert replica_count(ServeArguments(replicas=3)) == {"num_replicas": 3}


def test_a_replica_is_on_one_machine() -> None:
    assert replica_resources(ServeArguments(device="cpu", cpus=2)) == {
        "ray_actor_options": {"num_cpus": 2.0, "num_gpus": 0.0}
    }
    assert replica_resources(ServeArguments(device="cuda", tensor_parallel=4)) == {
        "ray_actor_options": {"num_cpus": 4.0, "num_gpus": 4.0},
        "placement_group_bundles": [{"CPU": 4.0, "GPU": 4.0}],
        "placement_group_strategy": "STRICT_PACK",
    }
    assert replica_resources(ServeArguments(device="cuda", gpus=0.5))["ray_actor_options"]["num_gpus"] == 0.5
    assert (
        "GPU"
        not in replica_resources(ServeArguments(device="cpu", tensor_parallel=2))["placement_group_bundles"][
            0
        ]
    )
