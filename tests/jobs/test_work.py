"""`jobs.work`: what lies under run.work."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from recsys.engine.stage import Stage, stage_folders
from tests.verbs import Ended

DAY = 86_400


def test_what_lies_there_is_listed_and_what_no_run_used_lately_goes(tmp_path: Path, run: Callable[..., Ended]) -> None:
    work = tmp_path / "work"
    old, new, held = (Stage(work, name, {"of": name}) for name in ("old", "new", "held"))
    old.finish("unit", {"seconds": 1.0})
    (old.path / "unit.arrow").write_bytes(bytes(2**20))
    for stage, days in ((old, 5), (held, 6), (new, 1)):
        then = time.time() - days * DAY
        os.utime(stage.path / "stage.json", (then, then))
    file = tmp_path / "shop.toml"
    file.write_text(f'[shop]\nevents = "{tmp_path}/events"\n[run]\nwork = "{work}"\n')
    with held.owned():
        listed = stage_folders(work)
        assert [(one.name.split("-")[0], one.units, one.owned) for one in listed] == [
            ("new", 0, False),
            ("old", 1, False),
            ("held", 0, True),
        ]
        assert listed[1].size > 2**20
        shown = run("work", "list", "--config", str(file))
        assert shown.status == 0
        assert old.path.name in shown.out
        assert "3 folders, 1.0 MiB." in shown.out
        assert shown.out.count("a run works in it") == 1
        pruned = run("work", "prune", "--config", str(file), "--days", "2")
        assert pruned.status == 0
        assert "Removed: 1 folders, 1.0 MiB" in pruned.out
        assert [one.name for one in stage_folders(work)] == [new.path.name, held.path.name]


def test_where_nothing_lies_nothing_is_listed(tmp_path: Path, run: Callable[..., Ended]) -> None:
    file = tmp_path / "shop.toml"
    file.write_text(f'[shop]\nevents = "{tmp_path}/events"\n[run]\nwork = "{tmp_path}/work"\n')
    shown = run("work", "list", "--config", str(file))
    assert (shown.status, "0 folders, 0.0 MiB." in shown.out) == (0, True)
    assert not (tmp_path / "work").exists()


def test_what_goes_while_it_is_listed_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Stage(tmp_path, "gone", {})

    def removed(folder: Path) -> float:  # by a run, meanwhile
        return math.inf

    def there(path: Path) -> bool:  # when asked, and gone when looked at
        return path.name == "loose" or real(path)

    monkeypatch.setattr("recsys.engine.stage._used", removed)
    assert stage_folders(tmp_path) == []
    monkeypatch.undo()
    (gone.path / "loose").symlink_to(gone.path / "nothing")
    real = Path.is_file
    monkeypatch.setattr(Path, "is_file", there)
    assert [one.name for one in stage_folders(tmp_path)] == [gone.path.name]
