from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.data import synthetic
from recsys.data.synthetic import Planted
from tests.data.bad_rows import bad_rows

END = date(2024, 3, 1)
DAYS = 200


def plant(out: Path, **changes: Any) -> Planted:
    settings: dict[str, Any] = {"users": 317, "items": 149, "days": DAYS, "seed": 5, "end": END}
    return synthetic.shop(out, **(settings | changes))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("shop"))


def read(folder: Path | None) -> pa.Table:
    assert folder is not None
    return pq.read_table(folder)


def numbered(planted: Planted, events: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """User and item numbers of events."""
    user = pc.index_in(events["user_id"], planted.user_ids).to_numpy()
    return user, pc.index_in(events["item_id"], planted.item_ids).to_numpy()


def test_the_same_seed_gives_the_same_bytes(planted: Planted, tmp_path: Path) -> None:
    again = plant(tmp_path)
    for name in ("events", "items", "users"):
        for old in (planted.events.parent / name).iterdir():
            assert (tmp_path / name / old.name).read_bytes() == old.read_bytes()
    assert again.staple_items.tolist() == planted.staple_items.tolist()


def test_another_seed_gives_another_shop(planted: Planted, tmp_path: Path) -> None:
    other = plant(tmp_path, seed=6)
    assert other.group.tolist() != planted.group.tolist()
    assert not read(other.events)["ts"].equals(read(planted.events)["ts"])


def test_events_have_the_input_schema(planted: Planted) -> None:
    events = read(planted.events)
    assert events.schema.remove_metadata() == pa.schema(
        {
            "user_id": pa.int64(),
            "item_id": pa.int64(),
            "ts": pa.timestamp("us", tz="UTC"),
            "quantity": pa.float64(),
            "price": pa.float64(),
        }
    )
    assert len(events) == planted.rows
    assert sum(column.null_count for column in events.columns) == 0
    assert (pc.min(events["quantity"]).as_py(), pc.min(events["price"]).as_py() > 0) == (1.0, True)


def test_events_lie_within_the_days_before_the_end(planted: Planted) -> None:
    times = pc.min_max(read(planted.events)["ts"]).as_py()
    end = datetime(END.year, END.month, END.day, tzinfo=UTC)
    assert end - timedelta(days=DAYS) <= times["min"] < end - timedelta(days=DAYS - 1)
    assert end - timedelta(days=1) <= times["max"] < end


def test_no_event_is_there_twice(planted: Planted) -> None:
    events = read(planted.events)
    assert len(events.group_by(events.column_names).aggregate([])) == len(events)


def test_every_user_buys_something_and_files_mix_users(planted: Planted) -> None:
    files = sorted(planted.events.iterdir())
    buyers = [numbered(planted, pq.read_table(file))[0] for file in files]
    assert len(files) == 3
    assert set(np.concatenate(buyers)) == set(range(317))
    assert all(len(set(one) & set(other)) == 0 for one, other in pairwise(buyers))
    assert all(set(one) != set(range(min(one), max(one) + 1)) for one in buyers)


def test_the_number_of_events_is_about_what_was_asked_for(tmp_path: Path) -> None:
    for number, wanted in enumerate((3.0, 15.0, 60.0)):
        made = plant(tmp_path / str(number), users=3000, events_per_user=wanted)
        assert made.rows / 3000 == pytest.approx(wanted, rel=0.15)


def test_load_is_cut_into_files_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "EVENTS_PER_FILE", 2_000)
    made = plant(tmp_path, users=1500, events_per_user=20.0)
    rows = [pq.read_metadata(file).num_rows for file in made.events.iterdir()]
    assert len(rows) == 1500 * 20 / 2000
    assert max(rows) < 2 * 2000


def test_users_buy_from_the_categories_their_group_favours(planted: Planted) -> None:
    user, item = numbered(planted, read(planted.events))
    liked = np.array([planted.liked(one) for one in range(317)])
    # Half the purchases are staples, all liked; of the rest 0.8, and 2 of 12 of the remaining 0.2.
    assert liked[user, item].mean() == pytest.approx(0.5 + 0.5 * (0.8 + 0.2 * 2 / 12), abs=0.05)
    for group in range(synthetic.GROUPS):
        bought = np.bincount(planted.category[item[planted.group[user] == group]], minlength=synthetic.CATEGORIES)
        assert set(np.argsort(-bought)[:2]) == set(planted.favourites[group])


