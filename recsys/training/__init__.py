"""Labelled examples -> weights.

In: examples on disk and settings. Out: a bundle, the same for any kill and restart.
Read `plan`, `batches`, then `loop` (one worker's way through the epochs) over `replica` (its model and step) and `checkpoints`;
`worker` is what Ray Train starts, `fit` what a pipeline calls; `search` tries other settings. `private` is a replica whose step is
differentially private, which no two runs make alike, and `accounting` what that has spent.
"""
