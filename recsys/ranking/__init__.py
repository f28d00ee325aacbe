"""Model inputs -> each user's list, with reasons.

In: inputs and a bundle. Out: rows of the recommendation table.
Read `network` (the model), `bundle` (as it is handed over) and `registry` (which one publishes); `scorer`, `split_scorer` and
`calibration` make scores; `top_k`, `recommend`, `reasons` and `table_rows` make lists; `attribution` says what an input adds.
"""
