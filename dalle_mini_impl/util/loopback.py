"""Which addresses lead only to this machine."""

import ipaddress
import re

ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]*://)?(\[[0-9a-f:.]+\]|[^:@/\[\]]+)(?::\d+)?", re.IGNORECASE)
"""A header `Host` or `Origin`; its group is the name or address of a machine."""


def is_loopback(host: str) -> bool:
    """Whether a name or an address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_of_this_machine(address: str | None) -> bool:
    """Whether a header `Host` or `Origin` names this machine; a request without it comes from no page of another."""
    if address is None:
        return True
    found = ADDRESS.fullmatch(address)
    return found is not None and is_loopback(found[1])
