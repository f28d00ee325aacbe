"""One user's list with what stands behind it: names, reasons, the purchases beside it, what changed since the night before."""

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import Settings
from recsys.data.catalog import Catalog
from recsys.data.histories import Histories, purchase_days
from recsys.data.shop import ShopInputs
from recsys.errors import BundleError, ConfigError, DataError, PublishError
from recsys.hashing import shard_of
from recsys.pipelines.past import als_of
from recsys.pipelines.score import check_bundle, scoring
from recsys.pipelines.signals import ShopState, make_lists, read_signals, supplied_of
from recsys.publishing.table import PublishedNight, published_nights, read_night
from recsys.ranking import bundle as bundles
from recsys.ranking.attribution import attribute, in_words
from recsys.ranking.bundle import ABOUT, Bundle
from recsys.ranking.recommend import check_inputs
from recsys.ranking.scorer import chances
from recsys.retrieval.supplied import Supplied
from recsys.schema import DAY_US, ITEM_ID, RANK, SCORE, USER_ID

PURCHASES = 10  # shown of the latest, and of the most frequent
SAME_SCORE = 1e-3  # how far a recomputed score may be from the published one: another device rounds otherwise


@dataclass(frozen=True)
class Purchased:
    """One item of a user's history."""

    name: str
    days: int
    """On how many days, in the window.history_days before the night."""
    last: date


@dataclass(frozen=True)
class Shown:
    """One user's list of a night, N rows."""

    user_id: str | int
    night: PublishedNight
    rows: pa.Table
    """N rows of the recommendation table, by rank."""
    names: list[str]
    """Of the N items."""
    latest: list[Purchased]
    frequent: list[Purchased]
    before: date | None
    """The night before, of those published; None where there is none."""
    moved: list[int | None]
    """Ranks that each of the N items rose since the night before; below 0 it fell, None: it was not on the list."""
    gone: list[tuple[int, str]]
    """Rank of the night before and name of each item that was on its list and is not on this one."""


@dataclass(frozen=True)
class Attributed:
    """What the inputs of one row of a list add to its raw output."""

    rank: int
    name: str
    raw: float
    largest: list[tuple[str, str, float]]
    """Name, value in words, and contribution of the inputs with the largest absolute contributions, largest first."""


def find_night(settings: Settings, *, as_of: date | None) -> tuple[PublishedNight, date | None]:
    """The published night of a date, or the newest; and the night before it, of those published.

    Raises:
        PublishError: no such night.
    """
    path = settings.table.path
    nights = published_nights(path, storage_options=settings.shop.storage_options)
    if not nights:
        raise PublishError(f"{path}: a night must be published to be shown; there are none. Run jobs.nightly first.")
    chosen = [night for night in nights if as_of in (None, night.as_of)]
    if not chosen:
        published = ", ".join(str(night.as_of) for night in nights[:5])
        raise PublishError(f"{path}: night {as_of} must be published to be shown; the newest are {published}. Pass one of them.")
    return chosen[0], next((night.as_of for night in nights if night.as_of < chosen[0].as_of), None)


def parse_id(text: str, dtype: pa.DataType, *, option: str) -> str | int:
    """The user's or item's id that a command line's word means.

    Args:
        option: `user` or `item`.

    Raises:
        ConfigError: ids are integers and the word is none.
    """
    if pa.types.is_string(dtype):
        return text
    try:
        return pa.scalar(int(text), dtype).as_py()
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"--{option} {text}: {option} ids of this shop are integers ({dtype}). Pass one.") from error


def parse_user(text: str, inputs: ShopInputs) -> str | int:
    """The user that a command line's word means, as the night knows it: under a key its digest.

    Raises:
        ConfigError: as `parse_id`.
    """
    user = parse_id(text, inputs.raw_user_id, option="user")
    return inputs.key.of(user) if inputs.key else user


def show(state: ShopState, user_id: str | int, *, night: PublishedNight, before: date | None) -> Shown:
    """The user's list of a night.

    Args:
        state: the shop as of the night.

    Raises:
        ConfigError: no such user as of the night.
        PublishError: the user has no row in it.
    """
    settings = state.settings
    profile, _ = find_user(state, user_id, night.as_of)

    def read(as_of: date) -> pa.Table:
        return read_night(settings.table.path, as_of=as_of, user_id=user_id, storage_options=settings.shop.storage_options)

    rows = read(night.as_of)
    if not rows.num_rows:
        raise PublishError(
            f"{settings.table.path}: user {user_id} has no row in the night of {night.as_of}: nothing was left to recommend, or the "
            "shop's inputs changed since. Look at the night's counts, or score it again."
        )
    catalog = state.dataset.catalog()
    earlier = read(before) if before else rows.slice(0, 0)
    rank_before = dict(zip(earlier.column(ITEM_ID).to_pylist(), earlier.column(RANK).to_pylist(), strict=True))
    items, ranks = rows.column(ITEM_ID).to_pylist(), rows.column(RANK).to_pylist()
    gone = earlier.filter(pc.invert(pc.is_in(earlier.column(ITEM_ID), value_set=rows.column(ITEM_ID).combine_chunks())))
    latest, frequent = _history(state, profile, catalog)
    return Shown(
        user_id=user_id,
        night=night,
        rows=rows,
        names=_names(catalog, rows),
        latest=latest,
        frequent=frequent,
        before=before,
        moved=[rank_before[item] - rank if item in rank_before else None for item, rank in zip(items, ranks, strict=True)],
        gone=list(zip(gone.column(RANK).to_pylist(), _names(catalog, gone), strict=True)),
    )


