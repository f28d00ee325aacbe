"""What is not known of tonight's input: words that the model never saw, given candidates of nobody; and when to warn of it.

Either is normal in small: shops get new brands and drop old items. A large share says that a table is written in another way than the
one before it, and nothing fails: the model takes such words for missing, and such candidates are dropped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

WORDS = 0.2  # new words of a week or a season are far fewer; a column written another way has nearly all of them new
GIVEN = 0.1  # what left the catalog since the candidates were made is a few in a hundred; ids of another spelling are most


def warnings_of(*, words: Mapping[str, Sequence[int]], given: Mapping[str, Any] | None = None) -> list[str]:
    """A sentence for each share that is too large to be chance.

    Args:
        words: column -> how many words it holds, and how many of them the model does not know.
        given: `rows` of the shop's own candidates, and `rejected`, reason -> rows; None where there are none.
    """
    said = [
        f"{unseen / count:.0%} of the words in column '{name}' are unknown to the model ({unseen:,} of {count:,}). "
        "Look whether the column is written as it was in training, or train again."
        for name, (count, unseen) in words.items()
        if unseen > WORDS * count
    ]
    for reason, what in (("unknown_user", "users"), ("unknown_item", "items")):
        count = given["rejected"].get(reason, 0) if given else 0
        if given and count > GIVEN * given["rows"]:
            said.append(
                f"{count / given['rows']:.0%} of the given candidates are of {what} that the shop does not know ({count:,} of "
                f"{given['rows']:,} rows), and were dropped. Look at the ids in rank.candidates."
            )
    return said
