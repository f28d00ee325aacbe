from pathlib import Path

import pytest

from recsys.errors import ConfigError
from recsys.secret import secret


def test_a_value_comes_from_the_environment_or_a_file_without_the_white_space_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_ADDRESS", " https://one \n")
    (tmp_path / "address").write_text("https://two\n")
    assert secret(key="notify.url", variable="SHOP_ADDRESS", file=None) == "https://one"
    assert secret(key="notify.url", variable=None, file=str(tmp_path / "address")) == "https://two"
    assert secret(key="notify.url", variable=None, file=None) is None


def test_what_holds_no_value_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOP_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r'^notify\.url_env = "SHOP_ADDRESS": .* must hold a value, got none\. Export it'):
        secret(key="notify.url", variable="SHOP_ADDRESS", file=None)
    monkeypatch.setenv("SHOP_ADDRESS", " ")
    with pytest.raises(ConfigError, match=r"got an empty one\. Export it"):
        secret(key="notify.url", variable="SHOP_ADDRESS", file=None)
    with pytest.raises(ConfigError, match=r'^notify\.url_file = ".*": the file must hold a value, got No such file or directory\. Put'):
        secret(key="notify.url", variable=None, file=str(tmp_path / "none"))
    (tmp_path / "address").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"got other bytes than UTF-8\. Put"):
        secret(key="notify.url", variable=None, file=str(tmp_path / "address"))
