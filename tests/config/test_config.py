import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from recsys import config
from recsys.config import Column, PairsSettings, Range, Scaling, Section, Settings, Words
from recsys.errors import ConfigError

# Issue 2, "Any other shop": the shape is a contract.
CONTRACT = """
[shop]
events = "path or URI of a Parquet file or folder"     # s3://, gs:// too, through pyarrow.fs
items  = "…"                                            # optional: without it the catalog is the items seen in events
users  = "…"                                            # optional
timezone = "UTC"                                        # of times without one; absent: such times are refused
label_kinds = ["purchase"]                              # which event kinds count as wanted; all, where there is no kind
[shop.columns]                                          # ours = theirs, only where they differ
user_id = "household_id"
item_id = "product_id"
ts      = "transaction_timestamp"
[shop.storage_options]                                  # optional: region, endpoint; secrets from the environment
[features]
item_categorical = ["department", "brand"]
item_numeric     = []
user_categorical = ["age", "income"]
user_numeric     = []
[window]
history_days = 365
label_days   = 28
[model]                                                 # defaults: the original MLP (see design.md)
hidden = [512, 256, 128]
dropout = 0.2
[train]
epochs = 10
batch_size = 1024                                       # the global batch, over all workers
workers = 2
[rank]
k = 10
allow_repeats = true
[table]
path = "var/recommendations"
keep_nights = 30                                        # older nights are removed and vacuumed, never a running one's parts
"""

SHOP = '[shop]\nevents = "events"\n'
PAIRS = '[pairs]\npath = "rows"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "shop.toml"


