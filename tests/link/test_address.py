"""Pure: addresses as QEMU writes them."""

from __future__ import annotations

import pytest

from trio_vfio._link._address import TcpAddress, UnixAddress, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp:127.0.0.1:4444", TcpAddress("127.0.0.1", 4444)),
        ("tcp:host.example:0", TcpAddress("host.example", 0)),
        ("tcp:[::1]:4444", TcpAddress("::1", 4444)),
        ("tcp::4444", TcpAddress("", 4444)),
        ("unix:/run/migrate:1.sock", UnixAddress("/run/migrate:1.sock")),
    ],
)
def test_an_address_is_parsed_and_written_the_same(
    text: str, address: TcpAddress | UnixAddress
) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "tcp:", "tcp:host", "tcp:host:", "tcp:host:x", "tcp:host:65536", "unix:",
     "tcp:::1:4444", "exec:cat", "fd:7", "tcp:host:²"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="tcp:HOST:PORT|brackets"):
        parse_address(text)
