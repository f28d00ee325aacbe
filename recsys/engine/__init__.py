"""Ray, and nothing else: the only folder of recsys that imports it.

In: a stage's folder, its units by name, and a function that turns a unit into a receipt. Out: the receipts of all units.
Read `connect`, then `stage` (a folder named by what goes into it, one receipt a unit), `owner` (who works in it), `lease` (who works on
a table) and `units` (Ray Data); `workers` (Ray Train) and `trials` (Ray Tune) carry the fit and its search; `room` is what the cluster
has, and has lost; `ending` how a process, or a block, is told to end; `progress` tells people, `metrics` Prometheus, and `notify` whom
the shop names; `quiet` drops what Ray and TensorFlow tell besides.
"""
