"""Fixtures that every room's tests share."""

from __future__ import annotations

import os

# Tests never look for a Hub on the network; those that need one start their own on loopback.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

pytest_plugins = ["tests.hub_fixture"]
