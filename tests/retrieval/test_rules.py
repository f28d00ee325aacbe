import math
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from recsys import config
from recsys.data.catalog import Catalog
from recsys.data.histories import Histories
from recsys.data.inputs import open_input
from recsys.data.shop import list_name
from recsys.features.candidate_features import Featurizer
from recsys.hashing import stable_hash
from recsys.ranking import recommend, table_rows
from recsys.ranking.scorer import Scorer, probabilities
from recsys.retrieval import candidates, rules, signals, sources, supplied
from recsys.retrieval.candidates import Candidates
from recsys.retrieval.rules import RuledUsers
from recsys.retrieval.sources import Source
from recsys.schema import DAY_US
from tests import shops
from tests.shops import ANN, BOB, CID, DEE, EVE, P_BREAD, P_CAKE, P_CHEESE, P_MILK, P_ROLL, P_SPADE, Event

EVERY = sources.sources(shops.settings(candidates=config.Candidates(content=20)))
SOURCES = [source.name for source, _ in EVERY]

# Columns that rules read and the model does not: sku is the item's own word, seller one for all.
CATALOG = shops.catalog(
    sku=pa.array(["milk", "cheese", "bread", "roll", "cake", "nothing", "spade"]),
    seller=pa.array(["we"] * 7),
    price=pa.array([1.0, 4.5, 2.5, 0.1, 9.0, None, 20.0], pa.float32()),
    fresh=pa.array(["true", "true", None, "false", "true", "true", None]),
)


PEOPLE = shops.users().set_column(1, "age", pa.array(["30s", None, "50s", "30s", "30s"]))  # eve, who bought nothing, is like ann


def history() -> Histories:
    """The small shop's users with all their events."""
    return shops.group([*shops.BEFORE, *shops.HISTORY, *shops.AFTER], PEOPLE)


def described(settings: config.Settings, catalog: Catalog = CATALOG, lists: Path | None = shops.TONIGHT) -> Featurizer:
    """The small shop's featurizer."""
    known = settings.model_copy(update={"signals": settings.signals.model_copy(update={"group_users": 1})})
    return Featurizer(settings, catalog, shops.fit(history(), known, groups=("age",)), shops.VOCABULARIES, lists)


def ruled(toml: str, **sections: config.Section) -> config.Settings:
    """The small shop's settings with [[rules]]."""
    return config.Settings.model_validate({**shops.settings(**sections).model_dump(), "rules": tomllib.loads(toml).get("rules", [])})


def write_lists(settings: config.Settings, folder: Path, catalog: Catalog) -> Path:
    """What the rules' Parquet files say, as `Rules` reads it."""
    users, items = pa.string(), catalog.item_id.type
    for place, rule in enumerate(settings.rules):
        for what, path in rule.lists().items():
            source = open_input("a rule", path, {}, may_be_empty=True)
            types = (users, items)
            supplied.write_list(
                folder / f"{list_name(place, what)}.npy", source, what=what, columns=settings.shop.columns, types=types, catalog=catalog
            )
    return folder


def batch(settings: config.Settings, lists: Path | None = shops.TONIGHT) -> RuledUsers:
    """The small shop's users under the settings' rules."""
    return described(settings, lists=lists).users(history())


def forbidden(users: RuledUsers) -> dict[int, set[int]]:
    """Items by user that the rules forbid, apart from cake, which is not available."""
    return {user: {int(item) for item in np.flatnonzero(row)} - {P_CAKE} for user, row in enumerate(shops.barred_of(users))}


ALL = {P_MILK, P_CHEESE, P_BREAD, P_ROLL, P_SPADE}
NOBODY: dict[int, set[int]] = {user: set() for user in range(5)}


# ---- what each rule forbids


def test_without_rules_only_what_is_not_available_is_forbidden_and_all_users_share_one_row() -> None:
    users = batch(ruled(""))
    assert users.barred.shared.tolist() == [[0, 0, 0, 0, 1, 0]]
    assert len(users.barred.item) == 0
    assert users.rules.names == ("available",)


def test_bought_forbids_what_was_bought_within_so_many_days() -> None:
    # The night is day 100. Cid bought milk at 99.2, bread at 10.5; ann milk at 98.5, which is two days ago.
    one, two = (forbidden(batch(ruled(f'[[rules]]\nname = "b"\nkind = "bought"\ndays = {days}'))) for days in (1, 2))
    assert one == NOBODY | {CID: {P_MILK}}
    assert two == NOBODY | {CID: {P_MILK}, ANN: {P_MILK, P_BREAD}}
    # Cheese at 5.5 is in the ninety-fifth day.
    assert forbidden(batch(ruled('[[rules]]\nname = "b"\nkind = "bought"\ndays = 94')))[ANN] == {P_MILK, P_BREAD}
    assert forbidden(batch(ruled('[[rules]]\nname = "b"\nkind = "bought"\ndays = 95')))[ANN] == {P_MILK, P_BREAD, P_CHEESE}


