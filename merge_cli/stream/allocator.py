"""How glibc gives out large buffers.

By default every allocation beyond a threshold is mapped and unmapped anew, and each of its pages is faulted in and
cleared. Methods make temporaries of a block's size for every operation, so that costs several times the arithmetic:
17 to 25 ns per element for gradient matching of three models, against 3.3 with the thresholds raised.
"""

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


@cache
def keep_large_buffers() -> bool:
    """Let glibc keep freed buffers of up to 256 MiB for reuse; return whether it is glibc that is in use."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mapped = mallopt(_M_MMAP_THRESHOLD, 256 * 2**20)
    trimmed = mallopt(_M_TRIM_THRESHOLD, 1024 * 2**20)
    return bool(mapped and trimmed)