def test_nothing_about_the_shop_is_symmetric(planted: Planted) -> None:
    groups = np.bincount(planted.group)
    assert len(groups) == len(set(groups)) == synthetic.GROUPS
    assert max(groups) > 2 * min(groups)
    assert len(set(np.bincount(planted.category))) > synthetic.CATEGORIES / 2
    assert len({synthetic.GROUPS, synthetic.CATEGORIES, synthetic.FAVOURED, 317, 149}) == 5
    assert len(np.unique(planted.favourites)) == synthetic.GROUPS * synthetic.FAVOURED < synthetic.CATEGORIES


def test_staples_are_bought_at_the_item_s_own_interval(tmp_path: Path) -> None:
    made = plant(tmp_path, users=400, items=4001, days=700)  # so many items that few staples are also bought by chance
    events = read(made.events)
    user, item = numbered(made, events)
    day = events["ts"].cast(pa.int64()).to_numpy() / synthetic.DAY_US
    order = np.lexsort((day, item, user))
    pair = (user * len(made.item_ids) + item)[order]
    owners = np.repeat(np.arange(400), np.diff(made.staple_offsets))
    same = (pair[1:] == pair[:-1]) & np.isin(pair[1:], owners * len(made.item_ids) + made.staple_items)
    gaps = np.diff(day[order])[same] / made.interval_days[item[order][1:][same]]
    assert len(gaps) > 3000
    assert np.median(gaps) == pytest.approx(1.0, abs=0.02)
    assert np.quantile(gaps, [0.15, 0.95]) == pytest.approx([0.8, 1.25], abs=0.06)  # each a fifth early or late


def test_every_user_s_staples_are_its_most_bought_items(planted: Planted) -> None:
    user, item = numbered(planted, read(planted.events))
    bought = np.zeros((317, 149), int)
    np.add.at(bought, (user, item), 1)
    for one in range(317):
        staples = planted.staples(one)
        assert len(staples) >= 1
        assert staples.tolist() == sorted(set(staples))
        assert planted.liked(one)[staples].all()
        assert bought[one, staples].min() >= 4  # 200 days, an interval of at most 50


def test_popularity_has_a_long_tail_that_shifts(tmp_path: Path) -> None:
    made = plant(tmp_path, users=4000, items=301)
    events = read(made.events)
    day = events["ts"].cast(pa.int64()).to_numpy() / synthetic.DAY_US
    _, item = numbered(made, events)
    counts = np.sort(np.bincount(item, minlength=301))[::-1]
    assert counts[:30].sum() > 0.3 * counts.sum()  # a tenth of the items
    assert counts[150:].sum() < 0.25 * counts.sum()  # the lower half
    early = np.bincount(item[day < day.min() + 20], minlength=301) + 1
    late = np.bincount(item[day > day.max() - 20], minlength=301) + 1
    planted_change = np.log(made.end_weight / made.start_weight)
    assert np.corrcoef(np.log(late / early), planted_change)[0, 1] > 0.7


def test_weights_are_shares_of_a_category(planted: Planted) -> None:
    for weight in (planted.start_weight, planted.end_weight):
        assert np.bincount(planted.category, weight) == pytest.approx(np.ones(synthetic.CATEGORIES))


def test_items_and_users_tell_the_truth_in_no_order(planted: Planted) -> None:
    items, users = read(planted.items), read(planted.users)
    number = pc.index_in(items["item_id"], planted.item_ids).to_numpy()
    assert sorted(number) == list(range(149))
    assert number.tolist() != sorted(number)
    assert items["category"].to_pylist() == [f"category {planted.category[one]}" for one in number]
    assert items["available"].to_pylist() == planted.available[number].tolist()
    assert 0 < (~planted.available).sum() < 149 / 5
    assert users.column_names == ["user_id", "age", "region"]
    assert len(users) == round(317 * 0.9)
    of = pc.index_in(users["user_id"], planted.user_ids).to_numpy()
    assert len(set(of)) == len(of)
    ages = ["18-29", "30-39", "40-49", "50-64", "65+"]
    assert np.mean([age == ages[planted.group[one]] for one, age in zip(of, users["age"].to_pylist(), strict=True)]) > 0.6


