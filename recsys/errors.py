"""One small tree of errors; a job prints a line for each mistake and exits with the error's status.

    RecsysError
    ├── ConfigError    the settings: unknown key, wrong type, values that contradict each other
    ├── DataError      the input: missing file or column, wrong type, empty table, as-of outside the data
    ├── BundleError    a model bundle: missing, damaged, mixed, or made for other columns
    ├── PublishError   the recommendation table: audit failed, staged parts missing, commit refused
    ├── GateError      tonight's lists are not what they may be; the job exits 5
    ├── LeaseError     another run works on the table; the job exits 6
    ├── DeadlineError  the deadline passed before there was anything to publish; the job exits 7
    └── ClusterError   Ray: a plan that cannot run on the resources there are

A message says where, what was expected, what was seen, and the next step, in that order:
`events/part-3.parquet: column 'ts' must be timestamp, got int64. Convert it, or set shop.columns.ts.`
"""

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from typing_extensions import override

Asked = ParamSpec("Asked")
Seen = TypeVar("Seen")


class RecsysError(Exception):
    """Every error that a user can mend; anything else that escapes is our own mistake.

    Args:
        sentences: one for each mistake.
    """

    status = 1
    """Exit status of the job."""

    def __init__(self, *sentences: str) -> None:
        super().__init__(*sentences)
        self.sentences = sentences

    @override
    def __str__(self) -> str:
        return " ".join(self.sentences)


class ConfigError(RecsysError):
    """The settings file or a command's arguments cannot be used."""


class DataError(RecsysError):
    """The shop's input cannot be used."""


class BundleError(RecsysError):
    """A model bundle cannot be used."""


class PublishError(RecsysError):
    """The recommendation table cannot be written, or what was staged fails the audit."""


class GateError(RecsysError):
    """The gate stopped tonight's table; what was published before stands.

    Args:
        figures: checks that failed, with their values.
    """

    status = 5

    def __init__(self, message: str, figures: Mapping[str, float] = {}) -> None:
        super().__init__(message)
        self.figures = dict(figures)


class LeaseError(RecsysError):
    """Another run works on the table."""

    status = 6


class DeadlineError(RecsysError):
    """The deadline passed before there was anything to publish."""

    status = 7


class ClusterError(RecsysError):
    """Ray cannot run the plan on the resources it has."""


class Mistakes:
    """Mistakes of one input, gathered: what can still be looked at is looked at after one, so that all of them are said at once."""

    def __init__(self) -> None:
        self.found: list[ConfigError | DataError] = []

    def look(self, at: Callable[Asked, Seen], *args: Asked.args, **kwargs: Asked.kwargs) -> Seen | None:
        """What the function returns, called with the arguments; None where it raises ConfigError or DataError, which is kept."""
        try:
            return at(*args, **kwargs)
        except (ConfigError, DataError) as error:
            self.found.append(error)
            return None

    def end(self) -> None:
        """Nothing, where there was no mistake.

        Raises:
            ConfigError, DataError: the mistake, or an error of the first one's class with the sentences of all.
        """
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise type(self.found[0])(*dict.fromkeys(sentence for error in self.found for sentence in error.sentences))


def raise_ending(error: BaseException) -> None:
    """Nothing, unless the error came of the process being ended, as by SIGTERM or Ctrl-C: a library that was importing wraps that.

    Raises:
        SystemExit, KeyboardInterrupt: what it came of.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SystemExit | KeyboardInterrupt):
            raise cause
        cause = cause.__cause__ or cause.__context__


def one_line(error: BaseException | str) -> str:
    """The message as one line of signs that can be shown: it may quote the shop."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(str(error).split()))


@contextmanager
def one_line_errors() -> Generator[None]:
    """A block whose errors that a user can mend end the program: each sentence as a line on stderr, and the error's exit status."""
    try:
        yield
    except RecsysError as error:
        print(*map(one_line, error.sentences), sep="\n", file=sys.stderr)  # noqa: T201 # the command line's last word
        raise SystemExit(error.status) from error
