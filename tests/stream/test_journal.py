"""What a journal says is what can be relied on, whatever has happened to it."""

import json
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from merge_cli.checkpoint import Files
from merge_cli.errors import RecipeError, ResourceError
from merge_cli.stream.journal import Journal, JournalState, boot_id, drop_unsynced, read_journal
from merge_cli.stream.records import Record, Tally, finished_spans, gaps
from merge_cli.stream.resume import check_same
from tests.checkpoint.helpers import EIO, Failing

DECISIONS = {"method": "ties 1", "seed": 3, "input": {"base (./base, model.safetensors)": [8, 1, "ab"]}}


def record(tensor: str, start: int, count: int = 10) -> Record:
    return Record(tensor, start, count, {}, {})


def line(content: Any) -> bytes:
    """A line of a journal: the CRC-32 of its JSON in hexadecimal, a blank, the JSON."""
    text = json.dumps(content).encode()
    return f"{zlib.crc32(text):08x} ".encode() + text + b"\n"


def first(*, of: str | None = None) -> bytes:
    return line({"format": 3, "boot": boot_id() if of is None else of, "decisions": DECISIONS})


def written(folder: Path, *lines: bytes) -> Path:
    path = folder / ".journal"
    path.write_bytes(b"".join(lines))
    return path


def noted(path: Path) -> list[tuple[str, int, int]]:
    past = read_journal(path)
    assert past is not None
    return [(each.tensor, each.start, each.count) for each in past.records]


def journal(path: Path, records: Iterable[Record] = (), **options: Any) -> Journal:
    made = Journal(path, DECISIONS, **options)
    for each in records:
        made.record(each)
    return made


def test_what_was_noted_is_read_back_with_every_bit_of_its_sums(tmp_path: Path) -> None:
    from array import array

    sums = array("d", [0.1, 1e-310, -0.0, 1 / 3])
    journal(
        tmp_path / ".journal",
        [Record("w", 5, 7, {"merged": Tally(Counter(clipped=2), {"pull": sums})}, {"merged": 4294967295, "more": 7})],
    ).close()
    past = read_journal(tmp_path / ".journal")
    assert past is not None
    assert past.decisions == DECISIONS
    (found,) = past.records
    assert (found.tensor, found.start, found.count) == ("w", 5, 7)
    assert found.checksums == {"merged": 4294967295, "more": 7}
    assert found.tallies["merged"].counts == {"clipped": 2}
    assert found.tallies["merged"].sums["pull"].tobytes() == sums.tobytes()


def test_no_journal_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert read_journal(tmp_path / ".journal") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"nonsense",
        b"00000000 {}\n",
        line([1, 2]),
        line({"format": 99}),
        line({"format": 2, "decisions": {}}),
    ],
)
def test_a_journal_without_a_sound_first_line_says_nothing(tmp_path: Path, content: bytes) -> None:
    assert read_journal(written(tmp_path, content)) is None


def test_a_last_line_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    whole = line(["w", 10, 10, {}, {}])
    for kept in range(len(whole) - 1):
        assert noted(written(tmp_path, first(), line(["w", 0, 10, {}, {}]), whole[:kept])) == [("w", 0, 10)]
    # Only the end of the line is missing: all of the record is there.
    assert noted(written(tmp_path, first(), whole[:-1])) == [("w", 10, 10)]


def test_nothing_behind_a_damaged_line_counts(tmp_path: Path) -> None:
    damaged = bytearray(line(["w", 10, 10, {}, {}]))
    damaged[12] ^= 1
    path = written(tmp_path, first(), line(["w", 0, 10, {}, {}]), bytes(damaged), line(["w", 20, 10, {}, {}]))
    assert noted(path) == [("w", 0, 10)]