def sentence(file: Path, text: str) -> str:
    """What `load` says of a file, without the file's name."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        config.load(file)
    return str(error.value).removeprefix(f"{file}: ")


def test_the_contract_of_issue_2_loads(file: Path) -> None:
    file.write_text(CONTRACT, encoding="utf-8")
    settings = config.load(file)
    assert settings.shop.events == "path or URI of a Parquet file or folder"
    assert settings.shop.label_kinds == ("purchase",)
    assert settings.shop.columns.user_id == "household_id"
    assert settings.shop.columns.quantity == "quantity"
    assert settings.features.item_categorical == ("department", "brand")
    assert settings.model.hidden == (512, 256, 128)
    assert settings.rank.allow_repeats is True
    assert [config.Rank(allow_repeats=told).repeats for told in (True, False, None)] == [True, False, True]
    assert (settings.table.path, settings.table.keep_nights) == ("var/recommendations", 30)


def test_only_events_is_required_and_the_model_s_defaults_are_the_original_s(file: Path) -> None:
    file.write_text(SHOP)
    settings = config.load(file)
    assert settings.shop.items is settings.shop.users is settings.shop.timezone is settings.shop.label_kinds is None
    assert (settings.model.hidden, settings.model.dropout) == ((512, 256, 128), 0.2)
    assert (settings.train.epochs, settings.train.learning_rate) == (10, 1e-3)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_settings_file_in_another_encoding_is_refused(file: Path, encoding: str) -> None:
    file.write_text("# Käse\n[shop]\nevents = 'x'\n", encoding=encoding)
    with pytest.raises(ConfigError, match=r"must be UTF-8, got other bytes: .* Save it as UTF-8\.$"):
        config.load(file)


def test_a_settings_file_may_begin_with_a_byte_order_mark(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + SHOP.encode())
    assert config.load(file).shop.events == "events"


RULE = '[shop]\nevents = "e"\nitems = "i"\nusers = "u"\n[[rules]]\nname = "r"\n'
COLUMN = RULE + 'kind = "column"\ncolumn = "brand"\n'


def test_rules_load(file: Path) -> None:
    file.write_text(
        COLUMN
        + """never = ["x", 7, true]
        audience = { column = "age", other_than = ["18-29"] }
        [[rules]]
        name = "dear"
        kind = "range"
        column = "price"
        max = 3
        [[rules]]
        name = "listed"
        kind = "items"
        only = "s3://bucket/these"
        audience = { ids = "users.parquet" }
        [[rules]]
        name = "returned"
        kind = "pairs"
        never = "returned"
        [[rules]]
        name = "lately"
        kind = "bought"
        days = 7
        [[rules]]
        name = "variety"
        kind = "cap"
        column = "brand"
        at_most = 2
        """
    )
    rules = config.load(file).rules
    assert [rule.name for rule in rules] == ["r", "dear", "listed", "returned", "lately", "variety"]
    assert isinstance(rules[0], config.ColumnRule)
    assert rules[0].never == ("x", "7", "true")  # as the columns of such types read
    assert rules[0].audience is not None
    assert rules[0].audience.other_than == ("18-29",)
    assert [rule.lists() for rule in rules] == [
        {},
        {},
        {"items": "s3://bucket/these", "users": "users.parquet"},
        {"pairs": "returned"},
        {},
        {},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RULE, "key 'rules.0.kind' must be one of bought, column, range, items, pairs, cap, exposure, got None. Mend it."),
        (
            RULE + 'kind = "colum"',
            "key 'rules.0.kind' must be one of bought, column, range, items, pairs, cap, exposure, got 'colum'. Mend it.",
        ),
        (RULE + 'kind = "bought"\ndays = 3\nday = 3', "unknown key 'rules.0.day'. Known here: name, audience, kind, days."),
        (RULE + 'kind = "bought"', "key 'rules.0.days' is missing. Add it."),
        (RULE + 'kind = "bought"\ndays = 0', "key 'rules.0.days': input should be greater than 0, got 0."),
        (
            RULE + 'kind = "bought"\ndays = 366',
            "rules 'r': days must be at most window.history_days (365), got 366; lower it, or set rank.allow_repeats = false.",
        ),
        (COLUMN, "rules.0: set one of only, never, got none; mend it."),
        (COLUMN + 'only = ["a"]\nnever = ["b"]', "rules.0: set one of only, never, got only and never; mend it."),
        (COLUMN + "only = []", "key 'rules.0.only': tuple should have at least 1 item after validation, not 0, got []."),
        (
            COLUMN + 'only = ["a"]\naudience = { colum = "age" }',
            "unknown key 'rules.0.audience.colum'. Known here: column, values, other_than, ids.",
        ),
        (COLUMN + 'only = ["a"]\naudience = { column = "age" }', "rules.0.audience: set one of values, other_than, got none; mend it."),
        (
            COLUMN + 'only = ["a"]\naudience = { ids = "u", values = ["b"] }',
            "rules.0.audience: an audience by ids has no values; remove them, or set column.",
        ),
        (RULE + 'kind = "range"\ncolumn = "price"', "rules.0: set min, max or both, got none; mend it."),
        (RULE + 'kind = "range"\ncolumn = "price"\nmin = 3\nmax = 2.5', "rules.0: min must be at most max, got 3 and 2.5; mend it."),
        (RULE + 'kind = "items"', "rules.0: set one of only, never, got none; mend it."),
        (
            RULE + 'kind = "pairs"\nnever = "p"\n[[rules]]\nname = "r"\nkind = "bought"\ndays = 3',
            "rules 'r': two rules have this name; give each its own.",
        ),
        (
            RULE.replace('"r"', '"available"') + 'kind = "pairs"\nnever = "p"',
            "rules 'available': a built-in rule has this name; choose another.",
        ),
        (
            COLUMN.replace("brand", "available") + "only = [true]",
            "rules 'r': column 'available' cannot be a rule's; that one is always obeyed, remove the rule.",
        ),
        (
            COLUMN + 'only = ["a"]\naudience = { column = "price", values = ["b"] }',
            "rules 'r': column 'price' cannot be a rule's; rename it in the table.",
        ),
        (
            COLUMN + 'only = ["a"]\n[features]\nitem_numeric = ["brand"]',
            "rules 'r': column 'brand' is words here and among the numbers elsewhere; write it as two columns.",
        ),
        (
            COLUMN + 'only = ["a"]\n[[rules]]\nname = "s"\nkind = "range"\ncolumn = "brand"\nmin = 1',
            "rules 's': column 'brand' is a number here and among the words elsewhere; write it as two columns.",
        ),
        (
            COLUMN.replace('items = "i"\n', "") + 'only = ["a"]',
            "rules 'r' names column 'brand' but shop.items is absent; set shop.items or remove the rule.",
        ),
        (
            COLUMN.replace('users = "u"\n', "") + 'only = ["a"]\naudience = { column = "age", values = ["b"] }',
            "rules 'r' names column 'age' but shop.users is absent; set shop.users or remove the rule.",
        ),
    ],
)
def test_a_mistake_in_a_rule_is_one_sentence(file: Path, text: str, message: str) -> None:
    assert sentence(file, text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'look_kinds = ["view"]',
            "shop.look_kinds needs shop.label_kinds, without which all kinds are wanted; set it, or remove look_kinds.",
        ),
        ('label_kinds = ["buy"]\nlook_kinds = ["view", "buy"]', "shop.look_kinds and shop.label_kinds name 'buy'; remove it from one."),
        (
            'columns = { value = "stars" }',
            "shop.columns.value is read for shop.least_value, which is absent; set it, or remove shop.columns.value.",
        ),
        ("least_value = nan", "key 'shop.least_value': input should be a finite number, got nan."),
        ('least_value = "4"', "key 'shop.least_value': input should be a valid number, got '4'."),
    ],
)
def test_a_mistake_in_what_events_are_is_one_sentence(file: Path, text: str, message: str) -> None:
    assert sentence(file, f'[shop]\nevents = "e"\n{text}\n').removeprefix("shop: ") == message


@pytest.mark.parametrize(
    ("key", "value", "got"), [("diversity", "0.25", r"0\.25"), ("allow_repeats", "true", "True"), ("candidates", '"mine"', "'mine'")]
)
def test_the_pairs_door_knows_neither_diversity_nor_repeats_nor_candidates(file: Path, key: str, value: str, got: str) -> None:
    file.write_text(f'[pairs]\npath = "p"\nnumeric = ["a"]\n[rank]\n{key} = {value}')
    with pytest.raises(ConfigError, match=rf"rank\.{key} needs the shop door, .* got {got}; remove it\.$"):
        config.load_pairs(file)


def test_a_missing_file_is_one_sentence(file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(file)
    assert str(error.value) == f"{file}: no such settings file. Pass --config with the path of a TOML file."


def test_a_folder_is_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such settings file"):
        config.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "[shop\n",
            "not a TOML file: Expected ']' at the end of a table declaration (at line 1, column 6). Mend that place.",
            id="toml",
        ),
        pytest.param("", "key 'shop' is missing. Add it.", id="no shop"),
        pytest.param('[shop]\nitems = "i"', "key 'shop.events' is missing. Add it.", id="no events"),
        pytest.param(
            SHOP + "[shopp]",
            "unknown key 'shopp'. Known here: shop, features, window, signals, candidates, examples, model, train, tune, calibration, "
            "rank, rules, table, exports, gate, champion, report, notify, privacy, fairness, run.",
            id="unknown section",
        ),
        pytest.param(
            SHOP + "[rank]\nK = 5", "unknown key 'rank.K'. Known here: k, allow_repeats, candidates, diversity.", id="unknown key"
        ),
        pytest.param(
            SHOP + '[shop.columns]\nuser = "household"',
            "unknown key 'shop.columns.user'. Known here: user_id, item_id, ts, kind, quantity, price, value, date, available, name.",
            id="unknown nested key",
        ),
        pytest.param(
            SHOP + '[notify]\nurl = "https://h/x"\nurl_env = "X"',
            "notify: the address must be named once, got url, url_env; remove all but one.",
            id="two addresses",
        ),
        pytest.param(
            SHOP + '[notify]\nurl = "h/x"',
            "notify.url must begin with http:// or https://, got another text; write the whole address.",
            id="no address",
        ),
        pytest.param(
            SHOP + '[train]\nepochs = "ten"',
            "key 'train.epochs': input should be a valid integer, got 'ten'.",
            id="wrong type",
        ),
        pytest.param(
            SHOP + '[train]\nepochs = "10"',
            "key 'train.epochs': input should be a valid integer, got '10'.",
            id="a number in quotes",
        ),
        pytest.param(
            SHOP + "[rank]\nallow_repeats = 1",
            "key 'rank.allow_repeats': input should be a valid boolean, got 1.",
            id="a number for a truth value",
        ),
        pytest.param(SHOP + "[rank]\nk = true", "key 'rank.k': input should be a valid integer, got True.", id="a truth value"),
        pytest.param(
            SHOP + "[features]\nitem_numeric = [1]",
            "key 'features.item_numeric.0': input should be a valid string, got 1.",
            id="within an array",
        ),
        pytest.param(SHOP + "[rank]\nk = 0", "key 'rank.k': input should be greater than 0, got 0.", id="too small"),
        pytest.param(SHOP + "[model]\ndropout = 1.0", "key 'model.dropout': input should be less than 1, got 1.0.", id="too large"),
        pytest.param(
            SHOP + "[model]\nhidden = [512, -1]",
            "key 'model.hidden.1': input should be greater than 0, got -1.",
            id="a value of an array",
        ),
        pytest.param(
            SHOP + "[train]\nlearning_rate = inf",
            "key 'train.learning_rate': input should be a finite number, got inf.",
            id="infinite",
        ),
        pytest.param(
            SHOP + '[train]\ndevice = "tpu"',
            "key 'train.device': input should be 'cpu' or 'gpu', got 'tpu'.",
            id="none of the choices",
        ),
        pytest.param(
            SHOP + "[train]\nworkers = [4, 2]",
            "train.workers must be a whole number above 0, or [fewest, most], got [4, 2]; mend it.",
            id="elastic the wrong way round",
        ),
        pytest.param(
            SHOP + "[train]\nworkers = true",
            "train.workers must be a whole number above 0, or [fewest, most], got True; mend it.",
            id="a truth value for workers",
        ),
        pytest.param(
            SHOP + "[train]\nworkers = [1, 2, 3]",
            "train.workers must be a whole number above 0, or [fewest, most], got [1, 2, 3]; mend it.",
            id="three numbers of workers",
        ),
        pytest.param(
            SHOP + '[train]\neven_groups = "age"',
            "train.even_groups must be one of fairness.user_groups (none), got 'age'; add it.",
            id="groups that nobody audits",
        ),
        pytest.param(
            SHOP + "[train]\nprivacy = { noise = 0, clip = 1, delta = 1e-6 }",
            "key 'train.privacy.noise': input should be greater than 0, got 0.",
            id="privacy without noise",
        ),
        pytest.param(
            SHOP + '[model]\nnormalisation = "batch"\n[train]\nprivacy = { noise = 1, clip = 1, delta = 1e-6 }',
            'train.privacy: model.normalisation "batch" mixes users in each step; set "layer", or remove it.',
            id="privacy with batch normalisation",
        ),
        pytest.param(
            SHOP + '[train]\nclass_weights = "balanced"\nprivacy = { noise = 1, clip = 1, delta = 1e-6 }',
            'train.privacy: class_weights "balanced" counts labels of users; give two factors or remove it.',
            id="privacy with balanced labels",
        ),
        pytest.param(
            SHOP + '[train]\neven_groups = "age"\nprivacy = { noise = 1, clip = 1, delta = 1e-6 }\n[fairness]\nuser_groups = ["age"]',
            "train.privacy: even_groups counts users of each group; remove one of them.",
            id="privacy with even groups",
        ),
        pytest.param(
            SHOP + '[train]\nclass_weights = "auto"',
            "train.class_weights must be \"balanced\" or [factor of label 0, of label 1], got 'auto'; mend it.",
            id="class weights in a word",
        ),
        pytest.param(
            SHOP + "[train]\nclass_weights = [1, 0]",
            "train.class_weights must be above 0 and finite, got [1, 0]; mend it.",
            id="a class that weighs nothing",
        ),
        pytest.param(
            SHOP + '[train]\nprecision = "mixed_bfloat16"',
            'train.precision "mixed_bfloat16" needs train.device "gpu", got "cpu", where it is slower than float32; '
            "set train.device or remove train.precision.",
            id="mixed precision on a CPU",
        ),
        pytest.param(
            SHOP + "[train]\nepochs = 3\nwarmup_epochs = 3.5",
            "train.warmup_epochs must be at most train.epochs (3), got 3.5; lower it.",
            id="a warm-up longer than the fit",
        ),
        pytest.param(
            SHOP + '[model]\nnormalisation = "group"',
            "key 'model.normalisation': input should be 'batch' or 'layer', got 'group'.",
            id="an unknown normalisation",
        ),
        pytest.param(
            SHOP + 'users = "users"\n[features]\nuser_categorical = ["age"]\nuser_numeric = ["income", "age"]',
            "features: user column 'age' is named twice; name it once.",
            id="named twice",
        ),
        pytest.param(
            SHOP + 'users = "u"\nitems = "i"\n[features]\nitem_categorical = ["brand"]\nuser_categorical = ["brand"]',
            "features: column 'brand' is one of items and one of users; rename it in one of the tables.",
            id="named twice, of items and users",
        ),
        *(
            pytest.param(
                SHOP + f'{table}s = "t"\n[features]\n{table}_numeric = ["{name}"]\n[shop.columns]\n{columns}',
                f"features: {table} column '{name}' has a name that is ours; rename it in the table of {table}s.",
                id=f"a feature of {table}s called {name}, {columns or 'names as ours'}",
            )
            for table, name, columns in (
                ("user", "item", ""),
                ("user", "ts", ""),
                ("user", "quantity", ""),
                ("user", "look", ""),
                ("user", "user_id", ""),
                ("user", "who", 'user_id = "who"'),
                ("item", "item_id", 'item_id = "sku"'),
                ("item", "sku", 'item_id = "sku"'),
                ("item", "available", ""),
                ("item", "active", 'available = "active"'),
                ("item", "name", 'name = "title"'),
                ("item", "name", ""),
            )
        ),
        pytest.param(
            SHOP + '[features]\nuser_numeric = ["income"]',
            "features names user columns but shop.users is absent; set shop.users or remove them.",
            id="user columns without users",
        ),
        pytest.param(
            SHOP + '[features]\nitem_categorical = ["brand"]',
            "features names item columns but shop.items is absent; set shop.items or remove them.",
            id="item columns without items",
        ),
    ],
)
def test_a_mistake_is_one_sentence(file: Path, text: str, message: str) -> None:
    assert sentence(file, text) == message


def test_each_mistake_has_its_sentence(file: Path) -> None:
    file.write_text(SHOP + '[rank]\nk = 0\n[train]\nepochs = "ten"\nworkers = 0')
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    assert caught.value.sentences == (
        f"{file}: key 'train.epochs': input should be a valid integer, got 'ten'.",
        f"{file}: train.workers must be a whole number above 0, or [fewest, most], got 0; mend it.",
        f"{file}: key 'rank.k': input should be greater than 0, got 0.",
    )


def test_a_whole_number_does_where_a_fraction_may_stand(file: Path) -> None:
    file.write_text(SHOP + "[signals]\nals_l2 = 10\nals_alpha = 2\n[model]\ndropout = 0\n")
    settings = config.load(file)
    assert (repr(settings.signals.als_l2), repr(settings.model.dropout)) == ("10.0", "0.0")


def sections(section: type[Section]) -> list[type[Section]]:
    """A section and all below it."""
    below = [field.annotation for field in section.model_fields.values()]
    inner = [one for kind in below if isinstance(kind, type) and issubclass(kind, Section) for one in sections(kind)]
    return [section, *inner]


@pytest.mark.parametrize(
    "section",
    dict.fromkeys([*sections(Settings)[1:], *sections(PairsSettings)[1:], Column, Range]),
    ids=lambda section: section.__name__,
)
def test_every_field_says_what_it_is(section: type[Section]) -> None:
    assert section.__doc__
    silent = [
        name
        for name, field in section.model_fields.items()
        if not field.description and not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    ]
    assert silent == []


TUNED = (
    "max_embedding, batch_size, dropout, learning_rate, warmup_epochs, momentum, weight_decay, l2, clip_norm, hidden, activation, "
    "normalisation, initialiser, optimizer, schedule, class_weights"
)


@pytest.mark.parametrize("door", [SHOP, PAIRS])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "tune must be a section with a key at least, got {}; add one or remove [tune]."),
        ("dropuot = [0.1]", f"unknown key 'tune.dropuot'. Known here: {TUNED}."),
        ("workers = [1, 2]", f"unknown key 'tune.workers'. Known here: {TUNED}."),
        ("dropout = 0.1", "tune.dropout must be a list of choices or a range {low, high, [log]}, got 0.1; mend it."),
        ("dropout = []", "tune.dropout must be a list of choices or a range {low, high, [log]}, got []; mend it."),
        ("dropout = [0.1, 1.5]", "tune.dropout: 'dropout': input should be less than 1, got 1.5; mend it."),
        ("dropout = {low = 0, high = 1}", "tune.dropout: 'dropout': input should be less than 1, got 1.0; mend it."),
        ("dropout = {low = 0.5, high = 0.1}", "tune.dropout: low must be below high, got 0.5 and 0.1; mend them."),
        ("dropout = {low = 0, high = 0.5, log = true}", "tune.dropout: low must be above 0 for log, got 0; raise it or remove log."),
        ("dropout = {low = 0.1}", "tune.dropout: 'high': field required, got {'low': 0.1}; mend it."),
        ('dropout = {low = "a", high = 1}', "tune.dropout: 'low': input should be a valid number, got 'a'; mend it."),
        ("hidden = {low = 8, high = 64}", "tune.hidden: a range is of numbers, hidden is none; list choices instead."),
        ("hidden = [128]", "tune.hidden: 'hidden': input should be a valid tuple, got 128; mend it."),
        ("batch_size = {low = 0.5, high = 8}", "tune.batch_size: 'batch_size': input should be a valid integer, got 0.5; mend it."),
        (
            'activation = ["absent"]',
            "tune.activation: 'activation': input should be 'relu', 'gelu', 'sigmoid' or 'tanh', got 'absent'; mend it.",
        ),
        ("warmup_epochs = [90]", "tune.warmup_epochs: train.warmup_epochs must be at most train.epochs (10), got 90; lower it."),
        (
            "class_weights = [[1.0]]",
            'tune.class_weights: train.class_weights must be "balanced" or [factor of label 0, of label 1], got [1.0]; mend it.',
        ),
    ],
)
def test_a_space_that_cannot_be_searched_is_one_sentence(file: Path, door: str, text: str, message: str) -> None:
    file.write_text(f"{door}[tune]\n{text}")
    with pytest.raises(ConfigError) as caught:
        config.load_either(file)
    more = ", window.KEY, signals.KEY, candidates.KEY, examples.KEY" if door == SHOP else ""
    assert str(caught.value) == f"{file}: {message}".replace(TUNED, TUNED + more)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("candidates = 3", "tune.candidates must be a section with a key at least, got 3; add one or remove it."),
        ("[tune.candidates]", "tune.candidates must be a section with a key at least, got {}; add one or remove it."),
        (
            "[tune.examples]\nnegative = [1]",
            "unknown key 'tune.examples.negative'. Known here: examples.max_users, examples.negatives.",
        ),
        (
            "[tune.rank]\nk = [1]",
            f"unknown key 'tune.rank'. Known here: {TUNED}, window.KEY, signals.KEY, candidates.KEY, examples.KEY.",
        ),
        (
            "[tune.candidates]\npopular = 3",
            "tune.candidates.popular must be a list of choices or a range {low, high, [log]}, got 3; mend it.",
        ),
        (
            "[tune.candidates]\npopular = [100, 0]",
            "tune.candidates.popular: 'popular': input should be greater than 0, got 0; mend it.",
        ),
        (
            "[tune.candidates]\nown = {low = 0.5, high = 9}",
            "tune.candidates.own: 'own': input should be a valid integer, got 0.5; mend it.",
        ),
        (
            "[signals]\nals_l2 = 1\nals_alpha = 2\n[tune.signals]\nals_l2 = {low = 0, high = 9}",
            "tune.signals.als_l2: 'als_l2': input should be greater than 0, got 0.0; mend it.",
        ),
        (
            "[signals]\nals_l2 = 1\n",
            "signals.als_l2 goes with signals.als_alpha, as they are chosen together; set both or neither.",
        ),
        (
            "[tune.window]\nhistory_days = [91, 365]",
            "tune.window.history_days: it says which users have a history, so trials of it would count different users; remove it.",
        ),
    ],
)
def test_what_is_learned_from_is_searched_too_and_a_wrong_space_of_it_is_one_sentence(file: Path, text: str, message: str) -> None:
    file.write_text(f"{SHOP}[tune]\n{text}" if text.startswith("candidates") else SHOP + text)
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    assert str(caught.value) == f"{file}: {message}"


def test_a_space_is_ranges_and_choices_and_travels(file: Path) -> None:
    file.write_text(
        SHOP + "[tune]\nlearning_rate = {low = 1e-4, high = 1e-2, log = true}\nbatch_size = {low = 64, high = 4096}\n"
        'hidden = [[128, 64], [512]]\nnormalisation = ["absent", "layer"]\nclass_weights = ["absent", "balanced", [1.0, 2.0]]\n'
        "[tune.candidates]\npopular = [100, 300]\n[tune.signals]\nals_l2 = {low = 1, high = 100, log = true}\n"
        "[signals]\nals_l2 = 10\nals_alpha = 2\n"
    )
    settings = config.load(file)
    assert settings.tune == {
        "learning_rate": Range(low=1e-4, high=1e-2, log=True),
        "batch_size": Range(low=64, high=4096),
        "hidden": ([128, 64], [512]),
        "normalisation": ("absent", "layer"),
        "class_weights": ("absent", "balanced", [1.0, 2.0]),
        "candidates.popular": (100, 300),
        "signals.als_l2": Range(low=1, high=100, log=True),
    }
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize("door", [SHOP, PAIRS])
def test_without_a_space_there_is_one_that_would_be_taken(file: Path, door: str) -> None:
    file.write_text(door)
    space = config.load_either(file).model_dump(mode="json")["tune"]
    lines = [f"{key} = {json.dumps(value)}" for key, value in space.items() if not isinstance(value, dict)]
    lines += [
        f"{key} = {{{', '.join(f'{name} = {json.dumps(one)}' for name, one in value.items())}}}"
        for key, value in space.items()
        if isinstance(value, dict)
    ]
    file.write_text(f"{door}[tune]\n" + "\n".join(lines))
    assert config.load_either(file).model_dump(mode="json")["tune"] == space
    assert space.keys() == {"learning_rate", "hidden", "dropout", "normalisation"}


def test_settings_cannot_be_changed(file: Path) -> None:
    file.write_text(SHOP)
    settings: Any = config.load(file)
    with pytest.raises(ValidationError, match="frozen"):
        settings.rank.k = 3


# ---- the pairs door


def refused(file: Path, text: str, load: Callable[[Path], object] = config.load_pairs) -> str:
    """What is said of a file, without the file's name."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load(file)
    return str(error.value).removeprefix(f"{file}: ")


