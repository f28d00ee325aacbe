"""A night's record -> one HTML page that needs no network: what ran, what came of it, and how that compares.

The page is sections of tables and plots; `report.html` beside this file lays them out. Plots are told apart by markers, lines and
hatches, so that they can be read in grey.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from recsys import evaluate, reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
NONE = "-"
STYLES = (("o", "-", "0.0"), ("s", "--", "0.45"), ("^", ":", "0.0"), ("D", "-.", "0.45"))  # marker, line, grey


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    name: str
    """Unique on the page, for links and tests."""
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    """Columns from the left that are words; the others are numbers, unless `all_words`."""
    all_words: bool = False
    marked: Sequence[int] = ()
    """Rows that stand out."""
    folded: bool = False
    """Only the title is seen until it is opened."""


@dataclass(frozen=True)
class Plot:
    """A picture of the page."""

    title: str
    """What it shows, for those who cannot see it."""
    svg: str
    """As a data URI."""


@dataclass(frozen=True)
class Section:
    """A part of the page under one heading."""

    title: str
    text: str
    parts: Sequence[Table | Plot]


def render(record: Record) -> str:
    """The page of a record, as `record.page` keeps it; the same record gives the same page."""
    made = (_gate, _rows, _ranking, _model, _scores, _lists, _rules, _users, _work, _nights)
    sections = [section for one in made if (section := one(record)) is not None]
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    failed = [check for check in record["gate"]["checks"] if not check["passed"]]
    let_through = record["gate"]["overrides"]
    page = environment.get_template("report.html")
    return page.render(record=record, sections=sections, failed=failed, let_through=let_through, weekday=_weekday(record["as_of"]))


def compared(record: Record) -> dict[str, Any]:
    """The figures of a night that the pages of later nights show beside theirs."""
    metrics = record["metrics"]
    overlap = [check["value"] for check in record["gate"]["checks"] if check["name"] == "overlap"]
    ours = (evaluate.OURS, "all", "ndcg@10")
    return {
        "users": record["users"],
        "short_users": record["short_users"],
        "items": record["lists"]["items"],
        "gini": record["lists"]["gini"],
        "overlap": overlap[0] if overlap else None,
        "ndcg": _at(metrics["models"], *ours) if metrics else None,
        "ndcg_interval": _at(metrics["intervals"], *ours) if metrics else None,
        "scores": record["lists"]["scores"],
    }


def _at(tree: Mapping[str, Any], model: str, items: str, metric: str) -> Any:
    return tree[model][items][metric]


def _weekday(as_of: str) -> str:
    return f"{date.fromisoformat(as_of):%A}"


# Numbers in words ---------------------------------------------------------------------------------------------------------------


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _number(value: float | None, digits: int = 4) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _interval(value: float | None, bounds: Sequence[float] | None) -> str:
    """As in `0.547 [0.537, 0.556]`."""
    if value is None:
        return NONE
    return f"{value:.3f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")


# Sections -----------------------------------------------------------------------------------------------------------------------


def _gate(record: Record) -> Section:
    told = record["gate"]
    rows: list[tuple[str, ...]] = []
    marked: list[int] = []
    for number, check in enumerate(told["checks"]):
        why = told["overrides"].get(check["name"])
        said = "passed" if check["passed"] else f"overridden: {why}" if why else "FAILED"
        value = NONE if check["value"] is None else f"{check['value']:.4g}"
        rows.append((check["name"], value, check["limit"], said, check["meaning"]))
        marked += [] if check["passed"] else [number]
    against = f"Tonight's lists beside those of {told['before']}." if told["before"] else "No night before it stands: a first night."
    head = ("check", "tonight", "may be", "", "what it is")
    return Section("Gate", against, [Table("gate", "Checks before the commit", head, rows, all_words=True, marked=marked)])


def _rows(record: Record) -> Section:
    names = ("events", "items", "users")
    rejected = [
        (table, reason, _count(count)) for table in names for reason, count in sorted(record["rejected"].get(table, {}).items())
    ]
    read = [(table, _count(record["inputs"][table]), _count(sum(record["rejected"].get(table, {}).values()))) for table in names]
    funnel = [(name, _count(count)) for name, count in record["funnel"].items()]
    parts = [
        Table("funnel", "From events to rows of the table", ("what", "how many"), funnel),
        Table("inputs", "Rows read", ("table", "read", "rejected"), read),
    ]
    if rejected:
        parts.append(Table("rejected", "Rows rejected", ("table", "reason", "rows"), rejected, words=2))
    return Section("Rows and candidates", "Rejected rows are dropped and counted by reason; the counts are kept.", parts)


def _ranking(record: Record) -> Section | None:
    metrics = record["metrics"]
    if metrics is None:
        return None
    parts: list[Table | Plot] = []
    for part in evaluate.SLICES:
        rows = []
        for model in evaluate.MODELS:
            values, bounds = metrics["models"][model][part], metrics["intervals"][model][part]
            difference = metrics["differences"].get(model, {}).get(part, {}).get("ndcg@10", {"mean": None, "interval": None})
            others = (_number(values[name], 3) for name in ("recall@10", "hitrate@10", "map@10"))
            ndcg = _interval(values["ndcg@10"], bounds["ndcg@10"])
            rows.append((model, ndcg, _interval(difference["mean"], difference["interval"]), *others))
        title = f"{part} items, {_count(metrics['users'][part])} users"
        head = ("model", "NDCG@10", f"{evaluate.OURS} minus it", "Recall@10", "HitRate@10", "MAP@10")
        parts.append(Table(f"metrics-{part}", title, head, rows, marked=[0]))
    if any(metrics["users"].values()):
        parts.append(_plot("NDCG@10 of each model with its 95% interval", _draw_ranking(metrics), 3.4))
    recall = [(name, _number(value, 3)) for name, value in metrics["candidates"]["recall"].items()]
    parts.append(Table("recall", "Share of what was bought that the candidates hold", ("source", "recall"), recall))
    text = (
        f"Lists as of {metrics['as_of']} against the purchases of the {metrics['horizon_days']} days after it. "
        "In brackets: 95% intervals by the bootstrap over users; differences user by user."
    )
    return Section("Ranking beside baselines", text, parts)


def _model(record: Record) -> Section:
    made, parts = record["decision"], list[Table | Plot]()
    if made is None:
        text = f"Model {record['model_version']} scored the night; no challenger met the champion."
    else:
        verb = "became" if made["champion"] == made["challenger"] else "did not become"
        text = f"Challenger {made['challenger']} {verb} the champion: {made['why']}."
        bounds = [made["low"], made["high"]] if made["low"] is not None else None
        rows = [(made["challenger"], _interval(made["difference"], bounds), _number(made["margin"], 3), _count(made["users"]))]
        parts.append(Table("decision", "Against the champion", ("challenger", "NDCG@10 less the champion's", "margin", "users"), rows))
    epochs = [
        (
            fit["fit"],
            one["phase"],
            str(one["epoch"]),
            _number(one["loss"]),
            _number(one.get("val_loss")),
            _count(round(one["rows_per_second"])),
        )
        for fit in record["training"]
        for one in fit["history"]
    ]
    if epochs:
        head = ("fit", "phase", "epoch", "loss", "validation loss", "rows/s")
        parts.append(Table("training", "Epochs", head, epochs, words=2))
        parts.append(_plot("Loss and validation loss by epoch", _draw_training(record["training"]), 3.4))
    return Section("Model", text, parts)


def _scores(record: Record) -> Section:
    scores, parts = record["lists"]["scores"], list[Table | Plot]()
    before = next((night for night in record["nights"] if night["scores"]), None)
    parts.append(_plot("Scores of the lists' rows", _draw_scores(scores, before), 3.2))
    calibration = record["metrics"]["calibration"] if record["metrics"] else None
    if calibration is not None:
        rows = []
        for name, part in {"all": calibration, **calibration["segments"]}.items():
            figures = (part["bought"], *(part[metric][when] for metric in ("ece", "log_loss") for when in ("before", "after")))
            rows.append((name, _count(part["rows"]), *(_number(value) for value in figures)))
        head = ("candidates", "rows", "bought", "error before", "after", "log loss before", "after")
        parts.append(Table("calibration", "Expected calibration error and log loss, before and after calibration", head, rows))
        deciles = [
            (str(number), _count(one["rows"]), *(_number(one[name]) for name in ("before", "after", "bought")))
            for number, one in enumerate(calibration["deciles"], 1)
        ]
        parts.append(Table("deciles", "Chances beside what was bought", ("decile", "rows", "before", "after", "bought"), deciles))
        if any(one["bought"] > 0 for one in calibration["deciles"]):
            parts.append(_reliability(calibration))
    return Section("Scores", f"{_count(scores['without'])} rows have no score: lists of users who never bought.", parts)


def _lists(record: Record) -> Section:
    lists = record["lists"]
    coverage = [
        ("users with a list", _count(record["users"])),
        (f"users with fewer than {record['k']} rows", _count(record["short_users"])),
        ("distinct items", _count(lists["items"])),
        ("share of the available items", _share(lists["available_share"])),
        ("concentration on items (Gini)", _number(lists["gini"], 3)),
    ]
    total = sum(lists["sources"].values())
    sources = [(name, _count(count), _share(count / total)) for name, count in lists["sources"].items()]
    popular = [(one["items"], _share(one["rows"]), _share(one["purchases"])) for one in record["popularity"]]
    head = ("items by popularity", "of the lists' rows", "of purchases in 28 days")
    return Section(
        "Lists",
        "How much of the catalog they show, and where their rows come from.",
        [
            Table("coverage", "Coverage", ("what", "tonight"), coverage),
            Table("sources", "Rows by source", ("source", "rows", "share"), sources),
            Table("popularity", "Rows by the popularity of their item", head, popular),
            _plot("Share of rows and of purchases by the popularity of items", _draw_popularity(record["popularity"]), 3.2),
        ],
    )


def _rules(record: Record) -> Section:
    rows = [(name, _count(count), _count(record["short"].get(name, 0))) for name, count in record["dropped"].items()]
    if "" in record["short"]:
        rows.append(("no rule: too few candidates", NONE, _count(record["short"][""])))
    head = ("rule", "kept out", f"users short of {record['k']}")
    text = "Candidates that each rule kept out, and the users with short lists from whom it took the most."
    return Section("Rules", text, [Table("rules", "Drops by rule", head, rows)])


def _users(record: Record) -> Section:
    parts = []
    for number, user in enumerate(record["sample"]):
        rows = [(str(row["rank"]), row["item"], _number(row["score"], 3), row["source"], row["reason"]) for row in user["rows"]]
        head = ("rank", "item", "score", "source", "reason")
        parts.append(Table(f"user-{number}", f"User {user['user_id']}", head, rows, all_words=True, folded=True))
    return Section("Ten users", "The same users every night, as long as they are in the shop.", parts)


def _work(record: Record) -> Section:
    stages = [
        (one["stage"], _count(one["units"]), f"{one['seconds']:,.1f}", f"{one['longest']:,.1f}", one["slowest"])
        for one in record["stages"]
    ]
    shards = [
        (one["shard"], f"{one['seconds']:,.1f}", _count(one["users"]), _count(one["candidates"]), _count(one["rows"]))
        for one in record["shards"]
    ]
    return Section(
        "Work",
        "Seconds are those of workers, side by side; of a stage all that it ever made, as later nights take it up.",
        [
            Table("stages", "Stages", ("stage", "units", "seconds", "longest", "unit"), stages),
            Table("shards", "Slowest shards of scoring", ("shard", "seconds", "users", "candidates", "rows"), shards),
        ],
    )


def _nights(record: Record) -> Section:
    tonight = {"as_of": record["as_of"], "rows": record["rows"], "model_version": record["model_version"], **compared(record)}
    told = [tonight, *record["nights"]]
    rows = [
        (
            night["as_of"],
            _count(night["rows"]),
            _count(night["users"]),
            _count(night["short_users"]),
            _count(night["items"]),
            _number(night["gini"], 3),
            _share(night["overlap"]),
            _interval(night["ndcg"], night["ndcg_interval"]),
            night["model_version"],
        )
        for night in told
    ]
    head = ("night", "rows", "users", "short", "items", "Gini", "overlap", "NDCG@10", "model")
    parts: list[Table | Plot] = [Table("nights", "Tonight and the nights before it", head, rows, marked=[0])]
    measured = [night for night in reversed(told) if night["ndcg"] is not None]
    if len(measured) > 1:
        parts.append(_plot("NDCG@10 by night with its 95% interval", _draw_nights(measured), 3.0))
    return Section("The last nights", "Overlap is the share of the night before's rows that stayed.", parts)


# Plots --------------------------------------------------------------------------------------------------------------------------


def _plot(title: str, draw: Callable[["Axes"], None], height: float) -> Plot:
    """One picture as wide as a phone held upright can show."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(6.4, height), layout="constrained")
    axes = picture.subplots()
    draw(axes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(title, fontsize="medium", loc="left")
    return Plot(title, _uri(lambda file: _save(picture, file)))


def _save(picture: "Figure", file: io.BytesIO) -> None:
    picture.savefig(file, format="svg", metadata={"Date": None})


def _uri(write: Callable[[io.BytesIO], None]) -> str:
    """What `write` puts into a file as a data URI; the same picture gives the same one."""
    import matplotlib as mpl

    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "recsys", "svg.fonttype": "none", "font.size": 11}):
        write(file)
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def _reliability(calibration: Mapping[str, Any]) -> Plot:
    title = "Chances beside what was bought, by decile"
    return Plot(title, _uri(lambda file: reliability.plot(calibration, file, kind=".svg", title=title)))


