"""Which addresses lead only to this machine."""

import ipaddress
import re
from collections.abc import Iterable

ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]*://)?(\[[0-9a-f:.]+\]|[^:@/\[\]]+)(?::\d+)?", re.IGNORECASE)
"""A header `Host` or `Origin`; its group is the name or address of a machine."""


def is_loopback(host: str) -> bool:
    """Whether a name or an address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_of_this_machine(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request comes from this machine's own pages, or from no page, and names no other machine.

    Args:
        headers: of the request as ASGI has them, names in lower case.
    """
    addresses = (value.decode("latin-1") for name, value in headers if name in (b"host", b"origin"))
    found = map(ADDRESS.fullmatch, addresses)
    return all(one is not None and is_loopback(one[1]) for one in found)
