"""The form of docstrings: things are called by nouns, functions are told what to do."""

import ast
from collections.abc import Iterator
from pathlib import Path

import merge_cli

_ROOT = Path(merge_cli.__file__).parent
_CLAUSES = {"What", "Whether", "Where", "Which", "How"}
# No verb in the imperative ends so: a third person ("Returns") or a plural ("Names") does.
_THIRD_PERSON = "s"
_NO_VERBS = {"A", "An", "The", "Its", "This", "That", "One", "So", "Everything", "Number", *_CLAUSES}

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef


def _docstrings() -> Iterator[tuple[str, _Documented, str]]:
    """Yield where it is, whose it is, and the first word of every docstring."""
    for path in sorted(_ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, _Documented) and (text := ast.get_docstring(node)):
                name = getattr(node, "name", "")
                yield f"{path.relative_to(_ROOT)} {name}: {text.splitlines()[0]}", node, text.split()[0].strip(".,;:")


def _is_property(node: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_no_docstring_begins_with_a_clause() -> None:
    found = list(_docstrings())
    assert len(found) > 500
    assert [where for where, _, word in found if word in _CLAUSES] == []


def test_the_docstring_of_a_function_begins_with_a_verb_in_the_imperative() -> None:
    functions = [each for each in _docstrings() if isinstance(each[1], ast.FunctionDef) and not _is_property(each[1])]
    assert len(functions) > 300
    assert [where for where, _, word in functions if not _may_be_imperative(word)] == []


def _may_be_imperative(word: str) -> bool:
    plural = word.endswith(_THIRD_PERSON) and not word.endswith("ss")
    return word.istitle() and word not in _NO_VERBS and not plural


def test_every_module_has_a_docstring() -> None:
    documented = sum(isinstance(node, ast.Module) for _, node, _ in _docstrings())
    assert documented == len(list(_ROOT.rglob("*.py")))
