"""What a shop gives, made usable.

In: the shop's files. Out: the catalog, and one history a user, hashed into shards.
Read `listing` (which files), of an `iceberg` table too, `files` (one opened), `inputs` (their columns), `row_groups` (their parts),
`kept` (what was found in them, which is not looked for again), `bounds` (of their times), `shop` (opened and held against the
settings), `names` (columns called nearly as ours), `keyed` (user ids as digests), `cleaning` (bad rows counted by reason), then what
comes out: `catalog`, `histories`, their `contents` day by day, `base` (an earlier night's, added to), and `dataset`, where they lie;
`daily` are facts of items by day, `vectors` what encoders made of them. `sample` looks at the rows before all that, and a stranger's
tables are understood by `guess`, `guess_features`, `guess_past` and `guess_shop`. `label_windows` are the dates that are learned from.
`types` makes types one; `synthetic`, of the `shop_kinds` and `planted_items`, and `complete_journey` make shops.
"""
