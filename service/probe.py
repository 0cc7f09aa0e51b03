"""`python -m service.probe URL`: exit 0 where a GET is answered with 200; for a container's health check.

It imports nothing of ours: a check every few seconds must cost nothing.
"""

from __future__ import annotations

import sys
import urllib.request


def main(url: str) -> int:
    """Ask."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return 0 if answer.status == 200 else 1
    except OSError as error:
        sys.stderr.write(f"{url}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
