"""People taken out of all that the house keeps: the table's nights, the pages, what lies under run.work; and what remains, said.

Order: refuse while the shop's own tables still hold them; the table (`publishing.erase`) and the places of [[exports]]; pages; work;
a mark on the bundles; a look at every file that is left; the certificate, written last. Broken off anywhere, the same command begins
again and ends the same.
"""

import html
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import Settings
from recsys.data.inputs import Input, open_input, read
from recsys.data.keyed import key_of
from recsys.data.names import text_types
from recsys.data.types import clean_ids, id_type
from recsys.engine.lease import leased
from recsys.engine.stage import stage_folders
from recsys.errors import ConfigError, DataError
from recsys.evaluation import report
from recsys.pipelines.card import mark_cards
from recsys.pipelines.exports import check_exports, hand_on, place_of, refuse_failed
from recsys.pipelines.night_record import read_record
from recsys.publishing.delta import open_table
from recsys.publishing.erase import Erased, erase_users, forget_history, holding, nights_with
from recsys.ranking.registry import Registry
from recsys.schema import USER_ID
from recsys.storage import write_atomically

CERTIFICATES = "erasures"  # below report.path
BEGUN = "begun.json"  # there: what a run found to remove, until its certificate is written
KEPT = "locks"  # below run.work: files of no content
UNLIKE = 8  # characters of an id that no other word is by chance
TOLD = 5  # files that still hold somebody, of which a sentence names so many


@dataclass(frozen=True)
class Certificate:
    """What was removed, what remains, and that nothing else names them."""

    table: str
    begun_utc: str
    ended_utc: str
    users: int
    """Asked for."""
    nights: list[dict[str, Any]]
    """Of the table: as_of, and how many of them and of their rows were in it."""
    pages: list[str]
    """Records that showed one of them, written anew without."""
    work_files: int
    """Removed from run.work: all of it, as nothing in it is not made again."""
    bundles: list[str]
    """Models that were trained before: what they learned may rest on them, until another becomes the champion."""
    exports: list[str]
    """Places of [[exports]] whose lists were written anew, in full."""
    looked_at: int
    """Files below table, reports, work and bundles, of which none holds one of them."""

    @property
    def sentence(self) -> str:
        """For people."""
        rows = sum(night["rows"] for night in self.nights)
        pages = f"{len(self.pages)} pages, {self.work_files:,} files of work"
        return (
            f"Erased {self.users:,} users: {rows:,} rows of {len(self.nights)} nights, {pages}. "
            f"None of {self.looked_at:,} files that are left names them."
        )