def test_without_repeats_all_that_was_bought_in_the_history_is_forbidden() -> None:
    users = batch(ruled("", rank=config.Rank(allow_repeats=False)))
    assert users.rules.names == ("available", "repeats")
    bought = {ANN: {P_MILK, P_CHEESE, P_BREAD}, BOB: {P_MILK, P_ROLL}, CID: {P_MILK, P_BREAD}, DEE: {P_SPADE}, EVE: set[int]()}
    assert forbidden(users) == bought


def test_a_column_lets_only_or_never_through_and_null_is_no_value() -> None:
    only = batch(ruled('[[rules]]\nname = "f"\nkind = "column"\ncolumn = "fresh"\nonly = [true]'))
    never = batch(ruled('[[rules]]\nname = "f"\nkind = "column"\ncolumn = "fresh"\nnever = [true]'))
    assert forbidden(only) == {user: {P_BREAD, P_ROLL, P_SPADE} for user in range(5)}
    assert forbidden(never) == {user: {P_MILK, P_CHEESE} for user in range(5)}
    assert len(only.barred.shared) == len(never.barred.shared) == 1


def test_a_range_holds_its_bounds_and_null_lies_in_none() -> None:
    def outside(bounds: str) -> set[int]:
        return forbidden(batch(ruled(f'[[rules]]\nname = "p"\nkind = "range"\ncolumn = "price"\n{bounds}')))[EVE]

    assert outside("min = 1.0\nmax = 4.5") == {P_ROLL, P_SPADE}  # milk costs 1.0, cheese 4.5
    assert outside("min = 0.1") == set()  # roll costs 0.1, which float32 does not hold
    assert outside("max = 0.1") == ALL - {P_ROLL}
    sizes = batch(ruled('[[rules]]\nname = "s"\nkind = "range"\ncolumn = "size"\nmin = 0'))
    assert forbidden(sizes)[EVE] == {P_BREAD}  # its size is null


@pytest.mark.parametrize(
    ("audience", "those"),
    [
        ('column = "age"\nvalues = ["30s", "90s"]', {ANN, DEE, EVE}),
        ('column = "age"\nother_than = ["30s", "90s"]', {BOB, CID}),  # bob's is null
    ],
)
def test_an_audience_is_whom_a_rule_is_for(audience: str, those: set[int]) -> None:
    text = f'[[rules]]\nname = "a"\nkind = "column"\ncolumn = "department"\nnever = ["dairy"]\n[rules.audience]\n{audience}'
    assert forbidden(batch(ruled(text))) == NOBODY | {user: {P_MILK, P_CHEESE} for user in those}
    lately = f'[[rules]]\nname = "a"\nkind = "bought"\ndays = 2\n[rules.audience]\n{audience}'
    bought = {ANN: {P_MILK, P_BREAD}, CID: {P_MILK}}
    assert forbidden(batch(ruled(lately))) == NOBODY | {user: items for user, items in bought.items() if user in those}


def test_lists_of_users_items_and_pairs(tmp_path: Path) -> None:
    # Nulls and ids that nobody knows say nothing; 60 is never bought; order and repetition do not matter.
    pq.write_table(pa.table({"user_id": ["eve", "ann", None, "zoe", "eve"]}), tmp_path / "users.parquet")
    pq.write_table(pa.table({"item_id": [70, 10, None, 999, 60, 10]}), tmp_path / "items.parquet")
    pairs = {"user_id": ["eve", "bob", "eve", "zoe", "bob", None, "dee"], "item_id": [70, 10, 30, 30, 60, 30, 999], "why": ["lost"] * 7}
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    text = f"""
    [[rules]]
    name = "only these"
    kind = "items"
    only = "{tmp_path}/items.parquet"
    audience = {{ ids = "{tmp_path}/users.parquet" }}
    [[rules]]
    name = "not these"
    kind = "items"
    never = "{tmp_path}/items.parquet"
    audience = {{ column = "age", values = ["50s"] }}
    [[rules]]
    name = "returned"
    kind = "pairs"
    never = "{tmp_path}/pairs.parquet"
    """
    settings = ruled(text)
    users = batch(settings, write_lists(settings, tmp_path / "lists", CATALOG))
    assert forbidden(users) == {
        ANN: ALL - {P_MILK, P_SPADE},
        BOB: {P_MILK},
        CID: {P_MILK, P_SPADE},
        DEE: set(),
        EVE: ALL - {P_MILK},
    }
    assert [shops.barred_of(users)[EVE, item] for item in (P_CAKE, P_BREAD, P_SPADE)] == [1, 2, 4]  # the first that forbids it
    # In training neither lists nor what is available act, and the rules keep their places.
    training = batch(settings, None)
    assert not shops.barred_of(training).any()
    assert (shops.barred_of(users)[:, P_CAKE] == 1).all()
    assert training.rules.names == users.rules.names == ("available", "only these", "not these", "returned")


