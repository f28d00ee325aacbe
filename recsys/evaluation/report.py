"""A night's record -> one HTML page that needs no network: what ran, what came of it, and how that compares.

The page is sections of tables and plots; `report.html` beside this file lays them out. Plots are told apart by markers, lines and
hatches, so that they can be read in grey.
"""

from collections.abc import Mapping
from datetime import date
from typing import Any

from recsys.evaluation import backtest
from recsys.evaluation.page import NONE, Plot, Section, Table, count_text, interval_text, lay_out, number_text, share_text
from recsys.evaluation.plots import (
    draw_nights,
    draw_popularity,
    draw_ranking,
    draw_scores,
    draw_training,
    drawn,
    figure,
    reliability_plot,
)
from recsys.evaluation.unknown import warnings_of

Record = Mapping[str, Any]


def render(record: Record) -> str:
    """The page of a record, as `night_record.recorded` keeps it; the same record gives the same page."""
    made = (_gate, _rows, ranking_section, groups_section, _model, _scores, _lists, _rules, _users, _work, _nights)
    sections = [section for one in made if (section := one(record)) is not None]
    failed = [check for check in record["gate"]["checks"] if not check["passed"]]
    let_through = record["gate"]["overrides"]
    fallback = fallback_text(record["fallback"]) if record["fallback"] else ""
    told = {
        "fallback": fallback,
        "carried": carried_text(record["carried"]) if record.get("carried") else "",
        "weekday": _weekday(record["as_of"]),
        "warnings": warnings_of(words=record["words"], given=record["given"]),
    }
    return lay_out("report.html", record=record, sections=sections, failed=failed, let_through=let_through, **told)


def compared(record: Record) -> dict[str, Any]:
    """The figures of a night that the pages of later nights show beside theirs."""
    metrics = record["metrics"]
    overlap = [check["value"] for check in record["gate"]["checks"] if check["name"] == "overlap"]
    ours = (backtest.OURS, "all", "ndcg@10")
    return {
        "users": record["users"],
        "short_users": record["short_users"],
        "items": record["lists"]["items"],
        "gini": record["lists"]["gini"],
        "overlap": overlap[0] if overlap else None,
        "ndcg": figure(metrics["models"], *ours) if metrics else None,
        "ndcg_interval": figure(metrics["intervals"], *ours) if metrics else None,
        "scores": record["lists"]["scores"],
    }


def carried_text(carried: Mapping[str, Any]) -> str:
    """Whom the deadline cut off, in a sentence."""
    without = f"; {carried['without']:,} have no list, as they had none then" if carried["without"] else ""
    return f"The deadline came before all users were scored: {carried['users']:,} keep their rows of {carried['since']}{without}."


def fallback_text(fallback: Mapping[str, Any]) -> str:
    """What to say of a night whose lists are in a baseline's order."""
    bounds = interval_text(fallback["difference"], [fallback["low"], fallback["high"]])
    return f"The lists are in the order of {fallback['baseline']}: the model's NDCG@10 less that baseline's is {bounds}."


def _weekday(as_of: str) -> str:
    return f"{date.fromisoformat(as_of):%A}"


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
    names = tuple(record["inputs"])
    rejected = [
        (table, reason, count_text(count)) for table in names for reason, count in sorted(record["rejected"].get(table, {}).items())
    ]
    read = [
        (table, count_text(record["inputs"][table]), count_text(sum(record["rejected"].get(table, {}).values()))) for table in names
    ]
    funnel = [(name, count_text(count)) for name, count in record["funnel"].items()]
    parts = [
        Table("funnel", "From events to rows of the table", ("what", "how many"), funnel),
        Table("inputs", "Rows read", ("table", "read", "rejected"), read),
    ]
    if rejected:
        parts.append(Table("rejected", "Rows rejected", ("table", "reason", "rows"), rejected, words=2))
    return Section("Rows and candidates", "Rejected rows are dropped and counted by reason; the counts are kept.", parts)


