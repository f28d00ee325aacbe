"""A shop's nights in a notebook or a script: read as Arrow, pandas or Polars, one user scored in this process, one item explained.

from recsys import Shop, load_night

load_night("var/recommendations").to_pandas()
shop = Shop("shop.toml")
shop.night().to_polars()
shop.recommend("ann")
shop.explain("ann", "milk").changed
"""

from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from recsys import config
from recsys.errors import PublishError
from recsys.publishing.table import PublishedNight, published_nights, read_night

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from recsys.pipelines.explain import Explained
    from recsys.pipelines.signals import ShopState
    from recsys.ranking.bundle import Bundle


@dataclass(frozen=True)
class Night:
    """One published night; its rows are read when they are asked for."""

    table: str
    """Path or URI of the recommendation table."""
    about: PublishedNight
    storage_options: dict[str, str]

    def to_arrow(self, *, user: str | int | None = None) -> pa.Table:
        """The rows by user and rank, columns as docs/your-shop.md tells them; those of one user where one is named, as the table does.

        Raises:
            PublishError: the night is gone or damaged, or the user's id is of another type.
        """
        return read_night(self.table, as_of=self.about.as_of, user_id=user, storage_options=self.storage_options)

    def to_pandas(self, *, user: str | int | None = None) -> "pd.DataFrame":
        """As `to_arrow`."""
        return self.to_arrow(user=user).to_pandas()

    def to_polars(self, *, user: str | int | None = None) -> "pl.DataFrame":
        """As `to_arrow`; Polars is yours to install."""
        import polars

        frame = polars.from_arrow(self.to_arrow(user=user))
        assert isinstance(frame, polars.DataFrame)
        return frame


def load_night(table: str | Path, as_of: date | str | None = None, *, storage_options: dict[str, str] | None = None) -> Night:
    """A night of a table, path or URI, the newest unless a date, or its ISO text, says which.

    Raises:
        PublishError: no table there, or no such night.
    """
    options = storage_options or {}
    nights = published_nights(str(table), options)
    day = date.fromisoformat(as_of) if isinstance(as_of, str) else as_of
    found = next((night for night in nights if day in (None, night.as_of)), None)
    if found is None:
        seen = f"the newest is {nights[0].as_of}" if nights else "there are none"
        raise PublishError(f"{table}: night {day or 'of any date'} must be published to be read; {seen}. Run jobs.nightly.")
    return Night(str(table), found, options)


class Shop:
    """A shop by its settings file, or by its settings.

    `recommend` and `explain` work in this process on what the night left in run.work; what has been cleared away since is made again,
    on Ray.
    """

    def __init__(self, settings: config.Settings | str | Path) -> None:
        """With the settings.

        Raises:
            ConfigError: the file cannot be used.
        """
        self.settings = settings if isinstance(settings, config.Settings) else config.load(settings)

    def nights(self) -> list[PublishedNight]:
        """The nights that stand, newest first."""
        return published_nights(self.settings.table.path, self.settings.shop.storage_options)

    def night(self, as_of: date | str | None = None) -> Night:
        """As `load_night`."""
        return load_night(self.settings.table.path, as_of, storage_options=dict(self.settings.shop.storage_options))

    def recommend(self, user: str | int, as_of: date | str | None = None) -> pa.Table:
        """The user's rows as the night's model and rules make them now: those of the table, where the shop's files have not changed.

        Raises:
            ConfigError: no such user before the night.
            BundleError: the model that scored the night is gone.
        """
        from recsys.pipelines.explain import list_of
        from recsys.pipelines.inspect import parse_user

        state, bundle, night = self._at(as_of)
        return list_of(state, bundle, parse_user(str(user), state.inputs), night=night)

    def explain(self, user: str | int, item: str | int, as_of: date | str | None = None, *, largest: int = 5) -> "Explained":
        """Why the item is at its place on the user's list, or at none; as `jobs.explain`.

        Raises:
            ConfigError: no such user or item before the night.
            BundleError: the model that scored the night is gone.
        """
        from recsys.pipelines.explain import explain
        from recsys.pipelines.inspect import parse_user

        state, bundle, night = self._at(as_of)
        return explain(state, bundle, parse_user(str(user), state.inputs), item, night=night, largest=largest)

    def _at(self, as_of: date | str | None) -> "tuple[ShopState, Bundle, PublishedNight]":
        night = self.night(as_of).about
        if night.as_of not in self._states:
            from recsys.data.shop import open_shop
            from recsys.engine.connect import connect
            from recsys.pipelines.inspect import bundle_of
            from recsys.pipelines.signals import shop_state

            bundle = bundle_of(self.settings, night)
            inputs = open_shop(self.settings, as_of=night.as_of)
            with connect():
                self._states[night.as_of] = shop_state(inputs, end=night.as_of), bundle
        return *self._states[night.as_of], night

    @cached_property
    def _states(self) -> "dict[date, tuple[ShopState, Bundle]]":
        return {}
