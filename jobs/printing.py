"""What verbs print: the tables that several of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from recsys.engine.progress import console, log
from recsys.publishing.table import read_night
from recsys.schema import ITEM_ID, RANK, REASON, SCORE, SOURCE, SOURCES, USER_ID

if TYPE_CHECKING:  # a verb imports no more than it needs: the first row waits for it
    from recsys.data.dataset import ShopDataset
    from recsys.pipelines.champion import Chosen
    from recsys.pipelines.inspect import Attributed, Purchased, Shown
    from recsys.pipelines.pairs_train import Fitted
    from recsys.pipelines.signals import ShopState
    from recsys.publishing.gate import Verdict
    from recsys.publishing.release import Published
    from recsys.training.fit import Trained


def epoch_line(epoch: Mapping[str, Any]) -> None:
    """One log line of a finished epoch."""
    shown = ("loss", "val_loss", "val_auc", "val_accuracy", "val_precision", "val_recall", "val_f1")
    numbers = ", ".join(f"{name} {epoch[name]:.4f}" for name in shown if name in epoch)
    log.info("train: %s epoch %d: %s, %s rows/s", epoch["phase"], epoch["epoch"], numbers, f"{epoch['rows_per_second']:,.0f}")


def rows(shop: ShopDataset) -> None:
    """Rows read, and rejected by reason."""
    table = Table(title="Rows", title_justify="left")
    for column in ("table", "read", "rejected", "why"):
        table.add_column(column, justify="left" if column in ("table", "why") else "right")
    for name in ("events", "items", "users"):
        reasons = shop.rejected.get(name, {})
        why = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
        table.add_row(name, f"{shop.rows[name]:,}", f"{sum(reasons.values()):,}", why)
    console.print(table)
    console.print(
        f"{shop.rows['users kept']:,} users with {shop.rows['events kept']:,} events; {shop.rows['catalog']:,} items in the catalog."
    )


def training(trained: Trained) -> None:
    """Examples, epochs, and where the bundle lies."""
    counts = trained.examples
    if "candidates" in counts:
        console.print(f"{counts['rows']:,} examples ({counts['positives']:,} bought) sampled from {counts['candidates']:,} candidates.")
    else:
        console.print(f"{counts['rows']:,} rows ({counts['positives']:,} with a label above 0), {counts['held_out']:,} held out.")
    table = Table(title="Epochs", title_justify="left")
    names = {name: name.removeprefix("val_") for name in trained.history[0] if name.startswith("val_") and name != "val_loss"}
    for column in ("phase", "epoch", "loss", "val_loss", *names.values(), "rows/s"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for epoch in trained.history:
        numbers = [f"{epoch[name]:.4f}" if name in epoch else "" for name in ("loss", "val_loss", *names)]
        table.add_row(epoch["phase"], str(epoch["epoch"]), *numbers, f"{epoch['rows_per_second']:,.0f}")
    console.print(table)
    if "calibration" in (metrics := trained.bundle.about["metrics"]):
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in metrics["calibration"]["held_out_log_loss"].items())
        console.print(
            f"Calibration: {metrics['calibration']['kind']}. Log loss on users held out from it: {losses or 'none held out'}."
        )
    if spent := metrics.get("privacy"):
        console.print(
            f"Differential privacy of the weights: epsilon {spent['epsilon']:.2f} at delta {spent['delta']:g}.", highlight=False
        )
    console.print(f"Best epoch {trained.best_epoch}. Model {trained.bundle.model_version} in {trained.bundle.folder}")


def decision(chosen: Chosen) -> None:
    """Which bundle scores the night, and by what numbers."""
    made = chosen.decision
    if chosen.due is not None:
        why = ": the deadline left a challenger too little time" if chosen.cut_off else ""
        console.print(f"Model {chosen.bundle.model_version} scores, the champion's{why}; a challenger is due on {chosen.due}.")
        return
    if chosen.met is not None:
        met = f"tonight's challenger met it on {chosen.met.as_of}"
        console.print(f"Model {chosen.bundle.model_version} scores, the champion's: {met}.")
        return
    if made is None:
        console.print("This night lies before the champion's day: a model of its own day scores it, and nothing is decided.")
        return
    numbers = ""
    if made.difference is not None:
        interval = f"[{made.low:+.4f}, {made.high:+.4f}]" if made.low is not None else "no interval"
        numbers = f" NDCG@10 {made.difference:+.4f} {interval} over {made.users:,} users."
    verb = "becomes" if made.promoted else "does not become"
    console.print(f"Challenger {made.challenger} {verb} the champion: {made.why}.{numbers}")
    if chosen.refit is not None:
        training(chosen.refit)


def pairs_test(fitted: Fitted) -> None:
    """Rejected rows by reason, and the metrics on the test rows."""
    if fitted.rejected:
        console.print("Rejected: " + ", ".join(f"{reason} {count:,}" for reason, count in fitted.rejected.items()) + ".")
    if fitted.test is not None:
        print(f"Test Accuracy: {fitted.test['accuracy']:.4f}")
        shown = {"precision": "precision", "recall": "recall", "f1": "F1", "auc": "AUC", "loss": "log loss"}
        figures = ", ".join(f"{label} {fitted.test[name]:.4f}" for name, label in shown.items())
        print(f"Test {figures}, {fitted.test['rows']:,} rows")


def metrics(result: Mapping[str, Any]) -> None:
    """The backtest's metrics beside the baselines with their intervals, and each source's part in the candidates' recall."""
    from recsys.evaluation import backtest

    users = result["users"]
    table = Table(
        title=f"Backtest as of {result['as_of']}, {result['horizon_days']} days: "
        f"{users['all']:,} users (all items), {users['new']:,} (new items)",
        title_justify="left",
    )
    others = ("recall@10", "hitrate@10", "map@10")
    table.add_column("items")
    table.add_column("model", no_wrap=True)
    for column in ("ndcg@10", f"{backtest.OURS} minus it", *others):
        table.add_column(column, justify="right", no_wrap=True)
    for part in backtest.SLICES:
        for model in backtest.MODELS:
            values = result["models"][model][part]
            difference = result["differences"].get(model, {}).get(part, {}).get("ndcg@10", {"mean": None, "interval": None})
            table.add_row(
                part,
                model,
                _with_interval(values["ndcg@10"], result["intervals"][model][part]["ndcg@10"]),
                _with_interval(difference["mean"], difference["interval"]),
                *("-" if values[metric] is None else f"{values[metric]:.3f}" for metric in others),
                style="bold" if model == backtest.OURS else "",
            )
        table.add_section()
    console.print(table)
    console.print("In brackets: 95% intervals, bootstrap over users; differences user by user.")
    candidates = result["candidates"]
    shares = ", ".join(f"{name} {value:.3f}" for name, value in candidates["recall"].items() if value is not None)
    console.print(f"Recall of the candidates ({candidates['per_user'] or 0:.0f} a user): {shares}.")
    for part, told in result["exposures"].items():
        console.print(f"Rules of exposure take {_with_interval(told['price'], told['interval'])} of NDCG@10 of {part} items.")
    if result["calibration"] is not None:
        _reliability(result["calibration"])
    if "fairness" in result:
        _groups(result["fairness"])


