"""Items of a planted shop: along which long tail they are bought, and which style they have."""

import numpy as np
import pyarrow as pa

CHOICES = 4  # items that a purchase beyond staples is chosen from, where there are styles
STYLES = 4  # numbers of a style
NOISE = 0.3  # standard deviation of what is in a vector beside the style, against the style's own


class Tail:
    """Draws items of given categories, along weights that go from the first day's to the last day's."""

    def __init__(self, category: np.ndarray, start_weight: np.ndarray, end_weight: np.ndarray) -> None:
        self.order = np.argsort(category, kind="stable").astype(np.int32)
        bounds = np.searchsorted(category[self.order], np.arange(category.max() + 2))
        self.first, self.last = bounds[:-1], bounds[1:] - 1
        # Each category's weights sum to 1, so category c's items share the numbers from c to c + 1.
        self.edges = tuple(np.cumsum(weight[self.order]) for weight in (start_weight, end_weight))

    def draw(self, category: np.ndarray, when: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Items int32 (B,) of the categories (B,), at times (B,) from 0, the first day, to 1, the last."""
        late = random.random(len(when)) < when  # a mixture of both weights is the weight in between
        point = category + random.random(len(category))
        place = np.empty(len(category), np.int64)
        for edges, mask in zip(self.edges, (~late, late), strict=True):
            place[mask] = np.searchsorted(edges, point[mask], side="right")
        # Rounded sums may begin or end a hair beside the category's whole numbers.
        return self.order[np.clip(place, self.first[category], self.last[category])]


def shares(weight: np.ndarray, category: np.ndarray) -> np.ndarray:
    """float64 (I,): each item's share of the weight of its category."""
    return weight / np.bincount(category, weight)[category]


def styles(count: int, seed: list[int]) -> np.ndarray:
    """float64 (count, STYLES), of length 1, all directions alike."""
    found = np.random.default_rng(seed).normal(size=(count, STYLES))
    return found / np.sqrt((found**2).sum(axis=1, keepdims=True))


def most_liked(drawn: np.ndarray, style: np.ndarray, taste: np.ndarray) -> np.ndarray:
    """Of items int (T, B), T for each purchase, the one whose style is most its user's taste, float64 (B, STYLES)."""
    return drawn[np.einsum("tbs,bs->tb", style[drawn], taste).argmax(axis=0), np.arange(drawn.shape[1])]


def vectors_of(style: np.ndarray, size: int, random: np.random.Generator) -> pa.Array:
    """Vectors of `size` numbers that the styles were turned into, and noise beside them."""
    turned = style @ random.normal(size=(style.shape[1], size))
    turned += random.normal(scale=NOISE, size=turned.shape)
    return pa.FixedSizeListArray.from_arrays(pa.array(turned.ravel().astype(np.float32)), size)
