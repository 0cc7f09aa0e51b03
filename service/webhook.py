"""The Hub's webhooks: a delivery is a hint that a model changed, and never more than that.

What a delivery says is not believed: of its content only a model's name is used, in the Hub's alphabet, and
the Hub is asked what is true. So one that comes twice, late or out of order leads to nothing new. The Hub
signs nothing; it sends the webhook's secret along in `X-Webhook-Secret`, without which nothing is read.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.hub import is_hub_id
from service.watch_store import WatchStore
from tricks import BadInput

PATH = "/webhooks/hub"
HEADER = "x-webhook-secret"
SHORTEST_SECRET = 16  # characters
LARGEST = 1_000_000  # bytes of a delivery
REMEMBERED_S = 600
"""A delivery that comes again, byte for byte, within so many seconds is a repetition."""
PER_MINUTE = 120

_ACTIONS = frozenset({"create", "update", "move"})


@dataclass(frozen=True)
class Receipt:
    """How a delivery is answered: an HTTP status and a few words."""

    status: int
    said: str
    model: str | None = None


class Receiver:
    """Takes deliveries; `look` is called with a model that may have changed, and must return soon."""

    def __init__(self, secret: str, store: WatchStore, look: Callable[[str], None]) -> None:
        """Keep the webhook's secret.

        Raises:
            BadInput: none, or one that can be guessed.
        """
        if len(secret) < SHORTEST_SECRET:
            raise BadInput(
                f"a webhook needs a secret of {SHORTEST_SECRET} characters or more; set"
                " TRICKSMITH_WEBHOOK_SECRET, to `openssl rand -hex 32` say, and give the Hub the same"
            )
        self._secret = secret.encode()
        self._store = store
        self._look = look

    def allowed(self, secret: str | None) -> Receipt | None:
        """The refusal, where the secret that came is not ours; to be asked before the body is read."""
        if secret is None:
            return Receipt(401, f"no {HEADER} header")
        if not hmac.compare_digest(secret.encode("utf-8", "surrogateescape"), self._secret):
            return Receipt(403, "wrong secret")
        return None

    def receive(self, secret: str | None, body: bytes) -> Receipt:
        """Take one delivery."""
        if (refused := self.allowed(secret)) is not None:
            return refused
        if len(body) > LARGEST:
            return Receipt(413, "too large")
        if not self._store.within_rate("webhook", PER_MINUTE, 60):
            return Receipt(429, "too many deliveries")
        try:
            payload = json.loads(body)
        except (ValueError, RecursionError):
            return Receipt(400, "not JSON")
        read = _model_of(payload)
        if isinstance(read, Receipt):
            return read
        digest = hashlib.sha256(body).hexdigest()
        if not self._store.first_time(digest, REMEMBERED_S):
            return Receipt(200, "taken before", read)
        try:
            self._look(read)
        except BaseException:
            self._store.forget_delivery(digest)
            raise
        return Receipt(202, "taken", read)


def _model_of(payload: Any) -> str | Receipt:
    """The model whose content changed, or why the delivery is not about one."""
    event = _part(payload, "event")
    repo = _part(payload, "repo")
    name, kind = repo.get("name"), repo.get("type")
    action, scope = event.get("action"), event.get("scope")
    if not isinstance(name, str) or not isinstance(action, str) or not isinstance(scope, str):
        return Receipt(400, "no event of a repo")
    if kind != "model":
        return Receipt(200, "not about a model")
    # Settings too (`repo.config`): that is how a private repo becomes a release.
    if action not in _ACTIONS or scope.split(".")[0] != "repo":
        return Receipt(200, f"{action} of {scope} changes no model")
    if not is_hub_id(name) or "/" not in name:
        return Receipt(400, "no Hub id")
    refs = payload.get("updatedRefs")
    if isinstance(refs, list) and refs and not any(_is_branch_or_tag(ref) for ref in refs):
        return Receipt(200, "no branch or tag changed", name)
    moved = _part(payload, "movedTo").get("name")
    return moved if isinstance(moved, str) and is_hub_id(moved) and "/" in moved else name


def _is_branch_or_tag(ref: Any) -> bool:
    name = ref.get("ref") if isinstance(ref, dict) else None
    return isinstance(name, str) and name.startswith(("refs/heads/", "refs/tags/"))


def _part(payload: Any, name: str) -> dict[str, Any]:
    part = payload.get(name) if isinstance(payload, dict) else None
    return part if isinstance(part, dict) else {}