def test_only_path_is_required_of_pairs_and_the_defaults_are_the_original_s(file: Path) -> None:
    file.write_text(PAIRS)
    settings = config.load_pairs(file)
    pairs = settings.pairs
    assert (pairs.test, pairs.score, pairs.users, pairs.items, pairs.format, pairs.validation) == (
        None,
        None,
        None,
        None,
        "parquet",
        0.2,
    )
    assert (pairs.user_id, pairs.item_id, pairs.label, pairs.weight, pairs.named) == ("user_id", "item_id", "label", "weight", ())
    assert (settings.model.hidden, settings.model.dropout) == ((512, 256, 128), 0.2)
    assert (settings.train.epochs, settings.train.batch_size, settings.train.learning_rate) == (10, 64, 1e-3)
    assert settings.table.path != Settings.model_validate({"shop": {"events": "e"}}).table.path


def test_rules_of_one_column_stand_over_those_of_all(file: Path) -> None:
    file.write_text(
        PAIRS
        + 'numeric = ["a", "b"]\ncategorical = ["c"]\nmultivalued = ["d"]\n'
        + '[pairs.scaling]\ndivide = 255\nscale = "minmax"\nfill = 0\n[pairs.words]\nmax_vocabulary = 7\n'
        + '[pairs.columns.b]\ndivide = 2\nlog1p = true\nfill = "mean"\n[pairs.columns.d]\nmax_values = 3\n'
    )
    pairs = config.load_pairs(file).pairs
    assert pairs.named == ("a", "b", "c", "d")
    assert pairs.scaling_of("a") == Scaling(divide=255, scale="minmax", fill=0)
    assert pairs.scaling_of("b") == Scaling(divide=2, scale="minmax", log1p=True, fill="mean")
    assert pairs.words_of("c") == Words(max_vocabulary=7)
    assert pairs.words_of("d") == Words(max_vocabulary=7, max_values=3)