def read_ids(path: Path, dtype: pa.DataType) -> pa.Array:
    """The ids that a file lists, one a line, each once; empty lines and spaces around are nothing.

    Args:
        dtype: of the shop's user ids, int64 or string.

    Raises:
        ConfigError: no such file, a line that is no id, or none at all.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--ids {path}: must be a text file with an id on each line, got: {error}. Name one.") from error
    if pa.types.is_integer(dtype):
        for number, line in enumerate(lines, 1):
            if line and not line.lstrip("-").isdecimal():
                raise ConfigError(f"--ids {path}: user ids are {dtype}, got '{line}' on line {number}. Nothing was erased; mend it.")
    ids = pa.array(dict.fromkeys(int(line) if pa.types.is_integer(dtype) else line for line in lines if line), dtype)
    if not len(ids):
        raise ConfigError(f"--ids {path}: must list the ids to erase, one a line, got none. Nothing was erased.")
    return ids


def erase(settings: Settings, ids_file: Path) -> tuple[Certificate, Path]:
    """The certificate, and where it lies.

    Args:
        ids_file: raw ids, as the shop's tables have them; with [privacy] their digests are erased.

    Raises:
        ConfigError: the file of ids, or a run works below run.work.
        DataError: the shop's tables still hold one of them, so the next night would bring it back; or a file holds one at the end.
        LeaseError: a run works on the table.
        PublishError: the table cannot be read or written, or a place of [[exports]] cannot.
    """
    begun = datetime.now(UTC)
    check_exports(settings.exports)
    shop, key = settings.shop, key_of(settings)
    events = open_input("shop.events", shop.events, shop.storage_options, form=None, types=text_types(settings))
    column = shop.columns.user_id
    raw = read_ids(ids_file, id_type(events.require(column, setting="shop.columns.user_id"), where=events.location, column=column))
    _refuse_known(settings, events, raw)
    users = raw if key is None else pa.array([key.of(one) for one in raw.to_pylist()], pa.string())
    path, storage = settings.table.path, shop.storage_options
    reports, work = Path(settings.report.path), Path(settings.run.work)
    with leased(path, storage, what="erasing users"):
        if owned := [one.name for one in stage_folders(work) if one.owned]:
            raise ConfigError(f"{work}: a run works in {owned[0]}. Wait for it, or end it, and erase again.")
        found = _begun(
            reports / CERTIFICATES / BEGUN,
            nights=nights_with(path, users, storage),
            pages=[file.name for file, _ in _showing(reports, users)],
            work_files=len(_below(work)),
        )
        if open_table(path, storage) is not None:
            erase_users(path, users, storage)
            forget_history(path, storage)
            handed = hand_on(path, settings.exports, full=True, storage_options=storage)
            refuse_failed(handed, done=f"{path}: the users are erased from the table, not from all that holds its lists")
        for file, record in _showing(reports, users):
            _write(file.with_suffix(".html"), report.render(record))
            _write(file, json.dumps(record, indent=1) + "\n")
        for entry in {work / file.relative_to(work).parts[0] for file in _below(work)}:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        registry = Registry(settings.champion.path)
        bundles = registry.mark_erased(len(users), when=begun)
        mark_cards(registry)
        looked_at, held = holding(path, users, storage)
    left = [file for place in (reports, work, Path(settings.champion.path)) for file in sorted(place.rglob("*")) if file.is_file()]
    held += [str(file) for file in _naming(left, users)]
    if held:
        others = f", as do {len(held) - 1} others, such as {', '.join(held[1:TOLD])}" if held[1:] else ""
        raise DataError(f"{held[0]}: still names one of the users{others}. See what wrote it, remove it, and erase again.")
    done = Certificate(
        table=path,
        begun_utc=begun.isoformat(timespec="seconds"),
        ended_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        users=len(users),
        bundles=bundles,
        exports=[place_of(one) for one in settings.exports],
        looked_at=looked_at + len(left),
        **found,
    )
    place = reports / CERTIFICATES / f"{begun:%Y%m%dT%H%M%S}.json"
    _write(place, json.dumps(asdict(done), indent=1) + "\n")
    (reports / CERTIFICATES / BEGUN).unlink()
    return done, place


def _begun(file: Path, *, nights: Sequence[Erased], pages: Sequence[str], work_files: int) -> dict[str, Any]:
    """What there is to remove, with what runs that were broken off had found: they may have removed it. Kept before the work."""
    before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    of_nights = {night["as_of"]: night for night in before.get("nights", [])}
    of_nights |= {night.as_of.isoformat(): {**asdict(night), "as_of": night.as_of.isoformat()} for night in nights}
    found = {
        "nights": [of_nights[day] for day in sorted(of_nights, reverse=True)],
        "pages": sorted({*before.get("pages", []), *pages}),
        "work_files": max(before.get("work_files", 0), work_files),
    }
    _write(file, json.dumps(found, indent=1) + "\n")
    return found


def _refuse_known(settings: Settings, events: Input, users: pa.Array) -> None:
    """Nothing, where none of the shop's tables holds one of the users.

    Raises:
        DataError: a sentence for each that does.
    """
    wrong: list[str] = []
    for setting, source in _tables(settings, events):
        column = settings.shop.columns.user_id
        found: set[str | int] = set()
        where: list[str] = []
        for file in source.files:
            for group in range(file.row_groups):
                ids = clean_ids(read(source, file, [group], [column]).column(column), users.type)
                held = pc.unique(ids.filter(pc.is_in(ids, value_set=users))).to_pylist()
                found.update(held)
                where += [file.path] if held and file.path not in where else []
        if found:
            wrong.append(
                f"{setting} = {source.location}: must hold none of the users to erase, got {len(found):,} of {len(users):,} in "
                f"{len(where)} files, {where[0]} among them. Delete them there first: the next night would bring them back."
            )
    if wrong:
        raise DataError(*wrong)


def _tables(settings: Settings, events: Input) -> Iterator[tuple[str, Input]]:
    """The shop's tables that name users, each with its setting."""
    shop, options = settings.shop, {"form": None, "types": text_types(settings)}
    yield "shop.events", events
    if shop.users is not None:
        yield "shop.users", open_input("shop.users", shop.users, shop.storage_options, version=shop.versions.get("users"), **options)
    if settings.rank.candidates:
        yield "rank.candidates", open_input("rank.candidates", settings.rank.candidates, shop.storage_options, **options)
    for rule in settings.rules:
        for what, location in rule.lists().items():
            if what in ("users", "pairs"):
                named = f"the rule '{rule.name}'"
                yield named, open_input(named, location, shop.storage_options, may_be_empty=True, **options)


def _showing(folder: Path, users: pa.Array) -> list[tuple[Path, dict[str, Any]]]:
    """Records of nights that show lists of the users, and what they are without those."""
    gone = set(users.to_pylist())
    found: list[tuple[Path, dict[str, Any]]] = []
    for file in sorted(folder.glob("*.json")):
        record = read_record(file) or {}  # of a damaged one nothing is shown; it is named at the end
        sample = [one for one in record.get("sample", []) if one[USER_ID] not in gone]
        if len(sample) < len(record.get("sample", [])):
            found.append((file, {**record, "sample": sample}))
    return found


def _write(file: Path, text: str) -> None:
    write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))


def _below(work: Path) -> list[Path]:
    """The files below run.work, all of which can be made again; locks hold nothing, and are none of them."""
    return [file for file in work.rglob("*") if file.is_file() and file.relative_to(work).parts[0] != KEPT]


def _naming(files: Sequence[Path], users: pa.Array) -> Iterator[Path]:
    """Those of the files that name one of the users: as one whose list a record or a page shows, and in any file an id that is long
    enough to be nothing else, as a word of its own."""
    ids = users.to_pylist()
    shown = {str(one) for one in ids}
    long = [re.escape(one.encode()) for one in shown if len(one) >= UNLIKE]
    words = re.compile(rb"(?<!\w)(" + b"|".join(long) + rb")(?!\w)") if long else None
    for file in files:
        content = file.read_bytes()
        named: Iterable[str] = ()
        if file.suffix == ".json":
            try:
                record = json.loads(content)
            except ValueError:  # damaged: it may name anybody
                yield file
                continue
            named = (str(one[USER_ID]) for one in record.get("sample", [])) if isinstance(record, dict) else ()
        elif file.suffix == ".html":
            named = (html.unescape(one) for one in re.findall(r">User ([^<]+)<", content.decode(errors="replace")))
        if not shown.isdisjoint(named) or (words is not None and words.search(content)):
            yield file