def find_user(state: ShopState, user_id: str | int, as_of: date) -> tuple[Histories, Supplied | None]:
    """The one user's profile and given candidates, found by the hash that put them into a shard."""
    ids = pa.array([user_id], state.inputs.user_id)
    shard = state.dataset.shards[int(shard_of(ids, len(state.dataset.shards))[0])]
    histories, only = state.dataset.histories(shard), supplied_of(state, shard)
    place = pc.index(histories.users.column(USER_ID), ids[0]).as_py()
    if place < 0:
        raise ConfigError(f"--user {user_id}: no such user in the shop before {as_of}. Check the id.")
    return histories.take(np.array([place])), only.select(place, place + 1) if only is not None else None


def _names(catalog: Catalog, rows: pa.Table) -> list[str]:
    """What people call the rows' items; the id of one that is no longer in the catalog."""
    ids = rows.column(ITEM_ID).combine_chunks()
    codes = pc.index_in(ids, value_set=catalog.item_id)
    named = iter(catalog.names(codes.drop_null().to_numpy()))
    return [next(named) if code.is_valid else str(item) for code, item in zip(codes, ids.to_pylist(), strict=True)]


def _history(state: ShopState, profile: Histories, catalog: Catalog) -> tuple[list[Purchased], list[Purchased]]:
    """The items bought last, and those bought on the most days; of equals the most frequent, or last bought, then by item id."""
    end = state.dataset.end
    history = profile.between(end - state.settings.window.history_days * DAY_US, end)
    _, item, days = purchase_days(history, cutoff=end)
    codes, first, count = np.unique(item, return_index=True, return_counts=True)
    ago = days[first]  # days of an item are in ascending order: the first is the latest
    names = catalog.names(codes)

    def listed(order: np.ndarray) -> list[Purchased]:
        chosen = order[:PURCHASES].tolist()
        last = [datetime.fromtimestamp((end - 1) / 1e6 - float(ago[place]) * 86_400, UTC).date() for place in chosen]
        return [Purchased(names[place], int(count[place]), day) for place, day in zip(chosen, last, strict=True)]

    return listed(np.lexsort((codes, -count, ago))), listed(np.lexsort((codes, ago, -count)))


def find_bundle(settings: Settings, night: PublishedNight) -> Bundle | None:
    """The bundle that scored a night, by its model_version, where it is still among those in run.work or of the champions."""
    made = (*Path(settings.run.work).glob(f"train-*/bundle/{ABOUT}"), *Path(settings.champion.path).glob(f"bundles/*/*/{ABOUT}"))
    for about in sorted(made):
        if json.loads(about.read_text(encoding="utf-8")).get("model_version") == night.model_version:
            return bundles.load(about.parent)
    return None


def bundle_of(settings: Settings, night: PublishedNight) -> Bundle:
    """As `find_bundle`.

    Raises:
        BundleError: it is gone.
    """
    if (found := find_bundle(settings, night)) is None:
        raise BundleError(
            f"{settings.run.work}: the model that scored the night of {night.as_of}, {night.model_version}, is gone from here and from "
            f"{settings.champion.path}. Take a newer night, or make this one again with jobs.nightly --force."
        )
    return found


def attributed(state: ShopState, bundle: Bundle, shown: Shown, *, largest: int) -> tuple[list[Attributed], float]:
    """For each row of a list that the model scored its inputs with the largest contributions; and the baseline's raw output.

    The user's candidates and inputs are made again as of the night.

    Raises:
        BundleError: another bundle than the night's, or made under other settings.
        DataError: an item is no candidate any more, or its score is another: the inputs changed since the night.
    """
    settings, night = state.settings, shown.night
    if bundle.model_version != night.model_version:
        raise BundleError(
            f"{bundle.folder}: must be the model that scored the night of {night.as_of}, {night.model_version}, got "
            f"{bundle.model_version}. Pass that one with --bundle."
        )
    check_bundle(bundle, settings)
    signals = read_signals(state, night.as_of, lists=True, als=als_of(bundle.about))
    featurizer, scorer = scoring(state, (str(bundle.folder), "cpu"), signals, make_lists(state))
    ((_, users, candidates, inputs),) = featurizer(*find_user(state, shown.user_id, night.as_of))
    check_inputs(inputs, bundle)
    ids = users.catalog.item_id.take(pa.array(users.signals.items[candidates.item]))
    scored = shown.rows.filter(shown.rows.column(SCORE).is_valid())
    place = pc.index_in(scored.column(ITEM_ID).combine_chunks(), value_set=ids)
    changed = f"{settings.table.path}: the night of {night.as_of} cannot be explained: the shop's inputs changed since"
    if place.null_count:
        raise DataError(f"{changed}, as an item of the list is no candidate any more. Score the night again.")
    row = place.to_numpy()
    dense, codes = inputs.dense[row], inputs.codes[row]
    score = chances(bundle)(scorer(dense, codes), users.activity[candidates.user_row[row]])
    if not np.allclose(score, scored.column(SCORE).to_numpy(), rtol=0, atol=SAME_SCORE):
        raise DataError(f"{changed}, as a score is another now. Score the night again.")
    found = attribute(bundle, dense, codes)
    names = dict(zip(shown.rows.column(RANK).to_pylist(), shown.names, strict=True))
    rows = []
    for number, rank in enumerate(scored.column(RANK).to_pylist()):
        words = in_words(bundle.spec, dense[number], codes[number])
        order = np.argsort(-np.abs(found.added[number]), kind="stable")[:largest].tolist()
        most = [(found.names[place], words[place], float(found.added[number, place])) for place in order]
        rows.append(Attributed(rank, names[rank], float(found.raw[number]), most))
    return rows, found.baseline