@pytest.mark.parametrize(
    "content",
    [
        ["w", 10, 10, {}],
        ["w", -1, 10, {}, {}],
        ["w", 10, True, {}, {}],
        ["w", 10, 10, {"merged": [[1], {}]}, {}],
        ["w", 10, 10, {"merged": [{"clipped": "x"}, {}]}, {}],
        ["w", 10, 10, {"merged": [{}, {"pull": ["x"]}]}, {}],
        ["w", 10, 10, {"merged": [{}]}, {}],
        ["w", 10, 10, {"merged": {}}, {}],
        ["w", 10, 10, {"merged": 7}, {}],
        ["w", 10, 10, [], {}],
        ["w", 10, 10, {}, {"merged": "x"}],
        ["w", 10, 10, {}, {"merged": -1}],
        ["w", 10, 10, {}, [0]],
        [7, 10, 10, {}, {}],
        ["w", 2**70, 10, {}, {}],
        {"synced": 99},
        {"synced": "1"},
        {},
        7,
        None,
        "w",
        pytest.param(["w", 0, 10, {"merged": [{}, {"x": [10**400]}]}, {}], id="a sum that no float holds"),
        pytest.param(["w", 0, 10, {"merged": [{}, {"x": [1e308, 1e308]}]}, {}], id="sums that add up to no number"),
        pytest.param(["w", 0, 10, {"merged": [{}, {"x": [float("nan")]}]}, {}], id="a sum that is no number"),
    ],
)
def test_nothing_counts_behind_a_line_that_is_none_though_its_checksum_is_right(tmp_path: Path, content: Any) -> None:
    whole = line(["w", 0, 10, {}, {}])
    assert noted(written(tmp_path, first(), whole, line(content), line(["w", 20, 10, {}, {}]))) == [("w", 0, 10)]


@pytest.mark.parametrize("before", ["another boot of the machine", ""])
def test_after_another_boot_only_what_was_synced_counts(tmp_path: Path, before: str) -> None:
    lines = [line(["w", start, 10, {}, {}]) for start in (0, 10, 20, 30)]
    path = written(tmp_path, first(of=before), lines[0], lines[1], lines[2], line({"synced": 2}), lines[3])
    assert noted(path) == [("w", 0, 10), ("w", 10, 10)]
    assert noted(written(tmp_path, first(of=before), *lines)) == []


def test_a_journal_notes_a_sync_behind_the_records_that_it_covers(tmp_path: Path) -> None:
    path = tmp_path / ".journal"
    made: list[Journal] = []

    def sync() -> None:
        # What is finished meanwhile may not be on the device.
        made[0].record(record("w", 10))

    made.append(journal(path, [record("w", 0)], sync=sync, seconds=1e9))
    made[0].synchronise()
    made[0].close()
    past = read_journal(path)
    assert past is not None
    assert (past.synced, len(past.records)) == (1, 2)


@pytest.mark.parametrize(("count", "records", "seen"), [(10, 7, 0), (10, 8, 8), (10, 17, 16), (2**20, 3, 3)])
def test_what_small_ranges_are_about_is_noted_together_and_large_ones_at_once(
    tmp_path: Path, count: int, records: int, seen: int
) -> None:
    path = tmp_path / ".journal"
    made = journal(path, [record("w", number * count, count) for number in range(records)])
    assert len(noted(path)) == seen
    made.close()
    assert len(noted(path)) == records


def test_a_sync_is_due_from_time_to_time(tmp_path: Path) -> None:
    calls: list[int] = []
    made = journal(tmp_path / ".journal", sync=lambda: calls.append(1), seconds=0.0)
    made.record(record("w", 0))
    made.record(record("w", 10))
    made.close()
    assert len(calls) == 2


def test_a_journal_that_goes_on_holds_what_was_noted_before(tmp_path: Path) -> None:
    path = tmp_path / ".journal"
    past = JournalState(DECISIONS, (record("w", 0), record("w", 10)), synced=1)
    journal(path, [record("v", 0)], past=past).close()
    found = read_journal(path)
    assert found is not None
    assert noted(path) == [("w", 0, 10), ("w", 10, 10), ("v", 0, 10)]
    assert found.synced == 1


def test_a_record_that_could_not_be_written_does_not_hide_later_ones(tmp_path: Path) -> None:
    class Full(Files):
        """Takes half of one line, then nothing until there is space again."""

        full = False

        def pwrite(self, fd: int, view: memoryview, offset: int) -> int:
            if not self.full:
                return super().pwrite(fd, view, offset)
            if len(view) < 20:
                raise OSError(28, "No space left on device")
            return super().pwrite(fd, view[: len(view) - 15], offset)

    files, path = Full(), tmp_path / ".journal"
    made = journal(path, [record("w", 0)], files=files)
    files.full = True
    with pytest.raises(ResourceError, match="No space left"):
        made.record(record("a tensor with a long name", 10, 2**20))
    assert noted(path) == [("w", 0, 10)]
    files.full = False
    made.record(record("v", 0))
    made.close()
    assert noted(path) == [("w", 0, 10), ("a tensor with a long name", 10, 2**20), ("v", 0, 10)]