def test_a_rule_of_one_column_may_take_back_a_rule_of_all(file: Path) -> None:
    file.write_text(PAIRS + 'numeric = ["a"]\n[pairs.scaling]\nlog1p = true\nindicator = true\n[pairs.columns.a]\nlog1p = false\n')
    assert config.load_pairs(file).pairs.scaling_of("a") == Scaling(log1p=False, indicator=True)


ORIGINAL = PAIRS + 'format = "original_csv"\n'


def test_an_original_csv_may_have_columns_of_any_name(file: Path) -> None:
    file.write_text(ORIGINAL + 'ignore = ["user_id", "weight"]\n[pairs.columns.label]\nscale = "none"\n')
    assert config.load_pairs(file).pairs.ignore == ("user_id", "weight")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[pairs]\n", "key 'pairs.path' is missing. Add it."),
        (
            PAIRS + 'nummeric = ["a"]',
            "unknown key 'pairs.nummeric'. Known here: path, test, score, users, items, format, csv_ids, user_id, item_id, label, "
            "weight, numeric, categorical, multivalued, ignore, scaling, words, columns, validation, storage_options.",
        ),
        (PAIRS + "[pairs.scaling]\nlog = true", "unknown key 'pairs.scaling.log'. Known here: divide, log1p, scale, fill, indicator."),
        (
            PAIRS + 'numeric = ["a"]\n[pairs.columns.a]\nscal = "none"',
            "unknown key 'pairs.columns.a.scal'. Known here: divide, log1p, scale, fill, indicator, max_vocabulary, max_values.",
        ),
        (PAIRS + "[window]", "unknown key 'window'. Known here: pairs, model, train, tune, rank, table, exports, gate, run."),
        (PAIRS + 'format = "tsv"', "key 'pairs.format': input should be 'parquet', 'csv' or 'original_csv', got 'tsv'."),
        (PAIRS + "validation = 1", "key 'pairs.validation': input should be less than 1, got 1."),
        (PAIRS + "validation = 0", "key 'pairs.validation': input should be greater than 0, got 0."),
        (PAIRS + "[pairs.scaling]\ndivide = 0", "key 'pairs.scaling.divide': input should be greater than 0, got 0."),
        (
            PAIRS + '[pairs.scaling]\nscale = "z"',
            "key 'pairs.scaling.scale': input should be 'standard', 'minmax' or 'none', got 'z'.",
        ),
        (PAIRS + "[pairs.words]\nmax_values = 0", "key 'pairs.words.max_values': input should be greater than 0, got 0."),
        (
            PAIRS + '[train]\neven_groups = "age"',
            "train.even_groups needs the shop door, whose fit knows which rows are of one user; remove it.",
        ),
        (
            PAIRS + "[train]\nprivacy = { noise = 1, clip = 1, delta = 1e-6 }",
            "train.privacy needs the shop door, whose fit knows which rows are of one user; remove it.",
        ),
        (PAIRS + 'numeric = ["a", "b", "a"]', "pairs: column 'a' is named twice, in numeric and numeric; name it once."),
        (PAIRS + 'numeric = ["a"]\nignore = ["a"]', "pairs: column 'a' is named twice, in numeric and ignore; name it once."),
        (
            PAIRS + 'categorical = ["a"]\nmultivalued = ["a"]',
            "pairs: column 'a' is named twice, in categorical and multivalued; name it once.",
        ),
        (PAIRS + 'user_id = "a"\nitem_id = "a"', "pairs: column 'a' is named twice, in user_id and item_id; name it once."),
        (
            PAIRS + 'numeric = ["weight"]',
            "pairs: column 'weight' is named twice, in weight and numeric; set pairs.weight, which it is by its name, to another.",
        ),
        (
            PAIRS + 'numeric = ["a"]\n[pairs.columns.b]\nscale = "none"',
            "pairs.columns: 'b' is no feature column; name it in numeric, categorical or multivalued, or remove it.",
        ),
        (
            PAIRS + 'numeric = ["a"]\n[pairs.columns.a]\nmax_values = 3',
            "pairs.columns.a: 'max_values' is no rule for a column of numbers; remove it.",
        ),
        (
            PAIRS + 'multivalued = ["a"]\n[pairs.columns.a]\nlog1p = true\ndivide = 2',
            "pairs.columns.a: 'divide' is no rule for a column of words; remove it.",
        ),
        (
            PAIRS + "[pairs.scaling]\nlog1p = true\nfill = -1",
            "pairs.scaling: fill must be 0 or more under log1p, got -1.0; fill with 0 or 'mean'.",
        ),
        (
            PAIRS + 'numeric = ["a"]\n[pairs.scaling]\nlog1p = true\n[pairs.columns.a]\nfill = -1',
            "pairs.columns.a: fill must be 0 or more under log1p, got -1.0; fill with 0 or 'mean'.",
        ),
        (ORIGINAL + 'numeric = ["a"]', "pairs.format 'original_csv' names its columns itself; remove pairs.numeric."),
        (ORIGINAL + 'label = "y"', "pairs.format 'original_csv' names its columns itself; remove pairs.label."),
        (ORIGINAL + 'users = "u"', "pairs.format 'original_csv' names its columns itself; remove pairs.users."),
        (
            ORIGINAL + "[pairs.columns.a]\nmax_vocabulary = 3",
            "pairs.columns.a: 'max_vocabulary' is no rule for a column of numbers; remove it.",
        ),
    ],
)
def test_a_mistake_in_a_pairs_file_is_one_sentence(file: Path, text: str, message: str) -> None:
    assert refused(file, text) == message


