"""What a process that reads a source's weights may see of its surroundings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

KEPT_VARIABLES = frozenset(
    {
        "HOME",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "PATH",
        "PYTHONHASHSEED",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
    }
)
KEPT_PREFIXES = ("LC_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "NVIDIA_", "PYTORCH_", "TORCH_", "TRITON_")


def child_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """What such a process may see: no token, no password, no address.

    A list of what is kept, not of what is dropped: secrets have any name. Its Hugging Face home is the folder
    `hf` where it stands, so that each child, in its own work folder, has its own.
    """
    env = os.environ if env is None else env
    kept = {
        name: value
        for name, value in env.items()
        if name in KEPT_VARIABLES or (name.startswith(KEPT_PREFIXES) and "TOKEN" not in name)
    }
    return kept | {
        "HF_HOME": "hf",
        "HF_TOKEN_PATH": "hf/no-token",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "PYTHONUNBUFFERED": "1",
    }


_NETWORK = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HF_ENDPOINT", "SSL_CERT_DIR")


def network_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a process sees besides that fetches open data from the Hub: how to get there, and no token."""
    env = os.environ if env is None else env
    names = [*_NETWORK, *(name.lower() for name in _NETWORK)]
    return {name: env[name] for name in names if name in env} | {
        "HF_HUB_OFFLINE": "0",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    }
