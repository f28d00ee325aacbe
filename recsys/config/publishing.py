"""[rank], [table], [[exports]], [gate], [champion], [report], [notify], [privacy], [fairness], [run]: lists and their nights."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recsys.config.paths import Address, LocalPath, Location, TableLocation
from recsys.config.section import Fraction, Names, Positive, Section


class Rank(Section):
    """The list of one user."""

    k: Positive = 10
    """Items in a list."""
    allow_repeats: bool | None = None
    """Whether an item that the user bought before may be recommended. If not, that is the rule "repeats": nothing of the whole history
    (window.history_days). For "not within so many days" there is the rule bought. Absent: decided from the shop's past, before as_of:
    yes where at least one purchase in a hundred is of an item that the user had bought on an earlier day. Only in the shop's file."""
    candidates: Location | None = None
    """Your own candidates: a Parquet file or a folder of them, path or URI, with the columns user_id and item_id by your names for
    them. Only these are ranked, and users without a row get no list. The model learns from rows of earlier dates that are drawn to look
    like them: as many a user, as large a share of them what the sources propose, the others by how often an item is among yours, and
    beside them what the user bought. Absent: what the sources propose is learned from and ranked."""
    diversity: Fraction = 0.0
    """How much an item's likeness to those above it counts against its rank (maximal marginal relevance, Carbonell and Goldstein 1998).
    0 is off; at 0.5 both count alike. Only in the shop's file."""

    @property
    def repeats(self) -> bool:
        """Whether an item that the user bought before may be recommended; yes as long as that is not decided."""
        return self.allow_repeats is not False


class Table(Section):
    """The published table."""

    path: TableLocation = "var/recommendations"
    """Folder or URI of the Delta table."""
    keep_nights: Positive = 30
    """How many nights the table keeps; older ones are removed, and their files with them."""


class Gate(Section):
    """What a night must look like to be published. Each limit belongs to a check, whose name comes first in its text; --override takes
    that name.

    Shares and changes are against the newest night before. A first night has only the absolute checks.
    """

    min_rows: Annotated[float, Field(ge=0)] = 0.8
    """rows: at least this share of the night before's."""
    min_users: Annotated[float, Field(ge=0)] = 0.9
    """users: those with a list, at least this share of the night before's."""
    max_growth: Annotated[float, Field(ge=1)] = 1.5
    """rows and users: at most this share of the night before's. Twice the users may be the same people under two ids."""
    max_short_rise: Annotated[float, Field(ge=0, le=1)] = 0.05
    """short_users: how much the share of users with fewer than k items may rise."""
    min_overlap: Annotated[float, Field(ge=0, le=1)] = 0.6
    """overlap: the least share of the night before's rows that is there again, over users of both nights. Where half the catalog is
    gone, at most about half can be; an ordinary night of the demo shop keeps 0.9."""
    min_items: Annotated[float, Field(ge=0)] = 0.6
    """items: distinct recommended items, at least this share of the night before's."""
    max_concentration_rise: Annotated[float, Field(ge=0, le=1)] = 0.1
    """concentration: how much the Gini index of rows over items may rise."""
    max_drift: Annotated[float, Field(ge=0)] = 0.5
    """drift: the largest population stability index of the scores. Two ordinary nights of the demo shop, each with a model of its own,
    came to 0.08 to 0.28; a feature in another unit, on a small shop, to 0.6."""
    max_score_shift: Annotated[float, Field(ge=0)] = 0.35
    """score_shift: how far the scores of users may rise or fall: the mean log-odds of each user's list less those of the same user's
    list the night before, on average. It sees what drift does not where scores differ much from user to user: prices in another unit
    moved it by 0.46 on the demo shop, an ordinary night with the same model by 0.004, one with a model of another seed by 0.24."""
    max_source_change: Annotated[float, Field(ge=0, le=1)] = 0.25
    """source_change: the largest change of a source's share of the rows."""
    min_source_kept: Annotated[float, Field(ge=0, le=1)] = 0.2
    """source_kept: the smallest part of its share that a source may keep, of sources with a hundredth of the rows or more."""
    max_repeated_users: Annotated[int, Field(ge=0)] = 0
    """repeated_users: how many lists there may be beyond a user's first."""
    max_unknown_items: Annotated[int, Field(ge=0)] = 0
    """unknown_items: how many rows may have an item that is not available in the catalog."""
    max_ndcg_loss: Annotated[float, Field(ge=0)] = 0.01
    """ndcg: how much worse the model may be than the champion. The upper 95% bound of its NDCG@10 less the champion's, on the last full
    label window, must be at least minus this. Keep it at or above champion.margin, else a challenger could win and be stopped."""
    max_baseline_loss: Annotated[float, Field(ge=0)] = 0.0
    """baseline and baseline_new: how much worse the model may be than the best of the backtest's baselines, over all items and over
    those that are new to the user. The upper 95% bound of its NDCG@10 less that baseline's, on the last full label window, must be at
    least minus this. Measured on nights with a challenger, and valid until the next one."""
    fallback: bool = False
    """Whether a night whose model fails the check baseline publishes that baseline's order instead of stopping. Its rows have no score,
    and their model_version says whose order it is. It does not help against baseline_new alone: where the model is better over all
    items, no single baseline is."""
    max_group_gap: Annotated[float, Field(ge=0)] | None = None
    """group_gap: how much better the lists of one group of users may be than those of another, of the groups in fairness.user_groups:
    the lower 95% bound of the best one's NDCG@10 less the worst one's, of the column where it is largest, must be at most this.
    Measured as baseline is. Absent: anything."""
    max_group_gap_rise: Annotated[float, Field(ge=0)] | None = None
    """group_gap_rise: how much larger the largest of these gaps, without its bounds, may be than when a model was measured before.
    Absent: anything."""
    max_users: Positive = 1_000_000
    """How many users the gate looks at: repeated_users at all, or at about so many chosen by hash, overlap at 200,000 of them. It
    bounds the driver's memory."""


