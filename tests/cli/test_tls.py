"""TLS from the command line: which options fit each other. Pure.

And what two processes make of them, over real sockets. Collaboration.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import signal
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
import trio
import trustme
from cryptography.hazmat.primitives import serialization

from trio_vfio._cli import _receive, _send
from trio_vfio._cli._main import run_command

from .processes import HOUR, Running, names, running

pytestmark = pytest.mark.usefixtures("warm")

Captured = pytest.CaptureFixture[str]

IDSTR: Final = "0000:00:04.0/vfio"
DEVICE: Final = f"--device={IDSTR}=null:"
LONG_AGO: Final = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
LATER: Final = datetime.datetime(2020, 2, 1, tzinfo=datetime.UTC)


def _write(where: Path, cert: trustme.LeafCert) -> None:
    chain = b"".join(blob.bytes() for blob in cert.cert_chain_pems)
    (where / "cert").write_bytes(chain)
    (where / "key").write_bytes(cert.private_key_pem.bytes())
    (where / "both").write_bytes(cert.private_key_pem.bytes() + chain)


@pytest.fixture(name="pki", scope="module")
def make_pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a directory with certificates, one subdirectory for each that has one."""
    top = tmp_path_factory.mktemp("pki")
    ours, another = trustme.CA(), trustme.CA()
    for name, cert in {
        "there": ours.issue_cert("127.0.0.1", "there.example"),
        "here": ours.issue_cert("here@example.org"),
        "expired": ours.issue_cert(
            "old@example.org", not_before=LONG_AGO, not_after=LATER
        ),
        "stranger": another.issue_cert("here@example.org"),
    }.items():
        (top / name).mkdir()
        _write(top / name, cert)
    ours.cert_pem.write_to_path(str(top / "ca"))
    another.cert_pem.write_to_path(str(top / "another-ca"))
    (top / "junk").write_text("certificate\n")
    (top / "broken").write_text(
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    )
    _write_encrypted(top / "here" / "key", top / "encrypted")
    return top


def _write_encrypted(key: Path, path: Path) -> None:
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    path.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


TLS: Final = {
    "receive": ["--tls-ca={pki}/ca", "--tls-cert={pki}/there/both"],
    "send": ["--tls-ca={pki}/ca", "--tls-cert={pki}/here/both"],
}


def _options(texts: Sequence[str], pki: Path) -> list[str]:
    return [text.format(pki=pki) for text in texts]


