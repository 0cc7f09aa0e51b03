"""Side by side: both models write on a worker, what they write is told, and nobody waits for ever."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from service.api import Service
from service.comparing import LONGEST_PROMPT, MOST_NEW, Answer, Comparisons
from service.jobs import Job
from service.redis_server import running_redis
from service.settings import Settings
from tricks import BadInput
from workers.comparing import run_comparison
from workers.forks import Forks
from workers.run import run_job
from workers.worker import Worker

TINY = Path(__file__).resolve().parents[2] / "models" / "tiny-llama"


@pytest.fixture
def published(service: Service, settings: Settings, forks: Forks, tmp_path: Path) -> Job:
    """The trained model of the repo, made slim."""
    job = service.submit(str(TINY), ["slim"], str(tmp_path / "out"))
    with running_redis(settings) as url, Worker(url, settings, forks=forks) as worker:
        attempt = worker.this_job(job.id)
        assert attempt is not None
        run_job(attempt, worker)
    return service.job(job.id)


def test_both_write_and_the_slim_cache_is_smaller(
    service: Service, settings: Settings, forks: Forks, published: Job
) -> None:
    asked = service.compare(published.id, "The function returns", 8)
    assert service.compare(published.id, "The function returns", 8) == asked  # a second click
    with pytest.raises(BadInput, match="wait for another"):
        service.compare(published.id, "Something else", 8)
    with running_redis(settings) as url, Worker(url, settings, forks=forks) as worker:
        run_comparison(worker, asked.id)
        run_comparison(worker, asked.id)  # a message that came twice
    _, answer = service.comparison(asked.id)
    assert answer.state == "done", answer.reason
    assert len(answer.source.tokens) == 8
    assert answer.source.tokens[0].text == " the"
    assert answer.source.tokens[0].id == answer.converted.tokens[0].id
    assert answer.source.prompt_tokens == answer.converted.prompt_tokens
    assert answer.source.cache_bytes
    assert answer.converted.cache_bytes
    assert answer.converted.cache_bytes < answer.source.cache_bytes
    assert answer.source.tokens_per_second
    assert not (settings.work / asked.id).exists()
    # Others' comparisons are not for everybody's eyes.
    with pytest.raises(BadInput, match="somebody else's"):
        service.comparison(asked.id, viewer="eve")

    assert published.result is not None
    shutil.rmtree(published.result)
    gone = service.compare(published.id, "The function returns", 8)
    with running_redis(settings) as url, Worker(url, settings, forks=forks) as worker:
        run_comparison(worker, gone.id)
    _, answer = service.comparison(gone.id)
    assert (answer.state, "is not there any more" in str(answer.reason)) == ("failed", True)


@pytest.mark.parametrize(
    ("prompt", "new", "says"),
    [
        (" ", 8, "empty"),
        ("x" * (LONGEST_PROMPT + 1), 8, "characters"),
        ("x", 0, "1 to"),
        ("x", MOST_NEW + 1, "1 to"),
    ],
)
def test_requests_have_limits(service: Service, prompt: str, new: int, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        service.compare("nosuch", prompt, new)


def test_only_what_was_published_is_compared(service: Service, small_llama: Path, tmp_path: Path) -> None:
    job = service.submit(str(small_llama), ["flashnorm"], str(tmp_path / "out"))
    with pytest.raises(BadInput, match="is queued; only what was published"):
        service.compare(job.id, "x", 8)


def test_a_message_that_never_arrives_is_told_in_the_end(service: Service, settings: Settings) -> None:
    with running_redis(settings) as url:
        kept = Comparisons(url)
        made, fresh = kept.create("0" * 12, "x", 8, None)
        assert fresh
        assert not kept.answer(made).final
        assert kept.answer(replace(made, created=made.created - 3600)).state == "failed"
        kept.close()


def test_where_two_texts_part() -> None:
    def wrote(*ids: int) -> list[dict[str, object]]:
        return [{"id": n, "text": str(n), "lead": 1.0} for n in ids]

    answer = Answer()
    for side, tokens in (("source", wrote(1, 2, 3)), ("converted", wrote(1, 2, 4))):
        for token in tokens:
            answer.take({"side": side, **token})
    assert answer.parted == 2
