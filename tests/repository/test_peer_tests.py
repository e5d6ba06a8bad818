"""The tool that runs transformers' own tests: what it extracts, and how it counts."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tools.peer_tests import archive as archives
from tools.peer_tests.archive import ArchiveError, extract
from tools.peer_tests.results import read_report

TEST = "package-1/tests/test_a.py"


def _archive(directory: Path, *members: tarfile.TarInfo) -> Path:
    path = directory / "package-1.tar.gz"
    with tarfile.open(path, "w:gz") as written:
        for member in members:
            written.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() else None)
    return path


def _member(name: str, size: int = 3, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, target
    return member


def test_extracts_tests_and_sources_alone(tmp_path: Path) -> None:
    members = [_member(TEST), _member("package-1/src/a/b.py"), _member("package-1/setup.py")]
    extract(_archive(tmp_path, *members), tmp_path / "out")
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.py")}
    assert files == {"tests/test_a.py", "tests/__init__.py", "src/a/b.py"}
    assert (tmp_path / "out/tests/test_a.py").read_bytes() == bytes(3)


@pytest.mark.parametrize(
    "member",
    [
        _member("package-1/tests/../../../escaped.py"),
        _member("/package-1/tests/absolute.py"),
        _member("package-1/tests/..\\escaped.py"),
        _member("package-1/tests/link.py", 0, tarfile.SYMTYPE, "/etc/passwd"),
        _member("package-1/tests/hard.py", 0, tarfile.LNKTYPE, TEST),
        _member("package-1/tests/pipe", 0, tarfile.FIFOTYPE),
    ],
    ids=lambda member: member.name,
)
def test_refuses_what_leaves_the_folder_before_writing(tmp_path: Path, member: tarfile.TarInfo) -> None:
    with pytest.raises(ArchiveError, match="expected no links|outside of the archive"):
        extract(_archive(tmp_path, _member(TEST), member), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_FILE_BYTES", 9), ("MAX_TOTAL_BYTES", 12), ("MAX_MEMBERS", 1)]
)
def test_refuses_what_is_too_big(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    path = _archive(tmp_path, _member(TEST), _member("package-1/big", 10))
    monkeypatch.setattr(archives, limit, value)
    with pytest.raises(ArchiveError, match=r"package-1.tar.gz"):
        extract(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_counts_tests_and_not_their_parts(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        """<testsuites><testsuite>
        <testcase classname="a.T" name="test_passes"/>
        <testcase classname="a.T" name="test_skips"><skipped message="no GPU"/></testcase>
        <testcase classname="a.T" name="test_parts"><failure message="E: one&#10;more">…</failure></testcase>
        <testcase classname="a.T" name="test_parts"/>
        <testcase classname="a.T" name="test_half"><skipped message="not this part"/></testcase>
        <testcase classname="a.T" name="test_half"/>
        <testcase classname="" name="a"><error message="at import">ModuleNotFoundError</error></testcase>
        </testsuite></testsuites>""",
        encoding="utf-8",
    )
    found = read_report(report)
    assert found.passed == ["T::test_passes", "T::test_half"]
    assert found.skipped == ["T::test_skips"]
    assert found.failed == {"T::test_parts": "E: one", "a": "at import"}
    assert found.run == 4