def ranking_section(record: Record) -> Section | None:
    """The lists beside those of baselines; None where nothing was measured."""
    metrics = record["metrics"]
    if metrics is None:
        return None
    parts: list[Table | Plot] = []
    for part in backtest.SLICES:
        rows = []
        for model in backtest.MODELS:
            values, bounds = metrics["models"][model][part], metrics["intervals"][model][part]
            difference = metrics["differences"].get(model, {}).get(part, {}).get("ndcg@10", {"mean": None, "interval": None})
            others = (number_text(values[name], 3) for name in ("recall@10", "hitrate@10", "map@10"))
            ndcg = interval_text(values["ndcg@10"], bounds["ndcg@10"])
            rows.append((model, ndcg, interval_text(difference["mean"], difference["interval"]), *others))
        title = f"{part} items, {count_text(metrics['users'][part])} users"
        head = ("model", "NDCG@10", f"{backtest.OURS} minus it", "Recall@10", "HitRate@10", "MAP@10")
        parts.append(Table(f"metrics-{part}", title, head, rows, marked=[0]))
    if any(metrics["users"].values()):
        parts.append(drawn("NDCG@10 of each model with its 95% interval", draw_ranking(metrics), 3.4))
    recall = [(name, number_text(value, 3)) for name, value in metrics["candidates"]["recall"].items()]
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
        rows = [
            (made["challenger"], interval_text(made["difference"], bounds), number_text(made["margin"], 3), count_text(made["users"]))
        ]
        parts.append(Table("decision", "Against the champion", ("challenger", "NDCG@10 less the champion's", "margin", "users"), rows))
    epochs = [
        (
            fit["fit"],
            one["phase"],
            str(one["epoch"]),
            number_text(one["loss"]),
            number_text(one.get("val_loss")),
            count_text(round(one["rows_per_second"])),
        )
        for fit in record["training"]
        for one in fit["history"]
    ]
    if epochs:
        head = ("fit", "phase", "epoch", "loss", "validation loss", "rows/s")
        parts.append(Table("training", "Epochs", head, epochs, words=2))
        parts.append(drawn("Loss and validation loss by epoch", draw_training(record["training"]), 3.4))
    private = [(fit["fit"], told) for fit in record["training"] if (told := fit.get("privacy"))]
    if private:
        rows = [
            (
                fit,
                number_text(told["epsilon"], 2),
                f"{told['delta']:g}",
                f"{told['noise']:g}",
                f"{told['clip']:g}",
                count_text(told["steps"]),
            )
            for fit, told in private
        ]
        parts.append(
            Table("privacy", "Differential privacy of the weights", ("fit", "epsilon", "delta", "noise", "clip", "steps"), rows)
        )
    return Section("Model", text, parts)


def _scores(record: Record) -> Section:
    scores, parts = record["lists"]["scores"], list[Table | Plot]()
    before = next((night for night in record["nights"] if night["scores"]), None)
    parts.append(drawn("Scores of the lists' rows", draw_scores(scores, before), 3.2))
    parts += calibration_parts(record["metrics"])
    return Section("Scores", f"{count_text(scores['without'])} rows have no score: lists of users who never bought.", parts)


def calibration_parts(metrics: Mapping[str, Any] | None) -> list[Table | Plot]:
    """Chances beside what was bought, of what `pipelines.backtest.measure` gave; none where that was not told."""
    calibration, parts = metrics["calibration"] if metrics else None, list[Table | Plot]()
    if calibration is not None:
        rows = []
        for name, part in {"all": calibration, **calibration["segments"]}.items():
            figures = (part["bought"], *(part[metric][when] for metric in ("ece", "log_loss") for when in ("before", "after")))
            rows.append((name, count_text(part["rows"]), *(number_text(value) for value in figures)))
        head = ("candidates", "rows", "bought", "error before", "after", "log loss before", "after")
        parts.append(Table("calibration", "Expected calibration error and log loss, before and after calibration", head, rows))
        deciles = [
            (str(number), count_text(one["rows"]), *(number_text(one[name]) for name in ("before", "after", "bought")))
            for number, one in enumerate(calibration["deciles"], 1)
        ]
        parts.append(Table("deciles", "Chances beside what was bought", ("decile", "rows", "before", "after", "bought"), deciles))
        if any(one["bought"] > 0 for one in calibration["deciles"]):
            parts.append(reliability_plot(calibration))
    return parts


