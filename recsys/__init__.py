"""recsys: every night, the best k items for every user of a shop, as a table.

The folders in the order the data flows; each one's face says what comes in, what goes out, and in which order to read it.

    config/      the settings: one file for each part of the TOML file
    engine/      Ray: connected to, given units of work; the only folder that imports it
    data/        what a shop gives -> the catalog and users' histories
    retrieval/   histories -> candidates
    features/    candidates, or rows of a feature table -> model inputs
    ranking/     model inputs -> ordered lists with reasons
    training/    labelled examples -> a bundle
    publishing/  lists -> one atomic commit to the table, or a refusal
    evaluation/  lists against what was bought
    pipelines/   the stages in order, each a page

At the root lie the words that all share: `schema` (tables and columns), `errors`, `storage` (files, digests), `hashing`,
`metrics`, `compiled` (how loops are), `secret` (what stands in no settings); above all `reading` (a shop in a notebook) and
`command`, the verbs of jobs/ under one name.

    from recsys import Shop, load_night
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.reading import Shop, load_night

__all__ = ["Shop", "load_night"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What `__all__` names, imported when it is asked for: whoever imports `recsys` for a part of it waits for no other."""
    if name not in __all__:
        raise AttributeError(f"module 'recsys' has no attribute '{name}'")
    from recsys import reading

    return getattr(reading, name)
