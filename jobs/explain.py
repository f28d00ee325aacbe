"""Why an item is at its place on a user's list, or not on it: the rule, the sources, how far away, and what would change it."""

import math
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from jobs import Config, job, main
from recsys import config
from recsys.data.shop import open_shop
from recsys.engine.connect import connect
from recsys.engine.progress import console
from recsys.pipelines import inspect as lists
from recsys.pipelines.explain import Explained
from recsys.pipelines.explain import explain as explained
from recsys.pipelines.signals import shop_state


def explain(
    config_path: Config,
    user: Annotated[str, typer.Option(help="The user's id.")],
    item: Annotated[str, typer.Option(help="The item's id.")],
    as_of: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The night; absent, the newest published.")] = None,
    largest: Annotated[int, typer.Option(min=0, help="So many inputs with the largest contributions to its raw output.")] = 5,
) -> None:
    """Why an item is at its place on a user's list, or not on it: the rule, the sources, how far away, and what would change it."""
    with job():
        settings = config.load(config_path)
        night, _ = lists.find_night(settings, as_of=as_of.date() if as_of else None)
        inputs = open_shop(settings, as_of=night.as_of)
        user_id = lists.parse_user(user, inputs)
        item_id = lists.parse_id(item, inputs.item_id, option="item")
        bundle = lists.bundle_of(settings, night)
        with connect():
            state = shop_state(inputs, end=night.as_of)
            _print(explained(state, bundle, user_id, item_id, night=night, largest=largest), k=settings.rank.k)


def _print(told: Explained, *, k: int) -> None:
    about = f"{told.name} (item {told.item_id}) for user {told.user_id} as of {told.night.as_of}"
    if told.rank is not None:
        console.print(f"{about}: rank {told.rank}. {told.reason or ''}".rstrip())
    else:
        console.print(f"{about}: not on the list.")
    if told.rule is not None:
        console.print(f"The rule '{told.rule}' keeps it from this user, whatever its score.")
    if not told.known:
        console.print(
            "The user has no history that the model knows: the list is what is popular, in the user's group where there is one."
        )
        return
    if not told.active:
        console.print(
            "Nobody wanted the item within window.history_days, and it is none of tonight's candidates.unseen: no source can see it."
        )
        return
    if told.proposed:
        console.print("Proposed by " + ", ".join(f"{name} (its number {rank})" for name, rank in told.proposed.items()) + ".")
    else:
        console.print("No source proposed it; it is scored beside the candidates to see where it would stand.")
    away = "" if math.isnan(told.end) else f"; the last of {k} by score has {told.end:.4f}, {told.score - told.end:+.4f} from it"
    console.print(f"The model puts it at place {told.place} of {told.candidates:,}, score {told.score:.4f}{away}.")
    if told.rank is None and told.rule is None and told.proposed and told.place <= k:
        console.print("Its score is enough: a cap, an exposure or rank.diversity gave its place to another.")
    if told.largest:
        table = Table(title="What adds most to its raw output, or takes most", title_justify="left")
        for column in ("input", "value", "adds"):
            table.add_column(column, justify="right" if column == "adds" else "left")
        for name, value, added in told.largest:
            table.add_row(name, value, f"{added:+.3f}")
        console.print(table)
    if told.changed is not None:
        change = told.changed
        to = "off" if told.place <= k else "onto"
        console.print(
            f"With {change.name} {change.then} instead of {change.now} ({change.apart:.2f} standard deviations away), as another of "
            f"the user's candidates has it, its score would take it {to} the list."
        )
    elif not math.isnan(told.end):
        console.print("No single number, at any value that the user's other candidates have, would take it across the list's end.")


if __name__ == "__main__":
    main(explain)
