"""Fuzzers that run by name; a short, seeded run of each is among the tests, and so is a corpus of what did harm once.

    python -m tests.fuzz.headers --inputs 20000
    python -m tests.fuzz.indexes --inputs 5000
    python -m tests.fuzz.recipes --inputs 5000
    python -m tests.fuzz.pickles --inputs 5000
    python -m tests.fuzz.manifests --inputs 2000
    python -m tests.fuzz.journals --inputs 2000
    python -m tests.fuzz.states --inputs 2000
    python -m tests.fuzz.seeds                      # writes the corpus again

Each starts from sound inputs and breaks them, in structure and byte by byte. An input must be accepted, and be sound by
an independent check, or refused with an error of ours that fits on a screen; it must not make a file, and in a run by
name it may take 5 seconds and 1 GiB beyond what the process had.
"""