def _lists(record: Record) -> Section:
    lists = record["lists"]
    coverage = [
        ("users with a list", count_text(record["users"])),
        (f"users with fewer than {record['k']} rows", count_text(record["short_users"])),
        ("distinct items", count_text(lists["items"])),
        ("share of the available items", share_text(lists["available_share"])),
        ("concentration on items (Gini)", number_text(lists["gini"], 3)),
    ]
    total = sum(lists["sources"].values())
    sources = [(name, count_text(count), share_text(count / total)) for name, count in lists["sources"].items()]
    popular = [(one["items"], share_text(one["rows"]), share_text(one["purchases"])) for one in record["popularity"]]
    head = ("items by popularity", "of the lists' rows", "of purchases in 28 days")
    return Section(
        "Lists",
        "How much of the catalog they show, and where their rows come from.",
        [
            Table("coverage", "Coverage", ("what", "tonight"), coverage),
            Table("sources", "Rows by source", ("source", "rows", "share"), sources),
            Table("popularity", "Rows by the popularity of their item", head, popular),
            drawn("Share of rows and of purchases by the popularity of items", draw_popularity(record["popularity"]), 3.2),
        ],
    )


def _rules(record: Record) -> Section:
    rows = [(name, count_text(count), count_text(record["short"].get(name, 0))) for name, count in record["dropped"].items()]
    if "" in record["short"]:
        rows.append(("no rule: too few candidates", NONE, count_text(record["short"][""])))
    head = ("rule", "kept out", f"users short of {record['k']}")
    text = "Candidates that each rule kept out, and the users with short lists from whom it took the most."
    return Section("Rules", text, [Table("rules", "Drops by rule", head, rows)])


def groups_section(record: Record) -> Section | None:
    """For whom the lists hold, by the groups of [fairness]; None where none are named."""
    told = (record["metrics"] or {}).get("fairness")
    if told is None:
        return None
    parts: list[Table] = []
    gaps: list[str] = []
    for column, found in told["users"].items():
        rows = [
            (
                value,
                count_text(one["users"]),
                count_text(one["counted"]),
                interval_text(one["ndcg@10"], one["interval"]),
                number_text(one["calibration_error"]),
                share_text(one["fallback"]),
            )
            for value, one in found["groups"].items()
        ]
        head = (column, "users", "counted", "NDCG@10", "score less bought", "without a model")
        parts.append(Table(f"users-{column}", f"Users by {column}", head, rows))
        if (gap := found["gap"]) is not None:
            bounds = interval_text(gap["difference"], gap["interval"])
            gaps.append(f"NDCG@10 of {column} {gap['best']} less that of {gap['worst']}: {bounds}.")
    for column, groups in told["items"].items():
        rows = [(value, *(share_text(one[name]) for name in ("catalog", "exposure", "wanted"))) for value, one in groups.items()]
        parts.append(Table(f"items-{column}", f"Items by {column}", (column, "catalog", "attention in lists", "wanted"), rows))
    text = " ".join(["The model's test by group; attention is 1 / log2(rank + 1) of each row.", *gaps])
    return Section("Groups", text, parts)


def _users(record: Record) -> Section:
    parts = []
    for number, user in enumerate(record["sample"]):
        rows = [(str(row["rank"]), row["item"], number_text(row["score"], 3), row["source"], row["reason"]) for row in user["rows"]]
        head = ("rank", "item", "score", "source", "reason")
        parts.append(Table(f"user-{number}", f"User {user['user_id']}", head, rows, all_words=True, folded=True))
    return Section("Ten users", "The same users every night, as long as they are in the shop.", parts)


def _work(record: Record) -> Section:
    stages = [
        (one["stage"], count_text(one["units"]), f"{one['seconds']:,.1f}", f"{one['longest']:,.1f}", one["slowest"])
        for one in record["stages"]
    ]
    shards = [
        (one["shard"], f"{one['seconds']:,.1f}", count_text(one["users"]), count_text(one["candidates"]), count_text(one["rows"]))
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
            count_text(night["rows"]),
            count_text(night["users"]),
            count_text(night["short_users"]),
            count_text(night["items"]),
            number_text(night["gini"], 3),
            share_text(night["overlap"]),
            interval_text(night["ndcg"], night["ndcg_interval"]),
            night["model_version"],
        )
        for night in told
    ]
    head = ("night", "rows", "users", "short", "items", "Gini", "overlap", "NDCG@10", "model")
    parts: list[Table | Plot] = [Table("nights", "Tonight and the nights before it", head, rows, marked=[0])]
    measured = [night for night in reversed(told) if night["ndcg"] is not None]
    if len(measured) > 1:
        parts.append(drawn("NDCG@10 by night with its 95% interval", draw_nights(measured), 3.0))
    return Section("The last nights", "Overlap is the share of the night before's rows that stayed.", parts)
