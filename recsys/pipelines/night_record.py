"""A night's record: every figure that its page shows, as plain JSON, from what the stages left behind.

    <report.path>/<as_of>.json, .html                    of a published night
    <report.path>/<as_of>-stopped.json, -stopped.html    of a night that the gate stopped; what stood before it stands

A record holds what `RECORD` of the scoring stage holds, and beside that `status`, `table`, `finished_utc`, `inputs`,
`rejected`, `funnel`, `given` as `supplied.supplied_rows`, `words` (column -> how many, and how many unknown to the model), `metrics` as
`backtest.measure`, `decision`, `fallback` (how the model did against the baseline whose order was published in its stead, else null),
`training`, `lists`, `popularity`, `sample`, `stages`, `shards` and `nights`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import expit

from recsys.config import Settings
from recsys.data.catalog import Catalog, encode
from recsys.engine.progress import after_commit, log
from recsys.engine.stage import Receipt, Stage
from recsys.errors import GateError
from recsys.evaluation import report
from recsys.hashing import stable_hash
from recsys.pipelines.champion import Chosen
from recsys.pipelines.deadline import Deadline, units_of
from recsys.pipelines.past import als_of
from recsys.pipelines.score import CARRIED, release_of
from recsys.pipelines.signals import ShopState, read_signals
from recsys.pipelines.supplied import supplied_rows
from recsys.publishing import staging
from recsys.publishing.figures import COLUMNS, SCORE_BINS, ListFigures, figures_of
from recsys.publishing.gate import NOT_MEASURED, Quality
from recsys.publishing.release import RECORD, Release
from recsys.publishing.staging import Part
from recsys.publishing.table import published_nights
from recsys.ranking.bundle import Bundle
from recsys.retrieval.item_sums import MONTH
from recsys.retrieval.signals import Signals
from recsys.schema import ITEM_ID, RANK, REASON, SCORE, SOURCE, USER_ID
from recsys.storage import write_atomically

USERS = 10  # whose lists the page shows: those of one shard with the lowest hashes, the same every night
NIGHTS = 7  # before tonight
SLOWEST = 10  # shards
SCORE_WIDTH = 10  # cells of the gate's histogram in one of the page's: half a unit of log-odds
RANKS = (10, 100, 1_000, 10_000)  # ends of classes of items, by popularity


@contextmanager
def recorded(
    state: ShopState,
    bundle: Bundle,
    *,
    as_of: date,
    quality: Quality = NOT_MEASURED,
    overrides: Iterable[str] = (),
    chosen: Chosen | None = None,
    deadline: Deadline | None = None,
) -> Iterator[None]:
    """A block that publishes the night; after it the night's record and page are there, whether the gate let it through or not.

    Args:
        bundle: that scores the night.
        quality: of it.
        overrides: checks of the gate that may fail.
        chosen: how that came to be; None where it was given by hand.
        deadline: of `score_shop`.
    """
    baseline = quality.fallback(state.settings.gate, overrides)
    fallback = dict(quality.baselines["all"]) if baseline else None
    try:
        yield
    except GateError:
        try:
            _write(state, bundle, as_of=as_of, fallback=fallback, chosen=chosen, deadline=deadline, stopped=True)
        except OSError as error:  # why the night was stopped is not lost over its page
            log.warning("report: cannot be written: %s", error)
        raise
    with after_commit("report"):
        _write(state, bundle, as_of=as_of, fallback=fallback, chosen=chosen, deadline=deadline, stopped=False)


def _write(
    state: ShopState,
    bundle: Bundle,
    *,
    as_of: date,
    fallback: Mapping[str, Any] | None,
    chosen: Chosen | None,
    deadline: Deadline | None,
    stopped: bool,
) -> None:
    """The record and its page, where this very run and verdict have none yet."""
    folder = Path(state.settings.report.path)
    name = f"{as_of}-stopped" if stopped else str(as_of)
    place, kept = folder / f"{name}.html", read_record(folder / f"{name}.json")
    night, stage = release_of(state, bundle, as_of=as_of, baseline=fallback["baseline"] if fallback else None, deadline=deadline)
    run = json.loads((stage.path / RECORD).read_text(encoding="utf-8"))
    if not place.exists() or kept is None or {**kept, **run} != kept:
        told = _collect(state, bundle, night, stage, run, units=units_of(state, deadline), chosen=chosen, stopped=stopped)
        record = {**run, **told, "fallback": fallback}
        html, text = report.render(record), json.dumps(record, indent=1) + "\n"
        write_atomically(place, lambda file: file.write_text(html, encoding="utf-8"))
        write_atomically(folder / f"{name}.json", lambda file: file.write_text(text, encoding="utf-8"))
    log.info("report: %s", place)


def read_record(path: Path) -> dict[str, Any] | None:
    """A record that was kept; None where there is none, or what is there is none, which is logged: the next night writes its own."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        log.warning("%s: no record of a night: %s", path, error)
        return None
    return found if isinstance(found, dict) else None


