"""What becomes of finished jobs: first their details go, much later the jobs themselves."""

from __future__ import annotations

from service.jobs import JobStore

AT_A_TIME = 1000  # jobs of one call; the next call goes on


def retire(store: JobStore, *, details: float, records: float) -> tuple[int, int]:
    """Drop what was kept long enough (seconds since a job's end).

    Without its details (events, plan, evidence, card, list of files) a job takes less than 4 KB of Redis.

    Returns:
        How many jobs lost their details, and how many are gone.
    """
    gone = store.finished_before(records, AT_A_TIME)
    for job_id in gone:
        store.forget(job_id)
    thinned = store.detailed_before(details, AT_A_TIME)
    for job_id in thinned:
        store.drop_details(job_id)
    return len(thinned), len(gone)
