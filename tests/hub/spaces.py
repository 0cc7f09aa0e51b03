"""Spaces of a Hub of our own: secrets, volumes, hardware; and the buckets that they mount."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.hub.base import BaseHandler, Reply
from tests.hub.world import STAMP, Answer

_COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
_SCOPES = (
    *("openid", "profile", "email", "read-billing", "read-repos", "gated-repos", "contribute-repos"),
    *("write-repos", "manage-repos", "inference-api", "jobs", "webhooks", "write-discussions"),
)
_MOST_MINUTES = 43_200


@dataclass
class Runtime:
    """What a Space runs with. Secrets are written here and never told."""

    hardware: str = "cpu-basic"
    secrets: dict[str, str] = field(default_factory=dict)
    volumes: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        hardware = {"current": None, "requested": self.hardware}
        return {"stage": "BUILDING", "hardware": hardware, "storage": None, "volumes": self.volumes}


def space_errors(data: dict[str, Any]) -> list[str]:
    """What the Hub would say about a Space's front matter, in small."""
    errors = []
    if data.get("sdk") not in ("gradio", "docker", "static"):
        errors.append('"sdk" must be one of [gradio, docker, static]')
    errors += [f'"{key}" is no colour' for key in ("colorFrom", "colorTo") if data.get(key) not in _COLOURS]
    if len(data.get("short_description", "")) > 60:
        errors.append('"short_description" length must be at most 60 characters long')
    if not set(data.get("hf_oauth_scopes", [])) <= set(_SCOPES):
        errors.append('"hf_oauth_scopes" holds an unknown scope')
    if not 0 < data.get("hf_oauth_expiration_minutes", 480) <= _MOST_MINUTES:
        errors.append('"hf_oauth_expiration_minutes" is out of range')
    return errors


class Spaces(BaseHandler):
    """The routes of Spaces and buckets."""

    def runtime_of(self, space: str) -> Runtime:
        self.repo(space, write=self.command != "GET")
        return self.world.runtimes.setdefault(space, Runtime())

    def check_paid(self, hardware: str) -> None:
        if hardware in self.world.paid_hardware:
            raise Answer(402, "Payment required")

    def runtime(self, space: str) -> Reply:
        return self.json(self.runtime_of(space).to_json())

    def hardware(self, space: str) -> Reply:
        runtime, wish = self.runtime_of(space), json.loads(self.body)
        self.check_paid(wish["flavor"])
        runtime.hardware = wish["flavor"]
        return self.json(runtime.to_json())

    def secrets(self, space: str) -> Reply:
        """GET tells names alone; POST sets one."""
        held = self.runtime_of(space).secrets
        if self.command == "GET":
            return self.json({name: {"updatedAt": STAMP} for name in held})
        wish = json.loads(self.body)
        held[wish["key"]] = wish["value"]
        return self.json({})

    def volumes(self, space: str) -> Reply:
        runtime = self.runtime_of(space)
        runtime.volumes = json.loads(self.body)["volumes"]
        if missing := [v["source"] for v in runtime.volumes if v["source"] not in self.world.buckets]:
            raise Answer(404, f"no such bucket: {missing}")
        return self.json({})

    def bucket(self, namespace: str, name: str) -> Reply:
        user, bucket_id = self.someone(), f"{namespace}/{name}"
        if not user.may_write(bucket_id, new=True):
            raise Answer(403, "You don't have the rights to create a bucket under this namespace")
        if "buckets" in self.world.paid_hardware:
            raise Answer(402, "Payment required")
        told = {"url": f"{self.world.endpoint}/buckets/{bucket_id}", "id": bucket_id}
        if bucket_id in self.world.buckets:
            return self.json({**told, "error": "You already created this bucket"}, 409)
        self.world.buckets[bucket_id] = json.loads(self.body or b"{}")
        return self.json(told)

    def take_space(self, space: str, wish: dict[str, Any]) -> None:
        """What comes along when a Space is made."""
        if wish.get("sdk") not in ("gradio", "docker", "static"):
            raise Answer(400, "a Space needs an sdk")
        self.check_paid(wish.get("hardware", "cpu-basic"))
        told = {secret["key"]: secret["value"] for secret in wish.get("secrets", [])}
        hardware = wish.get("hardware", "cpu-basic")
        self.world.runtimes[space] = Runtime(hardware, told, wish.get("volumes", []))
