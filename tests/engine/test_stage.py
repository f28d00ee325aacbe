import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import Rank, Window
from recsys.engine.stage import Stage, prune
from recsys.storage import digest, write_atomically

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


# ---- digest


@given(st.dictionaries(st.text(max_size=4), plain, max_size=5))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    assert digest(dict(reversed(value.items()))) == digest(value)


@given(plain, plain)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)  # tells True from 1
    assert (digest({"a": one}) == digest({"a": other})) == same


def test_a_digest_is_that_of_the_canonical_json() -> None:
    canonical = rb'{"a":"\u00e9","b":[1,2.5,null]}'
    assert digest({"b": (1, 2.5, None), "a": "é"}) == hashlib.sha256(canonical).hexdigest()[:16]


def test_settings_and_paths_are_digested_by_value() -> None:
    assert digest(Rank(k=5)) == digest({"k": 5, "allow_repeats": None, "candidates": None, "diversity": 0.0}) != digest(Rank(k=6))
    assert digest(Path("var/work")) == digest("var/work")


def test_what_has_no_canonical_json_is_refused() -> None:
    with pytest.raises(TypeError, match="set has no canonical JSON"):
        digest({"a": {1, 2}})


# ---- write_atomically


def test_a_file_is_written_whole_and_its_folder_made(tmp_path: Path) -> None:
    def whole(file: Path) -> None:
        file.write_text("whole")

    write_atomically(tmp_path / "a" / "b.txt", whole)
    assert (tmp_path / "a" / "b.txt").read_text() == "whole"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def half(file: Path) -> None:
        file.write_text("ha")
        raise error

    with pytest.raises(error):
        write_atomically(tmp_path / "b.txt", half)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("old")

    def half(file: Path) -> None:
        file.write_text("ne")
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        write_atomically(tmp_path / "b.txt", half)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b.txt": "old"}


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "b.txt"
    path.write_text("old")

    def write(file: Path) -> None:
        file.write_text("new")
        assert path.read_text() == "old"
        assert file.parent == path.parent  # a rename across file systems is no rename
        assert file.name.startswith(".")  # readers of folders skip it

    write_atomically(path, write)
    assert path.read_text() == "new"


# ---- stages


INPUTS: dict[str, Any] = {"window": Window(), "as_of": "2017-12-01", "after": ["a1", "b2"]}


def test_a_receipt_survives_the_process(tmp_path: Path) -> None:
    assert Stage(tmp_path, "score", INPUTS).finish("shard-3", {"rows": 12, "parts": ["x"]}) == {"rows": 12, "parts": ["x"]}
    assert Stage(tmp_path, "score", INPUTS).receipt("shard-3") == {"rows": 12, "parts": ["x"]}


def test_an_unfinished_unit_has_no_receipt(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "score", INPUTS)
    stage.finish("shard-3", {})
    assert stage.receipt("shard-4") is None
    assert stage.receipt("shard-3") == {}


def test_a_forgotten_unit_is_not_finished(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "score", INPUTS)
    stage.finish("shard-3", {})
    stage.forget("shard-3")
    stage.forget("shard-3")  # twice is as good as once
    assert stage.receipt("shard-3") is None


def test_a_forgotten_unit_was_never_begun(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "score", INPUTS)
    assert [stage.attempt("shard-3"), stage.attempt("shard-3"), stage.attempt("shard-4")] == [1, 2, 1]
    stage.forget("shard-3")
    assert [stage.attempt("shard-3"), stage.attempt("shard-4")] == [1, 2]


def test_a_receipt_that_cannot_be_written_does_not_finish_the_unit(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "score", INPUTS)
    with pytest.raises(TypeError):
        stage.finish("shard-3", {"rows": 12, "what": object()})
    assert stage.receipt("shard-3") is None
    assert list((stage.path / "receipts").iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"as_of": "2017-12-02"}, {"window": Window(label_days=7)}, {"after": ["b2", "a1"]}, {"more": None}], ids=str
)
def test_any_other_input_is_another_stage(tmp_path: Path, change: dict[str, Any]) -> None:
    stage = Stage(tmp_path, "score", INPUTS)
    stage.finish("shard-3", {})
    other = Stage(tmp_path, "score", INPUTS | change)
    assert other.digest != stage.digest
    assert other.path != stage.path
    assert other.receipt("shard-3") is None


def test_another_name_is_another_stage(tmp_path: Path) -> None:
    assert Stage(tmp_path, "score", INPUTS).digest != Stage(tmp_path, "train", INPUTS).digest


def test_other_code_is_another_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Stage(tmp_path, "score", INPUTS).digest
    monkeypatch.setattr("recsys.engine.stage.code_digest", lambda: "0" * 16)
    assert Stage(tmp_path, "score", INPUTS).digest != before


def test_a_stage_says_what_it_was_made_from(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "score", INPUTS)
    assert stage.path == tmp_path / f"score-{stage.digest}"
    about = json.loads((stage.path / "stage.json").read_text())
    assert (about["stage"], about["as_of"], about["window"]["label_days"]) == ("score", "2017-12-01", 28)


def test_a_folder_that_no_run_used_lately_is_pruned_and_a_used_one_stays(tmp_path: Path) -> None:
    for name in ("old", "used"):
        stage = Stage(tmp_path, name, {})
        os.utime(stage.path / "stage.json", (1000, 1000))
    used = Stage(tmp_path, "used", {})  # touches it
    (tmp_path / "mine").mkdir()  # no stage: not ours to remove
    assert [name.split("-")[0] for name in prune(tmp_path, before=2000)] == ["old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["locks", "mine", used.path.name]


def test_of_a_lasting_stage_the_units_that_no_run_used_lately_are_pruned(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "signals", {}, lasting=True)
    for unit in ("old", "older", "used", "mine"):
        for ending in ("npz", "arrow"):
            (stage.path / f"{unit}.{ending}").touch()
        stage.attempt(unit)
        stage.finish(unit, {})
        os.utime(stage.path / "receipts" / f"{unit}.json", (1000, 1000))
    stage.use(["used"])
    with stage.owned():
        assert prune(tmp_path, before=2000) == []
    assert stage.receipt("old") is not None  # a run worked there
    os.utime(stage.path / "receipts" / "mine.json", (3000, 3000))
    assert prune(tmp_path, before=2000) == []
    assert sorted(path.name for path in stage.path.rglob("*.json")) == ["mine.json", "stage.json", "used.json"]
    assert {path.stem for path in stage.path.glob("*.*")} == {"stage", "mine", "used"}
    assert sorted(path.name for path in (stage.path / "attempts").iterdir()) == ["mine", "used"]
    os.utime(stage.path / "stage.json", (1000, 1000))
    assert prune(tmp_path, before=2000) == [stage.path.name]