def test_lines_for_which_there_is_no_room_at_the_end_are_no_error(tmp_path: Path) -> None:
    class Full(Files):
        def pwrite(self, fd: int, view: memoryview, offset: int) -> int:
            if offset > 0:
                raise OSError(28, "No space left on device")
            return super().pwrite(fd, view, offset)

    path = tmp_path / ".journal"
    journal(path, [record("w", 0)], files=Full()).close()
    assert noted(path) == []


def test_after_a_failure_of_the_device_only_what_was_synced_counts(tmp_path: Path) -> None:
    path = tmp_path / ".journal"
    made = journal(path, [record("w", 0)], sync=lambda: None, seconds=1e9)
    made.synchronise()
    made.record(record("w", 10))
    made.close()
    drop_unsynced(path, Files())
    assert noted(path) == [("w", 0, 10)]


def test_a_journal_that_cannot_be_read_is_an_error_about_the_output(tmp_path: Path) -> None:
    path = tmp_path / ".journal"
    journal(path).close()
    with pytest.raises(ResourceError, match=rf"^cannot read {path}: Input/output error$"):
        read_journal(path, Failing(EIO, ["open_read"]))


def test_spans_that_touch_are_joined_in_whatever_order_they_came() -> None:
    records = [record("w", 20), record("v", 5, 3), record("w", 0), record("w", 40, 2), record("w", 10)]
    assert finished_spans(records) == {"v": [(5, 3)], "w": [(0, 30), (40, 2)]}


def test_a_range_that_was_noted_twice_is_one_span() -> None:
    assert finished_spans([record("w", 0), record("w", 0), record("w", 5, 10), record("w", 1, 2)]) == {"w": [(0, 15)]}


@pytest.mark.parametrize(
    ("spans", "numel", "left"),
    [
        ([], 7, [(0, 7)]),
        ([(0, 7)], 7, []),
        ([(0, 3)], 7, [(3, 4)]),
        ([(3, 4)], 7, [(0, 3)]),
        ([(1, 1), (4, 2)], 7, [(0, 1), (2, 2), (6, 1)]),
        ([], 0, []),
    ],
)
def test_gaps_are_what_no_span_covers(spans: list[tuple[int, int]], numel: int, left: list[tuple[int, int]]) -> None:
    assert gaps(spans, numel) == left


def test_the_same_merge_is_not_refused_though_json_has_no_tuples(tmp_path: Path) -> None:
    check_same(JournalState(json.loads(json.dumps({"examples": [(1.0, 2.0)]}))), {"examples": [(1.0, 2.0)]}, tmp_path)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"method": "ties 2"}, "method was ties 1 and is ties 2"),
        (
            {"input": {"base (./base, model.safetensors)": [8, 2, "ab"]}},
            "input base (./base, model.safetensors) changed",
        ),
        ({"layout": "0" * 64}, "the layout changed"),
        ({"seed": 4, "method": "linear 1"}, "method was ties 1 and is linear 1; seed was 3 and is 4"),
    ],
)
def test_another_merge_is_refused_with_what_differs(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    before = {**DECISIONS, "layout": "1" * 64}
    with pytest.raises(RecipeError) as caught:
        check_same(JournalState(before), {**before, **changed}, tmp_path)
    assert caught.value.message == f"{tmp_path} holds an unfinished merge of something else: {says}"
    assert "--restart" in str(caught.value.hint)


def test_of_many_inputs_that_changed_a_few_are_named(tmp_path: Path) -> None:
    before, now = {"input": dict.fromkeys("abcdef", 1)}, {"input": dict.fromkeys("abcdef", 2)}
    with pytest.raises(RecipeError, match=r": input a, b, c and others changed\n"):
        check_same(JournalState(before), now, tmp_path)
