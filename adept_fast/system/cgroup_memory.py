"""The memory left by the limits of control groups, v1 and v2: of this process's group and its ancestors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class _Version:
    """The files in a group's directory. A limit that is not a number, ``max``, is none."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: tuple[str, ...]  # names in memory.stat, the first that is there


_NO_LIMIT = 2**62  # v1 writes a number beyond any memory for none

# v1's plain inactive_file leaves the groups below out.
_V1 = _Version(("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "inactive_file"))
# Above memory.high the system reclaims and slows a group down rather than to end it.
_V2 = _Version(("memory.max", "memory.high"), "memory.current", ("inactive_file",))


def cgroup_room(proc: Path = Path("/proc"), root: Path = Path("/")) -> int | None:
    """The bytes that this process can still allocate before it reaches a limit; None without a limit.

    The page cache of files that were not used lately counts as free, as it is dropped first.

    Args:
        proc: the directory that lists the process's groups and mounts under ``self``.
        root: the base of the mounts' paths.
    """
    rooms = [room for directory, version in _groups(proc, root) for room in _rooms(directory, version)]
    return max(min(rooms), 0) if rooms else None


def _groups(proc: Path, root: Path) -> Iterator[tuple[Path, _Version]]:
    """The directories of the process's own group and those above it, in each hierarchy that limits memory."""
    mounts = list(_mounts(proc))
    for line in _text(proc / "self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        is_v2 = number == "0" and not controllers
        if not is_v2 and "memory" not in controllers.split(","):
            continue
        group = PurePosixPath(path)
        tops = [(mounted, point) for of_v2, mounted, point in mounts if of_v2 == is_v2]
        tops.sort(key=lambda top: not group.is_relative_to(top[0]))
        for mounted, point in tops[:1]:
            yield from _upwards(root / point.relative_to("/"), _below(group, mounted), _V2 if is_v2 else _V1)


def _upwards(top: Path, below: tuple[str, ...], version: _Version) -> Iterator[tuple[Path, _Version]]:
    for depth in range(len(below), -1, -1):
        directory = top.joinpath(*below[:depth])
        # In v1 a group that is no hierarchy does not count the memory of the groups below it.
        if depth < len(below) and _text(directory / "memory.use_hierarchy").strip() == "0":
            return
        yield directory, version


def _mounts(proc: Path) -> Iterator[tuple[bool, PurePosixPath, PurePosixPath]]:
    """For each hierarchy that limits memory: whether it is v2, the mounted group, and the mount point."""
    for line in _text(proc / "self/mountinfo").splitlines():
        # ID parent major:minor root mount-point options … - type source super-options
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3 or not fields[4].startswith("/"):
            continue
        if kind[0] == "cgroup2" or (kind[0] == "cgroup" and "memory" in kind[2].split(",")):
            group, point = (PurePosixPath(_unescaped(field)) for field in fields[3:5])
            yield kind[0] == "cgroup2", group, point


def _below(path: PurePosixPath, mounted: PurePosixPath) -> tuple[str, ...]:
    """The names from the mounted group down to the process's; none if it is not visible.

    In a container the mount may show its own group alone, while the process's path is that of the host.
    """
    if ".." in path.parts or not path.is_relative_to(mounted):
        return ()
    return path.relative_to(mounted).parts


def _rooms(directory: Path, version: _Version) -> Iterator[int]:
    used = _number(_text(directory / version.usage))
    if used is None:
        return  # the root of v2 has no such files
    statistics = dict(
        line.split(maxsplit=1) for line in _text(directory / "memory.stat").splitlines() if " " in line
    )
    droppable = next((statistics[name] for name in version.reclaimable if name in statistics), "0")
    used -= min(_number(droppable) or 0, used)
    for name in version.limits:
        limit = _number(_text(directory / name))
        if limit is not None and limit < _NO_LIMIT:
            yield limit - used


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if re.fullmatch("[0-9]{1,20}", text) else None


def _text(path: Path) -> str:
    """Empty if there is no such file, or it may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _unescaped(field: str) -> str:
    """Spaces and the like are octal in the list of mounts."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
