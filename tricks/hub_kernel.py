"""The shipped kernels as a repository that the Hub's `kernels` package loads: `get_kernel("you/name")`.

    python -m tricks.hub_kernel FOLDER

The kernels are compiled where they run, so one build variant serves every torch: `build/torch-universal/`
with one Python package, named as the repository is, `-` as `_`
(https://huggingface.co/docs/kernels/kernel-requirements).
"""

from __future__ import annotations

import sys
from pathlib import Path

from tricks import shipped
from tricks.errors import BadInput

FILES = (
    "slim_kernel.py",
    "slim_decode_source.py",
    "slim_source.py",
    "slim_rounding.py",
    "nvrtc.py",
    "flash_kernel.py",
)
_INIT = '''"""Slim attention's decode step and FlashNorm with its linear layer; else plain torch."""

from .flash_kernel import norm_linear
from .slim_kernel import Shape, available, decode, feed_back, mix, plain, residual_codes

__all__ = ["Shape", "available", "decode", "feed_back", "mix", "norm_linear", "plain", "residual_codes"]
'''


def write(folder: Path) -> Path:
    """Write the repository to the new `folder`, which has its name; returns the package's folder.

    Raises:
        BadInput: `folder` exists, or its name makes no Python package.
    """
    name = folder.name.replace("-", "_")
    if not name.isidentifier():
        raise BadInput(f"{folder.name!r} makes no Python package; name the folder in letters, digits and -")
    if folder.exists():
        raise BadInput(f"{folder} exists already; choose a folder that does not")
    package = folder / "build" / "torch-universal" / name
    package.mkdir(parents=True)
    for file in FILES:
        (package / file).write_bytes((Path(shipped.__file__).parent / file).read_bytes())
    (package / "__init__.py").write_text(_INIT)
    return package


def main(arguments: list[str]) -> int:
    """0, or 2 with one line where the folder will not do."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m tricks.hub_kernel FOLDER\n")
        return 2
    try:
        sys.stdout.write(f"{write(Path(arguments[0]).absolute())}\n")
    except BadInput as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