def _collect(
    state: ShopState,
    bundle: Bundle,
    night: Release,
    stage: Stage,
    run: Mapping[str, Any],
    *,
    units: Iterable[str],
    chosen: Chosen | None,
    stopped: bool,
) -> dict[str, Any]:
    """The record of a night beside what the stage that scored it keeps."""
    settings, shop, daily, as_of = state.settings, state.dataset, state.daily, night.as_of
    receipts = {name.removeprefix("part-"): stage.receipt(name) for name in units}
    scored = {name: receipt for name, receipt in receipts.items() if receipt is not None}
    parts: list[Part] = [receipt["part"] for receipt in scored.values()]
    parts += (stage.receipt(CARRIED) or {"parts": []})["parts"]
    assert len(scored) == len(receipts) or run.get("carried"), f"{stage.path}: a shard was not scored"
    catalog, signals = shop.catalog(), read_signals(state, as_of, lists=True, als=als_of(bundle.about))
    folders = {"ingest": shop.folder, "clean": shop.cleaned, "signals": state.signals.path, "examples": state.examples.path}
    folders["score"] = stage.path
    rows = staging.batches(settings.table.path, parts, columns=COLUMNS, storage_options=night.storage_options)
    seen = figures_of(rows, k=night.k, share=0.0, pair_share=0.0)
    return {
        "status": "stopped" if stopped else "published",
        "table": settings.table.path,
        "finished_utc": _finished(scored),
        "given": supplied_rows(state.supplied) if state.supplied is not None else None,
        "words": _words(state, catalog, bundle),
        "inputs": {**{name: shop.rows[name] for name in ("events", "items", "users")}, **({"daily": daily.rows} if daily else {})},
        "rejected": {
            **{name: dict(reasons) for name, reasons in shop.rejected.items()},
            **({"daily": daily.rejected} if daily else {}),
        },
        "funnel": {
            "events read": shop.rows["events"],
            "events kept": shop.rows["events kept"],
            "users": shop.rows["users kept"],
            "items": len(catalog),
            "items available": int(catalog.available.sum()),
            "candidates scored": run["scored"],
            "rows": run["rows"],
        },
        "metrics": chosen.metrics if chosen else None,
        "decision": asdict(chosen.decision) if chosen and chosen.decision else None,
        "training": _training(chosen),
        "lists": _lists(seen, catalog),
        "popularity": _popularity(seen.items, signals, catalog),
        "sample": _sample(night, parts, catalog),
        "stages": _stages(folders),
        "shards": _slowest(scored),
        "nights": _nights(settings, as_of),
    }


def _words(state: ShopState, catalog: Catalog, bundle: Bundle) -> dict[str, list[int]]:
    """Of every categorical column of items and users: how many words it holds, and how many of them the model does not know."""
    known = bundle.spec.vocabularies
    found = {}
    for name in state.settings.features.item_categorical:
        column = catalog.table.column(name)
        count = len(column) - column.null_count
        found[name] = [count, count - int(np.count_nonzero(encode(column, known.get(name, ()))))]
    for path in sorted((state.dataset.folder / "receipts").glob("histories-*.json")):
        for name, values in json.loads(path.read_text(encoding="utf-8"))["user_values"].items():
            words = set(known.get(name, ()))
            unseen = sum(count for word, count in values if word not in words)
            count, before = found.get(name, (0, 0))
            found[name] = [count + sum(count for _, count in values), before + unseen]
    return found


def _finished(receipts: Mapping[str, Receipt]) -> str:
    """When the last shard was scored, ISO 8601."""
    return datetime.fromtimestamp(max(one["begun"] + one["seconds"] for one in receipts.values()), UTC).isoformat(timespec="seconds")


def _training(chosen: Chosen | None) -> list[dict[str, Any]]:
    """The fits of tonight: the model that was tested, then its refit where there is one."""
    fits = [(name, fit) for name, fit in (("tested", chosen.tested), ("published", chosen.refit)) if fit] if chosen else []
    return [
        {
            "fit": name,
            "model_version": fit.bundle.model_version,
            "as_of": fit.bundle.about["window"]["as_of"],
            "examples": dict(fit.examples),
            "best_epoch": fit.best_epoch,
            "privacy": fit.bundle.about["metrics"].get("privacy"),
            "history": fit.history,
        }
        for name, fit in fits
    ]


