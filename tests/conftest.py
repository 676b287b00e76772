"""What holds for all tests."""

import atexit
import os
import shutil
import signal
import tempfile

# What a shell starts in the background ignores interrupts, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Nor does a test find, or leave, digests in the cache of whoever runs it.
_CACHE = tempfile.mkdtemp(prefix="merge-cli-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = _CACHE
