"""What became of each run of a night, however it ended: one JSON file a run, and one message at its end.

<report.path>/runs/<begun>-<process>.json     the fields of `NightRun`
<report.path>/runs/<begun>-<process>.lock     while it runs: the kernel's lock, which the run's end frees
"""

import json
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from recsys.config import Notify, Settings
from recsys.data.dataset import ShopDataset
from recsys.engine.ending import as_told
from recsys.engine.metrics import tell
from recsys.engine.notify import post
from recsys.engine.owner import is_owned, owned
from recsys.engine.progress import after_commit, log
from recsys.errors import GateError, LeaseError, RecsysError, one_line
from recsys.publishing.release import Published
from recsys.publishing.table import PublishedNight
from recsys.secret import secret
from recsys.storage import write_atomically

RUNS = "runs"  # below report.path
STEPS = ("read", "train", "score", "publish")  # of a run, in order; the last from the last scored unit to the commit

RUNNING = "running"
PUBLISHED = "published"
STOOD = "stood"  # there was nothing to do
STOPPED = "stopped"  # by the gate
REFUSED = "refused"  # by the lease of another run
FAILED = "failed"
ENDED = "ended"  # from outside: a signal, Ctrl-C
DIED = "died"  # without a word


@dataclass
class NightRun:
    """One run of a night."""

    as_of: str
    """ISO date, as all dates and times here, which are UTC."""
    table: str
    state: str = RUNNING
    begun: str = field(default_factory=lambda: _now().isoformat(timespec="seconds"))
    ended: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Of STEPS those that are done -> how long each took, wall clock."""
    exit_status: int | None = None
    run_id: str | None = None
    model_version: str | None = None
    rows: int | None = None
    """Of the night that stands after the run, as `users` and the two before."""
    users: int | None = None
    carried: int | None = None
    """Users whom a deadline cut off: they keep rows of an earlier night."""
    figures: dict[str, float] = field(default_factory=dict)
    """Checks of the gate that stopped it, with their values."""
    exports: dict[str, str] = field(default_factory=dict)
    """Each place of [[exports]] -> what failed there; "" where it holds the newest night."""
    said: str = ""
    """The error in one line, where there was one."""
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        self._since = time.monotonic()

    def step(self, name: str) -> None:
        """A step is done: what passed since the last one, or since the run began, is its time."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._since, 1)
        self._since = now
        tell("step_seconds", self.seconds[name], step=name)

    def read(self, shop: ShopDataset) -> None:
        """The shop was read."""
        self.step("read")
        for table in ("events", "items", "users"):
            tell("rows_read", shop.rows[table], table=table)
            for reason, count in shop.rejected.get(table, {}).items():
                tell("rows_rejected", count, table=table, reason=reason)

    def published(self, table: Published) -> None:
        """The night stands; where this very run stood there before, so says the state."""
        self.state = STOOD if table.version is None else PUBLISHED
        self.run_id, self.model_version, self.rows, self.users = table.run_id, table.model_version, table.rows, table.users
        self.carried = table.carried["users"] if table.carried else None
        tell("table_rows", table.rows)
        tell("table_users", table.users)
        for check in table.verdict.checks if table.verdict else ():
            if check.value is not None:
                tell("gate", check.value, check=check.name)

    def stood(self, night: PublishedNight) -> None:
        """There was nothing to do."""
        self.state = STOOD
        self.run_id, self.model_version, self.rows = night.run_id, night.model_version, night.rows

    def exported(self, places: dict[str, str]) -> None:
        """The lists were handed on, or not: each place with what failed there."""
        self.exports = places
        for place, said in places.items():
            tell("export_failed", float(bool(said)), place=place)

    def failed(self, error: BaseException) -> None:
        """The night was not published."""
        self.state, self.exit_status, self.said = ENDED, None, one_line(error)
        if isinstance(error, RecsysError):
            self.state = STOPPED if isinstance(error, GateError) else REFUSED if isinstance(error, LeaseError) else FAILED
            self.exit_status = error.status
            self.figures = error.figures if isinstance(error, GateError) else {}
        elif isinstance(error, Exception):
            self.state, self.exit_status, self.said = FAILED, 1, f"{type(error).__name__}: {self.said}"
        elif isinstance(error, SystemExit):
            self.exit_status = error.code if isinstance(error.code, int) else 1
            known = {128 + number: number.name for number in signal.Signals}  # as a shell tells them
            self.said = known.get(self.exit_status, f"exit status {self.exit_status}")
        else:
            self.said = "Ctrl-C"

    @property
    def sentence(self) -> str:
        """What became of the run, for people."""
        night, minutes = f"Night {self.as_of} of {self.table}", f"{sum(self.seconds.values()) / 60:.0f} min"
        match self.state:
            case "published":
                late = f" The deadline came before {self.carried:,} of them, who keep rows of an earlier night." if self.carried else ""
                told = f"{self.rows:,} rows for {self.users:,} users, model {self.model_version}, in {minutes}"
                return f"{night} is published: {told}.{late}{self._behind}"
            case "stood":
                return f"{night} stood already: {self.rows:,} rows, model {self.model_version}.{self._behind}"
            case "stopped":
                return f"{night} was stopped by the gate: {self.said}"
            case "refused":
                return f"{night} was not begun: {self.said}"
            case "ended":
                return f"{night} was ended from outside{f' ({self.said})' if self.said else ''}; what is finished is kept."
            case _:
                return f"{night}: {self.state}. {self.said}".rstrip()

    @property
    def _behind(self) -> str:
        return "".join(f" {place} still holds what was before: {said}" for place, said in self.exports.items() if said)

    @property
    def remark(self) -> str:
        """What jobs.runs says of it beside its figures: the error, or the places that did not take the lists."""
        return (self.said + self._behind).strip()


