"""The shop door's night on one page: shop read, challenger trained and tested, champion chosen, users scored, the table published."""

from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from recsys.config import Settings
from recsys.data.dataset import ShopDataset
from recsys.data.shop import ShopInputs, check_as_of, open_shop
from recsys.engine.lease import leased
from recsys.engine.progress import after_commit, log
from recsys.errors import ConfigError, Mistakes
from recsys.pipelines.card import write_card
from recsys.pipelines.champion import Chosen, choose
from recsys.pipelines.deadline import Deadline, clock_zone, cut_by
from recsys.pipelines.exports import check_exports, hand_on
from recsys.pipelines.night_record import read_record, recorded
from recsys.pipelines.score import score_shop
from recsys.pipelines.signals import ShopState, shop_state
from recsys.publishing.release import Published
from recsys.publishing.table import PublishedNight, published_nights
from recsys.ranking.registry import Registry
from recsys.storage import check_folders


def today(settings: Settings) -> date:
    """The date now where the shop's clock stands.

    Raises:
        ConfigError: as `deadline.clock_zone`.
    """
    return datetime.now(clock_zone(settings)).date()


def check_writable(settings: Settings) -> None:
    """Nothing, where all that a night writes to can be written to, as far as can be seen before it.

    Raises:
        ConfigError: a folder cannot, or a place of [[exports]] is none.
    """
    check_exports(settings.exports)
    places = {"table_path": settings.table.path, "champion_path": settings.champion.path, "report_path": settings.report.path}
    check_folders(**places, run_work=settings.run.work)


def nights_to_make(settings: Settings, first: date, last: date, *, force: bool) -> list[date]:
    """The nights from first to last, both included, oldest first: those that do not stand; by force all.

    Raises:
        ConfigError: the table would not keep one of them.
        PublishError: the table cannot be read.
    """
    standing = {night.as_of for night in published_nights(settings.table.path, settings.shop.storage_options)}
    wanted = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    kept = sorted({*standing, *wanted})[-settings.table.keep_nights :]
    if first not in kept:
        raise ConfigError(
            f"--backfill {first}..{last}: night {first} must be among the newest {settings.table.keep_nights}, which the table keeps, "
            f"got those since {kept[0]}. Begin with {kept[0]}, or raise table.keep_nights."
        )
    return [day for day in wanted if force or day not in standing]


def finished(settings: Settings, *, as_of: date) -> PublishedNight | None:
    """The night of as_of where it stands with its record: nothing is left to do. None where something is."""
    nights = published_nights(settings.table.path, settings.shop.storage_options)
    night = next((one for one in nights if one.as_of == as_of), None)
    record = read_record(Path(settings.report.path) / f"{as_of}.json")
    return night if night is not None and record is not None and record.get("run_id") == night.run_id else None


def open_night(settings: Settings, *, as_of: date) -> ShopInputs:
    """The shop's inputs, opened, and as_of held against them.

    Raises:
        DataError: as `open_shop`; or as_of leaves the challenger, which is tested a label length before it, too little history.
        ConfigError: a folder that the night writes to cannot be written to.
    """
    mistakes = Mistakes()
    mistakes.look(check_writable, settings)
    inputs = mistakes.look(open_shop, settings, as_of=as_of)
    if inputs is not None:
        mistakes.look(check_as_of, inputs, as_of, test_days=settings.window.label_days)
    mistakes.end()
    assert inputs is not None
    return inputs


def _say_new_population(inputs: ShopInputs, *, as_of: date) -> None:
    """A line, where users go by other names than on the night before: as if all had left and others come."""
    settings = inputs.settings
    nights = published_nights(settings.table.path, settings.shop.storage_options)
    before = next((night for night in nights if night.as_of < as_of), None)
    now = inputs.key.fingerprint if inputs.key else None
    if before is not None and before.version is not None and before.user_key != now:
        then, today = ("the shop's own ids" if key is None else f"digests by key {key}" for key in (before.user_key, now))
        told = "privacy: users were %s on %s and are %s now: a new population, compared with nobody's list of before"
        log.warning(told, then, before.as_of, today)


def nightly(
    inputs: ShopInputs,
    *,
    as_of: date,
    overrides: Mapping[str, str] = {},
    deadline: Deadline | None = None,
    on_read: Callable[[ShopDataset], None] = lambda _: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda _: None,
    on_chosen: Callable[[Chosen], None] = lambda _: None,
    on_scored: Callable[[], None] = lambda: None,
    on_published: Callable[[Published], None] = lambda _: None,
    on_exported: Callable[[dict[str, str]], None] = lambda _: None,
) -> tuple[ShopState, Published]:
    """The table of as_of, published, with its page; and the shop as it was read for it.

    Args:
        inputs: of `open_night`.
        overrides: checks of the gate that may fail, and why.
        deadline: ends scoring, and before it the training of a challenger where there is a champion.
        on_read, on_epoch, on_chosen, on_scored, on_published, on_exported: told of each step that is done: what was read, each epoch,
            which bundle scores, what stands, and of each place of [[exports]] what failed.

    Raises:
        LeaseError: another run works on the table.
        DeadlineError: the deadline came before anybody was scored, on the first night of a table, or before there was a champion.
        GateError: the lists are not what they may be; the page says why, and what stood before stands.
        DataError, PublishError, ClusterError: as the stages.
    """
    settings = inputs.settings
    with leased(settings.table.path, settings.shop.storage_options, what=f"the night of {as_of}"):
        with cut_by(deadline, settings.table.path, "the shop was read"):
            state = shop_state(inputs, end=as_of)
        on_read(state.dataset)
        _say_new_population(inputs, as_of=as_of)
        chosen = choose(state, Registry(settings.champion.path), as_of=as_of, deadline=deadline, on_epoch=on_epoch)
        on_chosen(chosen)
        told: dict[str, Any] = {"as_of": as_of, "overrides": overrides, "quality": chosen.quality, "deadline": deadline}
        with recorded(state, chosen.bundle, chosen=chosen, **told):
            published = score_shop(state, chosen.bundle, on_scored=on_scored, **told)
        with after_commit("nightly"):
            on_published(published)
        if settings.exports:
            with after_commit("exports"):
                on_exported(hand_on(settings.table.path, settings.exports, storage_options=settings.shop.storage_options))
        with after_commit("card"):
            write_card(state, Registry(settings.champion.path), chosen, as_of=as_of)
    return state, published
