"""Users and items that history says nothing of, over all the modules that serve them."""

from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys import config
from recsys.data.histories import Histories
from recsys.data.shop import open_shop
from recsys.features.candidate_features import Featurizer
from recsys.pipelines.score import score_shop
from recsys.pipelines.signals import ShopState, read_signals, shop_state
from recsys.pipelines.train import train_shop
from recsys.publishing.table import read_night
from recsys.ranking import recommend, table_rows
from recsys.ranking.reasons import reasons_of
from recsys.ranking.scorer import Scorer, probabilities
from recsys.ranking.table_rows import Stamp
from recsys.ranking.top_k import top_k
from recsys.retrieval import candidates, signals
from recsys.retrieval.sources import Content, Group
from recsys.retrieval.users import UserBatch
from tests import shops
from tests.shops import AFTER, ANN, BEFORE, BOB, BREAD, CHEESE, CID, DEE, EVE, HISTORY, MILK, NOTHING, ROLL, Event

AGES = ("age", "income_band")


def people(ages: list[str | None], bands: list[str | None]) -> pa.Table:
    """The shop's users with other features."""
    return pa.table(
        {
            "user_id": ["ann", "bob", "cid", "dee", "eve"],
            "age": pa.array(ages, pa.string()),
            "income_band": pa.array(bands, pa.string()),
        }
    )


def settings(fewest: int = 1) -> config.Settings:
    return shops.settings(
        features=config.Features(item_categorical=("department",), user_categorical=AGES),
        signals=config.Signals(
            ease_items=3, ease_l2=0.5, neighbours=4, factors=2, als_iterations=3, als_l2=0.1, als_alpha=2.0, group_users=fewest
        ),
    )


def shop(table: pa.Table, fewest: int = 1, events: list[Event] | None = None) -> tuple[Featurizer, Histories]:
    """A featurizer whose signals know the groups of these users, and the users with their events."""
    histories = shops.group([*BEFORE, *HISTORY, *AFTER] if events is None else events, table)
    chosen = settings(fewest)
    fitted = shops.fit(histories, chosen, groups=AGES)
    vocabularies = {"department": shops.VOCABULARIES["department"], "age": ("30s",), "income_band": ("low",)}
    return Featurizer(chosen, shops.catalog(), fitted, vocabularies, shops.TONIGHT), histories


def shares(table: pa.Table, fewest: int = 1) -> np.ndarray:
    """Eve's scores by active position: milk, cheese, bread, roll, cake, spade."""
    featurizer, histories = shop(table, fewest)
    return shops.scores_of(Group(AGES), featurizer.users(histories))[EVE]


# In the last 28 days milk had 3 buyers (ann, bob, cid), roll 1 (bob, twice), bread 1 (ann), cake 1 (cid); dee bought nothing.
ALL = np.array([3, 0, 1, 1, 1, 0]) / 6


def test_a_group_is_its_own_counts_shrunk_to_everybody_s() -> None:
    # Ann and eve are alike: two items, milk twice.
    found = shares(people(["30s", "40s", "50s", "60s", "30s"], [None] * 5))
    # In the second column too: all have the same value there, so ann is the group again.
    first = (np.array([1, 0, 1, 0, 0, 0]) + 2 * ALL) / (2 + 2)
    second = (np.array([1, 0, 1, 0, 0, 0]) + 2 * first) / (2 + 2)
    bought = np.array([0, 2, 3, 4])
    assert found[bought] == pytest.approx(second[bought])
    # What nobody bought in 28 days follows all that somebody did.
    assert (found[[1, 5]] > 0).all()
    assert found[[1, 5]].max() < found[bought].min() / 1000


def test_a_group_by_both_columns_is_shrunk_to_the_one_by_the_first() -> None:
    # Of an age with eve: ann and bob; in both columns: bob alone, who bought two items, roll twice.
    found = shares(people(["30s", "30s", "50s", "60s", "30s"], ["low", "high", "high", "low", "high"]))
    first = (np.array([2, 0, 1, 1, 0, 0]) + 3 * ALL) / (4 + 3)
    second = (np.array([1, 0, 0, 1, 0, 0]) + 2 * first) / (2 + 2)
    assert found[[0, 2, 3, 4]] == pytest.approx(second[[0, 2, 3, 4]])


def test_a_small_group_shows_nobody_what_its_few_users_bought() -> None:
    table = people(["30s", "30s", "50s", "60s", "30s"], ["low", "high", "high", "low", "high"])
    first = (np.array([2, 0, 1, 1, 0, 0]) + 3 * ALL) / (4 + 3)
    assert shares(table, fewest=2)[[0, 2, 3, 4]] == pytest.approx(first[[0, 2, 3, 4]])
    assert (shares(table, fewest=3) == -np.inf).all()  # no group at all: eve gets what is popular


