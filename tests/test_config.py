from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from recsys import config
from recsys.config import Section, Settings
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
    assert (settings.table.path, settings.table.keep_nights) == ("var/recommendations", 30)


def test_only_events_is_required_and_the_model_s_defaults_are_the_original_s(file: Path) -> None:
    file.write_text(SHOP)
    settings = config.load(file)
    assert settings.shop.items is settings.shop.users is settings.shop.timezone is settings.shop.label_kinds is None
    assert (settings.model.hidden, settings.model.dropout) == ((512, 256, 128), 0.2)
    assert (settings.train.epochs, settings.train.learning_rate) == (10, 1e-3)


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
        pytest.param("[shop\n", "not a TOML file: Expected ']' at the end of a table declaration (at line 1, column 6).", id="toml"),
        pytest.param("", "key 'shop' is missing. Add it.", id="no shop"),
        pytest.param('[shop]\nitems = "i"', "key 'shop.events' is missing. Add it.", id="no events"),
        pytest.param(
            SHOP + "[shopp]",
            "unknown key 'shopp'. Known here: shop, features, window, signals, candidates, examples, model, train, rank, table, run.",
            id="unknown section",
        ),
        pytest.param(SHOP + "[rank]\nK = 5", "unknown key 'rank.K'. Known here: k, allow_repeats.", id="unknown key"),
        pytest.param(
            SHOP + '[shop.columns]\nuser = "household"',
            "unknown key 'shop.columns.user'. Known here: user_id, item_id, ts, kind, quantity, price, available, name.",
            id="unknown nested key",
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
            SHOP + '[rank]\nk = 0\n[train]\nepochs = "ten"\nworkers = 0',
            "key 'train.epochs': input should be a valid integer, got 'ten'. (2 more mistakes.)",
            id="three mistakes",
        ),
        pytest.param(
            SHOP + 'users = "users"\n[features]\nuser_categorical = ["age"]\nuser_numeric = ["income", "age"]',
            "features: user column 'age' is named twice; name it once.",
            id="named twice",
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


def test_a_whole_number_does_where_a_fraction_may_stand(file: Path) -> None:
    file.write_text(SHOP + "[signals]\nals_l2 = 10\n[model]\ndropout = 0\n")
    settings = config.load(file)
    assert (repr(settings.signals.als_l2), repr(settings.model.dropout)) == ("10.0", "0.0")


def sections(section: type[Section]) -> list[type[Section]]:
    """A section and all below it."""
    below = [field.annotation for field in section.model_fields.values()]
    inner = [one for kind in below if isinstance(kind, type) and issubclass(kind, Section) for one in sections(kind)]
    return [section, *inner]


@pytest.mark.parametrize("section", sections(Settings)[1:], ids=lambda section: section.__name__)
def test_every_field_says_what_it_is(section: type[Section]) -> None:
    assert section.__doc__
    silent = [
        name
        for name, field in section.model_fields.items()
        if not field.description and not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    ]
    assert silent == []


def test_settings_cannot_be_changed(file: Path) -> None:
    file.write_text(SHOP)
    settings: Any = config.load(file)
    with pytest.raises(ValidationError, match="frozen"):
        settings.rank.k = 3


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
