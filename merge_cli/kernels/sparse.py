"""Finding the few true elements of a long mask."""

import numpy as np
from numpy.typing import NDArray

# Eight bytes are one word.
_SHIFT = 3
_EIGHT = 1 << _SHIFT


def true_indexes(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the indexes of the true elements, in order.

    Where they are few, most runs of eight are false and are passed over as one word: twice as fast as
    :func:`numpy.flatnonzero` below one in a hundred, and from one in twenty on, where that slows down; in between
    slower by half.

    Args:
        mask: Shape ``(numel,)``, contiguous.
    """
    whole = len(mask) // _EIGHT * _EIGHT
    eights = mask[:whole].view(np.uint64)
    places = np.flatnonzero(eights != 0)
    inside = np.flatnonzero(eights[places].view(np.bool_))
    found = (places[inside >> _SHIFT] << _SHIFT) + inside % _EIGHT
    return found if whole == len(mask) else np.concatenate([found, np.flatnonzero(mask[whole:]) + whole])
