"""Read-only pages on the published nights: a user's list with reasons, history and changes; an item and who gets it; a night's report.

One template, no script, no build. A page is a title, sentences and tables; whatever a shop wrote is escaped by Jinja.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from recsys.config import Settings
from recsys.data.shop import open_shop
from recsys.engine.connect import connect
from recsys.errors import ConfigError, PublishError
from recsys.pipelines import inspect
from recsys.pipelines.signals import ShopState, shop_state
from recsys.publishing.table import PublishedNight, night_of_item, published_nights, read_night, table_schema
from recsys.schema import ITEM_ID, RANK, REASON, SCORE, SOURCES, USER_ID

NIGHTS = 10  # that a user's list is followed through
USERS = 200  # that an item's page names


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    kind: str = ""
    """`number`, `words` or neither."""
    link: str = ""


@dataclass(frozen=True)
class Part:
    """A table below a title."""

    id: str
    title: str
    columns: Sequence[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Page:
    """What a page says."""

    title: str
    texts: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    chosen: date | None = None
    user: str | None = None
    item: str | None = None


class Browser:
    """The pages of a shop's table. The first page of a user on a night opens the shop as of it, which takes seconds."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._states: dict[date, ShopState] = {}
        self._lock = threading.Lock()
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        self._template = jinja2.Environment(autoescape=True, loader=loader, undefined=jinja2.StrictUndefined).get_template(
            "browse.html"
        )

    def render(self, make: Callable[..., Page], *arguments: Any) -> str:
        """The HTML of a page."""
        page = make(*arguments)
        nights = [night.as_of for night in self._nights()]
        return self._template.render(vars(page) | {"nights": nights, "chosen": page.chosen or next(iter(nights), None)})

    def refused(self, message: str) -> str:
        """The HTML of a page that says why there is none."""
        return self.render(lambda: Page("Not found", [message]))

    def report(self, as_of: date) -> bytes:
        """The night's report, as it was written.

        Raises:
            PublishError: there is none.
        """
        file = Path(self.settings.report.path) / f"{as_of}.html"
        if not file.is_file():
            raise PublishError(f"{file}: no report of the night of {as_of}. It was made on another machine, or removed.")
        return file.read_bytes()

    def home(self) -> Page:
        """The nights that stand, newest first."""
        rows = [
            [
                Cell(str(night.as_of), link=f"/report/{night.as_of}"),
                Cell(f"{night.rows:,}", "number"),
                Cell(night.model_version),
                Cell(night.run_id),
                Cell(f"{night.published_utc:%Y-%m-%d %H:%M}" if night.published_utc else ""),
            ]
            for night in self._nights()
        ]
        return Page(self.settings.table.path, [], [Part("nights", "Nights", ("night", "rows", "model", "run", "published, UTC"), rows)])

    def user(self, text: str, as_of: date | None) -> Page:
        """A user's list of a night, what changed, the ranks on earlier nights, and what was bought.

        Raises:
            ConfigError, PublishError: no such user or night.
        """
        night, before = inspect.find_night(self.settings, as_of=as_of)
        state = self._state(night)
        user = inspect.parse_user(text, state.inputs)
        try:
            shown = inspect.show(state, user, night=night, before=before)
        except ConfigError:
            if state.inputs.key is None:
                raise
            user = text  # under a key, pages link to users by what the table calls them
            shown = inspect.show(state, user, night=night, before=before)
        ids = shown.rows.column(ITEM_ID).to_pylist()
        columns = [shown.rows.column(name).to_pylist() for name in (RANK, SCORE, SOURCES, REASON)]
        rows = [
            [
                Cell(str(rank), "number"),
                Cell(name, "words", self._item_link(item, night.as_of)),
                Cell("" if score is None else f"{score:.3f}", "number"),
                Cell("" if shown.before is None else "new" if moved is None else f"{moved:+d}" if moved else "same", "number"),
                Cell(", ".join(sources)),
                Cell(reason, "words"),
            ]
            for item, name, moved, rank, score, sources, reason in zip(ids, shown.names, shown.moved, *columns, strict=True)
        ]
        parts = [Part("list", "List", ("rank", "item", "score", "moved", "sources", "reason"), rows)]
        if shown.before is not None:
            gone = [[Cell(str(rank), "number"), Cell(name, "words")] for rank, name in shown.gone]
            parts.append(Part("gone", f"Gone since {shown.before}", ("rank then", "item"), gone))
        parts.append(self._followed(user, ids, shown.names, night))
        for part, title, bought in (("latest", "Bought last", shown.latest), ("frequent", "Bought on most days", shown.frequent)):
            history = [[Cell(one.name, "words"), Cell(str(one.days), "number"), Cell(str(one.last))] for one in bought]
            parts.append(Part(part, title, ("item", "days", "last"), history))
        texts = [f"Model {night.model_version}, run {night.run_id}."]
        return Page(f"User {user} as of {night.as_of}", texts, parts, chosen=night.as_of, user=text)

    def _followed(self, user: str | int, ids: list[Any], names: list[str], night: PublishedNight) -> Part:
        """The ranks of tonight's items on earlier nights."""
        earlier = [one for one in self._nights() if one.as_of < night.as_of][: NIGHTS - 1]
        ranks: list[dict[Any, int]] = []
        for one in earlier:
            rows = read_night(self.settings.table.path, as_of=one.as_of, user_id=user, storage_options=self._options())
            ranks.append(dict(zip(rows.column(ITEM_ID).to_pylist(), rows.column(RANK).to_pylist(), strict=True)))
        rows = [
            [Cell(name, "words"), *(Cell(str(rank.get(item, "")), "number") for rank in ranks)]
            for item, name in zip(ids, names, strict=True)
        ]
        return Part("followed", "Ranks on earlier nights", ("item", *(str(one.as_of) for one in earlier)), rows if earlier else [])

    def item(self, text: str, as_of: date | None) -> Page:
        """How many users get an item on a night, at which ranks, and some of them.

        Raises:
            ConfigError, PublishError: no such night, or ids are numbers and this is none.
        """
        night, _ = inspect.find_night(self.settings, as_of=as_of)
        path = self.settings.table.path
        item = inspect.parse_id(text, table_schema(path, self._options()).field(ITEM_ID).type, option="item")
        found = night_of_item(path, as_of=night.as_of, item_id=item, storage_options=self._options())
        ranks = found.column(RANK).to_pylist()
        counts = [[Cell(str(rank), "number"), Cell(f"{ranks.count(rank):,}", "number")] for rank in sorted(set(ranks))]
        users = [
            [
                Cell(str(user), link=f"/user?id={quote(str(user), safe='')}&as_of={night.as_of}"),
                Cell(str(rank), "number"),
                Cell("" if score is None else f"{score:.3f}", "number"),
                Cell(reason, "words"),
            ]
            for user, rank, score, reason in zip(
                *(found.slice(0, USERS).column(name).to_pylist() for name in (USER_ID, RANK, SCORE, REASON)), strict=True
            )
        ]
        rows = night.rows
        texts = [f"On {len(ranks):,} lists: {len(ranks) / max(rows, 1):.2%} of the night's {rows:,} rows."]
        parts = [
            Part("ranks", "At which ranks", ("rank", "lists"), counts),
            Part("users", f"Who gets it, {len(users):,} of {len(ranks):,}", ("user", "rank", "score", "reason"), users),
        ]
        return Page(f"Item {item} as of {night.as_of}", texts, parts, chosen=night.as_of, item=text)

    def _item_link(self, item: Any, as_of: date) -> str:
        return f"/item?id={quote(str(item), safe='')}&as_of={as_of}"

    def _nights(self) -> list[PublishedNight]:
        return published_nights(self.settings.table.path, self._options())

    def _options(self) -> dict[str, str]:
        return dict(self.settings.shop.storage_options)

    def _state(self, night: PublishedNight) -> ShopState:
        with self._lock:
            if night.as_of not in self._states:
                inputs = open_shop(self.settings, as_of=night.as_of)
                with connect():
                    self._states[night.as_of] = shop_state(inputs, end=night.as_of)
            return self._states[night.as_of]