class Champion(Section):
    """Which model scores a night of the shop door."""

    path: LocalPath = "var/bundles"
    """Folder of the bundles that met the champion, and of every decision. On a cluster a path that every node shares."""
    every_days: Positive | None = None
    """A challenger is trained and meets the champion so many nights after the one before it; on the nights between, the champion scores
    without one. Where the champion cannot score under tonight's settings it is tonight. Absent: a quarter of window.label_days."""
    max_users: Positive = 100_000
    """How many users a test counts, that of a challenger and jobs.backtest: all, or about so many of those with history, chosen by
    another hash than the users that a model learns from."""
    margin: Annotated[float, Field(ge=0)] = 0.01
    """A challenger wins where the lower 95% bound of its NDCG@10 less the champion's is above minus this."""


class Report(Section):
    """The page that tells of a night."""

    path: LocalPath = "var/reports"
    """Folder of the pages: of each published night AS_OF.html and its figures, AS_OF.json; of one that the gate stopped
    AS_OF-stopped.html; and runs, with what became of each run. On a cluster a path that every node shares."""


class Notify(Section):
    """Who is told, by one message, at the end of every run of jobs.nightly.

    The address is named in one of three ways; without one nobody is told.
    """

    url: Address | None = None
    """Address that gets the message by POST. One that is a secret, as Slack's are, belongs into one of the next two."""
    url_env: str | None = None
    """Environment variable that holds the address."""
    url_file: LocalPath | None = None
    """File that holds the address, as secrets of Kubernetes are mounted."""
    format: Literal["json", "slack"] = "json"
    """What is sent: "json", what jobs.runs shows of the run; "slack", the same as a sentence, as Slack and what imitates it take it."""

    @model_validator(mode="after")
    def _the_address_is_named_once(self) -> "Notify":
        named = [key for key in ("url", "url_env", "url_file") if getattr(self, key) is not None]
        if len(named) > 1:
            raise ValueError(f"notify: the address must be named once, got {', '.join(named)}; remove all but one")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError("notify.url must begin with http:// or https://, got another text; write the whole address")
        return self


class Export(Section):
    """A place that the lists are handed on to, beside the table; more of them in more [[exports]]."""

    to: str
    """redis://HOST:PORT/DB, postgresql://USER@HOST/DB, iceberg://CATALOG/NAMESPACE.TABLE, parquet:FOLDER, or a file that ends in .jsonl
    or .jsonl.gz, as jobs.export takes it. An Iceberg table lists all nights of the table and shares its files; the others hold one
    night, the newest."""
    name: str = "recommendations"
    """Table in PostgreSQL, with its schema or not; beginning of keys in Redis."""
    password_env: str | None = None
    """Environment variable that holds the password, where the job's driver runs."""
    password_file: LocalPath | None = None
    """File that holds it."""


class Privacy(Section):
    """Who the users are stays with the shop: with a key, all that a night keeps and publishes holds keyed digests in place of user ids.

    Whoever has the key finds a user by the id, as jobs.show does; with another key every user is a new one.
    """

    key_env: str | None = None
    """Environment variable that holds the key, where the job's driver runs. Absent, with key_file: ids stay as they are."""
    key_file: LocalPath | None = None
    """File that holds it."""

    @model_validator(mode="after")
    def _the_key_is_named_once(self) -> "Privacy":
        if self.key_env is not None and self.key_file is not None:
            raise ValueError("privacy: the key must be named once, got key_env and key_file; remove one")
        return self


class Fairness(Section):
    """By which groups the lists are audited, in backtests and on nights with a challenger. The columns never become features by it."""

    user_groups: Names = ()
    """Columns of users that are words, such as an age band: NDCG@10, calibration error and share without a model by each value."""
    item_groups: Names = ()
    """Columns of items that are words, such as a brand: the share of attention that each value gets in the lists, beside its share of
    the catalog and of what was wanted."""


class Run(Section):
    """How the work is cut up. None of it changes a list but seed, and device in the last bits of a score."""

    work: LocalPath = "var/work"
    """Folder for what stages hand each other. On a cluster a path that every node shares."""
    keep_work_days: Positive = 7
    """After a night, what stages made and no run used for so many days is removed, bundles too; what the next challenger learns from is
    kept till then. To keep a bundle, copy it out: jobs.train --out."""
    shards: Positive | None = None
    """How many parts the users are cut into by hash; one part is a unit of work and of resuming. Absent: one for 200,000 events,
    rounded up to a power of two, at least 16."""
    shard_bytes: Positive = 128 * 2**20
    """How many bytes of feature rows, decoded, are one unit of work: a second or two of scoring. Only with feature rows."""
    actors: Positive | None = None
    """How many actors score. Absent: one for each CPU of the cluster, or for each GPU where those score."""
    device: Literal["cpu", "gpu"] | None = None
    """What scores: ONNX Runtime on CPU, or Keras on GPU. Absent: the GPU where the cluster has one."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Every random choice derives from it."""
