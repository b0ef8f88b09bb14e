"""Collaboration: handshakes that come to nothing, and what either side then knows.

And pure: errors of OpenSSL in words.
"""

from __future__ import annotations

import ssl

import pytest
import trio
import trustme
from trio.testing import memory_stream_pair

from trio_vfio._link._tls import (
    NoTlsError,
    Secure,
    secure,
    shake_hands,
    why_broken,
)


class Authority:
    """Makes contexts."""

    def __init__(self) -> None:
        self.ca = trustme.CA()

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert("there.example").configure_cert(context)
        self.ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self, shows: Authority | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        if shows is not None:
            shows.ca.issue_cert("here@example.org").configure_cert(context)
        return context


async def outcome(stream: Secure, peer: str) -> str:
    """Do a handshake, and read what comes behind it; return what is wrong."""
    try:
        await shake_hands(stream, peer)
        await stream.receive_some()
    except NoTlsError as error:
        assert isinstance(error.__cause__, ssl.SSLError)
        return str(error)
    except trio.BrokenResourceError as error:
        return f"later: {why_broken(error, peer)}"
    finally:
        await trio.aclose_forcefully(stream)
    return "nothing"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_sides_know(version: ssl.TLSVersion) -> None:
    """Whoever refuses says why, and the other side hears it."""
    ours, another = Authority(), Authority()
    later = "later: " if version is ssl.TLSVersion.TLSv1_3 else ""
    no_certificate = "certificate required" if later else "handshake failure"
    for client, name, here, there in [
        (
            another.client(shows=ours),
            "there.example",
            "there's certificate is refused: self-signed certificate in certificate"
            " chain",
            "here has refused: unknown ca",
        ),
        (
            ours.client(shows=ours),
            "elsewhere.example",
            "there's certificate is refused: Hostname mismatch, certificate is not"
            " valid for 'elsewhere.example'",
            "here has refused: bad certificate",
        ),
        (
            ours.client(shows=another),
            "there.example",
            f"{later}there has refused: unknown ca",
            "here's certificate is refused: unable to get local issuer certificate",
        ),
        (
            ours.client(),
            "there.example",
            f"{later}there has refused: {no_certificate}",
            "here shows no certificate",
        ),
    ]:
        client.maximum_version = version
        one, other = memory_stream_pair()
        source = secure(one, client, server_hostname=name)
        destination = secure(other, ours.server(), server_side=True)
        said: dict[str, str] = {}

        async def run(stream: Secure, peer: str, said: dict[str, str]) -> None:
            said[peer] = await outcome(stream, peer)

        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, source, "there", said)
                nursery.start_soon(run, destination, "here", said)
        assert said == {"there": here, "here": there}


@pytest.mark.parametrize(
    ("says", "error"),
    [
        (b"QEVM\0\0\0\3", "here does not speak TLS"),
        (b"GET / HTTP/1.1\r\n\r\n", "here does not speak TLS"),
        (b"", "here has closed the connection"),
    ],
)
async def test_no_tls_at_all(says: bytes, error: str) -> None:
    one, other = memory_stream_pair()
    await one.send_all(says)
    await one.send_eof()
    context = Authority().server()
    stream = secure(other, context, server_side=True)
    with pytest.raises(NoTlsError, match=f"^{error}$"):
        await shake_hands(stream, "here")
    await trio.aclose_forcefully(stream)


async def test_who_is_gone_is_told_nothing() -> None:
    """That there is nobody to hear the alert is not what went wrong."""
    one, other = memory_stream_pair()
    await one.send_all(b"QEVM\0\0\0\3")
    await one.aclose()
    stream = secure(other, Authority().server(), server_side=True)
    with pytest.raises(NoTlsError, match="^here does not speak TLS$"):
        await shake_hands(stream, "here")
    await trio.aclose_forcefully(stream)


def _ssl_error(reason: str | None) -> ssl.SSLError:
    error = ssl.SSLError(1, "[SSL] as OpenSSL puts it")
    error.reason = reason  # type: ignore[assignment]
    return error


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (OSError(32, "Broken pipe"), "[Errno 32] Broken pipe"),
        (None, "as Trio puts it"),
        (ssl.SSLEOFError(8, "EOF"), "TLS ended without a close alert"),
        # Python 3.11.2 has no SSLEOFError for it.
        (
            _ssl_error("UNEXPECTED_EOF_WHILE_READING"),
            "TLS ended without a close alert",
        ),
        (_ssl_error("BAD_RECORD_TYPE"), "bad record type"),
        (_ssl_error("TLSV1_ALERT_INTERNAL_ERROR"), "here has refused: internal error"),
        (_ssl_error(None), "[SSL] as OpenSSL puts it"),
    ],
)
def test_words(cause: Exception | None, words: str) -> None:
    error = trio.BrokenResourceError("as Trio puts it")
    error.__cause__ = cause
    assert why_broken(error, "here") == words
