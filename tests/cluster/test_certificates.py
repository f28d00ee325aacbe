import socket
import ssl
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from cluster import certificates, local
from tests.cluster.test_cluster import ports, run

WORK = """
import numpy, os, ray
ray.init()
where = ray.remote(num_cpus=2)(lambda array: (ray.util.get_node_ip_address(), os.environ["RAY_USE_TLS"], array.nbytes))
print(ray.get(where.remote(ray.put(numpy.zeros(10**6)))))
"""


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_cluster_with_tls_works_and_hears_nobody_without_a_certificate_of_its_own(tmp_path: Path) -> None:
    folder, working = tmp_path / "cluster", tmp_path / "working"
    working.mkdir()
    (working / "work.py").write_text(WORK)
    gcs, dashboard, client = ports()
    asked = ("--gcs-port", gcs, "--dashboard-port", dashboard, "--client-port", client, "--workers", 1, "--tls")
    started = run("cluster.local", "up", "--folder", folder, *asked, timeout=200)
    try:
        assert started.returncode == 0, started.stderr
        assert "token authentication and TLS are on" in started.stdout
        assert (folder / certificates.KEY).stat().st_mode & 0o777 == 0o600
        ours = ssl.create_default_context(cafile=folder / certificates.AUTHORITY)
        assert not _answers(ours, gcs)
        ours.load_cert_chain(folder / certificates.CERTIFICATE, folder / certificates.KEY)
        assert _answers(ours, gcs)
        other = tmp_path / "other"
        other.mkdir()
        certificates.make(other, ["127.0.0.2"])
        theirs = ssl.create_default_context(cafile=folder / certificates.AUTHORITY)
        theirs.load_cert_chain(other / certificates.CERTIFICATE, other / certificates.KEY)
        assert not _answers(theirs, gcs)
        told = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": local.token_file(folder)}
        submit = ("ray.scripts.scripts", "job", "submit", "--address", f"http://127.0.0.1:{dashboard}", "--working-dir", working)
        done = run(*submit, "--", sys.executable, "work.py", timeout=200, **told)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "('127.0.0.3', '1', 8000000)" in done.stdout
    finally:
        ended = run("cluster.local", "down", "--folder", folder, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert not [*folder.glob("*.pem")]


def _answers(context: ssl.SSLContext, port: int) -> bool:
    """Whether the GCS answers HTTP/2's greeting from a client with these certificates."""
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.2", port), timeout=10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="127.0.0.2") as spoken:
                spoken.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
                return bool(spoken.recv(9))
        except (ssl.SSLError, ConnectionError):
            return False


def test_certificates_are_for_the_nodes_addresses_and_signed_by_an_authority_whose_key_is_nowhere(tmp_path: Path) -> None:
    certificates.make(tmp_path, ["127.0.0.2", "::1"])
    authority, node = (x509.load_pem_x509_certificate((tmp_path / name).read_bytes()) for name in ("ca.pem", "node.pem"))
    node.verify_directly_issued_by(authority)
    names = node.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.2", "::1"]
    left = authority.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=certificates.DAYS - 1) < left <= timedelta(days=certificates.DAYS)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(certificates.FILES)
    assert (tmp_path / certificates.KEY).stat().st_mode & 0o777 == 0o600
    key = serialization.load_pem_private_key((tmp_path / "node-key.pem").read_bytes(), None)
    assert key.public_key() == node.public_key() != authority.public_key()
    environment = certificates.environment(tmp_path)
    assert environment["RAY_USE_TLS"] == "1"
    assert environment["RAY_TLS_SERVER_KEY"] == str(tmp_path / "node-key.pem")
    certificates.remove(tmp_path)
    assert certificates.environment(tmp_path) == {}
    assert not [*tmp_path.iterdir()]
