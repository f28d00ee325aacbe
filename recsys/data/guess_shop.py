"""A stranger's tables -> the lines of a settings file, each with the reason for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc
import tomlkit
from tomlkit.items import Table

from recsys.config import Settings
from recsys.data.cleaning import clean
from recsys.data.guess import (
    Choose,
    Guess,
    Looked,
    guess_ids,
    guess_ignored,
    guess_key,
    guess_kind,
    guess_numbers,
    guess_rating,
    guess_times,
    look,
)
from recsys.data.guess_features import describe, guess_item_columns
from recsys.data.guess_past import Past, guess_past
from recsys.data.inputs import Input, open_input, read
from recsys.data.names import text_types
from recsys.data.types import id_type, midnight
from recsys.errors import DataError, Mistakes
from recsys.hashing import sampled, stable_hash
from recsys.schema import DAY_US, ITEM_ID, LOOK, TS, USER_ID, WANTED

EVENTS = 5_000_000  # whose users' past is looked at, about: of a larger shop those of some users, chosen by hash
OPTIONAL = {"events": ("kind", "quantity", "price"), "items": ("available", "name")}


@dataclass(frozen=True)
class Guessed:
    """What is thought of a shop."""

    guesses: list[Guess]
    left_out: dict[str, dict[str, str]]
    """Of the tables of items and users, columns that no setting names -> why."""
    past: Past


def guess_shop(places: Mapping[str, str], *, choose: Choose, today: date) -> Guessed:
    """What the tables at these places mean.

    Args:
        places: path or URI of `events` and, where there are such, of `items` and `users`.
        choose: asked of what is not sure.
        today: events after it are a mistake, and tell nothing of the shop's past.

    Raises:
        DataError: a table cannot be opened, or has no column for what it must have.
    """
    mistakes = Mistakes()
    opened = {name: mistakes.look(open_input, f"--{name}", place, {}, form=None) for name, place in places.items()}
    mistakes.end()
    tables = {name: look(source) for name, source in opened.items() if source is not None}
    events = tables.pop("events")
    roles = {"items": ITEM_ID, "users": USER_ID}
    keys = {roles[name]: guess_key(table, roles[name], choose) for name, table in tables.items()}

    ids = guess_ids(events, keys, {roles[name]: table for name, table in tables.items()}, choose)
    guesses = [ids[USER_ID], ids[ITEM_ID]]
    taken = [str(guess.value) for guess in guesses]
    guesses += guess_times(events, taken, choose)
    taken += [guess.value for guess in guesses if guess.key == "ts"]
    guesses += guess_kind(events, taken, choose)
    guesses += guess_numbers(events, taken)
    guesses += guess_rating(events, taken, choose)
    described, left_out = _described(tables, keys)
    guesses += described
    ignored: list[str] = []
    for name, table in {"events": events, **tables}.items():
        named = [guess.value for guess in guesses if guess.section == "shop.columns"]
        unset = [one for one in OPTIONAL.get(name, ()) if one not in {guess.key for guess in guesses}]
        ignored += guess_ignored(table, unset, [*named, *_features(guesses)])
    if ignored:
        guesses.append(Guess("shop", "ignore", list(dict.fromkeys(ignored)), "called nearly as a column of ours, and not read"))
    _check_keys(ids, keys, tables)
    past = _past(events.source, guesses, today=today)
    return Guessed([guess for guess in [*guesses, *past.guesses] if guess.section], left_out, past)


def _described(tables: Mapping[str, Looked], keys: Mapping[str, str]) -> tuple[list[Guess], dict[str, dict[str, str]]]:
    """Features of items and users, their names and whether they may be listed; columns that are left out, and why."""
    guesses: list[Guess] = []
    left_out: dict[str, dict[str, str]] = {}
    for name, role in (("items", ITEM_ID), ("users", USER_ID)):
        if name not in tables:
            continue
        table = tables[name]
        taken = [keys[role]]
        if name == "items":
            guesses += guess_item_columns(table, taken)
            taken += [str(guess.value) for guess in guesses]
        elsewhere = tables["items"].columns if name == "users" and "items" in tables else []
        found = describe(table, taken, of_users=name == "users", elsewhere=elsewhere)
        for kind, columns in (("categorical", found.categorical), ("numeric", found.numeric), ("vectors", found.vectors)):
            if columns:
                why = "; ".join(f"{column}: {reason}" for column, reason in columns.items())
                guesses.append(Guess("features", f"{name[:4]}_{kind}", list(columns), why))
        left_out[name] = found.left_out
    return guesses, left_out


def _features(guesses: list[Guess]) -> list[str]:
    return [column for guess in guesses if guess.section == "features" for column in guess.value]


def _check_keys(ids: Mapping[str, Guess], keys: Mapping[str, str], tables: Mapping[str, Looked]) -> None:
    """Refuse tables whose key has another name than the events' id: the settings have one name for both.

    Raises:
        DataError: one for each.
    """
    wrong = [
        f"{tables[name].source.location}: column '{keys[role]}' says which {name[:4]} a row is of, and that of events is "
        f"'{ids[role].value}'; the settings have one name for both. Rename one of them."
        for name, role in (("items", ITEM_ID), ("users", USER_ID))
        if role in keys and keys[role] != ids[role].value
    ]
    if wrong:
        raise DataError(*wrong)


def settings_of(guesses: list[Guess], places: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """The values of a settings file, by section; of what is called as we call it nothing."""
    values: dict[str, dict[str, object]] = {"shop": dict(places)}
    columns = {guess.key: guess.value for guess in guesses if guess.section == "shop.columns" and guess.key != guess.value}
    for guess in guesses:
        if guess.section and guess.section != "shop.columns":
            values.setdefault(guess.section, {})[guess.key] = guess.value
    if columns:
        values["shop"]["columns"] = columns
    return values


def _past(events: Input, guesses: list[Guess], *, today: date) -> Past:
    """The past of the users of about EVENTS events, each with all of theirs.

    Raises:
        DataError: no event of them can be used.
    """
    of_events = [guess for guess in guesses if guess.section.startswith("shop")]
    settings = Settings.model_validate(settings_of(of_events, {"events": events.location}))
    columns = settings.shop.columns
    source = open_input("--events", events.location, {}, form=None, types=text_types(settings))
    share = EVENTS / source.rows
    names = [columns.user_id, columns.item_id, columns.ts, *([columns.kind] if settings.shop.label_kinds else [])]
    types = [id_type(source.columns[name], where=source.location, column=name) for name in names[:2]]
    kept: list[pa.Table] = []
    for file in source.files:
        for number in range(file.row_groups):
            rows = read(source, file, [number], names)
            usable, _ = clean(rows, settings=settings, user_id=types[0], item_id=types[1], end=midnight(date.max), where=file.path)
            chosen = usable.select([USER_ID, ITEM_ID, TS, LOOK])
            if share < 1:
                chosen = chosen.filter(pa.array(sampled(stable_hash(chosen.column(USER_ID).to_numpy()), share)))
            kept.append(chosen)
    table = pa.concat_tables(kept)
    past = table.filter(pc.equal(table.column(LOOK), WANTED))
    past = past.filter(pc.less(past.column(TS).cast(pa.int64()), midnight(today) + DAY_US))
    if not past.num_rows:
        raise DataError(
            f"{events.location}: no event up to {today} can be used with {', '.join(names)} as its columns. Name the columns by hand."
        )
    return guess_past(table, today=today)


def written(guessed: Guessed, places: Mapping[str, str], folders: Mapping[str, str]) -> str:
    """The settings file: every line with its reason above it, what is not sure marked CHECK.

    Args:
        places: as of `guess_shop`.
        folders: `section.key` -> the folder that it is set to.
    """
    document = tomlkit.document()
    document.add(tomlkit.comment("Guessed from the tables by jobs.init. Lines marked CHECK are not sure: look at them."))
    document.add(tomlkit.comment("docs/settings.md lists every key; what is not named here keeps its default."))
    shop = tomlkit.table()
    for name, place in places.items():
        shop.add(name, place)
    columns = tomlkit.table()
    features, window = tomlkit.table(), tomlkit.table()
    sections = {"shop": shop, "shop.columns": columns, "features": features, "window": window}
    for guess in guessed.guesses:
        section = sections[guess.section]
        if guess.section == "shop.columns" and guess.key == guess.value:
            continue  # called as we call it
        _line(section, guess)
    for name, found in guessed.left_out.items():
        for column, why in found.items():
            features.add(tomlkit.comment(f"of {name} left out: {column}: {why}"))
    if len(columns):
        shop.add("columns", columns)
    document.add("shop", shop)
    if len(features) or any(guessed.left_out.values()):
        document.add("features", features)
    document.add("window", window)
    rank = tomlkit.table()
    share = f"{guessed.past.repeats:.1%} of what users wanted they had wanted on an earlier day"
    rank.add(tomlkit.comment(f"{share}; where this is absent, each night decides by that."))
    rank.add(tomlkit.comment("allow_repeats = true"))
    document.add("rank", rank)
    for name, folder in folders.items():
        section, _, key = name.partition(".")
        table = tomlkit.table()
        table.add(key, folder)
        document.add(section, table)
    return tomlkit.dumps(document)


def _line(section: Table, guess: Guess) -> None:
    section.add(tomlkit.comment(f"{'CHECK: ' if guess.others else ''}{guess.why}{_or(guess)}"))
    section.add(guess.key, guess.value)


def _or(guess: Guess) -> str:
    others = [str(other) for other in guess.others if other != guess.value]
    return f"; or {', '.join(others)}" if others else ""
