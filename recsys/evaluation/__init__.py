"""Lists against what was bought.

In: scored users and their later purchases. Out: figures with intervals, plots, the night's page.
Read `backtest` (lists and baselines), `bootstrap` (intervals), `reliability` (do the chances hold?), `fairness` (for whom?),
`unknown` (what the model never saw), `importance` (what do the lists rest on?); `report` lays out the page of a night and
`card` that of a model, with `page` and `plots`.
"""