def _with_interval(value: float | None, bounds: Sequence[float] | None) -> str:
    """As in `0.547 [.537, .556]`; escaped, as brackets mean styles to rich."""
    if value is None or bounds is None:
        return "-"
    low, high = (f"{bound:.3f}".replace("0.", ".", 1) for bound in bounds)
    return f"{value:.3f} [{low}, {high}]"


def _reliability(figures: Mapping[str, Any]) -> None:
    """Chances before and after calibration beside what was bought, by decile and by segment."""
    table = Table(title="Scores beside what was bought", title_justify="left")
    table.add_column("decile")
    for column in ("candidates", "before", "after", "bought"):
        table.add_column(column, justify="right")
    for number, one in enumerate(figures["deciles"], 1):
        table.add_row(str(number), f"{one['rows']:,}", *(f"{one[name]:.4f}" for name in ("before", "after", "bought")))
    console.print(table)
    console.print(f"{figures['rows']:,} candidates of {figures['users']:,} users with history.")
    table = Table(title="Expected calibration error and log loss, before and after", title_justify="left")
    table.add_column("segment")
    for column in ("candidates", "bought", "error before", "after", "log loss before", "after"):
        table.add_column(column, justify="right")
    for name, part in {"all": figures, **figures["segments"]}.items():
        numbers = (part["bought"], *(part[metric][when] for metric in ("ece", "log_loss") for when in ("before", "after")))
        table.add_row(name, f"{part['rows']:,}", *(f"{value:.4f}" for value in numbers))
    console.print(table)


