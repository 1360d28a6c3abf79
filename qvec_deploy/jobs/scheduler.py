"""A graph of jobs on an executor: each starts once what it needs is there, and a failure costs what needs it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from qvec_deploy.jobs.job import Executor, Job, JobOutcome


def run_jobs(jobs: Sequence[Job], executor: Executor) -> Iterator[JobOutcome]:
    """Every job as it ends; one that needs a failed job ends with it, without being started.

    Args:
        jobs: Each after those that it needs; what is needed and is not among them is taken to be there.
    """
    waiting = {job.name: job for job in jobs}
    unfinished = set(waiting)
    failed: dict[str, JobOutcome] = {}
    yield from _start(waiting, unfinished, failed, executor)
    for outcome in executor.outcomes():
        unfinished.discard(outcome.job.name)
        if outcome.failure is not None:
            failed[outcome.job.name] = outcome
        yield outcome
        yield from _start(waiting, unfinished, failed, executor)


def _start(
    waiting: dict[str, Job], unfinished: set[str], failed: dict[str, JobOutcome], executor: Executor
) -> Iterator[JobOutcome]:
    """Submit what can start; the outcomes of what never can."""
    for job in [*waiting.values()]:
        cause = next((failed[name] for name in job.needs if name in failed), None)
        if cause is None and not unfinished.isdisjoint(job.needs):
            continue
        del waiting[job.name]
        if cause is None:
            executor.submit(job)
            continue
        unfinished.discard(job.name)
        outcome = JobOutcome(job, failure=cause.failure, because=cause.because or cause.job.name)
        failed[job.name] = outcome
        yield outcome


def missing_jobs(
    needs: Mapping[str, Sequence[str]], wanted: Iterable[str], is_there: Callable[[str], bool]
) -> set[str]:
    """Which jobs must run: those that are wanted and not there, and what these need as far as that is not there.

    Args:
        needs: What each job needs, by name; each job after those that it needs.
        is_there: Whether a job's result is there from before; asked only where it matters.
    """
    missing: set[str] = set()
    asked = set(wanted)
    for name in reversed([*needs]):
        if name in asked and not is_there(name):
            missing.add(name)
            asked.update(needs[name])
    return missing