@pytest.mark.parametrize(
    ("value", "seen"), [('"median"', "'median'"), ('"5"', "'5'"), ("true", "True"), ("inf", "inf"), ("nan", "nan")]
)
@pytest.mark.parametrize("where", ["scaling", "columns.a"])
def test_what_is_filled_in_is_a_number_or_the_mean(file: Path, value: str, seen: str, where: str) -> None:
    text = PAIRS + f'numeric = ["a"]\n[pairs.{where}]\nfill = {value}'
    assert refused(file, text) == f"key 'pairs.{where}.fill': input should be a finite number or 'mean', got {seen}."


def test_each_door_refuses_the_others_file(file: Path) -> None:
    assert refused(file, SHOP) == "must have a section [pairs], got [shop]. Pass the settings file of the pairs door."
    assert refused(file, PAIRS, config.load) == "must have a section [shop], got [pairs]. Pass the settings file of the shop door."


def test_a_file_is_for_the_door_whose_section_it_has(file: Path) -> None:
    file.write_text(PAIRS)
    assert isinstance(config.load_either(file), PairsSettings)
    file.write_text(SHOP)
    assert isinstance(config.load_either(file), Settings)


def test_a_file_for_both_doors_or_neither_is_refused(file: Path) -> None:
    assert refused(file, PAIRS + SHOP, config.load_either) == (
        "must have a section [shop] or a section [pairs], got both. Write a file for each."
    )
    assert refused(file, "[train]\n", config.load_either) == (
        "must have a section [shop] or a section [pairs], got neither. Add the one of the door you use."
    )
    assert refused(file, "", config.load_pairs) == "key 'pairs' is missing. Add it."


