"""The example is a package of its own; a test installs it and runs its tests there."""

collect_ignore = ["example"]
