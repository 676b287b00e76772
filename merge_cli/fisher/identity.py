"""Kept where Fishers are made; see merge_cli.checkpoint.identity."""

from merge_cli.checkpoint import model_identity

__all__ = ["model_identity"]
