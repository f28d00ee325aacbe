"""A generated shop of any size with a known answer, and settings for it: to see how the system does at your shop's size."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from jobs import job, main
from recsys.config.paths import local_path
from recsys.data import synthetic
from recsys.data.shop_kinds import KINDS, TRAITS
from recsys.errors import ConfigError
from recsys.storage import check_folders, write_atomically

LEAST_ITEMS = 4 * synthetic.CATEGORIES


def planted_shop(
    out: Annotated[
        Path,
        typer.Option(
            help="The shop's folder, which must not exist yet; its settings are OUT/shop.toml.", parser=local_path, metavar="PATH"
        ),
    ],
    users: Annotated[int, typer.Option(min=synthetic.GROUPS, help="Users.")] = 4_000,
    items: Annotated[int, typer.Option(min=LEAST_ITEMS, help="Items of the catalog.")] = 5_000,
    days: Annotated[int, typer.Option(min=1, help="Days of history.")] = 365,
    end: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="The day before which it ends.")] = datetime(2026, 1, 1),
    kind: Annotated[str, typer.Option(help=f"Kind of shop, one of {', '.join(KINDS)}.")] = KINDS[0],
    events_per_user: Annotated[
        float | None, typer.Option(min=1, help="Purchases of a user, about, on average; absent, as the kind has it.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random in it.")] = 0,
    without_items: Annotated[bool, typer.Option("--without-items", help="No catalog: neither categories, brands nor prices.")] = False,
    without_users: Annotated[bool, typer.Option("--without-users", help="No ages and regions of users.")] = False,
    kinds: Annotated[bool, typer.Option("--kinds", help="Views beside purchases; purchases alone are wanted.")] = False,
    vectors: Annotated[
        int, typer.Option(min=0, help="Numbers of each item's vector, which tells a style that users go by; 0: neither.")
    ] = 0,
) -> None:
    """A generated shop of any size with a known answer, and settings for it: to see how the system does at your shop's size."""
    with job():
        if out.exists():
            raise ConfigError(f"--out {out}: must not exist yet. Name another folder, or remove it.")
        check_folders(**{"--out": str(out)})
        if (planted_kind := next((one for one in KINDS if one == kind), None)) is None:
            raise ConfigError(f"--kind {kind}: must be one of {', '.join(KINDS)}. Choose among these.")
        if kinds and TRAITS[planted_kind].looks:
            raise ConfigError(f"--kinds: a shop of {kind} has views and carts of its own. Leave it out.")
        if vectors and (vectors < synthetic.STYLES or without_items):
            raise ConfigError(
                f"--vectors {vectors}: they are of items and have {synthetic.STYLES} numbers or more. Mend it, or leave it out."
            )
        planted = synthetic.shop(
            out,
            users=users,
            items=items,
            days=days,
            seed=seed,
            end=end.date(),
            kind=planted_kind,
            events_per_user=events_per_user,
            with_items=not without_items,
            with_users=not without_users,
            kinds=kinds,
            vectors=vectors,
        )
        text = settings_text(planted, out)
        write_atomically(out / "shop.toml", lambda file: file.write_text(text, encoding="utf-8"))
        print(f"{planted.rows:,} events of {users:,} users and {items:,} items.")
        print(out / "shop.toml")


def settings_text(planted: synthetic.Planted, out: Path) -> str:
    """The settings that name what the shop has, as TOML; every path is absolute."""
    places = {"events": planted.events, "items": planted.items, "users": planted.users}
    shop = {name: str(place.absolute()) for name, place in places.items() if place is not None}
    features = {"item_categorical": ["category", "brand"], "item_numeric": ["size"]} if planted.items else {}
    features |= {"item_vectors": ["vector"]} if planted.vectors else {}
    features |= {"user_categorical": ["age", "region"]} if planted.users else {}
    folders = {name: str((out / name).absolute()) for name in ("table", "work", "bundles", "reports")}
    sections = {
        "shop": {**shop, **({"label_kinds": ["purchase"], "look_kinds": planted.looks} if planted.looks else {})},
        "features": features,
        "table": {"path": folders["table"]},
        "run": {"work": folders["work"]},
        "champion": {"path": folders["bundles"]},
        "report": {"path": folders["reports"]},
    }
    lines: list[str] = []
    for section, keys in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(planted_shop)
