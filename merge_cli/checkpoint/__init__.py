"""Bytes to and from disk: knows no method and no recipe."""

from merge_cli.checkpoint.checkpoint import Checkpoint
from merge_cli.checkpoint.dtypes import DType, parse_float_dtype, to_torch
from merge_cli.checkpoint.extent import Extent
from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.fingerprint import model_identity
from merge_cli.checkpoint.header import FileIdentity
from merge_cli.checkpoint.layout import Layout, plan_shards
from merge_cli.checkpoint.open import open_checkpoint
from merge_cli.checkpoint.reader import Reader
from merge_cli.checkpoint.resolve import SIDE_PATTERNS, locate
from merge_cli.checkpoint.sources import Source
from merge_cli.checkpoint.staging import Staging, check_no_overlap, check_replaceable
from merge_cli.checkpoint.views import renamed
from merge_cli.checkpoint.writer import ShardWriter

__all__ = [
    "SIDE_PATTERNS",
    "Checkpoint",
    "DType",
    "Extent",
    "FileIdentity",
    "Files",
    "Layout",
    "Reader",
    "ShardWriter",
    "Source",
    "Staging",
    "check_no_overlap",
    "check_replaceable",
    "locate",
    "model_identity",
    "open_checkpoint",
    "parse_float_dtype",
    "plan_shards",
    "renamed",
    "to_torch",
]