def _lists(seen: ListFigures, catalog: Catalog) -> dict[str, Any]:
    """What the lists look like: distinct items and their share of those available, concentration, sources, scores.

    `scores` is a histogram by log-odds: `edges` of the chance, one more than `rows`, and `without` a score.
    """
    edges = np.arange(0, SCORE_BINS + 1, SCORE_WIDTH) / SCORE_BINS * 24 - 12
    return {
        "items": len(seen.items),
        "available_share": len(seen.items) / max(int(catalog.available.sum()), 1),
        "gini": seen.gini,
        "sources": dict(sorted(seen.sources.items(), key=lambda pair: (-pair[1], pair[0]))),
        "scores": {
            "edges": expit(edges).tolist(),
            "rows": seen.scores[:-1].reshape(-1, SCORE_WIDTH).sum(axis=1).tolist(),
            "without": int(seen.scores[-1]),
        },
    }


def _popularity(items: Mapping[int | str, int], signals: Signals, catalog: Catalog) -> list[dict[str, Any]]:
    """Of classes of items, the most popular of the last 28 days first: items, share of the lists' rows, and of purchases."""
    bought = np.zeros(len(catalog))
    bought[signals.items] = signals.popularity[MONTH]
    listed = np.zeros(len(catalog))
    ids = pa.array(list(items), catalog.item_id.type)
    listed[catalog.codes_of(ids)] = list(items.values())
    order = np.argsort(-bought, kind="stable")
    ends = [end for end in RANKS if end < len(order)] + [len(order)]
    classes = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        mine = order[start:end]
        name = f"{start + 1:,} to {end:,}"
        rows, purchases = (float(share[mine].sum() / max(share.sum(), 1e-12)) for share in (listed, bought))
        classes.append({"items": name, "rows": rows, "purchases": purchases})
    return classes


def _sample(night: Release, parts: list[Part], catalog: Catalog) -> list[dict[str, Any]]:
    """Lists of USERS users, with names and reasons."""
    first = next(part for part in parts if part["rows"])
    columns = [USER_ID, RANK, ITEM_ID, SCORE, SOURCE, REASON]
    rows = pa.Table.from_batches(staging.batches(night.table.path, [first], columns=columns, storage_options=night.storage_options))
    users = pc.unique(rows.column(USER_ID))
    chosen = users.take(pa.array(np.argsort(stable_hash(users.to_numpy(zero_copy_only=False)), kind="stable")[:USERS]))
    found = []
    for user in chosen.to_pylist():
        mine = rows.filter(pc.equal(rows.column(USER_ID), user)).sort_by(RANK)
        names = catalog.names(catalog.codes_of(mine.column(ITEM_ID)))
        told = mine.select([RANK, SCORE, SOURCE, REASON]).to_pylist()
        found.append({USER_ID: user, "rows": [{"item": name, **row} for name, row in zip(names, told, strict=True)]})
    return found


def _stages(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Units of each stage, the seconds that workers spent on them, and the slowest; without stages that had nothing to do.

    What was begun before the first stage was is of an earlier night, which tonight's stages serve as well.
    """
    found: list[dict[str, Any]] = []
    since = 0.0
    for name, folder in folders.items():
        every = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "receipts").glob("*.json"))}
        seconds = {unit: one["seconds"] for unit, one in every.items() if "seconds" in one and one["begun"] >= since}
        since = since or min((receipt["begun"] for receipt in every.values() if "begun" in receipt), default=0.0)
        if seconds:
            slowest = max(seconds, key=lambda unit: seconds[unit])
            total, longest = sum(seconds.values()), seconds[slowest]
            found.append({"stage": name, "units": len(seconds), "seconds": total, "slowest": slowest, "longest": longest})
    return found


def _slowest(receipts: Mapping[str, Receipt]) -> list[dict[str, Any]]:
    """The shards that took longest to score."""
    order = sorted(receipts, key=lambda shard: (-receipts[shard]["seconds"], shard))[:SLOWEST]
    return [
        {
            "shard": shard,
            "seconds": receipts[shard]["seconds"],
            "users": receipts[shard]["part"]["users"],
            "candidates": receipts[shard]["candidates"],
            "rows": receipts[shard]["part"]["rows"],
        }
        for shard in order
    ]


def _nights(settings: Settings, as_of: date) -> list[dict[str, Any]]:
    """The nights that stand before as_of, newest first, at most NIGHTS; figures of those whose record is here."""
    found = []
    for night in published_nights(settings.table.path, settings.shop.storage_options):
        if night.as_of >= as_of or len(found) == NIGHTS:
            continue
        kept = read_record(Path(settings.report.path) / f"{night.as_of}.json")
        told = kept if kept and kept.get("run_id") == night.run_id else None
        found.append({"as_of": night.as_of.isoformat(), "rows": night.rows, "model_version": night.model_version, **_told(told)})
    return found


def _told(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """The figures of an earlier night's record that tonight's page shows beside its own; nulls where there is no record."""
    names = ("users", "short_users", "items", "gini", "overlap", "ndcg", "ndcg_interval", "scores")
    return dict.fromkeys(names) if record is None else report.compared(record)
