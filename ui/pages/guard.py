"""Who may name paths of this machine: only its owner, on the machine itself."""

from __future__ import annotations

import ipaddress
import re

from tricks import BadInput

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?", re.ASCII)


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_folders(allowed: bool, **names: str) -> None:
    """Refuse anything but Hub ids where folders are not allowed.

    Raises:
        BadInput: a name that is no Hub id.
    """
    if allowed:
        return
    for name in names.values():
        if not _HUB_ID.fullmatch(name):
            raise BadInput(
                f"{name!r} is not a Hub id, and this server takes no folders; write NAMESPACE/NAME"
            )
