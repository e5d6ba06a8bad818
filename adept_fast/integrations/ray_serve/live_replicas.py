"""How many replicas an application's model has, as the router of this process knows.

Apart from the router: Ray Serve may send its class as code, whose module's variables are then not these.
"""

from __future__ import annotations

_counts: dict[str, int] = {}  # of each application that this process calls


def live_replicas(app_name: str) -> int:
    """How many replicas take requests; 0 before the first request is routed."""
    return _counts.get(app_name, 0)


def set_live_replicas(app_name: str, count: int) -> None:
    """Called by the router when the replicas change."""
    _counts[app_name] = count
