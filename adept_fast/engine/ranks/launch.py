"""What a process is under torchrun: the first rank goes on, the others serve it."""

from __future__ import annotations

from adept_fast.arguments import integer
from adept_fast.engine.ranks.follower import serve
from adept_fast.engine.ranks.meeting import Place
from adept_fast.engine.ranks.processes import announced, check_launch, launched

_MAX_RANKS = 256


def check_ranks(tensor_parallel: object) -> int:
    """The number of ranks. Under torchrun, another rank than the first serves that and does not return.

    Raises ParameterError for what is no number, or not the number that torchrun has started.
    """
    count = integer("tensor_parallel", tensor_parallel, 1, _MAX_RANKS)
    launch = launched()
    if count > 1 and launch is not None:
        check_launch(launch, count)
        if launch.rank > 0:
            serve(Place(announced(), launch.rank), launch.rank)
    return count