def test_only_users_who_bought_in_the_month_make_a_group_large() -> None:
    table = people(["30s", "40s", "50s", "30s", "30s"], [None] * 5)  # of an age with eve: ann, and dee, who bought nothing lately
    assert np.isfinite(shares(table, fewest=1)).any()
    assert (shares(table, fewest=2) == -np.inf).all()


def test_a_missing_value_is_a_value_and_columns_are_told_apart() -> None:
    keys = signals.group_keys(people([None, None, "", "a", "b"], ["a", None, None, "b", "a"]), AGES)
    assert keys.shape == (2, 5)
    assert keys[0, 0] == keys[0, 1] == keys[0, 2]
    assert keys[1, 1] == keys[1, 2]
    assert len(np.unique(keys)) == 3 + 4


@given(st.permutations(range(5)), st.integers(0, 5))
def test_groups_do_not_depend_on_how_users_are_cut_into_shards(order: list[int], cut: int) -> None:
    featurizer, histories = shop(people(["30s", "30s", "50s", "60s", "30s"], ["low", "high", "high", "low", "high"]))
    parts = [histories.take(np.sort(np.array(part, np.int64))) for part in (order[:cut], order[cut:])]
    fitted = settings().signals
    found = signals.fit(
        [(part, np.ones(len(part), bool)) for part in parts if len(part)],
        items=7,
        start=shops.START,
        cutoff=shops.CUTOFF,
        settings=fitted,
        als=shops.ALS,
        seed=3,
        groups=AGES,
    )
    for name in ("groups", "group_offsets", "group_items", "group_counts"):
        assert getattr(found, name).tobytes() == getattr(featurizer.signals, name).tobytes()


