"""Users' histories as of a date -> candidates.

In: histories and a cut-off. Out: the items worth ranking for each user, none that a rule forbids.
Read `item_sums` and `signals` (what history says of items), `collaborative` (neighbours and factors), `users` (a batch as of the
cut-off), `sources` and `vectors` (who proposes what) with their compiled loops (`best_kernels`, into `heaps`, and `score_kernels`),
`rules` and `supplied` (what the shop says), and `candidates`, where they are merged.
"""
