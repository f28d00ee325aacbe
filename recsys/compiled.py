"""How loops over arrays are compiled: by numba, at their first call, kept as machine code beside the file until the file changes.

So a compiled loop calls those of its own file alone: of a change elsewhere numba would not know. No fast mathematics: every sum has one
order, and a row's bits are the row's own, whatever else is computed with it.
"""

import numba

jit = numba.njit(cache=True, nogil=True, error_model="numpy")