def _draw_ranking(metrics: Mapping[str, Any]) -> Callable[["Axes"], None]:
    def draw(axes: "Axes") -> None:
        models = list(reversed(evaluate.MODELS))
        for shift, (part, (marker, _, grey)) in enumerate(zip(evaluate.SLICES, STYLES, strict=False)):
            for place, model in enumerate(models):
                value, bounds = (_at(metrics[tree], model, part, "ndcg@10") for tree in ("models", "intervals"))
                if value is None or bounds is None:
                    continue
                at = place + 0.15 - 0.3 * shift
                axes.plot(bounds, [at, at], color=grey, linewidth=1.5)
                label = f"{part} items" if place == 0 else None
                axes.plot([value], [at], marker=marker, color=grey, markerfacecolor="white", linestyle="none", label=label)
        axes.set_yticks(range(len(models)), models)
        axes.set_xlim(left=0)
        axes.grid(axis="x", color="0.9")
        axes.legend(loc="lower right", fontsize="small")

    return draw


def _draw_training(training: Sequence[Mapping[str, Any]]) -> Callable[["Axes"], None]:
    def draw(axes: "Axes") -> None:
        curves: dict[str, list[tuple[int, float]]] = {}
        for fit in training:
            for one in fit["history"]:
                curves.setdefault(f"{fit['fit']}, {one['phase']}: loss", []).append((one["epoch"], one["loss"]))
                if "val_loss" in one:
                    curves.setdefault(f"{fit['fit']}: validation loss", []).append((one["epoch"], one["val_loss"]))
        for number, (name, points) in enumerate(curves.items()):
            marker, line, grey = STYLES[number % len(STYLES)]
            face = "white" if number < len(STYLES) else grey
            axes.plot(*zip(*points, strict=True), marker=marker, linestyle=line, color=grey, markerfacecolor=face, label=name)
        axes.set_xlabel("epoch")
        axes.set_xticks(sorted({epoch for points in curves.values() for epoch, _ in points}))
        axes.legend(fontsize="small")

    return draw


