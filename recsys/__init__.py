"""recsys: every night, the best k items for every user of a shop, as a table.

The modules in the order the data flows; R marks those that import Ray. Everything else is a plain function on one batch.

    -- words --
    tables.py        every column name, dtype, unit and Arrow schema, spelled once
    config/          settings: frozen models read from one TOML file; unknown keys refused
    errors.py        one small tree of errors, drawn in its docstring
    work.py          one stage's folder: named by the digest of what goes in, one receipt per finished unit
    -- the flow --
    inputs.py        inputs, Parquet or CSV: where they lie, their columns, identity and parts
    shop.py          the shop's inputs opened and held against the settings, before work starts
    clean.py         raw rows -> rows that can be used; bad rows dropped and counted by reason
    ingest.py      R events, items, users -> catalog + profiles, hashed into shards
    catalog.py       the catalog in memory: one row per item; a row's number is the item's code
    profiles.py      a batch of users in memory: their events as flat arrays, cut by time
    signals.py       what history says about items as of a date: popularity, neighbours, factors
    rules.py         the shop's rules: what a user may not be shown, and how much of one value a list may hold
    given.py         the shop's own candidates, checked and cut by shard of users
    users.py         a batch of users as of a cut-off: what they bought, counted, and what they may see
    retrieval.py     the candidate sources: (users, signals) -> a score for every item
    candidates.py    what the sources propose, merged and capped; what the rules forbid is never among it
    features.py      candidate rows -> model inputs; training, scoring and backtest all call it
    examples.py      labels and sampled negatives: candidates and the window after them -> examples
    spec.py          what a model was fed: names, normalisation and vocabularies of its inputs
    pairs.py         the pairs door's rows opened, held against the settings, cut into shards
    encode.py        columns of any numeric or word type -> float32 and int32 matrices; what is fitted to them
    joined.py        tables of users and items that rows are joined to: encoded once, found by id
    rows.py          batches of a shard -> model inputs, rows that cannot be used counted by reason
    model.py         settings -> keras.Model; no Ray, no files
    feed.py          examples on disk -> the batches of one training worker
    checkpoint.py    what a fit has reached, on disk
    epochs.py        one worker's way through a fit: epochs, early stopping, refit
    learner.py       one worker's model, optimizer and step; what makes N workers equal one
    train.py       R data-parallel fit: the workers started, and started again
    training.py    R examples of either door -> a bundle, made once
    bundle.py        model + spec + calibration + provenance in one folder, checksummed, no pickle
    score.py         Scorer: one bundle, numpy in, raw outputs out; knows nothing of Ray
    calibrate.py     raw output -> the chance of a purchase, for the score column only
    halves.py        Scorer of rows joined to tables: users' and items' parts of the first layer, once each
    rank.py          order by raw output, fixed tie order, caps, diversity, the first k
    explain.py       why this item: a reason for every row, for people and for programs
    contributions.py what each input of the model adds to a row's raw output, checked to add up
    recommend.py     profiles -> rows of the recommendation table, one user's whole road in one call
    lists.py         scored rows of any users -> the best k of each, in a shard or over several
    staging.py       a night's parts: written where no reader sees them, audited
    publish.py       the table: staged parts made visible by one atomic commit; retention, history, reading back
    gate.py          may tonight's staged table replace what stands there? figures, limits, verdict
    night.py       R the end of both doors' roads: scored units -> audit -> one commit
    prepare.py     R what the shop door's stages share: the shop as read, given candidates, signals, lists of rules
    pipeline.py    R the shop door's dataflow on one page
    pairs_train.py R the pairs door's training on one page
    pairs_score.py R the pairs door's night on one page
    metrics.py       ranking and classification metrics; numpy, per user
    bootstrap.py     intervals of means over users, by resamples that shards can sum
    evaluate.py      time-split backtest: lists and baselines against what users bought
    reliability.py   the backtest of the score column: chances against what users bought, by decile and segment
    backtest.py    R the backtest as a stage: evaluate and reliability over shards of users
    show.py        R one user's list: reasons, contributions, the history beside it, what changed since the night before
    registry.py      the bundles that met the champion, and every decision
    champion.py    R which bundle scores the night: the challenger where it is not worse than the champion
    report.py        a night's record -> one HTML page that needs no network
    record.py      R a night's record: every figure that its page shows
    -- around it --
    runtime.py     R connect to Ray, size a plan, run a stage's units, show progress
    dashboard.py   R a cluster's dashboard: its address, its token, a client of it
    working_dir.py   what a job takes along to a cluster: code, settings, arguments
    submit.py      R hand a job to a cluster and follow it to its end
    tune.py        R trials of the fit with other settings; the best
    synthetic.py     a planted shop with a known answer, and load of any size
"""

__version__ = "0.1.0"