def _groups(told: Mapping[str, Any]) -> None:
    """Quality by group of users, and attention by group of items."""
    for column, found in told["users"].items():
        table = Table(title=f"Users by {column}", title_justify="left")
        for name in (column, "users", "counted", "NDCG@10", "score less bought", "without a model"):
            table.add_column(name, justify="left" if name == column else "right")
        for value, one in found["groups"].items():
            off = "-" if one["calibration_error"] is None else f"{one['calibration_error']:+.4f}"
            numbers = (f"{one['users']:,}", f"{one['counted']:,}", _with_interval(one["ndcg@10"], one["interval"]))
            table.add_row(value, *numbers, off, f"{one['fallback']:.1%}")
        console.print(table)
        if (gap := found["gap"]) is not None:
            low, high = gap["interval"]
            console.print(f"NDCG@10 of {gap['best']} less that of {gap['worst']}: {gap['difference']:.3f} [{low:.3f}, {high:.3f}].")
    for column, groups in told["items"].items():
        table = Table(title=f"Items by {column}, shares", title_justify="left")
        for name in (column, "catalog", "attention in lists", "wanted"):
            table.add_column(name, justify="left" if name == column else "right")
        for value, one in groups.items():
            table.add_row(value, *("-" if one[name] is None else f"{one[name]:.2%}" for name in ("catalog", "exposure", "wanted")))
        console.print(table)