def _draw_scores(scores: Mapping[str, Any], before: Mapping[str, Any] | None) -> Callable[["Axes"], None]:
    def draw(axes: "Axes") -> None:
        nights = [("tonight", scores, "-", "0.0")]
        if before is not None:
            nights.append((before["as_of"], before["scores"], "--", "0.5"))
        for name, one, line, grey in nights:
            total = max(sum(one["rows"]), 1)
            axes.stairs([count / total for count in one["rows"]], one["edges"], linestyle=line, color=grey, label=name, linewidth=1.5)
        shown = [edge for edge, count in zip(scores["edges"], scores["rows"], strict=False) if count] or [1e-3]
        axes.set(xscale="log", xlabel="score: chance of a purchase", ylabel="share of rows", xlim=(min(shown) / 2, 1.0))
        axes.legend(fontsize="small")

    return draw


def _draw_popularity(classes: Sequence[Mapping[str, Any]]) -> Callable[["Axes"], None]:
    def draw(axes: "Axes") -> None:
        places = range(len(classes))
        for shift, (name, label, hatch, grey) in enumerate(
            (("rows", "of the lists' rows", "", "0.35"), ("purchases", "of purchases in 28 days", "///", "0.9"))
        ):
            values = [one[name] for one in classes]
            axes.bar([place + 0.4 * shift for place in places], values, 0.4, color=grey, edgecolor="0.0", hatch=hatch, label=label)
        axes.set_xticks([place + 0.2 for place in places], [one["items"].replace(" to ", "-") for one in classes], fontsize="small")
        axes.set(xlabel="items, the most popular first", ylabel="share")
        axes.legend(fontsize="small")

    return draw


def _draw_nights(nights: Sequence[Mapping[str, Any]]) -> Callable[["Axes"], None]:
    def draw(axes: "Axes") -> None:
        for place, night in enumerate(nights):
            if night["ndcg_interval"]:
                axes.plot([place, place], night["ndcg_interval"], color="0.45", linewidth=1.5)
        axes.plot([night["ndcg"] for night in nights], marker="o", color="0.0", markerfacecolor="white")
        axes.set_xticks(range(len(nights)), [night["as_of"][5:] for night in nights])
        axes.grid(axis="y", color="0.9")

    return draw
