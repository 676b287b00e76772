"""What holds for all tests."""

import signal

# What a shell starts in the background ignores interrupts, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
