"""[shop], [features], [window], [signals], [candidates], [examples]: what the shop has, and what is made of it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recsys.config.paths import Location, StorageOptions
from recsys.config.section import Names, Positive, Section


class Columns(Section):
    """The shop's names of columns, where they differ from ours: ours = "theirs"."""

    user_id: str = "user_id"
    """Column of events and users: who it is, an integer or a string. Events and users must have one type."""
    item_id: str = "item_id"
    """Column of events and items: which item it is, an integer or a string. Events and items must have one type."""
    ts: str = "ts"
    """Column of events: when it happened. A timestamp, with a zone or, without one, in shop.timezone."""
    kind: str = "kind"
    """Column of events: what sort of event it is, such as view or purchase. Optional."""
    quantity: str = "quantity"
    """Column of events: units of the item. Optional; without it every event is of 1."""
    price: str = "price"
    """Column of events: what was paid for one unit, not for all of them. Optional."""
    value: str = "value"
    """Column of events: how much the user liked it, such as a rating; a number, read where shop.least_value is set."""
    date: str = "date"
    """Column of daily: the day that a row is about, or begins with; a date, or a timestamp of which the day, UTC, counts."""
    available: str = "available"
    """Column of items: whether the item may be recommended, true or false. Optional; without it every item may."""
    name: str = "name"
    """Column of items: what a person calls the item, for reasons and for the page of a night. Optional."""


