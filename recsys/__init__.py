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

At the root lie the words that all share: `schema` (tables and columns), `errors`, `storage` (files, digests), `hashing`, `metrics`,
`compiled` (how loops are); and `command`, the verbs of jobs/ under one name.
"""

__version__ = "0.1.0"