class Last:
    """A scorer that likes the last of its rows best."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.bundle = SimpleNamespace(folder="model", spec=SimpleNamespace(dense=names))

    def __call__(self, dense: np.ndarray, codes: np.ndarray) -> np.ndarray:
        assert len(dense) == len(codes)
        return np.arange(len(dense), dtype=np.float32)


def lists(featurizer: Featurizer, histories: Histories) -> pa.Table:
    """Rows of the table, three a user."""
    stand_in = cast(Scorer, Last(next(iter(featurizer(histories)))[3].names))
    parts = [
        table_rows.recommendations(
            batch,
            recommend.listed(batch, config.Rank(k=3)).ranked,
            Stamp(date(1970, 4, 11), "m", "r"),
            chance=lambda raw, _: probabilities(raw),
        )
        for batch in recommend.score_users(histories, featurizer, stand_in)
    ]
    return pa.concat_tables(parts)


def test_a_user_without_history_gets_the_group_s_items_marked_as_such_and_no_score() -> None:
    # Bob is of eve's group. He bought milk and roll; everybody's second is bread, as the lower code.
    featurizer, histories = shop(people(["40s", "30s", "50s", "60s", "30s"], [None] * 5))
    rows = [row for row in lists(featurizer, histories).to_pylist() if row["user_id"] == "eve"]
    assert [row["item_id"] for row in rows] == [10, 40, 30]
    for row in rows:
        assert row["score"] is None
        assert (row["source"], row["sources"], row["reason_kind"]) == ("group", ["group"], "popular_with")
        assert row["reason"] == "Popular in the last 28 days with people like you."


def test_a_user_without_a_group_gets_what_everybody_buys() -> None:
    featurizer, histories = shop(people(["40s", "30s", "50s", "60s", "90s"], [None, None, None, None, "x"]))
    rows = [row for row in lists(featurizer, histories).to_pylist() if row["user_id"] == "eve"]
    assert [row["item_id"] for row in rows] == [10, 30, 40]
    assert {(row["source"], row["score"]) for row in rows} == {("popular", None)}


def test_users_with_history_get_nothing_from_their_group() -> None:
    featurizer, histories = shop(people(["30s"] * 5, [None] * 5))
    ((_, _, found, inputs),) = featurizer(histories)
    assert found.rank[found.user_row != EVE, found.names.index("group")].max() == 0
    assert found.rank[found.user_row == EVE, found.names.index("group")].max() > 0
    assert not [name for name in inputs.names if name.startswith("group")]


# ---- cold items

# Ann buys mostly dairy, bob bakery and dairy, cid bakery and dairy, dee from the garden, whose department is not known.
# Cheese has one buyer, since day 5; spade one, since day 50; milk three; bread two; roll one, since day 95; cake one, since day 99.
FRESH = pa.array(["dairy", "dairy", "bakery", "bakery", "bakery", "dairy", "garden"])  # NOTHING, whom nobody bought, is dairy


def content(**limits: int) -> tuple[Featurizer, Histories]:
    """The shop with a dairy item that nobody bought."""
    chosen = shops.settings(candidates=config.Candidates(**{"content": 20, "cold_buyers": 2, **limits}))
    items = shops.catalog(department=FRESH)
    fitted = shops.fit(shops.whole(), chosen, unseen=np.array([NOTHING]), most_unseen=chosen.candidates.unseen)
    return Featurizer(chosen, items, fitted, shops.VOCABULARIES, shops.TONIGHT), shops.whole()


def proposed(found: candidates.Candidates, users: UserBatch, user: int) -> list[int]:
    """Item codes of the content source, best first."""
    return users.signals.items[np.array(shops.items_of(found, user, "content"), np.int64)].tolist()


def test_cold_items_of_the_user_s_categories_are_proposed_newest_first() -> None:
    featurizer, histories = content()
    ((_, users, found, _),) = featurizer(histories)
    scores = shops.scores_of(Content(2), users)
    position = users.signals.position
    # Ann: 4 of 5 purchase days were dairy, 1 bakery. Cake is not available; she bought the cheese.
    assert proposed(found, users, ANN) == [NOTHING, ROLL]
    assert scores[ANN, position[[NOTHING, ROLL]]] == pytest.approx([4 / 5, 1 / 5 * 0.5 ** (4.5 / 28)])
    # Bob: 1 of 3 was dairy.
    assert proposed(found, users, BOB) == [NOTHING, CHEESE]
    assert scores[BOB, position[[NOTHING, CHEESE]]] == pytest.approx([1 / 3, 1 / 3 * 0.5 ** (94.5 / 28)])
    assert proposed(found, users, DEE) == proposed(found, users, EVE) == []
    # Milk and bread have two buyers or more.
    assert (scores[:, position[[MILK, BREAD]]] == -np.inf).all()


def test_an_item_that_nobody_bought_is_proposed_by_content_alone() -> None:
    featurizer, histories = content()
    ((_, users, found, inputs),) = featurizer(histories)
    new = np.flatnonzero(users.signals.items[found.item] == NOTHING)
    assert found.user_row[new].tolist() == [ANN, BOB, CID]
    proposing = np.flatnonzero((found.rank[new] > 0).any(axis=0))
    assert [found.names[number] for number in proposing] == ["content"]
    for name in ("item_age", "item_rest", "item_price", "item_repeat_rate", "factors_score", "neighbours_score"):
        assert np.isnan(inputs.dense[new, inputs.names.index(name)]).all(), name
    assert (inputs.dense[new, inputs.names.index("item_buyers")] == 0).all()
    assert (inputs.dense[new, inputs.names.index("content_score")] > 0).all()


@pytest.mark.parametrize("limits", [{"unseen": 0}, {"content": 0, "unseen": 0}])
def test_without_unseen_items_only_those_with_a_buyer_are_candidates(limits: dict[str, int]) -> None:
    featurizer, histories = content(**limits)
    ((_, users, _, _),) = featurizer(histories)
    assert NOTHING not in users.signals.items


def test_signals_of_bought_items_are_those_without_the_unseen_ones() -> None:
    events = shops.group([event for event in HISTORY if event.item != MILK])
    plain, more = shops.fit(events), shops.fit(events, unseen=np.array([MILK]), most_unseen=1)
    assert more.items.tolist() == [MILK, *plain.items.tolist()]
    for name in ("first_ts", "last_ts", "price", "repeat_rate", "repeat_days", "factors"):
        assert getattr(more, name)[1:].tobytes() == getattr(plain, name).tobytes(), name
    for name in ("popularity", "buyers"):
        assert getattr(more, name)[:, 1:].tobytes() == getattr(plain, name).tobytes(), name
    assert plain.neighbours.nnz > 0
    assert (more.neighbours[1:][:, 1:] != plain.neighbours).nnz == 0
    assert more.neighbours[0].nnz == more.neighbours[:, 0].nnz == 0
    assert not more.factors[0].any()


def test_only_so_many_unseen_items_are_active_those_first_in_order() -> None:
    histories = shops.group([Event(ANN, 2, 99.5), Event(BOB, 2, 99.5)])
    found = shops.fit(histories, unseen=np.array([6, 2, 0, 4]), most_unseen=2)
    assert found.items.tolist() == [0, 2, 6]


def test_reasons_of_new_items_name_the_category() -> None:
    featurizer, histories = content()
    ((_, users, found, _),) = featurizer(histories)
    ranked = top_k(found.user_row, found.item, np.zeros(len(found), np.float32), k=9)
    reasons = reasons_of(ranked, found, users)
    new = [row for row, place in enumerate(ranked.row) if users.signals.items[found.item[place]] == NOTHING]
    assert {(reasons.source[row], reasons.kind[row], reasons.text[row]) for row in new} == {
        ("content", "new_in", "New in dairy, where you often buy.")
    }


# ---- whole nights on generated shops, under one settings file

DAY = date(2024, 6, 1)
LOVED = 4  # categories; user u buys in category u % LOVED alone
PLANTED = [1_000_000 + category for category in range(LOVED)]  # items that nobody bought yet, one a category


def launches(folder: Path) -> None:
    """A shop of 80 users that launches three items a category every fortnight, which all users of the category then buy.

    Times are dates. Else a user buys one of the category's 20 old items a week.
    """
    random = np.random.default_rng(7)
    rows: list[tuple[int, int, date]] = []
    items = {category * 1000 + number: category for category in range(LOVED) for number in range(20)}
    for user in range(80):
        for week in range(14):
            rows.append(
                (user, user % LOVED * 1000 + int(random.integers(20)), DAY - timedelta(days=7 * week + 1 + int(random.integers(7))))
            )
        for number in range(3 * 5):
            item = user % LOVED * 1000 + 100 + number
            items[item] = user % LOVED
            rows.append((user, item, DAY - timedelta(days=14 * (number // 3) + 1 + int(random.integers(14)))))
    items |= {item: category for category, item in enumerate(PLANTED)}
    columns = {name: list(values) for name, values in zip(("user_id", "item_id", "ts"), zip(*rows, strict=True), strict=True)}
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "events.parquet")
    pq.write_table(
        pa.table({"item_id": list(items), "category": [f"c{category}" for category in items.values()]}), folder / "items.parquet"
    )


def night(folder: Path, *, items: bool, **candidates_: int) -> tuple[ShopState, pa.Table]:
    """The shop's night, under one settings file but for what the shop has."""
    settings = config.Settings.model_validate(
        {
            "shop": {"events": str(folder / "events.parquet"), "timezone": "UTC"}
            | ({"items": str(folder / "items.parquet")} if items else {}),
            "features": {"item_categorical": ["category"]} if items else {},
            "window": {"label_days": 14, "history_days": 60, "cutoffs": 3},
            "signals": {"factors": 4, "als_iterations": 3, "als_l2": 10.0, "als_alpha": 2.0, "ease_l2": 20.0},
            "candidates": candidates_,
            "model": {"hidden": [16]},
            "train": {"epochs": 12, "batch_size": 128, "learning_rate": 0.01, "workers": 1, "patience": None},
            "rank": {"k": 5},
            "run": {"work": str(folder / "work"), "shards": 2, "actors": 1},
            "table": {"path": str(folder / "table")},
        }
    )
    state = shop_state(open_shop(settings, as_of=DAY), end=DAY)
    score_shop(state, train_shop(state, as_of=DAY).bundle, as_of=DAY)
    return state, read_night(settings.table.path, as_of=DAY)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_new_item_of_a_loved_category_gets_into_lists_with_content_and_never_without(tmp_path: Path, in_process: None) -> None:
    launches(tmp_path / "shop")
    state, table = night(tmp_path / "shop", items=True, content=20)
    mine = [row for row in table.to_pylist() if row["item_id"] in PLANTED]
    assert all(row["item_id"] == PLANTED[row["user_id"] % LOVED] for row in mine)
    assert len(mine) > 60  # of 80 users
    assert {(row["source"], row["reason_kind"]) for row in mine} == {("content", "new_in")}

    told = state.settings.model_copy(update={"candidates": config.Candidates()})
    without = shop_state(open_shop(told, as_of=DAY), end=DAY)
    known = without.dataset.catalog().item_id.to_numpy()[read_signals(without, DAY).items]
    assert len(known) > 0
    assert not set(PLANTED) & set(known.tolist())


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_shop_of_events_alone_where_each_user_came_once_has_a_night_too(tmp_path: Path, in_process: None) -> None:
    random = np.random.default_rng(3)
    folder = tmp_path / "shop"
    folder.mkdir()
    users = np.repeat(np.arange(150), 6)
    came = np.array([DAY - timedelta(days=int(day)) for day in random.integers(1, 90, 150)])[users]
    items = (10 * (users % 3) + random.integers(0, 10, len(users))).astype(np.int64)
    pq.write_table(pa.table({"user_id": users, "item_id": items, "ts": came.tolist()}), folder / "events.parquet")
    _, table = night(folder, items=False)
    assert sorted(set(table["user_id"].to_pylist())) == list(range(150))
    recent = {user for user, day in zip(users.tolist(), came.tolist(), strict=True) if (DAY - day).days <= 60}
    for row in table.to_pylist():
        assert (row["score"] is not None) == (row["user_id"] in recent)  # whose events are too old is as one without
        assert row["user_id"] in recent or row["source"] == "popular"
    assert 50 < len(recent) < 150
