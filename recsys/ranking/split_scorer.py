"""Scoring rows that are joined to tables: the first layer is linear, so its product is a sum of the user's, the item's and the row's
own part. A user's or an item's part is multiplied once, not once a row; what is left of a row is an addition and the later layers.
"""

from collections.abc import Mapping

import numpy as np

from recsys.features.side_tables import SideTable
from recsys.features.spec import FeatureSpec, ModelInputs, Place
from recsys.ranking.bundle import Bundle

ROWS = 256  # scored at once: the products of so many rows stay in the second cache
TILE = 256  # rows multiplied at once, always so many: sums, and with them the last bits, do not depend on what is multiplied together
WHOLE_BYTES = 128 * 2**20  # of products that are kept for a whole table; those of a larger one are made for each batch


class SplitScorer:
    """Raw model outputs for rows that are joined to tables; on CPU.

    Args:
        bundle: its spec has columns in each of the tables.
    """

    def __init__(self, bundle: Bundle, tables: Mapping[Place, SideTable]) -> None:
        arrays, self._rest = bundle.split()
        self._input = self._rest.get_inputs()[0].name
        self._bias = arrays["bias"]
        self._own = _Product(bundle.spec, arrays, "rows")
        self._tables = {name: _Table(table, _Product(bundle.spec, arrays, name)) for name, table in tables.items()}

    def __call__(self, own: ModelInputs, found: Mapping[Place, np.ndarray]) -> np.ndarray:
        """The logit of each row, float32 (B,).

        Args:
            own: the inputs that stand in the rows themselves.
            found: int64 (B): each row's row of each table, none of them -1.
        """
        rows = len(own.dense)
        raw = np.empty(rows, np.float32)
        parts = [self._tables[name].of(places) for name, places in found.items()]
        base = self._own(own.dense, own.codes) if self._own.width else None
        units, more = np.empty((2, ROWS, len(self._bias)), np.float32)
        for start in range(0, rows, ROWS):
            part = slice(start, min(start + ROWS, rows))
            product, addend = units[: part.stop - start], more[: part.stop - start]
            product[:] = self._bias if base is None else base[part] + self._bias
            for products, places in parts:
                np.take(products, places[part], axis=0, out=addend, mode="clip")
                product += addend
            raw[part] = self._rest.run(None, {self._input: product})[0][:, 0]
        return raw


class _Product:
    """The first layer's product of one table's inputs."""

    def __init__(self, spec: FeatureSpec, arrays: Mapping[str, np.ndarray], table: Place) -> None:
        self._spec = spec.of(table)
        kernel = arrays["kernel"]
        places = [spec.dense.index(name) for name in self._spec.dense]
        self._dense = kernel[places]
        self._embeddings: list[tuple[int, int, np.ndarray]] = []  # first column, number of columns, codes -> products
        start = len(spec.dense)
        mine = {self._spec.codes[first]: (first, count) for first, count, _ in self._spec.embeddings()}
        for column, _, _ in spec.embeddings():
            embedding = arrays[f"embedding_{column}"]
            end = start + embedding.shape[1]
            if spec.codes[column] in mine:
                self._embeddings.append((*mine[spec.codes[column]], embedding @ kernel[start:end]))
            start = end
        self.width = len(self._spec.dense) + len(self._spec.codes)
        self.units = kernel.shape[1]

    def __call__(self, dense: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """float32 (B, H) of inputs before normalisation."""
        rows = len(dense)
        products = np.empty((rows, self.units), np.float32)
        tile = np.zeros((TILE, dense.shape[1]), np.float32)
        for start in range(0, rows, TILE):
            part = slice(start, min(start + TILE, rows))
            tile[: part.stop - start] = self._spec.normalise(dense[part])
            products[part] = (tile @ self._dense)[: part.stop - start]
            for first, count, words in self._embeddings:
                products[part] += _mean(words, codes[part, first : first + count])
        return products


def _mean(words: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """As the model's embedding: of one code its row, of several the mean of the known ones'."""
    if codes.shape[1] == 1:
        return words[codes[:, 0]]
    known = (codes > 0).astype(np.float32)
    return np.einsum("bl,blh->bh", known, words[codes]) / np.maximum(known.sum(axis=1, keepdims=True), 1)


class _Table:
    """The products of a joined table's rows: kept where they are few, made anew for each batch where they are many."""

    def __init__(self, table: SideTable, product: _Product) -> None:
        self._table, self._product = table, product
        self._whole: np.ndarray | None = None
        self._keep = len(table.dense) * product.units * 4 <= WHOLE_BYTES

    def of(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Products, float32 (R, H), and which of them each place has, int64 (B)."""
        if self._keep:
            if self._whole is None:
                self._whole = self._product(self._table.dense, self._table.codes)
            return self._whole, places
        rows, inverse = np.unique(places, return_inverse=True)
        return self._product(self._table.dense[rows], self._table.codes[rows]), inverse
