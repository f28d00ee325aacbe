"""[shop], [features], [window], [signals], [candidates], [examples]: what the shop has, and what is made of it."""

from typing import Annotated

from pydantic import Field

from recsys.config.section import Names, Positive, Section


class Columns(Section):
    """Ours = theirs, only where they differ."""

    user_id: str = "user_id"
    """Whose event it is: an integer or a string."""
    item_id: str = "item_id"
    """What it is about: an integer or a string."""
    ts: str = "ts"
    """When it happened: a timestamp, with a zone or in shop.timezone."""
    kind: str = "kind"
    """What sort of event it is, such as view or purchase; optional."""
    quantity: str = "quantity"
    """Units of the item; optional, absent 1."""
    price: str = "price"
    """Paid for one unit; optional."""
    available: str = "available"
    """Whether an item may be recommended; optional, absent true."""
    name: str = "name"
    """What a person calls an item; optional."""


class Shop(Section):
    """Where the shop's tables lie and how to read them."""

    events: str
    """A Parquet file or a folder of them, path or URI: user_id, item_id, ts, [kind], [quantity], [price]."""
    items: str | None = None
    """The catalog: item_id, [available], [name], and the columns that [features] and [[rules]] name. Without it: the items seen in
    events."""
    users: str | None = None
    """user_id and the columns that [features] and [[rules]] name."""
    timezone: str | None = None
    """Of times without a zone, as an IANA name. Absent: such times are refused."""
    label_kinds: Names | None = None
    """Event kinds that count as wanted. Absent: all; a table without a kind column: all."""
    columns: Columns = Columns()
    storage_options: dict[str, str] = Field(default_factory=dict)
    """Options of the object store, such as region and endpoint; secrets come from the environment."""


class Features(Section):
    """Columns of items and users that describe them."""

    item_categorical: Names = ()
    """Columns of items taken as words, such as department and brand."""
    item_numeric: Names = ()
    """Columns of items taken as numbers."""
    user_categorical: Names = ()
    """Columns of users taken as words, such as an age band."""
    user_numeric: Names = ()
    """Columns of users taken as numbers."""
    max_vocabulary: Positive = 10_000
    """Values kept for one categorical column, the most frequent first; the rest, and unseen ones, share code 0."""
    max_embedded: Annotated[int, Field(ge=0)] = 100
    """Columns of at most so many values get an embedding in the model; one of many values would be learnt by heart. An item column
    of any number of values shapes the category source and features, such as the user's share of purchases in it."""


class Window(Section):
    """What is looked back on, and how far ahead a label looks; in days."""

    history_days: Positive = 365
    """Events older than this are not looked at."""
    label_days: Positive = 28
    """What a user buys within so many days of a date is what should have been recommended on it."""
    cutoffs: Annotated[int, Field(ge=2)] = 5
    """Dates at which training examples are made, label_days apart; the newest is the validation window."""


class Signals(Section):
    """What history says about items."""

    max_users: Positive = 200_000
    """Users whose histories fit the neighbours and factors: all of them, or that many chosen by hash."""
    ease_items: Annotated[int, Field(ge=0)] = 5_000
    """The most bought items that EASE covers (its cost is quadratic); the rest get cosine neighbours. 0 turns EASE off."""
    ease_l2: Annotated[float, Field(gt=0)] = 500.0
    """Ridge penalty, in users, of EASE and of the cosine neighbours' weights."""
    neighbours: Positive = 200
    """Neighbours kept of each item."""
    factors: Positive = 64
    """Length of the ALS vectors of users and items."""
    als_iterations: Positive = 15
    """Rounds of ALS."""
    als_l2: Annotated[float, Field(gt=0)] = 10.0
    """Regularisation of the ALS vectors."""
    als_alpha: Annotated[float, Field(gt=0)] = 2.0
    """Weight of purchases in ALS."""
    group_users: Positive = 50
    """Users who must have bought in the last 28 days before a group of users alike has a popularity of its own: fewer would show one
    user what another bought."""


class Candidates(Section):
    """How many items each source may propose for one user."""

    own: Annotated[int, Field(ge=0)] = 200
    """Items that the user bought before. 0 turns a source off."""
    popular: Positive = 100
    """Items that everybody buys; never off, as it serves those without history."""
    neighbours: Annotated[int, Field(ge=0)] = 150
    """Neighbours of what the user bought."""
    factors: Annotated[int, Field(ge=0)] = 150
    """Items whose ALS vector is nearest to the user's."""
    category: Annotated[int, Field(ge=0)] = 50
    """Items popular in the user's categories."""
    content: Annotated[int, Field(ge=0)] = 0
    """Cold items in the user's categories, the newest first; needs features.item_categorical. Off where not asked for: what it adds to
    lists, and takes from them, depends on how well the catalog tells new items from dead ones. 20 is a start."""
    cold_buyers: Positive = 10
    """An item with fewer buyers is cold: too few for sources that go by who bought it."""
    unseen: Annotated[int, Field(ge=0)] = 1_000
    """Of the available items that nobody bought within window.history_days, so many are candidates of `content`, chosen by hash, others
    for each date: a catalog of millions does not grow the signals, and each item has its days. 0: only items with a buyer."""
    per_user: Positive = 500
    """At most this many after merging, those ranked best by any source first."""


class Examples(Section):
    """How labelled rows are sampled."""

    negatives: Positive = 5
    """Negatives for one positive, drawn from the user's own candidates."""
