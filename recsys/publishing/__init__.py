"""Lists of one night -> one atomic commit, or a refusal. Knows neither model nor Ray.

In: rows of the recommendation table. Out: a version of the Delta table.
Read `staging` (parts that no reader sees, audited), `figures` (what the lists look like), `gate` (may they be published?), `table`
and `delta` (the commit, the nights, reading back), `release`, which does it in order, `carry` (rows of the night before, for users
who were not reached), `erase` (users taken out of all of it), `changes` from one night to another, and `export`, with `served`,
`redis_target`, `postgres_target`, `parquet_target` and `iceberg_target`, to where lists are served.
"""
