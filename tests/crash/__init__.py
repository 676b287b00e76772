"""What breaks merges on purpose: faults, kills, and a soak of both; the long runs go by name only."""