def verdict(gate: Verdict | None, overrides: Mapping[str, str]) -> None:
    """The gate's figures beside what they may be."""
    if gate is None:
        return
    table = Table(title=f"Gate, against {gate.before or 'no night before'}", title_justify="left")
    for column in ("check", "value", "may be", "", "meaning"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for check in gate.checks:
        said = "passed" if check.passed else f"overridden: {overrides[check.name]}"
        table.add_row(check.name, "-" if check.value is None else f"{check.value:.4g}", check.limit, said, check.meaning)
    console.print(table)


def published(night: Published, state: ShopState, *, as_of: date, overrides: Mapping[str, str]) -> None:
    """Counts, speed, one user's list, the place of the table and how to query it."""
    from recsys.evaluation.report import carried_text, fallback_text
    from recsys.evaluation.unknown import warnings_of
    from recsys.pipelines.night_record import read_record

    settings = state.settings
    short = f", {night.short_users:,} of them with fewer than {settings.rank.k}" if night.short_users else ""
    console.print(f"{night.rows:,} rows for {night.users:,} users{short}; run {night.run_id}.")
    if night.carried is not None:
        console.print(carried_text(night.carried))
    if (record := read_record(Path(settings.report.path) / f"{as_of}.json")) is not None:
        if record.get("fallback"):
            console.print(fallback_text(record["fallback"]))
        warnings(warnings_of(words=record.get("words", {}), given=record.get("given")))
    _rules(night, k=settings.rank.k)
    if night.seconds:
        console.print(
            f"Scored {night.scored:,} pairs of {night.users:,} users in {night.seconds:.1f} s with start-up: "
            f"{night.users / night.seconds:,.0f} users/s, {night.scored / night.seconds:,.0f} pairs/s."
        )
    verdict(night.verdict, overrides)
    if night.version is None:
        console.print(f"This run is what stands for {as_of}; nothing was committed.")
    else:
        console.print(f"Committed as version {night.version} of the table.")
    _one_user(state, as_of)
    path = settings.table.path
    console.print(f"The table: {path}, a Delta table partitioned by as_of. To query it:")
    console.print(f'    polars.scan_delta("{path}").filter(polars.col("as_of") == polars.date({as_of:%Y, %-m, %-d}))', highlight=False)
    console.print(f"    duckdb: SELECT * FROM delta_scan('{path}') WHERE as_of = DATE '{as_of}'", highlight=False)


def warnings(said: Sequence[str]) -> None:
    """What is published and may be wrong all the same, a line each."""
    for sentence in said:
        console.print(f"WARNING: {sentence}")


def _rules(night: Published, *, k: int) -> None:
    """What each rule kept out, and the users whose short lists it is most to blame for."""
    if not any(night.dropped.values()) and not night.short:
        return
    table = Table(title="Rules", title_justify="left")
    for column in ("rule", "kept out", f"users short of {k}"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    for name, count in night.dropped.items():
        table.add_row(name, f"{count:,}", f"{night.short.get(name, 0):,}")
    if "" in night.short:
        table.add_row("no rule: too few candidates", "", f"{night.short['']:,}")
    console.print(table)


def _one_user(state: ShopState, as_of: date) -> None:
    """The list of the first user who has history, with item names."""
    settings = state.settings
    histories = next(histories for shard in state.dataset.shards if len((histories := state.dataset.histories(shard)).item))
    user = histories.users.column(USER_ID)[int(histories.user_row[0])].as_py()
    lists = read_night(settings.table.path, as_of=as_of, user_id=user, storage_options=settings.shop.storage_options)
    catalog = state.dataset.catalog()
    names = catalog.names(catalog.codes_of(lists.column(ITEM_ID)))
    table = Table(title=f"Recommendations of user {user}", title_justify="left")
    for column in (RANK, "item", SCORE, SOURCE, REASON):
        table.add_column(column, justify="right" if column in (RANK, SCORE) else "left")
    columns: Sequence[Any] = [lists.column(name).to_pylist() for name in (RANK, SCORE, SOURCE, REASON)]
    for name, rank, score, source, reason in zip(names, *columns, strict=True):
        table.add_row(str(rank), name, "" if score is None else f"{score:.3f}", source, reason)
    console.print(table)


def user_list(shown: Shown) -> None:
    """The list, what changed since the night before, and the purchases beside it."""
    night = shown.night
    table = Table(title=f"Recommendations of user {shown.user_id} as of {night.as_of}, run {night.run_id}", title_justify="left")
    for column in (RANK, "item", SCORE, SOURCES, REASON, *(["since before"] if shown.before else [])):
        table.add_column(column, justify="right" if column in (RANK, SCORE) else "left")
    columns: Sequence[Any] = [shown.rows.column(name).to_pylist() for name in (RANK, SCORE, SOURCES, REASON)]
    for name, moved, rank, score, sources, reason in zip(shown.names, shown.moved, *columns, strict=True):
        change = "new" if moved is None else f"up {moved}" if moved > 0 else f"down {-moved}" if moved < 0 else "same"
        cells = [str(rank), name, "" if score is None else f"{score:.3f}", ", ".join(sources), reason]
        table.add_row(*cells, *([change] if shown.before else []))
    console.print(table)
    if shown.before is None:
        console.print("No earlier night is published to compare it with.")
    else:
        gone = "; ".join(f"{name} (was {rank})" for rank, name in shown.gone)
        console.print(f"Gone since the night of {shown.before}: {gone or 'nothing'}.", highlight=False)
    _purchases("Bought last", shown.latest)
    _purchases("Bought on most days", shown.frequent)


def _purchases(title: str, purchases: Sequence[Purchased]) -> None:
    if not purchases:
        console.print(f"{title}: nothing.")
        return
    table = Table(title=title, title_justify="left")
    for column in ("item", "days", "last"):
        table.add_column(column, justify="right" if column == "days" else "left")
    for bought in purchases:
        table.add_row(bought.name, str(bought.days), str(bought.last))
    console.print(table)


def contributions(rows: Sequence[Attributed], baseline: float) -> None:
    """For each row the inputs with the largest contributions to its raw output."""
    if not rows:
        console.print("No model stands behind this list, so no input contributes to it.")
        return
    title = f"Contributions to the raw output; of a row of which nothing is known it is {baseline:.3f}"
    table = Table(title=title, title_justify="left")
    for column in (RANK, "item", "raw", "input", "value", "adds"):
        table.add_column(column, justify="right" if column in (RANK, "raw", "adds") else "left")
    for row in rows:
        for number, (name, value, added) in enumerate(row.largest):
            first = (str(row.rank), row.name, f"{row.raw:.3f}") if number == 0 else ("", "", "")
            table.add_row(*first, name, value, f"{added:+.3f}", end_section=number + 1 == len(row.largest))
    console.print(table)
