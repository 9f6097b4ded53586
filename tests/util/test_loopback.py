"""Which addresses lead only to this machine."""

import pytest

from dalle_mini_impl.util.loopback import is_loopback, is_of_this_machine


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_addresses_that_lead_only_to_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "192.168.1.2", "::", "example.com", "127.0.0.1.example.com"])
def test_other_addresses(host):
    assert not is_loopback(host)
    assert not is_of_this_machine([(b"host", host.encode())])


def test_headers_of_requests():
    assert is_of_this_machine([(b"accept", b"example.com")])
    assert is_of_this_machine([(b"host", b"127.0.0.1:7860"), (b"origin", b"https://localhost:5173")])
    assert is_of_this_machine([(b"host", b"[::1]:7860")])
    for other in ("null", "http://pictures.example:7860", "[::1", "http://127.0.0.1@pictures.example"):
        assert not is_of_this_machine([(b"host", b"localhost"), (b"origin", other.encode())])
        assert not is_of_this_machine([(b"host", b"localhost"), (b"host", other.encode())])
