"""[rank], [table], [gate], [champion], [report], [run]: the lists, what may be published, and how the work is cut up."""

from typing import Annotated, Literal

from pydantic import Field

from recsys.config.section import Fraction, Positive, Section


class Rank(Section):
    """The list of one user."""

    k: Positive = 10
    """Items in the list."""
    allow_repeats: bool = True
    """May an item that the user bought before be recommended? If not, that is the rule "repeats": never one of the whole history
    (window.history_days)."""
    candidates: str | None = None
    """A Parquet file or a folder of them, path or URI, with shop.columns.user_id and item_id: only these are ranked, and users without
    a row get no list. The model still learns from what the sources propose. Absent: what the sources propose is ranked."""
    diversity: Fraction = 0.0
    """How much an item's likeness to those above it counts against its rank: maximal marginal relevance, `rank.cut` has the formula.
    0 is off; at 0.5 both count alike."""


class Table(Section):
    """The published table."""

    path: str = "var/recommendations"
    """Folder or URI of the Delta table."""
    keep_nights: Positive = 30
    """Older nights are removed and vacuumed."""


class Gate(Section):
    """What a night's table must look like to be published; each limit is a check by the name in its description.

    Shares and changes are against the newest night before it; a first night has only the absolute checks.
    """

    min_rows: Annotated[float, Field(ge=0)] = 0.8
    """rows: as a share of the night before's."""
    min_users: Annotated[float, Field(ge=0)] = 0.9
    """users: with a list, as a share of the night before's."""
    max_growth: Annotated[float, Field(ge=1)] = 1.5
    """rows and users: the most that they may be, as a share of the night before's; twice the users may be the same under two ids."""
    max_short_rise: Annotated[float, Field(ge=0, le=1)] = 0.05
    """short_users: rise in the share of users with fewer than k items."""
    min_overlap: Annotated[float, Field(ge=0, le=1)] = 0.6
    """overlap: share of the night before's rows that are there again, over users of both nights. Where half the catalog is gone, at
    most about half can be; an ordinary night of the demo shop keeps 0.9."""
    min_items: Annotated[float, Field(ge=0)] = 0.6
    """items: distinct recommended ones, as a share of the night before's."""
    max_concentration_rise: Annotated[float, Field(ge=0, le=1)] = 0.1
    """concentration: rise of the Gini index of rows over items."""
    max_drift: Annotated[float, Field(ge=0)] = 0.5
    """drift: population stability index of the scores. Two ordinary nights, each with a model of its own, came to 0.08 to 0.28 on the
    demo shop; a feature in another unit to 0.6 on a small one."""
    max_source_change: Annotated[float, Field(ge=0, le=1)] = 0.25
    """source_change: largest change of a source's share of the rows."""
    min_source_kept: Annotated[float, Field(ge=0, le=1)] = 0.2
    """source_kept: smallest part of its share that a source keeps, of those with a hundredth of the rows or more."""
    max_repeated_users: Annotated[int, Field(ge=0)] = 0
    """repeated_users: lists beyond a user's first."""
    max_unknown_items: Annotated[int, Field(ge=0)] = 0
    """unknown_items: rows with an item that is not available in the catalog."""
    max_ndcg_loss: Annotated[float, Field(ge=0)] = 0.01
    """ndcg: the upper 95% bound of the model's NDCG@10 less the champion's, on the last full label window, is at least minus this; not
    below champion.margin, else a challenger could win and be stopped."""
    max_users: Positive = 1_000_000
    """repeated_users looks at all users, or at about that many chosen by hash, overlap at 200,000 of them; it bounds the driver's
    memory."""


class Champion(Section):
    """Which bundle scores a night of the shop door."""

    path: str = "var/bundles"
    """Folder of the bundles that met the champion and of every decision; on a cluster a path that every node shares."""
    margin: Annotated[float, Field(ge=0)] = 0.01
    """A challenger wins where the lower 95% bound of its NDCG@10 less the champion's is above minus this."""


class Report(Section):
    """The page that tells of a night."""

    path: str = "var/reports"
    """Folder of AS_OF.html and the figures in it, AS_OF.json, of each published night, and of AS_OF-stopped.html where the gate
    stopped one; on a cluster a path that every node shares."""


class Run(Section):
    """How the work is cut up; none of it changes a list but seed, and device in the last bits of a score."""

    work: str = "var/work"
    """Folder for what stages hand each other; on a cluster a path that every node shares."""
    keep_work_days: Positive = 7
    """After a night, stage folders that no run used for so long are removed, with the bundles in them: see `jobs.train --out`."""
    shards: Positive | None = None
    """Parts that the users are hashed into; a unit of work and of resuming. Absent: one for 200,000 events, at least 16."""
    shard_bytes: Positive = 128 * 2**20
    """Of feature rows, decoded, that the pairs door takes as one unit of work; a second or two of scoring."""
    actors: Positive | None = None
    """Scoring actors. Absent: one for each CPU of the cluster, or for each GPU where those score."""
    device: Literal["cpu", "gpu"] | None = None
    """What scores: ONNX Runtime on CPU, or Keras on GPU. Absent: the GPU where the cluster has one."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Every random choice derives from it."""
