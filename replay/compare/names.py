"""Numbers for names that strangers may choose: the table has a limit, and what does not fit is counted as "other"."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay.compare.routes import OTHER, printable


class Names:
    """Numbers in the order the names come up. Number 0 is "other"; a null is the name ""."""

    def __init__(self, limit: int) -> None:
        self.all: list[str] = [OTHER]
        self._limit = limit
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        """The number of a name; 0 when the table is full."""
        name = printable(name)
        found = self._numbers.get(name)
        if found is None:
            if len(self.all) > self._limit:
                return 0
            found = self._numbers[name] = len(self.all)
            self.all.append(name)
        return found

    def codes(self, column: pa.Array) -> NDArray[np.int32]:
        """The number of each name in a column."""
        encoded = column.fill_null("").dictionary_encode()
        numbers = [self.number(name) for name in encoded.dictionary.to_pylist()]
        found: NDArray[np.int32] = np.array(numbers, dtype=np.int32)[encoded.indices.to_numpy()]
        return found