class Shop(Section):
    """Where the shop's tables lie and how to read them."""

    events: Location
    """A Parquet file, a folder of them or a Delta table, path or URI, with columns user_id, item_id, ts and, if you have them, kind,
    quantity and price. A subfolder NAME=VALUE is the column NAME. Small ones may be CSV with headers (.csv, .tsv) or JSON lines
    (.jsonl); ids of CSV are text as it is written."""
    items: Location | None = None
    """The catalog, likewise: item_id and, if you have them, available, name, and the columns that [features] and [[rules]] name.
    Absent: the items seen in events are the catalog."""
    users: Location | None = None
    """What is known of users, likewise: user_id and the columns that [features] and [[rules]] name. Absent: nothing is."""
    daily: Location | None = None
    """What holds of items on days, as far as you plan ahead, likewise: item_id, date and the columns that features.daily_numeric names,
    such as price, promotion, place or stock. Rows of a day after the date of a night are what was planned then."""
    timezone: str | None = None
    """Zone of times that carry none, as an IANA name such as "Europe/Berlin". Absent: such times are refused."""
    ts_format: str | None = None
    """How times are written that are neither timestamps nor dates: "s", "ms", "us" or "ns" for whole numbers since 1970, UTC; else, for
    text, a pattern as Python's strptime has it, such as "%d.%m.%Y %H:%M". Absent: they are timestamps or dates."""
    label_kinds: Names | None = None
    """Kinds of events that count as wanted, such as ["purchase"]: these are what lists are to foretell; events then need a column
    kind. Absent: all."""
    look_kinds: Names | None = None
    """Kinds of events that are looks, such as ["view", "cart"]: they are not wanted, but tell of taste. Each has features of its own,
    and weighs by how often a purchase followed it. All kinds that neither they nor label_kinds name are one more."""
    least_value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """An event of a smaller value, such as 4 where shop.columns.value is a rating from 1 to 5, is not wanted: the user took the item
    and did not like it, and gets it on no list while the event is within window.history_days. One without a value counts as liked.
    Absent: values are not read."""
    versions: dict[Literal["events", "items", "users"], Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Which version of a Delta table, or which snapshot of an Iceberg table by its id, is read, such as {items = 12}. Absent: the
    newest."""
    columns: Columns = Columns()
    ignore: Names = ()
    """Columns that are left unread on purpose though their names are nearly those of [shop.columns], such as a Price that is none. Any
    other such column is refused where ours is absent."""
    storage_options: StorageOptions = Field(default_factory=dict)
    """Options of the object store, such as region and endpoint. Secrets do not belong here: they come from the environment."""

    @property
    def looks(self) -> int:
        """How many kinds of looks there are, those that no key names being one: 0 where every event is wanted."""
        return 0 if self.label_kinds is None else 1 + len(self.look_kinds or ())

    def may_read(self) -> list[str]:
        """Columns of events, by the shop's names, that are read where they are there."""
        columns = self.columns
        optional = [columns.kind] * (self.label_kinds is not None) + [columns.value] * (self.least_value is not None)
        return [*optional, columns.quantity, columns.price]

    @model_validator(mode="after")
    def _looks_are_other_kinds(self) -> "Shop":
        if self.look_kinds is not None and self.label_kinds is None:
            raise ValueError("shop.look_kinds needs shop.label_kinds, without which all kinds are wanted; set it, or remove look_kinds")
        if self.least_value is None and self.columns.value != Columns().value:
            raise ValueError("shop.columns.value is read for shop.least_value, which is absent; set it, or remove shop.columns.value")
        if both := sorted(set(self.look_kinds or ()) & set(self.label_kinds or ())):
            raise ValueError(f"shop.look_kinds and shop.label_kinds name '{both[0]}'; remove it from one")
        return self


class Features(Section):
    """Columns of items and users that describe them, for the model and for sources that go by category."""

    item_categorical: Names = ()
    """Columns of items that are words, such as department and brand."""
    item_numeric: Names = ()
    """Columns of items that are numbers."""
    item_vectors: Names = ()
    """Columns of items with a vector each: lists of numbers of one length, such as an encoder makes of a text or an image, so that what
    is alike points the same way. null where there is none. The source vectors and the model go by the angle between those of the item
    and of what the user took."""
    daily_numeric: Names = ()
    """Columns of shop.daily that are numbers. The model gets of each the mean over the label window ahead, and how that differs from
    the 91 days before; and how many rows a day there are ahead, which tells where rows stand for promotions."""
    user_categorical: Names = ()
    """Columns of users that are words, such as an age band. Users without history get what users with the same words bought."""
    user_numeric: Names = ()
    """Columns of users that are numbers."""
    max_vocabulary: Positive = 10_000
    """How many values of a categorical column are kept, the most frequent first. The rest, and values never seen, share code 0."""
    max_embedded: Annotated[int, Field(ge=0)] = 100
    """A categorical column with at most so many values gets an embedding in the model; one with more would be learnt by heart. An item
    column with any number of values shapes the category source and features, such as the user's share of purchases in it."""


class Window(Section):
    """How far to look back, and how far ahead a label looks. All in days but cutoffs."""

    history_days: Positive = 365
    """Events older than this, counted back from the date, are not looked at."""
    label_days: Positive = 28
    """What a user buys within so many days after a date is what should have been on the list of that date. It is also what a score is
    about: the chance of a purchase within so many days."""
    cutoffs: Annotated[int, Field(ge=2)] = 5
    """At how many dates training examples are made, label_days apart; the newest is the validation window. Dates with less than
    label_days of history before them are left out."""


class Signals(Section):
    """What history says about items: which go together, what is popular with whom. The defaults suit most shops."""

    max_users: Positive = 200_000
    """How many users' histories the neighbours and factors are fitted on: all, or so many chosen by hash. It bounds the memory of the
    one process that fits them."""
    ease_items: Annotated[int, Field(ge=0)] = 5_000
    """How many of the most bought items the EASE model covers; its cost grows with the square. The other items get cosine neighbours. 0
    turns EASE off."""
    ease_l2: Annotated[float, Field(gt=0)] = 500.0
    """Ridge penalty, in users, of EASE and of the cosine neighbours' weights. More means that rare pairs count less."""
    neighbours: Positive = 200
    """How many neighbours of each item are kept."""
    factors: Positive = 64
    """Length of the vectors of users and items that ALS (matrix factorisation, Hu, Koren, Volinsky 2008) learns."""
    als_iterations: Positive = 15
    """Rounds of ALS."""
    als_l2: Annotated[float, Field(gt=0)] | None = None
    """Regularisation of the ALS vectors. Absent, with als_alpha: of seven pairs of the two the one is taken whose ALS alone ranked best
    what users had not bought before, in the last label window of the shop's own that ends label_days before the date."""
    als_alpha: Annotated[float, Field(gt=0)] | None = None
    """Weight of purchases in ALS, against what was not bought, which weighs 1."""
    look_weight: Annotated[float, Field(ge=0, le=1)] | None = None
    """What a look, an event that is not of shop.label_kinds, weighs beside a purchase, 1, where neighbours and factors are fitted and
    where they are asked: that of the kind which a purchase follows most often; others weigh less by as much less as one follows them.
    0: looks are not asked. Absent: as als_l2 is chosen, by lists of what users had neither bought nor looked at."""
    group_users: Positive = 50
    """A group of users with the same words must have so many buyers in the last 28 days to have a popularity of its own: fewer would
    show one user what another bought."""

    @model_validator(mode="after")
    def _als_is_set_as_a_whole(self) -> "Signals":
        if (self.als_l2 is None) != (self.als_alpha is None):
            there, other = ("als_l2", "als_alpha") if self.als_alpha is None else ("als_alpha", "als_l2")
            raise ValueError(f"signals.{there} goes with signals.{other}, as they are chosen together; set both or neither")
        return self


class Candidates(Section):
    """How many items each source may propose for one user. 0 turns a source off. More candidates find more and take longer."""

    own: Annotated[int, Field(ge=0)] = 200
    """Source own: items that the user bought before."""
    seen: Annotated[int, Field(ge=0)] = 100
    """Source seen: items that the user looked at, with an event that is not of shop.label_kinds such as a view or a cart; lately first.
    Without label_kinds every event is wanted, and there is none."""
    popular: Positive = 100
    """Source popular: items that many users bought. It is never off, as it serves those without history."""
    neighbours: Annotated[int, Field(ge=0)] = 150
    """Source neighbours: items that go with what the user bought."""
    factors: Annotated[int, Field(ge=0)] = 150
    """Source factors: items whose ALS vector is nearest to the user's."""
    category: Annotated[int, Field(ge=0)] = 50
    """Source category: items popular in the user's categories."""
    content: Annotated[int, Field(ge=0)] = 0
    """Source content: cold items in the user's categories, the newest first; needs features.item_categorical. Off unless you ask for
    it: what it adds to lists, and takes from them, depends on how well the catalog tells new items from dead ones. 20 is a start."""
    vectors: Annotated[int, Field(ge=0)] = 50
    """Source vectors: items whose vectors are nearest to the mean of what the user bought, bought by somebody yet or not; without
    features.item_vectors there is none."""
    cold_buyers: Positive = 10
    """An item with fewer buyers than this is cold: too few for sources that go by who bought it."""
    unseen: Annotated[int, Field(ge=0)] = 1_000
    """Of the available items that nobody bought within window.history_days, so many are candidates of content and vectors, by hash,
    others on each date: so a catalog of millions does not grow the work, and each item has its days. 0: only items with a buyer."""
    per_user: Positive = 500
    """At most so many candidates of a user after merging, those first that any source ranks best."""


class Examples(Section):
    """How labelled rows for training are sampled."""

    max_users: Positive = 20_000
    """How many users of each label window the rows are made of: all who wanted something in it, or about so many of them chosen by
    hash, always the same and among those of any larger number."""
    negatives: Positive = 5
    """How many candidates that were not bought are kept for each one that was, drawn from the same user's candidates."""
