"""TLS on a connection: its stream, its handshake, and in words why it broke."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any, Final, TypeAlias, TypeGuard

import trio

Secure: TypeAlias = trio.SSLStream[trio.abc.Stream]

_IGNORE_EOF: Final[int] = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
"""OpenSSL 3 has this option, OpenSSL 1.1 does not. Python sets it in every context
before 3.11.4, Debian 12's among them (CPython gh-95494). OpenSSL then reports a
connection that was cut as one that ended with a close alert."""

_ALERT: Final = "_ALERT_"
"""In OpenSSL's name for an error: the peer's own word for what it does not like."""

_REASONS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "{peer} shows no certificate",
    "HTTP_REQUEST": "{peer} does not speak TLS",
    "WRONG_VERSION_NUMBER": "{peer} does not speak TLS",
}


class NoTlsError(Exception):
    """A handshake that came to nothing. Says why, in one line."""


def secure(
    stream: trio.abc.Stream,
    context: ssl.SSLContext,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
) -> Secure:
    """Put TLS on *stream*, so that a cut connection never looks like one that ended.

    For that, `ssl.OP_IGNORE_UNEXPECTED_EOF` is cleared in *context*.
    """
    context.options &= ~_IGNORE_EOF
    return trio.SSLStream(
        stream, context, server_side=server_side, server_hostname=server_hostname
    )


def is_secure(stream: trio.abc.Stream) -> TypeGuard[Secure]:
    """Whether *stream* is TLS, as far as Trio can tell."""
    return isinstance(stream, trio.SSLStream)


def check_ready_made(stream: trio.abc.Stream) -> None:
    """Refuse a TLS stream of the caller's on which a cut would look like an end.

    An SSLStream copies the options of its context when it is made, so that it is too
    late to change them.

    Raises:
      ValueError: if *stream* is such a stream. Says what to do.
    """
    if not is_secure(stream):
        return
    if stream.context.options & _IGNORE_EOF:
        raise ValueError(
            "this SSLStream takes a connection that was cut for one that ended; before"
            " it is made: context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF"
        )
    # Trio has no public name for this.
    if getattr(stream, "_https_compatible", False):
        raise ValueError(
            "this SSLStream takes a connection that was cut for one that ended; make"
            " it without https_compatible"
        )


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
    if _was_cut(cause) or isinstance(cause, ConnectionResetError):
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
    if _was_cut(cause):
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


def _was_cut(error: BaseException | None) -> bool:
    """Whether OpenSSL found the end of a connection without a close alert."""
    # Before 3.11.4, Python does not always make an SSLEOFError of it (gh-95494).
    return isinstance(error, ssl.SSLError) and (
        isinstance(error, ssl.SSLEOFError)
        or error.reason == "UNEXPECTED_EOF_WHILE_READING"
    )


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
