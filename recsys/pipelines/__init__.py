"""The stages in order, each a page; no arithmetic.

In: settings and a date. Out: stages run on the engine, a published night. The shop door: `nightly` is the whole night: `ingest`,
`past`, `supplied`, `daily`, `signals`, `examples`, `train`, `backtest`, `champion`, `deadline`, `score`, `night_record`, `card`,
`exports`; `runs` keeps what became of it; `inspect` looks at one user, `explain` at one item of hers, `browse` makes pages of both,
`tune` searches settings, `privacy` tries noise, `estimate` and `plan` say what a night will take, `erase` takes people out of all that
is kept. The pairs door: `pairs_features`, `pairs_train`, `pairs_score`.
"""