@contextmanager
def kept_run(settings: Settings, *, as_of: date) -> Iterator[NightRun]:
    """A block that makes a night: its run is kept from now on, and at the end told to whom `[notify]` names.

    Neither a record that cannot be written nor a message that cannot be sent fails the night.

    Raises:
        ConfigError: `[notify]` names an address that is not there, or report.path cannot be written to.
    """
    notify = settings.notify
    url = secret(key="notify.url", variable=notify.url_env, file=notify.url_file) or notify.url
    run = NightRun(as_of.isoformat(), settings.table.path)
    folder = Path(settings.report.path).absolute() / RUNS
    file = folder / f"{_now():%Y%m%dT%H%M%S.%f}-{run.pid}.json"
    lock = file.with_suffix(".lock")
    error: BaseException | None = None
    with ExitStack() as stack:
        stack.callback(_remove, lock)  # the last thing of all: what is locked is not removed
        stack.enter_context(owned(lock, what=f"the run of night {as_of}"))
        _write(file, run)
        try:
            with as_told():
                yield run
        except BaseException as raised:
            run.failed(error := raised)
            raise
        else:
            run.exit_status = 0
        finally:
            run.ended = _now().isoformat(timespec="seconds")
            with after_commit("metrics"):
                for check, figure in run.figures.items():
                    tell("gate_stopped", figure, check=check)
                if run.exit_status is not None:
                    tell("exit_status", run.exit_status, night=run.as_of)
            try:
                _write(file, run)
            finally:
                if url is not None and not isinstance(error, KeyboardInterrupt):  # who pressed Ctrl-C knows
                    post(url, _message(run, notify))


def read_runs(settings: Settings) -> list[NightRun]:
    """All runs of the shop's nights that are kept, newest first."""
    found = []
    for file in sorted((Path(settings.report.path).absolute() / RUNS).glob("*.json"), reverse=True):
        try:
            run = NightRun(**json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError, OSError) as error:
            log.warning("%s: no record of a run, is passed over: %s", file, error)
            continue
        if run.state == RUNNING and not is_owned(file.with_suffix(".lock")):
            run.state = DIED
        found.append(run)
    return found


def _message(run: NightRun, notify: Notify) -> dict[str, Any]:
    return {"text": run.sentence} if notify.format == "slack" else {**asdict(run), "sentence": run.sentence}


def _write(file: Path, run: NightRun) -> None:
    text = json.dumps(asdict(run), indent=1) + "\n"
    try:
        write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        log.warning("%s: the run's record cannot be written: %s", file, error.strerror)


def _remove(lock: Path) -> None:
    """The lock's file, which says nothing any more; one that stays does no harm."""
    with suppress(OSError):
        lock.unlink()


def _now() -> datetime:
    return datetime.now(UTC)
