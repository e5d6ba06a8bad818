"""Memory limits of control groups, in trees of files as the system shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adept_fast.memory import available as memory
from adept_fast.system.cgroup_memory import cgroup_room

V2_MOUNT = "30 23 0:26 {group} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 {group} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
OTHERS = (
    "22 1 8:1 / / rw - ext4 /dev/vda rw\n"
    "33 31 0:30 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "strange\n"
)
V1_NONE = 9223372036854771712


class Tree:
    """A /proc and a /sys below a directory."""

    def __init__(self, path: Path) -> None:
        self.root = path
        (path / "proc/self").mkdir(parents=True)

    def process(self, groups: str, mounts: str) -> None:
        (self.root / "proc/self/cgroup").write_text(groups)
        (self.root / "proc/self/mountinfo").write_text(OTHERS + mounts)

    def v2(self, group: str, **files: object) -> None:
        self.write(f"sys/fs/cgroup/{group}", files)

    def v1(self, group: str, **files: object) -> None:
        self.write(f"sys/fs/cgroup/memory/{group}", {"use_hierarchy": 1} | files)

    def write(self, folder: str, files: dict[str, object]) -> None:
        directory = self.root / folder
        directory.mkdir(parents=True, exist_ok=True)
        for name, contents in files.items():
            if name in ("inactive_file", "total_inactive_file"):
                statistics = f"anon 5\n{name} {contents}\nactive_file 77\n"
                (directory / "memory.stat").write_text(statistics)
            else:
                (directory / f"memory.{name}").write_text(f"{contents}\n")

    def room(self) -> int | None:
        return cgroup_room(self.root / "proc", self.root)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_no_groups(tree: Tree) -> None:
    assert tree.room() is None
    tree.process("0::/a/b\n", V2_MOUNT.format(group="/"))
    assert tree.room() is None
    tree.v2("a/b", max="max", high="max", current=100)
    tree.v2("", current=5)
    assert tree.room() is None


class TestV2:
    def test_of_a_container(self, tree: Tree) -> None:
        """A namespace of its own shows its group as the root."""
        tree.process("0::/\n", V2_MOUNT.format(group="/"))
        tree.v2("", max=1000, current=700)
        assert tree.room() == 300

    def test_page_cache_that_is_dropped_first_is_free(self, tree: Tree) -> None:
        tree.process("0::/\n", V2_MOUNT.format(group="/"))
        tree.v2("", max=1000, current=700, inactive_file=450)
        assert tree.room() == 750
        tree.v2("", inactive_file=10_000)  # counted at another moment
        assert tree.room() == 1000

    @pytest.mark.parametrize("tightest", ["", "a", "a/b"])
    def test_the_tightest_of_all_levels_counts(self, tree: Tree, tightest: str) -> None:
        tree.process("0::/a/b\n", V2_MOUNT.format(group="/"))
        for group in ("", "a", "a/b"):
            tree.v2(group, max=1000 if group == tightest else 5000, current=600, inactive_file=1)
        tree.v2("a/c", max=10, current=10)  # a neighbour
        assert tree.room() == 401

    def test_high_bounds_too(self, tree: Tree) -> None:
        tree.process("0::/a\n", V2_MOUNT.format(group="/"))
        tree.v2("a", max=1000, high=800, current=700)
        assert tree.room() == 100
        tree.v2("a", max="max", high=900)
        assert tree.room() == 200

    def test_more_taken_than_allowed_is_no_room(self, tree: Tree) -> None:
        tree.process("0::/a\n", V2_MOUNT.format(group="/"))
        tree.v2("a", max=1000, high=600, current=700)
        assert tree.room() == 0

    def test_a_mount_of_the_containers_group_alone(self, tree: Tree) -> None:
        """The process's path is that of the host, the mount begins at the container's group."""
        tree.process("0::/docker/0123/inner\n", V2_MOUNT.format(group="/docker/0123"))
        tree.v2("", max=1000, current=100)
        tree.v2("inner", max=500, current=50)
        assert tree.room() == 450
        tree.process("0::/elsewhere\n", V2_MOUNT.format(group="/docker/0123"))
        assert tree.room() == 900
        tree.process("0::/../../up\n", V2_MOUNT.format(group="/"))
        assert tree.room() == 900

    def test_the_mount_that_shows_the_group(self, tree: Tree) -> None:
        elsewhere = V2_MOUNT.format(group="/other").replace("/sys/fs/cgroup", "/mnt/with\\040space")
        tree.process("0::/a\n", elsewhere + V2_MOUNT.format(group="/"))
        tree.v2("a", max=1000, current=100)
        tree.write("mnt/with space", {"max": 5, "current": 1})
        assert tree.room() == 900
        tree.process("0::/a\n", elsewhere)
        assert tree.room() == 4


class TestV1:
    def test_of_a_container(self, tree: Tree) -> None:
        tree.process("5:cpu,cpuacct:/x\n4:memory:/docker/0123\n", V1_MOUNT.format(group="/docker/0123"))
        tree.v1("", limit_in_bytes=1000, usage_in_bytes=700, total_inactive_file=100)
        assert tree.room() == 400

    def test_all_levels(self, tree: Tree) -> None:
        tree.process("4:memory:/a/b\n", V1_MOUNT.format(group="/"))
        tree.v1("", limit_in_bytes=V1_NONE, usage_in_bytes=10**9)
        tree.v1("a", limit_in_bytes=1000, usage_in_bytes=800, inactive_file=50)
        tree.v1("a/b", limit_in_bytes=V1_NONE, usage_in_bytes=300)
        assert tree.room() == 250
        tree.v1("a/b", limit_in_bytes=400)
        assert tree.room() == 100
        tree.v1("a", limit_in_bytes=V1_NONE)
        tree.v1("a/b", limit_in_bytes=V1_NONE)
        assert tree.room() is None

    def test_groups_above_that_do_not_count_this_one(self, tree: Tree) -> None:
        tree.process("4:memory:/a/b\n", V1_MOUNT.format(group="/"))
        tree.v1("a", limit_in_bytes=10, usage_in_bytes=10, use_hierarchy=0)
        tree.v1("a/b", limit_in_bytes=1000, usage_in_bytes=300, use_hierarchy=0)
        assert tree.room() == 700

    def test_both_versions_side_by_side(self, tree: Tree) -> None:
        tree.process("4:memory:/a\n0::/b\n", V2_MOUNT.format(group="/") + V1_MOUNT.format(group="/"))
        tree.v1("a", limit_in_bytes=1000, usage_in_bytes=300)
        tree.v2("b", max=50, current=20)
        assert tree.room() == 30


@pytest.mark.parametrize("contents", ["", "many", "-5", "9" * 30, "\xff"])
def test_what_is_no_number_is_no_limit(tree: Tree, contents: str) -> None:
    tree.process("0::/a\n", V2_MOUNT.format(group="/"))
    tree.v2("a", max=contents, current=100)
    assert tree.room() is None
    tree.v2("a", max=1000, current=contents)
    assert tree.room() is None


def test_a_limit_bounds_what_is_called_free(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "cgroup_room", lambda: None)
    free = memory.available_bytes(cpu)
    assert free > 10**6
    monkeypatch.setattr(memory, "cgroup_room", lambda: 12345)
    assert memory.available_bytes(cpu) == 12345


def test_here() -> None:
    room = cgroup_room()
    assert room is None or room > 0
