# SPDX-License-Identifier: Apache-2.0
"""Arrays that are worth keeping, as far as they fit: of a small model all matrices stay unpacked, of a large one the last used."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Kept"]

Arrays = tuple[NDArray[np.generic], ...]


class Kept:
    """Arrays by key.

    Parameters
    ----------
    limit : bytes of all of them; the one asked for last stays in any case
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._found: OrderedDict[Hashable, Arrays] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Arrays]) -> Arrays:
        """What ``make`` gave for ``key`` before, or gives now."""
        if key in self._found:
            self._found.move_to_end(key)
        else:
            self._found[key] = made = make()
            self.bytes += _bytes(made)
            while self.bytes > self.limit and len(self._found) > 1:
                self.bytes -= _bytes(self._found.popitem(last=False)[1])
        return self._found[key]


def _bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays)
