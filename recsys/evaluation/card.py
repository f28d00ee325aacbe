"""A model's card -> one HTML page: what it learned from, how it was chosen, what its lists rest on, for whom they hold, and its limits.

After Mitchell et al. 2019, Model cards for model reporting.
"""

from collections.abc import Mapping
from typing import Any

from recsys.evaluation.page import NONE, Section, Table, count_text, interval_text, lay_out, number_text
from recsys.evaluation.report import calibration_parts, groups_section, ranking_section

Card = Mapping[str, Any]
SHOWN = 25  # inputs that are seen before the table is opened


def render(card: Card) -> str:
    """The page of a card, as `pipelines.card.card_of` makes it."""
    tested = {"metrics": card["tested"]}
    sections = [_chosen(card), ranking_section(tested), _importance(card), groups_section(tested), _chances(card), _made(card)]
    sections += [_people(card), Section("Limits", " ".join(card["limits"]), [])]
    return lay_out("card.html", card=card, sections=[one for one in sections if one is not None])


def stands(decision: Mapping[str, Any] | None) -> str:
    """What became of the model, in a sentence."""
    if decision is None:
        return "It met no champion."
    verb = "became" if decision["champion"] == decision["challenger"] else "did not become"
    return f"It {verb} the champion on {decision['as_of']}: {decision['why']}."


def _chosen(card: Card) -> Section:
    made, parts = card["decision"], list[Table]()
    if made is not None and made["low"] is not None:
        bounds = interval_text(made["difference"], [made["low"], made["high"]])
        row = (bounds, number_text(made["margin"], 3), count_text(made["users"]))
        parts.append(Table("decision", "Against the champion", ("NDCG@10 less the champion's", "margin", "users"), [row], words=0))
    return Section("How it was chosen", card["stands"], parts)


def _importance(card: Card) -> Section:
    found = card["importance"]
    rows = [(one["input"], f"{one['loss']:+.4f} {_bounds(one['interval'])}") for one in found["inputs"]]
    head = ("input", "NDCG@10 lost")
    parts = [Table("importance", "What lists lose when one input is shuffled", head, rows[:SHOWN])] if rows else []
    if rows[SHOWN:]:
        parts.append(Table("importance-more", f"The other {len(rows) - SHOWN} inputs", head, rows[SHOWN:], folded=True))
    text = (
        f"Lists of {count_text(found['users'])} users who bought something in the test, NDCG@10 {number_text(found['ndcg@10'], 3)}. "
        "Inputs that tell the same share what they tell: each of them alone may be missed by nobody."
    )
    return Section("What its lists rest on", text, parts)


def _bounds(interval: list[float] | None) -> str:
    return NONE if interval is None else f"[{interval[0]:+.4f}, {interval[1]:+.4f}]"


def _chances(card: Card) -> Section:
    return Section("Chances", "Of all candidates in the test: scores before and after calibration.", calibration_parts(card["tested"]))


def _made(card: Card) -> Section:
    window, examples = card["window"], card["examples"]
    rows = [
        ("label windows begin on", ", ".join(window["cutoffs"])),
        ("days of a label window", str(window["label_days"])),
        *((name, count_text(count)) for name, count in examples.items()),
        ("inputs", f"{len(card['inputs'])}: {', '.join(card['inputs'])}"),
        *((f"model.{name}", str(value)) for name, value in card["settings"]["model"].items() if value is not None),
        ("code", f"{card['code']['version']}, {card['code']['digest']}"),
        *((name, version) for name, version in card["packages"].items()),
    ]
    return Section("What it was made of", "", [Table("made", "Data, settings and code", ("what", ""), rows, all_words=True)])


def _people(card: Card) -> Section:
    told = card["privacy"]
    erased = f" {told['erased']:,} people who were in its data have been erased since." if told["erased"] else ""
    return Section("People's data", f"User ids are {told['ids']}. {told['noise']}{erased}", [])
