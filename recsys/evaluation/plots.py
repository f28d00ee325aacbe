"""Every plot: reliability, and those of the night's page; markers, lines and hatches tell apart, so that they can be read in grey."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from recsys.evaluation import backtest
from recsys.evaluation.page import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_reliability(figures: Mapping[str, Any], path: Path | BinaryIO, *, kind: str, title: str) -> None:
    """A picture of mean chance against share bought by decile: all rows before and after, and each segment after.

    Told apart by markers and lines, so that it can be read in grey. A decile of which nothing was bought has no place on it, as the
    axes are logarithmic.

    Args:
        kind: the suffix that says the format, .png or .svg.
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(6.4, 10), layout="constrained")
    upper, lower = picture.subplots(2, 1, sharex=True, sharey=True)
    styles = [("o", "-", "0.0"), ("s", "--", "0.45"), ("^", ":", "0.0"), ("D", "-.", "0.45"), ("v", (0, (5, 1, 1, 1)), "0.65")]
    curves = [
        (upper, "before: the model's own", figures, "before", styles[1]),
        (upper, "after: published", figures, "after", styles[0]),
    ]
    for (name, segment), style in zip(figures["segments"].items(), styles, strict=False):
        curves.append((lower, name, segment, "after", style))
    chances: list[float] = []
    for axes, name, part, column, (marker, line, grey) in curves:
        points = [(one[column], one["bought"]) for one in part["deciles"] if one["bought"] > 0]
        chances += [value for point in points for value in point]
        label = f"{name} (error {part['ece'][column]:.4f})"
        axes.plot(*zip(*points, strict=True), marker=marker, linestyle=line, color=grey, markerfacecolor="white", label=label)
    limits = min(chances) / 1.5, min(1.0, max(chances) * 1.5)
    for axes, name in ((upper, "All candidates"), (lower, "Segments, after")):
        axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, title=name, ylabel="share bought")
        axes.plot(limits, limits, color="0.8", linewidth=1, zorder=0)
        axes.legend(loc="upper left", fontsize="small")
    lower.set_xlabel("mean predicted chance of a decile")
    picture.suptitle(title)
    told: dict[str, None] | None = {"Date": None} if kind == ".svg" else None  # the same figures give the same picture
    picture.savefig(path, format=kind.removeprefix("."), dpi=150, metadata=told)


def plot_trials(
    values: Sequence[Mapping[str, str | float]], ndcg: Sequence[Mapping[str, float]], path: Path, *, best: int, kind: str
) -> None:
    """A picture of a search's trials: NDCG@10 against each searched setting, a row of panels a slice; the best is black and filled.

    Args:
        values: what each trial tried, by key: numbers, or words for all that is none.
        ndcg: of each, by slice; empty where it failed, which leaves it out.
        best: place of the best trial.
        kind: the suffix that says the format, .png or .svg.
    """
    from matplotlib.figure import Figure

    keys, slices = list(values[best]), list(ndcg[best])
    picture = Figure(figsize=(3.6 * len(keys), 3.2 * len(slices)), layout="constrained")
    panels = picture.subplots(len(slices), len(keys), squeeze=False)
    for row, name in enumerate(slices):
        for axes, key in zip(panels[row], keys, strict=True):
            for place, (tried, reached) in enumerate(zip(values, ndcg, strict=True)):
                if reached:
                    first = place == best
                    style = {"color": "0.0" if first else "0.6", "markersize": 9 if first else 6, "zorder": 2 + first}
                    axes.plot([tried[key]], [reached[name]], marker="o", markerfacecolor="0.0" if first else "white", **style)
            axes.set(xlabel=key, ylabel=f"NDCG@10, {name} items")
    picture.suptitle(f"{len(values)} trials; filled: the best")
    picture.savefig(path, format=kind.removeprefix("."), dpi=150)


STYLES = (("o", "-", "0.0"), ("s", "--", "0.45"), ("^", ":", "0.0"), ("D", "-.", "0.45"))  # marker, line, grey


def figure(tree: Mapping[str, Any], model: str, items: str, metric: str) -> Any:
    """One figure of `backtest.summary`'s trees."""
    return tree[model][items][metric]


# Plots --------------------------------------------------------------------------------------------------------------------------


def drawn(title: str, draw: Callable[["Axes"], None], height: float) -> Plot:
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


def reliability_plot(calibration: Mapping[str, Any]) -> Plot:
    """The night's chances beside what was bought, by decile."""
    title = "Chances beside what was bought, by decile"
    return Plot(title, _uri(lambda file: plot_reliability(calibration, file, kind=".svg", title=title)))


def draw_ranking(metrics: Mapping[str, Any]) -> Callable[["Axes"], None]:
    """Draws NDCG@10 of each model and slice with its interval."""

    def draw(axes: "Axes") -> None:
        models = list(reversed(backtest.MODELS))
        for shift, (part, (marker, _, grey)) in enumerate(zip(backtest.SLICES, STYLES, strict=False)):
            for place, model in enumerate(models):
                value, bounds = (figure(metrics[tree], model, part, "ndcg@10") for tree in ("models", "intervals"))
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


def draw_training(training: Sequence[Mapping[str, Any]]) -> Callable[["Axes"], None]:
    """Draws loss and validation loss of each fit by epoch."""

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


def draw_scores(scores: Mapping[str, Any], before: Mapping[str, Any] | None) -> Callable[["Axes"], None]:
    """Draws the histogram of tonight's scores, and of the night before's."""

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


def draw_popularity(classes: Sequence[Mapping[str, Any]]) -> Callable[["Axes"], None]:
    """Draws shares of rows and of purchases by the popularity of items."""

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


def draw_nights(nights: Sequence[Mapping[str, Any]]) -> Callable[["Axes"], None]:
    """Draws NDCG@10 of the last nights with its interval."""

    def draw(axes: "Axes") -> None:
        for place, night in enumerate(nights):
            if night["ndcg_interval"]:
                axes.plot([place, place], night["ndcg_interval"], color="0.45", linewidth=1.5)
        axes.plot([night["ndcg"] for night in nights], marker="o", color="0.0", markerfacecolor="white")
        axes.set_xticks(range(len(nights)), [night["as_of"][5:] for night in nights])
        axes.grid(axis="y", color="0.9")

    return draw
