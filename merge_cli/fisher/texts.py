"""Text columns of a data set.

A column does if its values are strings of more than three words on average (a Chinese or Japanese character is half a
word) and its name is none that usually tells where a row is from, such as ``url`` or ``source``, nor that of a used
column followed by what was made of it, such as ``premise_parse``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_WORDS_OF_A_TEXT = 3
_EAST_ASIAN = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
_ORIGIN = re.compile(
    r"(^|_)(id|ids|idx|index|uid|guid|uuid|hash|url|uri|link|href|path|file|filename|name|source|src|origin|dataset|"
    r"subset|split|lang|language|locale|date|time|timestamp|created|updated|author|user|username|license|licence|"
    r"category|categories|topic|topics|type|genre|domain|difficulty|label|labels|label_text|meta|metadata|model)$",
    re.IGNORECASE,
)
_MADE_OF_IT = re.compile(r"_(\w+_)?(parse|parsed|tree|pos|tags|tokens|tokenized|lemmas|clean|html|embedding)$")


def holds_text(name: str, used: Sequence[str], values: Sequence[Any]) -> bool:
    """Return whether a column of this name and these values holds text, beside those in use."""
    made = any(name.startswith(column) and _MADE_OF_IT.fullmatch(name[len(column) :]) for column in used)
    if made or _ORIGIN.search(name):
        return False
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    words = sum(len(text.split()) + len(_EAST_ASIAN.findall(text)) / 2 for text in texts)
    return bool(texts) and words > _WORDS_OF_A_TEXT * len(texts)
