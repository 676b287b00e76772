"""How the work of a merge is cut into jobs, and jobs into messages: integers, no merge."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from merge_cli.stream.jobs import CopyRange, sent_together
from merge_cli.stream.measures import TaskBlocks, in_groups, numel_of


def jobs(sizes: list[int]) -> list[tuple[int, CopyRange]]:
    return [(size, CopyRange(number, (0, size))) for number, size in enumerate(sizes)]


@given(st.lists(st.integers(0, 2**26), max_size=300))
def test_every_job_is_sent_once_and_in_order(sizes: list[int]) -> None:
    wanted = jobs(sizes)
    messages = list(sent_together(wanted, sum(sizes)))
    assert [job for message in messages for job in message] == [job for _, job in wanted]
    assert all(messages)


def test_small_jobs_are_sent_together_and_large_ones_alone() -> None:
    # 1024 messages at most, were all jobs alike: up to 1000 elements go together.
    messages = sent_together(jobs([300, 300, 400, 5000, 400, 700, 1]), 1_024_000)
    assert [[job.task for job in message if isinstance(job, CopyRange)] for message in messages] == [
        [0, 1, 2], [3], [4], [5, 6],
    ]  # fmt: skip


def test_however_large_the_whole_is_a_few_million_elements_are_the_most_that_go_together() -> None:
    million = 2**20
    messages = sent_together(jobs([million] * 9), 10**15)
    assert [len(message) for message in messages] == [4, 4, 1]


def seen(sizes: list[int]) -> list[TaskBlocks]:
    return [(number, [(0, size)]) for number, size in enumerate(sizes)]


@given(st.lists(st.integers(0, 2**26), max_size=300), st.integers(1, 64))
def test_every_share_of_a_round_is_in_one_job_and_jobs_are_few(sizes: list[int], workers: int) -> None:
    groups = list(in_groups(seen(sizes), workers))
    assert [each for group in groups for each in group] == seen(sizes)
    assert all(groups)
    assert sum(sizes) == 0 or len(groups) <= 16 * workers + 1


def test_jobs_of_a_round_grow_smaller_to_the_end_so_that_workers_end_together() -> None:
    groups = [sum(map(numel_of, group)) for group in in_groups(seen([1] * 3200), 2)]
    # A sixteenth of all, while that is less than a sixth of what is left; at last a thirty-second.
    assert groups[:10] == [200] * 10
    assert groups[-3:-1] == [100, 100]
    assert groups == sorted(groups, reverse=True)
    assert len(groups) <= 24


def test_the_only_worker_has_a_few_jobs_too_so_that_progress_can_be_seen() -> None:
    groups = [sum(map(numel_of, group)) for group in in_groups(seen([1] * 1600), 1)]
    assert groups == [100] * 16