@pytest.mark.parametrize("load", [config.load_pairs, config.load_either])
def test_a_missing_pairs_file_is_one_sentence(file: Path, load: Callable[[Path], object]) -> None:
    with pytest.raises(ConfigError) as error:
        load(file)
    assert str(error.value) == f"{file}: no such settings file. Pass --config with the path of a TOML file."


def test_the_choices_of_model_and_fit_load(file: Path) -> None:
    file.write_text(
        SHOP
        + """
        [model]
        hidden = [64]
        activation = "gelu"
        normalisation = "layer"
        initialiser = "he_normal"
        [train]
        loss = "mean_squared_error"
        optimizer = "adamw"
        schedule = "cosine"
        warmup_epochs = 0.5
        weight_decay = 0.02
        l2 = 1e-4
        clip_norm = 1
        class_weights = [1, 2.5]
        patience = 3
        refit = false
        workers = [1, 4]
        device = "gpu"
        precision = "mixed_bfloat16"
        checkpoint_seconds = 60
        """
    )
    settings = config.load(file)
    train = settings.train
    assert (settings.model.activation, settings.model.normalisation, settings.model.initialiser) == ("gelu", "layer", "he_normal")
    assert (train.workers, train.fewest_workers, train.class_weights, train.clip_norm) == ((1, 4), 1, (1.0, 2.5), 1.0)
    assert Settings.model_validate(settings.model_dump()) == settings
    assert settings.model_dump(mode="json")["train"]["workers"] == [1, 4]  # as digests and bundles hold it


