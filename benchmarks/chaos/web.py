"""What the web process does when people submit: `MODEL DESTINATION` lines in, accepted jobs' ids out."""

from __future__ import annotations

import sys

from service.api import Service
from service.settings import Settings


def main() -> None:
    """Submit until the input ends."""
    with Service(Settings.from_env()) as service:
        for line in sys.stdin:
            model, to = line.split()
            print(service.submit(model, ["flashnorm"], to).id, flush=True)


if __name__ == "__main__":
    main()