@pytest.mark.parametrize(
    ("command", "options", "error"),
    [
        ("receive", ["--tls-ca={pki}/ca"], "TLS needs --tls-cert"),
        ("receive", ["--tls-key={pki}/here/key"], "TLS needs --tls-cert"),
        (
            "receive",
            ["--tls-cert={pki}/there/both"],
            "--tls-cert needs --tls-ca: without it, whoever reaches the port",
        ),
        ("receive", ["--tls-hostname=x"], "No such option '--tls-hostname'"),
        (
            "receive",
            ["--tls-ca={pki}/none"],
            "'--tls-ca': File '{pki}/none' does not exist",
        ),
        ("receive", ["--tls-cert={pki}"], "'--tls-cert': File '{pki}' is a directory"),
        (
            "receive",
            ["--tls-ca={pki}/junk", "--tls-cert={pki}/there/both"],
            "cannot use '{pki}/junk' for TLS: no certificate in PEM form",
        ),
        ("send", ["--tls-cert={pki}/here/both"], "TLS needs --tls-ca"),
        ("send", ["--tls-key={pki}/here/key"], "TLS needs --tls-ca"),
        ("send", ["--tls-hostname=x"], "TLS needs --tls-ca"),
        (
            "send",
            ["--tls-ca={pki}/ca", "--tls-key={pki}/here/key"],
            "--tls-key needs --tls-cert",
        ),
        (
            "send",
            ["--tls-ca={pki}/broken"],
            "cannot use '{pki}/broken' for TLS: no certificate in PEM form",
        ),
        (
            "send",
            ["--tls-ca={pki}/ca", "--tls-cert={pki}/here/key"],
            "cannot use '{pki}/here/key' for TLS: no certificate in PEM form",
        ),
        (
            "send",
            ["--tls-ca={pki}/ca", "--tls-cert={pki}/here/cert"],
            "cannot use '{pki}/here/cert' for TLS: no private key in PEM form",
        ),
        (
            "send",
            [
                "--tls-ca={pki}/ca",
                "--tls-cert={pki}/here/cert",
                "--tls-key={pki}/there/key",
            ],
            "cannot use '{pki}/there/key' for TLS: not the key of the certificate in"
            " '{pki}/here/cert'",
        ),
        (
            "send",
            [
                "--tls-ca={pki}/ca",
                "--tls-cert={pki}/here/cert",
                "--tls-key={pki}/encrypted",
            ],
            "cannot use '{pki}/encrypted' for TLS: the key is encrypted",
        ),
        (
            "send",
            ["--tls-ca={pki}/ca", "--tls-hostname=.x"],
            "--tls-hostname: '.x' is no host name",
        ),
    ],
)
def test_options_that_do_not_fit(
    command: str, options: list[str], error: str, pki: Path, capsys: Captured
) -> None:
    """A mistake is one line that names the file or the option."""
    assert run_command([command, "tcp::0", DEVICE, *_options(options, pki)]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert error.format(pki=pki) in captured.err


def test_a_unix_socket_has_no_name(pki: Path, capsys: Captured) -> None:
    options = _options(TLS["send"], pki)
    assert run_command(["send", "unix:/x", DEVICE, *options]) == 2
    assert "TLS to a unix socket needs --tls-hostname" in capsys.readouterr().err


def test_a_file_that_may_not_be_read(
    pki: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have gone since it was looked at, too."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    options = ["send", "tcp::0", DEVICE, *_options(TLS["send"], pki)]
    for name, path in [
        ("load_cert_chain", "here/both"),
        ("load_verify_locations", "ca"),
    ]:
        monkeypatch.setattr(ssl.SSLContext, name, refuse)
        assert run_command(options) == 2
        error = f"cannot use '{pki}/{path}' for TLS: EACCES: Permission denied"
        assert error in capsys.readouterr().err


def test_what_only_openssl_knows(
    pki: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is too short for it, or whatever it will think of next."""

    def refuse(*_: object, **__: object) -> None:
        error = ssl.SSLError(1, "[SSL: EE_KEY_TOO_SMALL] ee key too small")
        error.reason = "EE_KEY_TOO_SMALL"
        raise error

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", refuse)
    options = ["send", "tcp::0", DEVICE, *_options(TLS["send"], pki)]
    assert run_command(options) == 2
    expected = f"cannot use '{pki}/here/both' for TLS: ee key too small"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("command", ["receive", "send"])
def test_what_is_asked_of_the_other_side(
    command: str, pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate, of nobody but whom the CA has signed, and no old protocol."""
    contexts: list[ssl.SSLContext] = []

    def look(*_: object, ssl_context: ssl.SSLContext, **__: object) -> None:
        contexts.append(ssl_context)
        raise OSError("that is all")

    monkeypatch.setattr(_receive, "open_incoming", look)
    monkeypatch.setattr(_send, "open_outgoing", look)
    run_command([command, "tcp::0", DEVICE, *_options(TLS[command], pki)])
    (context,) = contexts
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname is (command == "send")
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("return_path", [True, False])
async def test_send_to_receive(
    transport: str, return_path: bool, pki: Path, tmp_path: Path
) -> None:
    """Over all channels, and what is loaded is what was sent."""
    state = tmp_path / "state"
    state.write_bytes(os.urandom(5_000_000))
    address = "tcp:127.0.0.1:0" if transport == "tcp" else f"unix:{tmp_path}/socket"
    arguments = [address, DEVICE, "--json", "--quiet", *_options(TLS["receive"], pki)]
    async with running("receive", *arguments) as there:
        arguments = [
            await there.address(),
            f"--device={IDSTR}=file:{state}",
            "--json",
            "--quiet",
            "--channels=3",
            f"--tls-ca={pki}/ca",
            f"--tls-cert={pki}/here/cert",
            f"--tls-key={pki}/here/key",
        ]
        if transport == "unix":
            arguments.append("--tls-hostname=there.example")
        if not return_path:
            arguments.append("--no-return-path")
        async with running("send", *arguments) as here:
            pass
    assert (here.process.returncode, here.lines) == (0, [])
    assert (there.process.returncode, len(there.lines)) == (0, 1)
    digest = hashlib.sha256(state.read_bytes()).hexdigest()
    assert here.result["devices"][0]["sha256"] == digest
    assert there.result["devices"][0]["sha256"] == digest
    assert here.result["channels"] == there.result["channels"]
    assert all(channel["packets"] for channel in here.result["channels"])


REFUSED: Final = (
    "main: broke before the destination's last word: the destination has refused: {}$"
)
"""What a source says that learns only behind its handshake that it was refused."""

DROPPED: Final = "dropped a connection from 127.0.0.1: "

UNWANTED: Final = {
    "the source knows another CA": (
        ["--tls-ca={pki}/another-ca", "--tls-cert={pki}/here/both"],
        r"EPROTO: no TLS: the destination's certificate is refused: self-signed",
        "no TLS: the source has refused: unknown ca",
    ),
    "the destination has another name": (
        [*TLS["send"], "--tls-hostname=elsewhere.example"],
        "EPROTO: no TLS: the destination's certificate is refused: Hostname mismatch,"
        r" certificate is not valid for 'elsewhere\.example'$",
        "no TLS: the source has refused: bad certificate",
    ),
    "the destination knows another CA": (
        ["--tls-ca={pki}/ca", "--tls-cert={pki}/stranger/both"],
        REFUSED.format("unknown ca"),
        "no TLS: the source's certificate is refused: unable to get local issuer"
        " certificate",
    ),
    "the source's certificate has expired": (
        ["--tls-ca={pki}/ca", "--tls-cert={pki}/expired/both"],
        REFUSED.format("certificate expired"),
        "no TLS: the source's certificate is refused: certificate has expired",
    ),
    "the source shows no certificate": (
        ["--tls-ca={pki}/ca"],
        REFUSED.format("certificate required"),
        "no TLS: the source shows no certificate",
    ),
    "the source does not use TLS": (
        [],
        r"(main|channel \d): (broke|the destination closed)",
        "no TLS: the source does not speak TLS",
    ),
}


async def _try(address: str, *options: str) -> Running:
    async with running("send", address, DEVICE, "--json", "--quiet", *options) as run:
        pass
    return run


@pytest.mark.parametrize("part", [0, 1])
async def test_sources_that_are_not_wanted(part: int, pki: Path) -> None:
    """Each ends at once and says why; it costs the destination nothing but a line.

    Else whoever reaches the port could end a migration before it begins.
    """
    cases = list(UNWANTED.items())[part::2]
    arguments = [
        "tcp:127.0.0.1:0",
        DEVICE,
        "--json",
        "--quiet",
        *_options(TLS["receive"], pki),
    ]
    async with running("receive", *arguments) as there:
        address = await there.address()
        for case, (options, here_says, _) in cases:
            run = await _try(address, *_options(options, pki))
            assert run.process.returncode == 1, case
            (error,) = run.errors
            assert re.match(here_says, error), case
            assert len(run.lines) == 1, case
            assert (run.result["status"], run.result["errors"]) == ("failed", [error])
        wanted = await _try(address, *_options(TLS["send"], pki))
    assert wanted.process.returncode == there.process.returncode == 0
    assert there.result["status"] == "completed"
    assert there.lines[1:] == [DROPPED + says for _, (_, _, says) in cases]


async def test_a_destination_without_tls(pki: Path) -> None:
    """It takes no secure source for a migration."""
    async with running("receive", "tcp:127.0.0.1:0", DEVICE, "--quiet") as there:
        address = await there.address()
        run = await _try(address, *_options(TLS["send"], pki))
        wanted = await _try(address)
    assert run.process.returncode == 1
    error = "EPROTO: no TLS: the destination has closed the connection"
    assert run.lines == [f"trio-vfio: error: {error}"]
    assert wanted.process.returncode == there.process.returncode == 0
    expected = f"{DROPPED}it begins with TLS, which is not expected"
    assert there.lines[1:] == [expected]


@pytest.mark.parametrize("who", ["send", "receive"])
async def test_cancelled(who: str, pki: Path, tmp_path: Path) -> None:
    """The other side fails without a deadline; nothing is left at the destination."""
    read_end, write_end = os.pipe()
    into = tmp_path / "snapshot"
    both = ["--json", "--quiet", *HOUR]
    arguments = ["tcp:127.0.0.1:0", f"--into={into}", *_options(TLS["receive"], pki)]
    async with running("receive", *arguments, *both) as there:
        arguments = [await there.address(), f"--device={IDSTR}=fd:{read_end}"]
        arguments += [*_options(TLS["send"], pki), *both]
        # A device that never comes to its end.
        async with running("send", *arguments, pass_fds=(read_end,)) as here:
            os.write(write_end, b"state")
            while not list(into.glob("*.part")):  # noqa: ASYNC110
                await trio.sleep(0.005)
            stopped, other = (here, there) if who == "send" else (there, here)
            stopped.process.send_signal(signal.SIGINT)
    os.close(read_end)
    os.close(write_end)
    assert (stopped.process.returncode, other.process.returncode) == (130, 1)
    assert stopped.errors == ["cancelled by SIGINT"]
    assert stopped.result["status"] == "cancelled"
    (error,) = other.errors
    if who == "send":
        assert re.match(r"(main|channel \d): (broke|TLS ended)", error)
    else:
        assert error == "the destination says that the migration failed"
    assert names(into) == []
