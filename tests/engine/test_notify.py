import logging

import pytest

from recsys.engine import notify
from tests.addresses import SECRET, address


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "RETRY", notify.RETRY.new(backoff_factor=0))


def test_a_message_arrives_as_json() -> None:
    with address() as here:
        assert notify.post(here.url, {"state": "published", "rows": 3})
    assert here.messages == [{"state": "published", "rows": 3}]


def test_what_fails_for_a_while_is_tried_again() -> None:
    with address(503, 429, 200) as here:
        assert notify.post(here.url, {"rows": 3})
    assert here.messages == [{"rows": 3}] * 3


@pytest.mark.parametrize(("status", "sent"), [(404, 1), (302, 1), (500, 4)])
def test_what_is_refused_is_told_without_the_address(status: int, sent: int, caplog: pytest.LogCaptureFixture) -> None:
    with address(status) as here, caplog.at_level(logging.WARNING, "recsys"):
        assert not notify.post(here.url, {"rows": 3})
    assert len(here.messages) == sent
    assert caplog.messages == [f"notify: the message could not be sent: HTTP {status}. Check the address of [notify]."]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/{}", "http://no such host/{}", "https://127.0.0.1:9/{}"])
def test_an_address_that_nobody_answers_at_is_told_and_fails_nothing(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "recsys"):
        assert not notify.post(url.format(SECRET), {"rows": 3})
    assert "could not be sent" in caplog.text
    assert SECRET not in "".join(record.getMessage() for record in caplog.records if record.name == "recsys")
