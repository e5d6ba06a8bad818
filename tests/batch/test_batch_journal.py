"""The journal of a batch: whatever is cut off or damaged, no answer is wrong, and the rest can be added."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adept_fast.server.batch.batch_error import BatchError
from adept_fast.server.batch.journal import Journal

HEADER = {"facts": {"input": "0" * 64}, "created": 5, "placement": {"device": "cpu"}}
answers_of_batches = st.lists(st.binary(max_size=40), min_size=1, max_size=8)


def written(path: Path, answers: list[bytes], order: list[int]) -> list[int]:
    """Write a journal; returns its length after the header and after each record."""
    path.unlink(missing_ok=True)
    journal = Journal(path)
    journal.begin(HEADER, len(answers))
    lengths = [path.stat().st_size]
    for index in order:
        journal.add(index, answers[index])
        lengths.append(path.stat().st_size)
    journal.close()
    return lengths


def completed(path: Path, answers: list[bytes]) -> set[int]:
    """Open a journal, check what it has, add what it lacks, and read all; returns what it had."""
    journal = Journal(path)
    if journal.header is None:
        journal.begin(HEADER, len(answers))
    else:
        assert journal.header == HEADER
        journal.resume(len(answers))
    found = {index for index in range(len(answers)) if index in journal}
    assert [journal.read(index) for index in sorted(found)] == [answers[index] for index in sorted(found)]
    for index, answer in enumerate(answers):
        journal.add(index, answer)
    assert list(journal.answers()) == answers
    assert journal.count == len(answers)
    journal.close()
    again = Journal(path)
    again.resume(len(answers))
    assert (list(again.answers()), again.dropped_bytes) == (answers, 0)
    again.close()
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal") / "out.partial"


@settings(deadline=None)
@given(answers=answers_of_batches, data=st.data())
def test_of_a_journal_that_ends_anywhere_the_whole_records_are_there(
    path: Path, answers: list[bytes], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(answers))))
    lengths = written(path, answers, order)
    end = data.draw(st.integers(0, lengths[-1]))
    os.truncate(path, end)
    whole = sum(length <= end for length in lengths[1:])
    assert completed(path, answers) == set(order[:whole])


@settings(deadline=None)
@given(answers=answers_of_batches, tail=st.binary(max_size=60) | st.integers(1, 60).map(bytes))
def test_what_a_failing_system_leaves_at_the_end_is_cut_off(
    path: Path, answers: list[bytes], tail: bytes
) -> None:
    order = list(range(len(answers)))[::2]
    end = written(path, answers, order)[-1]
    with path.open("ab") as file:
        file.write(tail)
    journal = Journal(path)
    journal.resume(len(answers))
    assert journal.dropped_bytes == len(tail)
    assert path.stat().st_size == end
    journal.close()
    assert completed(path, answers) == set(order)


@settings(deadline=None)
@given(answers=answers_of_batches, data=st.data())
def test_a_damaged_byte_costs_answers_and_makes_none_wrong(
    path: Path, answers: list[bytes], data: st.DataObject
) -> None:
    lengths = written(path, answers, list(range(len(answers))))
    at = data.draw(st.integers(0, lengths[-1] - 1))
    content = bytearray(path.read_bytes())
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    if at < lengths[0]:
        with pytest.raises(BatchError, match="no journal of this program"):
            Journal(path)
        path.unlink()
    else:
        assert completed(path, answers) == {
            index for index in range(len(answers)) if lengths[index + 1] <= at
        }


@pytest.mark.parametrize("answer", [b"", b"an answer"])
def test_a_header_without_its_end_is_no_new_journal(tmp_path: Path, answer: bytes) -> None:
    """The byte that ends it is damaged, and there is no other end of line."""
    path = tmp_path / "journal"
    begun, _ = written(path, [answer], [0])
    content = bytearray(path.read_bytes())
    content[begun - 1] = ord("x")
    path.write_bytes(content)
    with pytest.raises(BatchError, match="no journal of this program"):
        Journal(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("zeros", [1, 4096])
def test_a_header_that_was_not_written_whole_is_written_again(tmp_path: Path, zeros: int) -> None:
    path = tmp_path / "journal"
    begun, _ = written(path, [b"a"], [0])
    content = path.read_bytes()
    for end in range(begun):
        path.write_bytes(content[:end] + bytes(zeros))
        assert completed(path, [b"a"]) == set()


def test_a_record_of_another_batch_is_no_record(tmp_path: Path) -> None:
    """Its index and length would do; its sum is keyed with another header."""
    ours, other = tmp_path / "ours", tmp_path / "other"
    (begun, _) = written(ours, [b"a"], [0])
    journal = Journal(other)
    journal.begin({**HEADER, "created": 6}, 1)
    start = other.stat().st_size
    journal.add(0, b"b")
    journal.close()
    os.truncate(ours, begun)
    with ours.open("ab") as file:
        file.write(other.read_bytes()[start:])
    assert completed(ours, [b"a"]) == set()


def test_of_two_answers_to_one_line_the_first_is_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.begin(HEADER, 2)
    journal.add(1, b"first")
    journal.add(1, b"second")
    assert (journal.count, list(journal.answers())) == (1, [b"first"])
    journal.close()


def test_an_answer_that_changed_on_disk_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.begin(HEADER, 1)
    journal.add(0, b"an answer")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"R")
    with pytest.raises(BatchError, match="has changed since it was written"):
        journal.read(0)
    journal.close()


def test_only_one_process_has_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    with pytest.raises(BatchError, match=r"journal: another process writes this batch; expected it to have"):
        Journal(path)
    journal.begin(HEADER, 1)
    journal.close()
    Journal(path).close()
    assert path.exists()


def test_one_that_was_not_begun_leaves_no_file(tmp_path: Path) -> None:
    Journal(tmp_path / "journal").close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"mine\n", b"m", b"{}\n", b'{"journal of adept-fast batch": 2}\n', b"x" * 2**17]
)
def test_another_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(BatchError, match="is no journal of this program; expected one, or no such file"):
        Journal(path)
    assert path.read_bytes() == content