def test_a_shop_may_have_string_ids_other_names_and_events_alone(planted: Planted, tmp_path: Path) -> None:
    names = {"user_id": "household", "ts": "sold_at"}
    made = plant(tmp_path, ids="string", columns=names, with_items=False, with_users=False)
    events = read(made.events)
    assert events.column_names == ["household", "item_id", "sold_at", "quantity", "price"]
    assert (events.schema.field("household").type, events.schema.field("item_id").type) == (pa.string(), pa.string())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events"]
    assert (made.items, made.users) == (None, None)
    assert made.available.all()
    assert made.user_ids.to_pylist() == sorted(made.user_ids.to_pylist())
    assert made.user_ids[0].as_py() == "user-010"
    assert made.columns == names
    assert made.rows == planted.rows  # the same shop but for its looks


def test_views_follow_popularity_whatever_the_group(tmp_path: Path) -> None:
    made = plant(tmp_path, kinds=True)
    events = read(made.events)
    user, item = numbered(made, events)
    liked = np.array([made.liked(one) for one in range(317)])[user, item]
    view = pc.equal(events["kind"], "view").to_numpy()
    assert set(events["kind"].to_pylist()) == {"view", "purchase"}
    assert liked[view].mean() == pytest.approx(2 / 12, abs=0.02)
    assert liked[~view].mean() > 0.8
    assert (~view).sum() == pytest.approx(317 * 40, rel=0.2)
    assert view.sum() == pytest.approx(2 * 317 * 40 / 2, rel=0.2)


@pytest.mark.parametrize("names", [{}, {"user_id": "household", "ts": "sold_at", "quantity": "units"}])
def test_bad_rows_are_as_many_as_were_asked_for_and_bad_in_one_way(tmp_path: Path, names: dict[str, str]) -> None:
    made = plant(tmp_path, columns=names)
    good = read(made.events)
    wanted = {"null_user": 3, "null_item": 4, "null_ts": 5, "future_ts": 6, "negative_quantity": 7, "duplicates": 8}
    assert bad_rows(made, seed=1, **wanted) == wanted
    bad = pq.read_table(made.events / "bad.parquet")
    assert bad.schema == pq.read_schema(made.events / "part-00000.parquet")
    user, ts, units = (bad[names.get(name, name)] for name in ("user_id", "ts", "quantity"))
    marks = [
        pc.is_null(user),
        pc.is_null(bad["item_id"]),
        pc.is_null(ts),
        pc.fill_null(pc.greater(ts, pa.scalar(datetime(2099, 1, 1, tzinfo=UTC))), False),
        pc.less(units, 0),
    ]
    ways = np.array([mark.to_numpy() for mark in marks])
    assert ways.sum(axis=1).tolist() == [3, 4, 5, 6, 7]
    assert ways.sum(axis=0).max() == 1
    copies = bad.filter(pa.array(ways.sum(axis=0) == 0))
    assert len(copies) == 8
    assert len(copies.group_by(copies.column_names).aggregate([])) == 8
    assert len(pa.concat_tables([good, copies]).group_by(good.column_names).aggregate([])) == len(good)


def test_a_shop_too_small_for_its_categories_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="needs 48 items, got 40"):
        plant(tmp_path, items=40)


# ---- vectors


def test_users_buy_items_of_their_own_style_and_vectors_tell_it(tmp_path: Path) -> None:
    styled = plant(tmp_path / "styled", vectors=12, kind="media")
    user, item = numbered(styled, read(styled.events))
    alike = np.einsum("bs,bs->b", styled.style[item], styled.taste[user])
    assert alike.mean() > 0.3  # the best of four directions at random; of one it is 0
    table = read(styled.items)
    vectors = np.stack(table["vector"].to_numpy())
    assert vectors.shape == (149, 12)
    place = pc.index_in(table["item_id"], styled.item_ids).to_numpy()
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    told = (vectors / length) @ (vectors / length).T
    pairs = np.triu_indices(149, 1)
    assert np.corrcoef(told[pairs], (styled.style[place] @ styled.style[place].T)[pairs])[0, 1] > 0.8


def test_without_vectors_there_is_no_such_column_and_the_shop_is_the_same(tmp_path: Path, planted: Planted) -> None:
    assert "vector" not in read(planted.items).column_names
    styled = plant(tmp_path / "styled", vectors=4)
    assert read(styled.items).select(["item_id", "category"]).sort_by("item_id") == read(planted.items).select(
        ["item_id", "category"]
    ).sort_by("item_id")
    assert (styled.staple_items == planted.staple_items).all()
