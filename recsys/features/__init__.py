"""Candidates, or rows of a feature table -> model inputs.

In: candidates of the shop door, shards of the pairs door. Out: dense and code inputs, and the spec that names them; labelled rows.
Read `spec`, then either road: `candidate_features`, with its compiled loops (`kernels`), `candidate_sampling` and `examples` of the
shop door; `feature_table`, `reader`, `encoding`, `side_tables` of the pairs door. `fitting` fits normalisation and vocabularies for
both.
"""
