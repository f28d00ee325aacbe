"""Settings: frozen pydantic models read from one TOML file; unknown keys are refused and every value is checked when read.

Each model is one section of the file. A path is absolute, begins with ~ for the home, or is relative to the folder the command runs
in; what is read and the table may be URIs. Here, in the order of the file:

    section.py    what all sections are
    paths.py      what a path may be, here and on command lines
    shop.py       [shop], [features], [window], [signals], [candidates], [examples]
    pairs.py      [pairs], of the pairs door
    training.py   [model], [train], [calibration]
    search.py     [tune]
    rules.py      [[rules]]
    publishing.py [rank], [table], [gate], [champion], [report], [notify], [privacy], [fairness], [run]
    settings.py   the whole files, and what must agree in them
    loading.py    a file -> settings, or the first mistake in one sentence
"""

from recsys.config.loading import load, load_either, load_pairs
from recsys.config.pairs import Column, Pairs, Scaling, Words
from recsys.config.publishing import Champion, Export, Fairness, Gate, Notify, Privacy, Rank, Report, Run, Table
from recsys.config.rules import (
    AVAILABLE,
    DISLIKES,
    REPEATS,
    AnyRule,
    Audience,
    BoughtRule,
    CapRule,
    ColumnRule,
    ExposureRule,
    ItemsRule,
    PairsRule,
    RangeRule,
    Rule,
)
from recsys.config.search import ABSENT, SPACE, Range, is_whole, needs_lists, title_of
from recsys.config.section import Section
from recsys.config.settings import PairsSettings, Settings
from recsys.config.shop import Candidates, Columns, Examples, Features, Shop, Signals, Window
from recsys.config.training import Calibration, Model, PairsTrain, Train, TrainPrivacy

__all__ = [
    "ABSENT",
    "AVAILABLE",
    "DISLIKES",
    "REPEATS",
    "SPACE",
    "AnyRule",
    "Audience",
    "BoughtRule",
    "Calibration",
    "Candidates",
    "CapRule",
    "ExposureRule",
    "Champion",
    "Column",
    "ColumnRule",
    "Columns",
    "Examples",
    "Export",
    "Fairness",
    "Features",
    "Gate",
    "ItemsRule",
    "Model",
    "Notify",
    "Pairs",
    "PairsRule",
    "PairsSettings",
    "PairsTrain",
    "Privacy",
    "Range",
    "RangeRule",
    "Rank",
    "Report",
    "Rule",
    "Run",
    "Scaling",
    "Section",
    "Settings",
    "Shop",
    "Signals",
    "Table",
    "Train",
    "TrainPrivacy",
    "Window",
    "Words",
    "is_whole",
    "load",
    "load_either",
    "load_pairs",
    "needs_lists",
    "title_of",
]
