"""TLS on a connection: the handshake, and in words why it came to nothing."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any, Final, TypeAlias

import trio

Secure: TypeAlias = trio.SSLStream[trio.abc.Stream]

_ALERT: Final = "_ALERT_"
"""In OpenSSL's name for an error: the peer's own word for what it does not like."""

_REASONS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "{peer} shows no certificate",
    "HTTP_REQUEST": "{peer} does not speak TLS",
    "WRONG_VERSION_NUMBER": "{peer} does not speak TLS",
}


class NoTlsError(Exception):
    """A handshake that came to nothing. Says why, in one line."""


async def shake_hands(stream: Secure, peer: str) -> None:
    """Do the handshake of *stream*; if it fails, let the other side know why.

    With TLS 1.3 it is the destination that has the last word, so that a source learns
    only later whether its certificate was accepted: by what it reads next.

    If cancelled, the stream is good for nothing but to be closed.

    Args:
      peer: who is at the other end, for the error.

    Raises:
      NoTlsError: if it fails; its cause is the `ssl.SSLError` or `OSError`.
      trio.ClosedResourceError: if the stream was closed on this side.
    """
    try:
        await stream.do_handshake()
        return
    except trio.BrokenResourceError as error:
        broken = error
    await _send_alert(stream)
    cause = broken.__cause__
    if isinstance(cause, (ssl.SSLEOFError, ConnectionResetError)):
        reason = f"{peer} has closed the connection"
    else:
        reason = why_broken(broken, peer)
    raise NoTlsError(reason) from cause


def why_broken(
    error: trio.BrokenResourceError | trio.ClosedResourceError, peer: str
) -> str:
    """Say why a connection, with TLS or without, is broken.

    Args:
      peer: who is at the other end: ``the source``.
    """
    cause = error.__cause__ or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"{peer}'s certificate is refused: {_verify_message(cause)}"
    if isinstance(cause, ssl.SSLEOFError):
        return "TLS ended without a close alert"
    if not isinstance(cause, ssl.SSLError):
        return str(cause)
    # Annotated as always there, which it is not.
    reason: str | None = cause.reason
    if not reason:
        return str(cause)
    if _ALERT in reason:
        return f"{peer} has refused: {_words(reason.partition(_ALERT)[2])}"
    return _REASONS.get(reason, _words(reason)).format(peer=peer)


def _verify_message(error: ssl.SSLCertVerificationError) -> str:
    return error.verify_message.removesuffix(".")


def _words(name: str) -> str:
    return name.lower().replace("_", " ")


async def _send_alert(stream: Secure) -> None:
    """Send what OpenSSL has to say to the other side, which Trio leaves unsaid."""
    # There is no public way to it. Without it the other side only finds the
    # connection broken.
    outgoing: Any = getattr(stream, "_outgoing", None)
    if isinstance(outgoing, ssl.MemoryBIO) and (alert := outgoing.read()):
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.transport_stream.send_all(alert)
