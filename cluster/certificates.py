"""Certificates of one cluster: an authority that lives as long as the call, and one certificate, signed by it, for all nodes."""

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 30  # a cluster that runs for longer is started anew
SKEW = timedelta(hours=1)  # that nodes' clocks may differ by
AUTHORITY, CERTIFICATE, KEY = FILES = ("ca.pem", "node.pem", "node-key.pem")


def make(folder: Path, addresses: Sequence[str]) -> None:
    """Write the three FILES into the folder, the key with mode 0600; the authority's own key is kept nowhere, so it signs nothing more.

    Args:
        addresses: IP addresses that nodes listen on; clients take the certificate for these and for localhost.
    """
    now = datetime.now(UTC)
    authority_key, node_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer, subject = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("recsys cluster", "recsys node"))
    names = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses)]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]  # every node is both
    begun = x509.CertificateBuilder().issuer_name(issuer).not_valid_before(now - SKEW).not_valid_after(now + timedelta(days=DAYS))
    authority = (
        begun.subject_name(issuer)
        .serial_number(x509.random_serial_number())
        .public_key(authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    node = (
        begun.subject_name(subject)
        .serial_number(x509.random_serial_number())
        .public_key(node_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    private = node_key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    remove(folder)
    with os.fdopen(os.open(folder / KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
    (folder / CERTIFICATE).write_bytes(node.public_bytes(serialization.Encoding.PEM))
    (folder / AUTHORITY).write_bytes(authority.public_bytes(serialization.Encoding.PEM))


def remove(folder: Path) -> None:
    """The FILES are gone, where they were there."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def environment(folder: Path) -> dict[str, str]:
    """What Ray reads to speak TLS alone, and to ask whoever calls for a certificate of the same authority; empty without FILES."""
    if not (folder / CERTIFICATE).exists():
        return {}
    told = {"SERVER_CERT": CERTIFICATE, "SERVER_KEY": KEY, "CA_CERT": AUTHORITY}
    return {"RAY_USE_TLS": "1", **{f"RAY_TLS_{name}": str(folder / file) for name, file in told.items()}}
