"""The options ``--tls-*``: x509 certificates for all connections of a migration.

They do what ``-object tls-creds-x509,verify-peer=on`` and the migration parameters
``tls-creds`` and ``tls-hostname`` do for a QEMU: each side proves itself by a
certificate that an authority of the other's choice has signed.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click

from .._errors import describe

_C = TypeVar("_C", bound=Callable[..., Any])

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_NO_CA: Final = (
    "--tls-cert needs --tls-ca: without it, whoever reaches the port could be the"
    " source, and what a source sends goes into the devices."
)


def server_tls_options(command: _C) -> _C:
    """Give *command* the options of a side that listens, as ``ssl_context``.

    Raises:
      click.UsageError: if they do not fit each other, or a file is not what it
        should be; names it.
    """

    @functools.wraps(command)
    def with_tls(
        *,
        tls_cert: Path | None,
        tls_key: Path | None,
        tls_ca: Path | None,
        **others: Any,
    ) -> Any:
        context = None
        if tls_cert or tls_key or tls_ca:
            if tls_cert is None:
                raise click.UsageError("TLS needs --tls-cert, to prove who we are.")
            if tls_ca is None:
                raise click.UsageError(_NO_CA)
            context = _context(ssl.PROTOCOL_TLS_SERVER, tls_ca)
            context.verify_mode = ssl.CERT_REQUIRED
            _show(context, tls_cert, tls_key)
        return command(ssl_context=context, **others)

    ca = "Use TLS. Certificates of who may sign the source's certificate."
    return _with_options(with_tls, ca)  # type: ignore[return-value]


def client_tls_options(command: _C) -> _C:
    """Give *command* those of a side that connects to its argument ``address``.

    As ``ssl_context`` and ``server_hostname``. Raises as `server_tls_options`.
    """

    @functools.wraps(command)
    def with_tls(
        *,
        address: str,
        tls_cert: Path | None,
        tls_key: Path | None,
        tls_ca: Path | None,
        tls_hostname: str | None,
        **others: Any,
    ) -> Any:
        context = None
        if tls_ca is not None:
            context = _context(ssl.PROTOCOL_TLS_CLIENT, tls_ca)
            if tls_cert is not None:
                _show(context, tls_cert, tls_key)
            elif tls_key is not None:
                raise click.UsageError("--tls-key needs --tls-cert.")
            _check_hostname(context, address, tls_hostname)
        elif tls_cert or tls_key or tls_hostname:
            raise click.UsageError(
                "TLS needs --tls-ca, to know the destination by its certificate."
            )
        return command(
            address=address, ssl_context=context, server_hostname=tls_hostname, **others
        )

    hostname = click.option(
        "--tls-hostname",
        metavar="NAME",
        help="What the destination's certificate must be for, if not for the host of"
        " ADDRESS.",
    )
    ca = "Use TLS. Certificates of who may sign the destination's certificate."
    return _with_options(hostname(with_tls), ca)  # type: ignore[return-value]


def _with_options(command: Callable[..., Any], ca: str) -> Callable[..., Any]:
    cert = "Our certificate, with those between it and its authority, as PEM."
    key = "Its private key, if that is not in the file of --tls-cert."
    for name, text in (("key", key), ("cert", cert), ("ca", ca)):
        option = click.option(f"--tls-{name}", type=_FILE, metavar="FILE", help=text)
        command = option(command)
    return command


def _context(protocol: int, ca: Path) -> ssl.SSLContext:
    """Make a context that takes whom *ca* has signed, and nobody else."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Whoever is in the file is trusted, also who is signed by another in turn.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _load_certificates(context, ca)
    return context


def _load_certificates(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise _useless(path, "no certificate in PEM form") from error
    except OSError as error:
        raise _useless(path, describe(error)) from error


def _show(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    """Let *context* prove itself by *cert*."""
    key = key or cert

    def no_password() -> NoReturn:
        # Without this, OpenSSL would ask for it at the terminal.
        raise _useless(key, "the key is encrypted; give one that is not")

    # Loading both at once does not tell which of them is at fault.
    _load_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cert)
    try:
        context.load_cert_chain(cert, key, password=no_password)
    except ssl.SSLError as error:
        reason = "no private key in PEM form"
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = f"not the key of the certificate in {str(cert)!r}"
        elif error.reason:
            reason = error.reason.lower().replace("_", " ")
        raise _useless(key, reason) from error
    except OSError as error:
        raise _useless(key, describe(error)) from error


def _useless(path: Path, reason: str) -> click.UsageError:
    return click.UsageError(f"cannot use {str(path)!r} for TLS: {reason}.")


def _check_hostname(context: ssl.SSLContext, address: str, name: str | None) -> None:
    if name is None:
        if address.startswith("unix:"):
            raise click.UsageError(
                "TLS to a unix socket needs --tls-hostname: what the destination's"
                " certificate must be for."
            )
        return
    try:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except ValueError as error:
        raise click.UsageError(f"--tls-hostname: {name!r} is no host name.") from error
