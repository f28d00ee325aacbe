from datetime import date
from pathlib import Path

import pytest

from recsys import synthetic
from recsys.backtest import horizon_end
from recsys.config import Settings
from recsys.shop import open_shop

DAY = date(2024, 6, 1)


def test_a_horizon_past_the_data_is_shortened_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    planted = synthetic.shop(tmp_path, users=20, items=48, days=98, seed=8, end=DAY, events_per_user=35)
    settings = Settings.model_validate({"shop": {"events": str(planted.events)}, "window": {"label_days": 14}})
    sources = open_shop(settings, as_of=DAY)
    assert horizon_end(sources, as_of=date(2024, 5, 4), horizon_days=28) == DAY
    assert not caplog.records
    assert horizon_end(sources, as_of=date(2024, 5, 4), horizon_days=29) == DAY
    assert caplog.messages == ["backtest: the data ends on 2024-05-31, so the horizon is 28 days, not 29"]
