"""Measurements that run by name only; each script's docstring says how."""
