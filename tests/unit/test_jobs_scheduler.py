"""A graph of jobs: order, failures that cost only what needs them, and what is missing of a graph."""

from __future__ import annotations

from collections.abc import Iterator

from qvec_deploy.jobs.job import Job, JobFailure, JobOutcome
from qvec_deploy.jobs.scheduler import missing_jobs, run_jobs

GONE = JobFailure("FetchError", "gone", "look elsewhere", 7)


class _LastFirst:
    """An executor that takes the newest job first, and fails those that it is told to."""

    def __init__(self, *failing: str) -> None:
        self.failing, self.waiting, self.did = failing, list[Job](), list[str]()

    def gpus(self) -> int:
        return 0

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def outcomes(self) -> Iterator[JobOutcome]:
        while self.waiting:
            job = self.waiting.pop()
            self.did.append(job.name)
            yield JobOutcome(job, failure=GONE if job.name in self.failing else None)

    def close(self) -> None:
        self.waiting.clear()


def _job(name: str, *needs: str) -> Job:
    return Job(name, "module:function", needs=needs)


GRAPH = [_job("a"), _job("b"), _job("ab", "a", "b"), _job("b2", "b"), _job("last", "ab", "b2")]


def test_a_job_starts_after_what_it_needs() -> None:
    executor = _LastFirst()
    outcomes = list(run_jobs(GRAPH, executor))
    assert executor.did == ["b", "b2", "a", "ab", "last"] == [outcome.job.name for outcome in outcomes]


def test_a_failure_costs_what_needs_it_and_nothing_else() -> None:
    executor = _LastFirst("a")
    ended = {outcome.job.name: outcome for outcome in run_jobs(GRAPH, executor)}
    assert executor.did == ["b", "b2", "a"]
    assert {name: one.because for name, one in ended.items() if one.failure} == {"a": None, "ab": "a", "last": "a"}
    assert {one.failure for one in ended.values() if one.failure} == {GONE}


def test_only_what_is_asked_for_and_not_there_is_missing() -> None:
    needs = {job.name: job.needs for job in GRAPH[:3]} | {"unasked": ("a",)}
    assert missing_jobs(needs, ["ab"], lambda name: name == "b") == {"a", "ab"}
    asked: list[str] = []
    assert missing_jobs(needs, ["ab"], lambda name: asked.append(name) or name == "ab") == set()
    assert asked == ["ab"]
