"""Webhooks: nothing without the secret, nothing believed, nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import WebhookPayload

from service.api import Service
from service.hub import HubUnavailable
from service.watches import Kind, new_watch
from service.webhook import PER_MINUTE, Receiver
from tests.hub_server import HubServer
from tricks import BadInput

SECRET = "0123456789abcdef0123456789abcdef"


def delivery(model: str = "forge/new", **changes: Any) -> dict[str, Any]:
    """A delivery in the form that the Hub documents (version 3)."""
    payload = {
        "event": {"action": "update", "scope": "repo.content"},
        "repo": {
            "type": "model",
            "name": model,
            "id": "621ffdc036468d709f17434d",
            "private": False,
            "url": {
                "web": f"https://huggingface.co/{model}",
                "api": f"https://huggingface.co/api/models/{model}",
            },
            "headSha": "c379e821c9c95d613899e8c4343e4bfee2b0c600",
            "owner": {"id": "61d2000c3c2083e1c08af22d"},
        },
        "updatedRefs": [{"ref": "refs/heads/main", "oldSha": "a" * 40, "newSha": "b" * 40}],
        "webhook": {"id": "6390e855e30d9209411de93b", "version": 3},
    } | changes
    WebhookPayload.model_validate(payload)
    return payload


class Looks(list[str]):
    """Collects the models that the receiver points at."""


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def receiver(running: Service, looks: Looks) -> Receiver:
    return Receiver(SECRET, running.watches, looks.append)


def test_a_delivery_points_at_its_model(receiver: Receiver, looks: Looks) -> None:
    body = json.dumps(delivery()).encode()
    assert receiver.receive(SECRET, body).status == 202
    assert receiver.receive(SECRET, body).said == "taken before"
    assert looks == ["forge/new"]


@pytest.mark.parametrize(
    ("secret", "status"), [(None, 401), ("", 403), (SECRET[:-1], 403), ("\u00e9" * 32, 403)]
)
def test_without_the_secret_nothing_is_read(
    receiver: Receiver, looks: Looks, secret: str | None, status: int
) -> None:
    assert receiver.receive(secret, b"\x00 not even JSON").status == status
    assert looks == []


@pytest.mark.parametrize("secret", ["", "short"])
def test_a_secret_that_can_be_guessed_is_refused(running: Service, secret: str) -> None:
    with pytest.raises(BadInput, match="needs a secret of 16 characters or more"):
        Receiver(secret, running.watches, print)


@pytest.mark.parametrize(
    ("payload", "status", "said"),
    [
        ("not JSON", 400, "not JSON"),
        ("[]", 400, "no event of a repo"),
        ("{}", 400, "no event of a repo"),
        ('{"event": 1, "repo": [2]}', 400, "no event of a repo"),
        ("[" * 100_000, 400, "not JSON"),
        (delivery("../../etc"), 400, "no Hub id"),
        (delivery("f\u043erge/new"), 400, "no Hub id"),
        (delivery(event={"action": "delete", "scope": "repo"}), 200, "delete of repo changes no model"),
        (delivery(event={"action": "create", "scope": "discussion"}), 200, "changes no model"),
        (delivery(updatedRefs=[{"ref": "refs/pr/4"}]), 200, "no branch or tag changed"),
    ],
)
def test_deliveries_that_lead_to_nothing(
    receiver: Receiver, looks: Looks, payload: str | dict[str, Any], status: int, said: str
) -> None:
    body = payload if isinstance(payload, str) else json.dumps(payload)
    receipt = receiver.receive(SECRET, body.encode())
    assert (receipt.status, said in receipt.said) == (status, True)
    assert looks == []


def test_a_repo_that_becomes_public_is_looked_at(receiver: Receiver, looks: Looks) -> None:
    payload = delivery(event={"action": "update", "scope": "repo.config"}, updatedRefs=None)
    assert receiver.receive(SECRET, json.dumps(payload).encode()).status == 202
    assert looks == ["forge/new"]


def test_a_dataset_is_not_a_model(receiver: Receiver, looks: Looks) -> None:
    payload = delivery()
    payload["repo"]["type"] = "dataset"
    assert receiver.receive(SECRET, json.dumps(payload).encode()).said == "not about a model"
    assert looks == []


def test_a_delivery_that_could_not_be_handled_may_come_again(running: Service) -> None:
    def broken(model: str) -> None:
        raise ConnectionError("no queue")

    body = json.dumps(delivery()).encode()
    with pytest.raises(ConnectionError):
        Receiver(SECRET, running.watches, broken).receive(SECRET, body)
    assert Receiver(SECRET, running.watches, lambda model: None).receive(SECRET, body).status == 202


def test_a_flood_is_told_to_wait(receiver: Receiver, looks: Looks) -> None:
    statuses = {
        receiver.receive(SECRET, json.dumps(delivery(f"forge/m{n}")).encode()).status
        for n in range(2 * PER_MINUTE + 1)  # more than two minutes' worth, should a minute end meanwhile
    }
    assert statuses == {202, 429}


def test_what_a_delivery_says_is_asked_of_the_hub(
    hub: HubServer, running: Service, small_llama: Path
) -> None:
    hub.add_model("forge/new", small_llama)
    mine = new_watch(Kind.MODEL, "forge/new", ["flashnorm"], "smith")
    other = new_watch(Kind.AUTHOR, "another", ["flashnorm"], "smith")
    for watch in (mine, other):
        running.watches.add(watch)
    (decision,) = running.watching.look("forge/new")
    assert decision.commit == hub.repo("forge/new").refs["main"]
    assert running.watching.look("forge/new") == []  # late, or twice
    assert running.watching.look("forge/unwatched") == []
    assert len(running.jobs()) == 1
    with running.watches.polling(mine.id), pytest.raises(HubUnavailable, match="is being polled; try again"):
        running.watching.look("forge/new")
