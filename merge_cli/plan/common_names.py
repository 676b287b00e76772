"""Common tensor names: checkpoints are renamed to match each other, where that is certain.

Versions of libraries call the parts of a normalisation otherwise, a model that was saved without its head lacks the
prefix which its body has below a head, and what trains models puts them into models of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from merge_cli.checkpoint import Checkpoint, renamed
from merge_cli.plan.inputs import Inputs
from merge_cli.plan.roles import BASE, MODEL, Role
from merge_cli.text import count_of

_OLD_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Names at the start and at the end that are tried to find prefixes, and how many of these are looked at closely.
_TRIED, _LIKELY = 8, 4
# Of four tensors that have a name in common, one may differ in its shape: a vocabulary that was extended.
_LEAST_FITTING = 0.75
_WRAPPERS = ("module.", "base_model.")
# What a wrapper around a part of the model puts into the middle of names, and a model may call a part as well.
_WRAPPED = re.compile(r"(?<![^.])(module|base_model\.model)\.")


@dataclass(frozen=True)
class Prefix:
    """A prefix that most names of one checkpoint lack against those of another.

    Attributes:
        text: The prefix, with its dot.
        longer: The checkpoint that has it.
        shorter: The one that lacks it.
        pairs: Shorter name -> longer name.
        certain: Whether no other prefix would do, shapes are the same, and most tensors are covered.
    """

    text: str
    longer: Checkpoint
    shorter: Checkpoint
    pairs: Mapping[str, str]
    certain: bool

    @property
    def superfluous(self) -> bool:
        """Tell whether no loader looks for it: a wrapper has put it before every name, or it stands there twice.

        The prefix of a body that has a head stands before the body's names alone.
        """
        doubled = 2 * sum(name.startswith(self.text) for name in self.pairs) > len(self.pairs)
        everywhere = all(name.startswith(self.text) for name in self.longer.tensors)
        return doubled or everywhere or self.text.startswith(_WRAPPERS)


def with_common_names(inputs: Inputs) -> Inputs:
    """Return the inputs with every tensor under the name that it has in the output, where that is certain.

    Names that no other checkpoint has stay, for whoever compares them.
    """
    roles = dict(inputs.by_role())
    if all(each.tensors.keys() == inputs.reference.tensors.keys() for each in roles.values()):
        return inputs
    modern = any(name.endswith(new) for each in roles.values() for name in each.tensors for new in _OLD_NORM.values())
    if modern:
        roles = {role: _with_modern_norms(each) for role, each in roles.items()}
    first = BASE if inputs.reference is inputs.base else Role(MODEL, 0)
    for role, each in roles.items():
        roles[first] = _unwrapped(roles[first], each) if role.kind == MODEL and role != BASE else roles[first]
    roles = {role: _unwrapped(each, roles[first]) for role, each in roles.items()}
    for role, each in roles.items():
        prefix = find_prefix(roles[first], each) if role.kind == MODEL and role != BASE else None
        # The reference is renamed where it is the one that no loader would understand, or only below a head.
        if prefix is not None and prefix.certain and prefix.superfluous == (prefix.longer is roles[first]):
            roles[first] = _renamed(roles[first], prefix)
    for role, each in roles.items():
        prefix = find_prefix(each, roles[first]) if role != first else None
        if prefix is not None and prefix.certain:
            roles[role] = _renamed(each, prefix)
    return inputs.with_roles(roles)


def find_prefix(own: Checkpoint, other: Checkpoint) -> Prefix | None:
    """Return the prefix that best explains why two checkpoints have other names; None where none explains any."""
    ours = [name for name in own.tensors if other.find(name) is None]
    theirs = [name for name in other.tensors if own.find(name) is None]
    if not ours or not theirs:
        return None
    found = [
        *(_prefix(text, other, own, ours, theirs) for text in _candidates(ours, theirs)),
        *(_prefix(text, own, other, theirs, ours) for text in _candidates(theirs, ours)),
    ]
    found.sort(key=lambda prefix: -len(prefix.pairs))
    if not found:
        return None
    best = found[0]
    rivalled = len(found) > 1 and 2 * len(found[1].pairs) > len(best.pairs)
    return replace(best, certain=best.certain and not rivalled)


def _candidates(short: Sequence[str], long: Sequence[str]) -> list[str]:
    tried = [*short[:_TRIED], *short[-_TRIED:]]
    found = Counter(name[: -len(each)] for each in tried for name in long if name.endswith(f".{each}"))
    return [text for text, _ in found.most_common(_LIKELY)]


def _prefix(text: str, longer: Checkpoint, shorter: Checkpoint, short: Sequence[str], long: Sequence[str]) -> Prefix:
    held = set(long)
    pairs = {name: text + name for name in short if text + name in held}
    fitting = sum(shorter.tensors[one].shape == longer.tensors[other].shape for one, other in pairs.items())
    most = 2 * len(pairs) >= min(len(shorter.tensors), len(longer.tensors))
    return Prefix(text, longer, shorter, pairs, most and fitting >= _LEAST_FITTING * len(pairs))


def _renamed(checkpoint: Checkpoint, prefix: Prefix) -> Checkpoint:
    """Return the checkpoint with the names of the other one, and those that only it has changed likewise."""
    names: dict[str, str] = {}
    modules = {name.partition(".")[0] for name in prefix.pairs}
    taken = {*checkpoint.tensors, *checkpoint.tied}
    for name in (*checkpoint.tensors, *checkpoint.tied):
        if checkpoint is prefix.longer:
            other, belongs = name.removeprefix(prefix.text), name.startswith(prefix.text)
        else:
            other, belongs = prefix.text + name, name in prefix.pairs or name.partition(".")[0] in modules
        if belongs and other not in taken:
            names[name] = other
    did = "taken off" if checkpoint is prefix.longer else "put before"
    return renamed(
        checkpoint, names, f"'{prefix.text}' {did} the names of {count_of(len(names), 'tensor')}, as others have them"
    )


def _unwrapped(own: Checkpoint, other: Checkpoint) -> Checkpoint:
    """Return a checkpoint without what stands in the middle of names that another one has without it."""
    names: dict[str, str] = {}
    for name, tensor in own.tensors.items():
        if "module." in name or "base_model." in name:
            plain = _WRAPPED.sub("", name)
            twin = other.find(plain) if plain != name and own.find(plain) is None else None
            if twin is not None and twin.shape == tensor.shape:
                names[name] = plain
    if not names or len(set(names.values())) < len(names):
        return own
    return renamed(own, names, f"a wrapper's part taken out of the names of {count_of(len(names), 'tensor')}")


def _with_modern_norms(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with weight and bias of its normalisations called so; gamma and beta are the old names."""
    names: dict[str, str] = {}
    for name in (*checkpoint.tensors, *checkpoint.tied):
        for old, new in _OLD_NORM.items():
            modern = name.removesuffix(old) + new
            if name.endswith(old) and checkpoint.find(modern) is None:
                names[name] = modern
    if not names:
        return checkpoint
    return renamed(checkpoint, names, "gamma and beta of LayerNorm are called weight and bias, as others call them")
