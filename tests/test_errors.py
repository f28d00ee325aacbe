import pytest

from recsys.errors import ConfigError, GateError, RecsysError, one_line_errors


@pytest.mark.parametrize(("error", "status"), [(ConfigError("a\n  b"), 1), (GateError("a b"), 5)])
def test_an_error_that_a_user_can_mend_is_one_line_and_its_status(
    error: RecsysError, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert (ended.value.code, capsys.readouterr().err) == (status, "a b\n")


def test_what_a_message_quotes_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        raise ConfigError("column 'pr\x1b[2Jice'")
    assert capsys.readouterr().err == "column 'pr\ufffd[2Jice'\n"


def test_our_own_mistakes_are_no_sentences() -> None:
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError("x")
