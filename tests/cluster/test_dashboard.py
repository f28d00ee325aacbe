import os
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import AuthenticationError

from cluster import dashboard
from recsys.errors import ClusterError, ConfigError

LOCAL, REMOTE = "http://127.0.0.1:8265", "https://ray.example.com"


@pytest.mark.parametrize("address", [LOCAL, "http://localhost:8265", "http://[::1]:8265", "http://127.0.0.2:1", REMOTE])
def test_loopback_and_https_are_safe(address: str) -> None:
    dashboard.check_address(address, insecure_http=False)


@pytest.mark.parametrize("address", ["http://ray.example.com:8265", "http://10.0.0.7:8265", "http://127.0.0.1.example.com:8265"])
def test_plain_http_over_a_network_needs_a_flag(address: str) -> None:
    with pytest.raises(ConfigError, match="--insecure-http"):
        dashboard.check_address(address, insecure_http=False)
    dashboard.check_address(address, insecure_http=True)


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto", "http://"])
def test_an_address_is_a_url_of_a_dashboard(address: str) -> None:
    with pytest.raises(ConfigError, match="URL of a Ray dashboard"):
        dashboard.check_address(address, insecure_http=True)


def test_the_token_is_found_in_order(tmp_path: Path) -> None:
    local, named, home = tmp_path / "token", tmp_path / "named", tmp_path / "home"
    for file, text in ((local, "of-the-local-cluster\n"), (named, "named\n"), (home / ".ray" / "auth_token", "of-ray\n")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def found(address: str, **environment: str) -> str | None:
        return dashboard.token(address, environment, local=local, home=home)

    assert found(LOCAL, RAY_AUTH_TOKEN="given", RAY_AUTH_TOKEN_PATH=str(named)) == "given"
    assert found(LOCAL, RAY_AUTH_TOKEN_PATH=str(named)) == "named"
    assert found(LOCAL) == "of-the-local-cluster"
    assert found(REMOTE) == "of-ray"  # the local cluster's goes nowhere else
    assert dashboard.token(LOCAL, {}, local=tmp_path / "none", home=tmp_path) is None
    with pytest.raises(ConfigError, match="cannot be read"):
        found(LOCAL, RAY_AUTH_TOKEN_PATH=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="characters"):
        found(LOCAL, RAY_AUTH_TOKEN="two\nlines")


def test_the_address_that_was_checked_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def client(address: str, headers: dict[str, str]) -> None:
        seen.update(address=address, headers=headers, environment={name for name in os.environ if name.endswith("_ADDRESS")})

    monkeypatch.setattr(dashboard, "JobSubmissionClient", client)
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265")
    dashboard.connect(LOCAL, "secret", os.environ)
    assert seen["address"] == LOCAL
    assert seen["headers"] == {"Authorization": "Bearer secret"}
    assert not seen["environment"] & {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"}
    assert os.environ["RAY_ADDRESS"] == "http://elsewhere:8265"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (AuthenticationError("Authentication required: Missing authentication token"), "wants a token and none was found"),
        (AuthenticationError("Authentication failed: Invalid authentication token"), "refuses the token"),
        (ConnectionError("Failed to connect to Ray"), "no Ray dashboard answers there"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str) -> None:
    def client(address: str, headers: dict[str, str]) -> None:
        raise error

    monkeypatch.setattr(dashboard, "JobSubmissionClient", client)
    with pytest.raises(ClusterError, match=sentence) as caught:
        dashboard.connect(LOCAL, "secret", os.environ)
    assert "secret" not in str(caught.value)