def test_a_list_says_how_much_of_it_is_unknown(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": pa.array([70, 20, 998, 999, None], pa.int32())}), tmp_path / "items.parquet")
    pq.write_table(pa.table({"item_id": pa.array([], pa.int64())}), tmp_path / "none.parquet")
    counts: list[dict[str, int]] = []
    for name in ("items", "none"):
        source = open_input("a rule", str(tmp_path / f"{name}.parquet"), {}, may_be_empty=True)
        path = tmp_path / f"{name}.npy"
        types = (pa.string(), pa.int64())
        counts.append(supplied.write_list(path, source, what="items", columns=config.Columns(), types=types, catalog=CATALOG))
    assert counts == [{"rows": 5, "unknown": 3}, {"rows": 0, "unknown": 0}]
    assert np.load(tmp_path / "items.npy").tolist() == [False, True, False, False, False, False, True]
    assert not np.load(tmp_path / "none.npy").any()


def test_integer_users_are_found_though_a_list_has_nulls(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": pa.array([7, None, 0, 2**60 + 1]), "item_id": [70, 10, 20, 30]}), tmp_path / "pairs.parquet")
    source = open_input("a rule", str(tmp_path / "pairs.parquet"), {})
    told: dict[str, Any] = {"columns": config.Columns(), "types": (pa.int64(), pa.int64()), "catalog": CATALOG}
    for what in ("pairs", "users"):
        supplied.write_list(tmp_path / f"{what}.npy", source, what=what, **told)
    hashes = stable_hash(np.array([7, 0, 2**60 + 1]))
    assert np.load(tmp_path / "users.npy").tolist() == sorted(hashes.tolist())
    pairs = np.load(tmp_path / "pairs.npy")
    assert set(zip(*pairs.tolist(), strict=True)) == set(zip(hashes.tolist(), [6, 1, 2], strict=True))


def test_the_examples_know_no_lists_nor_caps_and_exposures() -> None:
    text = """
    [[rules]]
    name = "lately"
    kind = "bought"
    days = 3
    [[rules]]
    name = "listed"
    kind = "items"
    never = "items"
    [[rules]]
    name = "for some"
    kind = "bought"
    days = 9
    audience = { ids = "users" }
    [[rules]]
    name = "returned"
    kind = "pairs"
    never = "pairs"
    [[rules]]
    name = "variety"
    kind = "cap"
    column = "department"
    at_most = 1
    [[rules]]
    name = "ours"
    kind = "exposure"
    column = "department"
    values = ["dairy"]
    at_least = 0.5
    """
    assert [rule.name for rule in rules.in_training(ruled(text))] == ["lately"]


# ---- every rule acts on every source


def alone(users: RuledUsers, name: str) -> Candidates:
    """What one source proposes."""
    return candidates.propose(users, [one for one in EVERY if one[0].name == name], per_user=99)


def pairs_of(found: Candidates) -> set[tuple[int, int]]:
    return set(zip(found.user_row.tolist(), found.item.tolist(), strict=True))


SKUS = [CATALOG.table.column("sku")[int(code)].as_py() for code in batch(ruled("")).signals.items]
IDS = [CATALOG.item_id[int(code)].as_py() for code in batch(ruled("")).signals.items]
PRICES = [CATALOG.table.column("price")[int(code)].as_py() for code in batch(ruled("")).signals.items]
NAMES = shops.users().column("user_id").to_pylist()
AGES = dict(zip(NAMES, PEOPLE.column("age").to_pylist(), strict=True))


def against(kind: str, user: int, item: int, folder: Path) -> str:
    """A rule that forbids this user this item."""
    pq.write_table(pa.table({"item_id": [IDS[item]]}), folder / "item.parquet")
    pq.write_table(pa.table({"item_id": [one for one in IDS if one != IDS[item]]}), folder / "others.parquet")
    pq.write_table(pa.table({"user_id": [NAMES[user]], "item_id": [IDS[item]]}), folder / "pair.parquet")
    known = f'values = ["{AGES[NAMES[user]]}"]' if AGES[NAMES[user]] else 'other_than = ["30s", "50s"]'
    never = f'kind = "column"\ncolumn = "sku"\nnever = ["{SKUS[item]}"]'
    bodies = {
        "bought": 'kind = "bought"\ndays = 100',
        "column never": never,
        "column only": f'kind = "column"\ncolumn = "sku"\nonly = {[sku for sku in SKUS if sku != SKUS[item]]}',
        "range": f'kind = "range"\ncolumn = "price"\nmin = {PRICES[item] + 0.01}',
        "audience by column": f'{never}\n[rules.audience]\ncolumn = "age"\n{known}',
        "audience by list": f'{never}\naudience = {{ ids = "{folder}/pair.parquet" }}',
        "items never": f'kind = "items"\nnever = "{folder}/item.parquet"',
        "items only": f'kind = "items"\nonly = "{folder}/others.parquet"',
        "pairs": f'kind = "pairs"\nnever = "{folder}/pair.parquet"',
    }
    return f'[[rules]]\nname = "it"\n{bodies[kind]}'


KINDS = [
    *("bought", "column never", "column only", "range", "audience by column", "audience by list", "items never", "items only", "pairs"),
    *("repeats", "available"),
]


BOUGHT_BEFORE = {"bought", "repeats"}  # kinds that act on what a user bought, of which these sources propose nothing anyhow
NOT_BOUGHT = {"group", "content"}


@pytest.mark.parametrize(
    ("source", "kind"), [(source, kind) for source in SOURCES for kind in KINDS if not (source in NOT_BOUGHT and kind in BOUGHT_BEFORE)]
)
def test_every_rule_acts_on_every_source(source: str, kind: str, tmp_path: Path) -> None:
    free = batch(ruled(""))
    before = alone(free, source)
    proposed = sorted(pairs_of(before))
    if kind in ("bought", "repeats"):
        bought = free.matrix.toarray() > 0
        proposed = [(user, item) for user, item in proposed if bought[user, item]]
    user, item = proposed[-1]
    if kind == "available":
        available = np.isin(np.arange(7), [int(free.signals.items[item])], invert=True) & CATALOG.available
        table = CATALOG.table.set_column(1, "available", pa.array(available))
        users = described(ruled(""), Catalog(table)).users(history())
    elif kind == "repeats":
        users = batch(ruled("", rank=config.Rank(allow_repeats=False)))
    else:
        settings = ruled(against(kind, user, item, tmp_path))
        users = batch(settings, write_lists(settings, tmp_path / "lists", CATALOG))
    assert shops.barred_of(users)[user, item] == len(users.rules.names)
    after = alone(users, source)
    forbids = shops.barred_of(users) > 0
    assert pairs_of(after) == {pair for pair in pairs_of(before) if not forbids[pair]}
    assert (user, item) not in pairs_of(after)
    # The source's other proposals move up in its order.
    for row in range(5):
        order = [one for one in shops.items_of(before, row, source) if not forbids[row, one]]
        assert shops.items_of(after, row, source) == order
    # And what it took is counted, under this rule alone where cake is not meant.
    assert after.dropped.sum(axis=0)[-1] == len(pairs_of(before) - pairs_of(after)) + (kind == "available") * before.dropped.sum()


@pytest.mark.parametrize("source", SOURCES)
def test_a_cap_acts_on_what_every_source_proposes(source: str) -> None:
    capped = batch(ruled('[[rules]]\nname = "one seller"\nkind = "cap"\ncolumn = "seller"\nat_most = 1'))
    found = alone(capped, source)
    raw = -found.rank[:, 0].astype(np.float32)
    scored = recommend.ScoredUsers(history(), capped, found, raw, np.ones(5, bool))
    listed = recommend.listed(scored, config.Rank(k=3))
    lengths = np.bincount(found.user_row, minlength=5)
    assert lengths.max() > 1  # what it acts on
    assert np.bincount(found.user_row[listed.ranked.row], minlength=5).tolist() == np.minimum(lengths, 1).tolist()
    assert listed.dropped["one seller"] == np.maximum(np.minimum(lengths, 3) - 1, 0).sum()


def liking(*items: int) -> Source:
    """A source that likes these items, in this order."""
    return shops.Scores("best", [-float(items.index(item)) if item in items else -np.inf for item in range(6)])


def test_a_source_proposes_its_best_allowed_items_within_its_limit() -> None:
    users = batch(ruled('[[rules]]\nname = "b"\nkind = "bought"\ndays = 2'))  # ann: milk, bread; cid: milk
    found = candidates.propose(users, [(liking(P_CAKE, P_MILK, P_BREAD, P_ROLL, P_SPADE), 2)], per_user=99)
    lists = [shops.items_of(found, user, "best") for user in range(5)]
    assert lists == [[P_ROLL, P_SPADE], [P_MILK, P_BREAD], [P_BREAD, P_ROLL], [P_MILK, P_BREAD], [P_MILK, P_BREAD]]
    # Without rules each would have had cake and milk: what lay beyond the limit was not dropped.
    assert found.dropped.tolist() == [[1, 1], [1, 0], [1, 1], [1, 0], [1, 0]]


def test_a_pair_that_two_sources_propose_is_dropped_once() -> None:
    users = batch(ruled('[[rules]]\nname = "b"\nkind = "column"\ncolumn = "sku"\nnever = ["roll", "cake"]'))
    found = candidates.propose(users, [(liking(P_CAKE, P_ROLL, P_MILK), 3), (liking(P_ROLL, P_BREAD), 1)], per_user=99)
    assert found.dropped.tolist() == [[1, 1]] * 5  # cake is counted under available, which comes first
    assert [shops.items_of(found, user) for user in range(5)] == [[P_MILK, P_BREAD]] * 5


# ---- published rows


def published(
    featurizer: Featurizer, events: Histories, rank: config.Rank, raw: Callable[[np.ndarray], np.ndarray]
) -> tuple[pa.Table, list[recommend.Listed]]:
    """The rows that a model of given outputs publishes, and what was counted, batch by batch."""
    _, _, _, inputs = next(iter(featurizer(events)))
    scorer = SimpleNamespace(bundle=SimpleNamespace(folder="model", spec=SimpleNamespace(dense=inputs.names)))

    class Model:
        bundle = scorer.bundle

        def __call__(self, dense: np.ndarray, codes: np.ndarray) -> np.ndarray:
            assert len(dense) == len(codes)
            return raw(dense)

    made: list[pa.Table] = []
    counted: list[recommend.Listed] = []
    for one in recommend.score_users(events, featurizer, cast(Scorer, Model())):
        counted.append(recommend.listed(one, rank))
        stamp = table_rows.Stamp(date(2024, 1, 1), "m", "r")
        made.append(table_rows.recommendations(one, counted[-1].ranked, stamp, chance=lambda raw, _: probabilities(raw)))
    return pa.concat_tables(made), counted


def first_column(dense: np.ndarray) -> np.ndarray:
    return np.nan_to_num(dense[:, 0])


def total(counted: Sequence[recommend.Listed]) -> tuple[dict[str, int], dict[str, int]]:
    dropped, short = Counter[str](), Counter[str]()
    for one in counted:
        dropped.update(one.dropped)
        short.update(one.short)
    return dict(dropped), dict(short)


def test_short_lists_are_laid_to_the_rule_that_took_the_most(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": ["bob"] * 4, "item_id": [10, 20, 30, 70]}), tmp_path / "pairs.parquet")
    text = f"""
    [[rules]]
    name = "no dairy"
    kind = "column"
    column = "department"
    never = ["dairy"]
    [[rules]]
    name = "returned"
    kind = "pairs"
    never = "{tmp_path}/pairs.parquet"
    [[rules]]
    name = "one of a department"
    kind = "cap"
    column = "department"
    at_most = 1
    """
    settings = ruled(text)
    featurizer = described(settings, lists=write_lists(settings, tmp_path, CATALOG))
    table, counted = published(featurizer, history(), config.Rank(k=2), first_column)
    dropped, short = total(counted)
    # Milk, cheese and cake of five users; of bob's the list names bread and spade, milk and cheese are dairy anyway.
    assert dropped["available"] == 5
    assert dropped["no dairy"] == 10
    assert dropped["returned"] == 2
    assert table.num_rows == 2 * 5 - 1
    assert short == {"no dairy": 1}  # bob's two dairy items and two returned ones: of equals the first
    three, counted = published(featurizer, history(), config.Rank(k=3), first_column)
    # Bread and roll are both bakery: with spade that makes two rows, and would make three; bob has roll alone.
    assert three.num_rows == 2 * 4 + 1
    dropped, short = total(counted)
    assert dropped["one of a department"] == 4
    assert short == {"no dairy": 5}


def test_a_user_short_for_want_of_candidates_is_laid_to_no_rule() -> None:
    settings = ruled("")
    table = CATALOG.table.set_column(1, "available", pa.array([True] * 7))
    featurizer = described(settings, Catalog(table))
    _, counted = published(featurizer, history(), config.Rank(k=9), first_column)
    assert total(counted) == ({"available": 0}, {"": 5})


# ---- whatever the settings: random shops, random rules, read again by brute force

OF_LISTS = ("cap", "exposure")  # kinds that decide about an item among others
ITEM_WORDS = ["a", "b", "c", None]
USER_WORDS = ["x", "y", None]


def by_column(column: str, how: str, words: list[str], audience: dict[str, Any] | None) -> dict[str, Any]:
    return {"kind": "column", "column": column, how: words, "audience": audience}


def by_range(low: float, more: float, audience: dict[str, Any] | None) -> dict[str, Any]:
    return {"kind": "range", "column": "price", "min": low, "max": low + more, "audience": audience}


def by_list(how: str, listed: list[int], audience: dict[str, Any] | None) -> dict[str, Any]:
    return {"kind": "items", how: listed, "audience": audience}


def by_share(column: str, words: list[str], tenths: int) -> dict[str, Any]:
    """A floor and a ceiling, of which the ceiling always holds."""
    return {"kind": "exposure", "column": column, "values": words, "at_least": 0.05 * tenths, "at_most": 0.09 * tenths}


@st.composite
def random_rules(draw: st.DrawFn, users: list[str], items: list[int]) -> list[dict[str, Any]]:
    """Rules as a settings file has them, with lists in place of the files' paths."""
    some = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=2, unique=True)
    those = st.lists(st.sampled_from(["x", "y"]), min_size=1, max_size=2, unique=True)
    listed_users, listed_items = st.lists(st.sampled_from(users), max_size=8), st.lists(st.sampled_from(items), max_size=20)
    number = st.integers(0, 40).map(lambda quarters: quarters / 4)
    audience = st.one_of(
        st.none(),
        st.none(),
        st.fixed_dictionaries({"column": st.just("age"), "values": those}),
        st.fixed_dictionaries({"column": st.just("age"), "other_than": those}),
        st.fixed_dictionaries({"ids": listed_users}),
    )
    only_or_never = st.sampled_from(["only", "never", "never"])
    column = st.sampled_from(["brand", "department"])
    pair = st.tuples(st.sampled_from(users), st.sampled_from(items))
    kinds = st.one_of(
        st.fixed_dictionaries({"kind": st.just("bought"), "days": st.integers(1, 100), "audience": audience}),
        st.builds(by_column, column, only_or_never, some, audience),
        st.builds(by_range, number, number, audience),
        st.builds(by_list, only_or_never, listed_items, audience),
        st.fixed_dictionaries({"kind": st.just("pairs"), "never": st.lists(pair, max_size=60)}),
        st.fixed_dictionaries({"kind": st.just("cap"), "column": column, "at_most": st.integers(1, 3)}),
        st.builds(by_share, column, some, st.integers(0, 10)),
    )
    chosen = draw(st.lists(kinds, max_size=4))
    return [
        {"name": f"rule {place}"} | {key: value for key, value in one.items() if value is not None} for place, one in enumerate(chosen)
    ]


class Shop:
    """A random shop as plain Python, and the same as the package has it."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.users = [f"u{number}" for number in range(int(random.integers(3, 25)))]
        self.items = list(range(100, 100 + 3 * int(random.integers(5, 40)), 3))
        self.available = {item: bool(random.random() < 0.9) for item in self.items}
        self.brand = {item: ITEM_WORDS[random.integers(4)] for item in self.items}
        self.department = {item: ITEM_WORDS[random.integers(4)] for item in self.items}
        self.price = {item: None if random.random() < 0.1 else float(random.integers(0, 80)) / 4 for item in self.items}
        self.age = {user: USER_WORDS[random.integers(3)] for user in self.users}
        count = int(random.integers(1, 12)) * len(self.users)
        buyers = max(1, len(self.users) - 2)  # the last two never bought
        popular = np.sort(random.random(len(self.items)))[::-1]
        chosen = random.choice(len(self.items), count, p=popular / popular.sum())
        self.bought = [(int(random.integers(buyers)), int(item), float(random.random() * 100)) for item in chosen]

    def catalog(self) -> Catalog:
        columns = {"item_id": pa.array(self.items), "available": pa.array([*self.available.values()])}
        columns |= {name: pa.array([*getattr(self, name).values()], pa.string()) for name in ("brand", "department")}
        return Catalog(pa.table(columns | {"price": pa.array([*self.price.values()], pa.float32())}))

    def histories(self) -> Histories:
        users = pa.table({"user_id": pa.array(self.users), "age": pa.array([*self.age.values()], pa.string())})
        return shops.group([Event(user, item, day) for user, item, day in self.bought], users)

    def concerns(self, rule: dict[str, Any], user: str) -> bool:
        whom = rule.get("audience")
        if whom is None:
            return True
        if "ids" in whom:
            return user in whom["ids"]
        return self.age[user] in whom["values"] if "values" in whom else self.age[user] not in whom["other_than"]

    def allows(self, rule: dict[str, Any], user: str, item: int) -> bool:
        """One rule read as its documentation says, for a user and an item alone."""
        if rule["kind"] == "pairs":
            return (user, item) not in rule["never"]
        if rule["kind"] in OF_LISTS or not self.concerns(rule, user):
            return True
        match rule["kind"]:
            case "bought":
                days = [day for who, what, day in self.bought if (self.users[who], self.items[what]) == (user, item)]
                return all(100 - day > rule["days"] for day in days)
            case "range":
                price = self.price[item]
                return price is not None and rule["min"] <= price <= rule["max"]
            case "column":
                value = getattr(self, rule["column"])[item]
            case _:
                value = item
        return value in rule["only"] if "only" in rule else value not in rule["never"]


def as_settings(chosen: list[dict[str, Any]], folder: Path, rank: dict[str, Any], limits: dict[str, int]) -> config.Settings:
    """Settings with the rules' lists written as Parquet files."""
    written: list[dict[str, Any]] = []
    for place, rule in enumerate(chosen):
        rule = dict(rule)
        if rule["kind"] == "items":
            how = "only" if "only" in rule else "never"
            pq.write_table(pa.table({"item_id": pa.array(rule[how], pa.int64())}), folder / f"{place}-items.parquet")
            rule[how] = str(folder / f"{place}-items.parquet")
        if rule["kind"] == "pairs":
            users, items = ([pair[at] for pair in rule["never"]] for at in (0, 1))
            table = pa.table({"user_id": pa.array(users, pa.string()), "item_id": pa.array(items, pa.int64())})
            pq.write_table(table, folder / f"{place}-pairs.parquet")
            rule["never"] = str(folder / f"{place}-pairs.parquet")
        if "ids" in rule.get("audience", {}):
            pq.write_table(pa.table({"user_id": pa.array(rule["audience"]["ids"], pa.string())}), folder / f"{place}-users.parquet")
            rule["audience"] = {"ids": str(folder / f"{place}-users.parquet")}
        written.append(rule)
    return config.Settings.model_validate(
        {
            "shop": {"events": "events", "items": "items", "users": "users"},
            "features": {"item_categorical": ["department"], "user_categorical": ["age"]},
            "signals": {
                "group_users": 1,
                "ease_items": 10,
                "ease_l2": 0.5,
                "neighbours": 8,
                "factors": 4,
                "als_iterations": 2,
                "als_l2": 0.1,
                "als_alpha": 2.0,
            },
            "candidates": limits,
            "rank": rank,
            "rules": written,
        }
    )


def would_be_proposed(featurizer: Featurizer, events: Histories) -> set[tuple[int, int]]:
    """User and active position of what the sources would propose within their limits were there no rules."""
    found: set[tuple[int, int]] = set()
    users = featurizer.users(events)
    for source, limit in featurizer.sources:
        scores = shops.scores_of(source, users)
        for user in range(len(users)):
            row = scores[user].tolist()
            finite = sorted((-score, item) for item, score in enumerate(row) if score > -math.inf)
            found |= {(user, item) for _, item in finite[:limit]}
    return found


@profile(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_published_row_breaks_a_rule_whatever_the_settings(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    shop = Shop(data.draw(st.integers(0, 2**32 - 1)))
    chosen = data.draw(random_rules(shop.users, shop.items))
    k = data.draw(st.integers(1, 8))
    rank = {"k": k, "allow_repeats": data.draw(st.booleans()), "diversity": data.draw(st.sampled_from([0.0, 0.0, 0.3, 0.9]))}
    limit = st.integers(0, 12)
    limits = {name: data.draw(limit) for name in ("own", "neighbours", "factors", "category", "content")} | {
        "popular": data.draw(st.integers(1, 12))
    }
    folder = tmp_path_factory.mktemp("rules")
    settings = as_settings(chosen, folder, rank, limits | {"per_user": data.draw(st.integers(1, 30))})
    catalog, events = shop.catalog(), shop.histories()
    unseen = np.array([code for code in range(len(catalog)) if data.draw(st.integers(0, 3)) == 0], np.int64)
    everybody = [(events, np.ones(len(events), bool))]
    told = {"items": len(catalog), "start": 0, "cutoff": 100 * DAY_US, "settings": settings.signals, "als": shops.ALS, "seed": 0}
    fitted = signals.fit(everybody, **told, extra=unseen, groups=("age",))
    featurizer = Featurizer(
        settings, catalog, fitted, {"department": ("a", "b"), "age": ("x", "y")}, write_lists(settings, folder, catalog)
    )
    table, counted = published(featurizer, events, settings.rank, first_column)

    lists: dict[str, list[int]] = {user: [] for user in shop.users}
    for user, item in zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True):
        lists[user].append(item)
    ever = {(shop.users[user], shop.items[item]) for user, item, _ in shop.bought}
    for user, items in lists.items():
        assert len(set(items)) == len(items) <= k
        for item in items:
            assert shop.available[item]
            assert settings.rank.allow_repeats or (user, item) not in ever
            for rule in chosen:
                assert shop.allows(rule, user, item), (rule, user, item)
        for rule in chosen:
            if rule["kind"] == "cap":
                values = Counter(getattr(shop, rule["column"])[item] for item in items)
                assert all(count <= rule["at_most"] for value, count in values.items() if value is not None)
            if rule["kind"] == "exposure":
                shown = np.cumsum([getattr(shop, rule["column"])[item] in rule["values"] for item in items])
                assert all(count <= math.ceil(round(rule["at_most"] * place, 6)) for place, count in enumerate(shown, 1))
    dropped, short = total(counted)
    assert list(dropped) == ["available", *(() if settings.rank.allow_repeats else ["repeats"]), *(rule["name"] for rule in chosen)]
    assert sum(short.values()) == sum(len(items) < k for items in lists.values())
    expected = Counter[str]()
    for user, item in would_be_proposed(featurizer, events):
        name, thing = shop.users[user], shop.items[int(fitted.items[item])]
        laid = [
            *(["available"] if not shop.available[thing] else []),
            *(["repeats"] if not settings.rank.allow_repeats and (name, thing) in ever else []),
            *(rule["name"] for rule in chosen if not shop.allows(rule, name, thing)),
        ]
        expected.update(laid[:1])
    of_lists = {rule["name"] for rule in chosen if rule["kind"] in OF_LISTS}
    assert {name: count for name, count in dropped.items() if count and name not in of_lists} == dict(expected)

    # And nothing is held back that no rule forbids: a list is short only where candidates ended, or a cap or a ceiling was full.
    if not any(rule["kind"] in OF_LISTS for rule in chosen):
        active = [shop.items[code] for code in fitted.items[fitted.buyers[-1] > 0]]
        for user, items in lists.items():
            free = [
                item
                for item in active
                if shop.available[item]
                and (settings.rank.allow_repeats or (user, item) not in ever)
                and all(shop.allows(rule, user, item) for rule in chosen)
            ]
            assert len(items) >= min(k, len(free), limits["popular"], settings.candidates.per_user)


def test_counts_and_lists_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shop = Shop(5)
    rules_of: list[dict[str, Any]] = [
        {"name": "lately", "kind": "bought", "days": 60},
        {"name": "young", "kind": "column", "column": "brand", "never": ["a"], "audience": {"column": "age", "values": ["x"]}},
        {"name": "returned", "kind": "pairs", "never": [(user, item) for user in shop.users[:9] for item in shop.items[:9:2]]},
        {"name": "variety", "kind": "cap", "column": "department", "at_most": 1},
    ]
    settings = as_settings(rules_of, tmp_path, {"k": 4, "diversity": 0.4}, {"popular": 20})
    catalog, events = shop.catalog(), shop.histories()
    chosen = np.ones(len(events), bool)
    fitted = signals.fit(
        [(events, chosen)], items=len(catalog), start=0, cutoff=100 * DAY_US, settings=settings.signals, als=shops.ALS, seed=0
    )
    featurizer = Featurizer(
        settings, catalog, fitted, {"department": ("a", "b"), "age": ("x", "y")}, write_lists(settings, tmp_path, catalog)
    )
    whole, counted = published(featurizer, events, settings.rank, first_column)
    monkeypatch.setattr(candidates, "BATCH", 3)
    parts, counted_in_parts = published(featurizer, events, settings.rank, first_column)
    assert len(counted_in_parts) > len(counted) == 1
    assert parts.equals(whole)
    assert total(counted_in_parts) == total(counted)
    assert all(total(counted)[0].values())
