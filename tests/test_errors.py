import pytest

from recsys.errors import ConfigError, DataError, GateError, Mistakes, RecsysError, one_line_errors, raise_ending


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


def test_what_a_library_made_of_a_signal_is_the_signal() -> None:
    class Odd:
        """As a class whose making is broken off: Python 3.11 wraps what `__set_name__` raises."""

        def __set_name__(self, owner: type, name: str) -> None:
            raise SystemExit(143)

    def make() -> None:
        try:
            type("Broken", (), {"odd": Odd()})
        except (RuntimeError, SystemExit) as error:
            raise KeyError("wrapped again") from error

    with pytest.raises(KeyError) as caught:
        make()
    with pytest.raises(SystemExit) as ended:
        raise_ending(caught.value)
    assert ended.value.code == 143
    raise_ending(KeyError("x"))  # nothing of the kind


def test_all_mistakes_are_lines_of_one_error_and_the_same_one_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    mistakes = Mistakes()
    mistakes.end()

    def refuse(kind: type[ConfigError | DataError], *sentences: str) -> int:
        raise kind(*sentences)

    assert mistakes.look(refuse, ConfigError, "a", "b") is None
    assert mistakes.look(len, "four") == 4
    assert mistakes.look(refuse, DataError, "b", "c") is None
    with pytest.raises(SystemExit) as ended, one_line_errors():
        mistakes.end()
    assert (ended.value.code, capsys.readouterr().err) == (1, "a\nb\nc\n")
    with pytest.raises(ValueError, match="no mistake of a user's"):
        mistakes.look(int, "no mistake of a user's")