def test_the_defaults_of_the_fit_are_the_original_s(file: Path) -> None:
    file.write_text(SHOP)
    train = config.load(file).train
    assert (train.loss, train.optimizer, train.schedule, train.warmup_epochs) == ("binary_crossentropy", "adam", "constant", 0)
    assert (train.l2, train.clip_norm, train.class_weights, train.patience, train.refit) == (0, None, None, 2, True)
    assert (train.workers, train.fewest_workers, train.precision) == (2, 2, "float32")


EXPOSURE = RULE + 'kind = "exposure"\ncolumn = "brand"\nvalues = ["own"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (EXPOSURE, "set at_least, at_most or both, got none; mend it"),
        (EXPOSURE + "at_least = 0.5\nat_most = 0.4", "at_least must be at most at_most, got 0.5 and 0.4; mend it"),
        (EXPOSURE + "at_least = 1.5", "at_least"),
        (
            EXPOSURE
            + 'at_least = 0.7\n[[rules]]\nname = "other"\nkind = "exposure"\ncolumn = "brand"\nvalues = ["new"]\nat_least = 0.4',
            "rules: floors for values of column 'brand' come to 1.1 of a list; lower at_least",
        ),
    ],
)
def test_exposures_ask_for_what_a_list_can_hold(text: str, message: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        config.load(file)
    assert message in str(error.value)
