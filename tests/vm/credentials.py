"""x509 credentials, as QEMU and as `ssl` want them."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final, Self, final

import attrs
import trustme

HOSTNAME: Final = "destination.example"
"""What the server's certificate is for."""


@final
@attrs.frozen
class Credentials:
    """A certificate for each side, by one authority."""

    directory: Path
    """With the files that QEMU looks for in it."""
    authority: trustme.CA
    client_cert: trustme.LeafCert
    server_cert: trustme.LeafCert

    @classmethod
    def make(cls, directory: Path) -> Self:
        """Make them, and *directory* for them."""
        directory.mkdir()
        authority = trustme.CA()
        client = authority.issue_cert("source.example")
        server = authority.issue_cert(HOSTNAME)
        authority.cert_pem.write_to_path(directory / "ca-cert.pem")
        for name, cert in ("client", client), ("server", server):
            cert.private_key_pem.write_to_path(directory / f"{name}-key.pem")
            path = directory / f"{name}-cert.pem"
            for pem in cert.cert_chain_pems:
                pem.write_to_path(path, append=True)
        return cls(directory, authority, client, server)

    def server_context(self) -> ssl.SSLContext:
        """Return what a destination has, which asks for a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server_cert.configure_cert(context)
        self.authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def options(self, end: str) -> list[str]:
        """Return the same for the command, as ``client`` or as ``server``."""
        files = {"ca": "ca-cert", "cert": f"{end}-cert", "key": f"{end}-key"}
        options = [
            f"--tls-{what}={self.directory / name}.pem" for what, name in files.items()
        ]
        return options + [f"--tls-hostname={HOSTNAME}"] * (end == "client")
