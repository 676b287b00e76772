"""Comparison of configurations, field by field, as the output gets only one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from merge_cli.checkpoint import Checkpoint
from merge_cli.errors import CheckpointError
from merge_cli.text import listed

# What decides what weights compute, by the names that configurations of transformers give it. What says how a model is
# trained, such as dropout, is not among it, nor what the shapes of tensors tell by themselves.
_FIELDS = frozenset(
    {
        # activations
        *("hidden_act", "hidden_activation", "activation_function", "activation", "feed_forward_proj", "is_gated_act"),
        # sizes and heads
        *("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "d_ff", "num_hidden_layers", "n_layer"),
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "head_dim", "d_kv"),
        *("decoder_attention_heads", "num_key_value_heads", "num_kv_heads", "multi_query", "new_decoder_architecture"),
        # normalisation
        *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps", "norm_epsilon"),
        *("do_layer_norm_before", "use_qk_norm", "qk_layernorm"),
        # attention
        *("sliding_window", "layer_types", "attention_window", "local_attention", "global_attn_every_n_layers"),
        *("attention_bias", "mlp_bias", "use_bias", "qkv_bias", "bias", "scale_attn_weights", "attention_multiplier"),
        *("scale_attn_by_inverse_layer_idx", "query_pre_attn_scalar", "parallel_attn", "use_parallel_residual"),
        *("is_decoder", "add_cross_attention", "attention_chunk_size", "attention_types", "alibi"),
        # scales
        *("logit_scale", "logits_scaling", "final_logit_softcapping", "attn_logit_softcapping", "residual_multiplier"),
        *("embedding_multiplier", "scale_embedding", "scale_emb", "scale_depth"),
        # experts
        *("num_experts_per_tok", "num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts"),
        *("norm_topk_prob", "routed_scaling_factor", "n_group", "topk_group", "topk_method", "scoring_func"),
        *("first_k_dense_replace", "decoder_sparse_step"),
        # positions; rotary ones are compared apart
        *("position_embedding_type", "relative_attention", "relative_attention_num_buckets", "max_relative_positions"),
        *("relative_attention_max_distance", "position_buckets", "pos_att_type"),
        # images and sound
        *("image_size", "patch_size", "num_channels", "num_mel_bins", "tubelet_size", "window_size", "stride"),
        *("hidden_sizes", "depths", "vision_feature_layer", "image_token_index", "image_token_id"),
        *("classifier_pooling", "summary_type", "problem_type"),
    }
)
_ROTARY = frozenset({"rope_theta", "rope_scaling", "partial_rotary_factor"})
# Where null means what the sizes of the others give.
_NULL_IS_UNKNOWN = frozenset({"head_dim", "num_key_value_heads", "n_inner", "hidden_sizes", "problem_type"})
_LENGTHS = frozenset({"max_position_embeddings", "n_positions", "max_sequence_length"})
_MOST_CHARACTERS = 60
_MOST_DEPTH = 4


def check_model_types(models: Sequence[Checkpoint], base: Checkpoint | None) -> None:
    """Refuse checkpoints of other model types, whatever their tensors are called.

    A model without its head, or with another one, is of the same type; so is the part for text of a model of several.

    Raises:
        CheckpointError: Naming both architectures.
    """
    first = base if base is not None and _types(base) else models[0]
    for each in models:
        if _types(each) and _types(first) and not _types(each) & _types(first):
            place = f"the base {first.label}" if first is base else first.label
            raise CheckpointError(
                f"{each.label} is a {_called(each)}, and {place} a {_called(first)}\n"
                "  expected models of one architecture: the same weights mean something else in another",
                hint="name fine-tunes of one base; where the weights are of one architecture after all, fix "
                "model_type in config.json",
            )


def _types(checkpoint: Checkpoint) -> set[str]:
    parts = [checkpoint.config, checkpoint.config.get("text_config")]
    return {part["model_type"] for part in parts if isinstance(part, dict) and isinstance(part.get("model_type"), str)}


def _called(checkpoint: Checkpoint) -> str:
    kind, named = str(checkpoint.config["model_type"])[:100], checkpoint.config.get("architectures")
    return f"{str(named[0])[:100]} ({kind})" if isinstance(named, list) and named else kind


def config_warnings(models: Sequence[Checkpoint], donor: Checkpoint) -> Iterator[str]:
    """Yield a sentence for each field that a model has another value of than the configuration that the output gets.

    A field that one of the two lacks has the default of a class, which is not known here, and is not compared.

    Args:
        models: What is merged, the base included where its numbers enter.
        donor: Whose configuration the output gets.
    """
    wanted = meaning_of(donor.config)
    for field, holders in _differing(models, donor, _FIELDS | _ROTARY).items():
        said = "; ".join(f"{text} in {listed(labels, most=3)}" for text, labels in holders.items())
        yield (
            f"{field} is {said}, and {_shown(wanted[field])} in {donor.label}, whose configuration the output gets: "
            "the output computes otherwise than what it was made from"
        )


def config_notes(models: Sequence[Checkpoint], donor: Checkpoint) -> Iterator[str]:
    """Yield a sentence for each length of text that a model has another value of; weights compute the same with it."""
    wanted = meaning_of(donor.config)
    for field, holders in _differing(models, donor, _LENGTHS).items():
        said = "; ".join(f"{text} in {listed(labels, most=3)}" for text, labels in holders.items())
        yield f"{field} is {said}, and {_shown(wanted[field])} in {donor.label}, whose configuration the output gets"


def _differing(
    models: Sequence[Checkpoint], donor: Checkpoint, fields: frozenset[str]
) -> dict[str, dict[str, list[str]]]:
    """Return field -> value as shown -> the models that have it."""
    wanted = meaning_of(donor.config)
    found: dict[str, dict[str, list[str]]] = {}
    for model in {each.root: each for each in models if each.root != donor.root}.values():
        own = meaning_of(model.config)
        for field in sorted(own.keys() & wanted.keys()):
            if field.rpartition(".")[2] in fields and not _same(own[field], wanted[field]):
                found.setdefault(field, {}).setdefault(_shown(own[field]), []).append(model.label)
    return found


def meaning_of(config: Mapping[str, Any], *, place: str = "", depth: int = 0) -> dict[str, Any]:
    """Return the fields that count by their names, those of parts as ``text_config.hidden_act``, in one spelling."""
    found = {
        f"{place}{key}": value
        for key, value in config.items()
        if key in _FIELDS | _LENGTHS and not (value is None and key in _NULL_IS_UNKNOWN)
    }
    if f"{place}sliding_window" in found and not _slides(config):
        found[f"{place}sliding_window"] = None
    found |= {f"{place}{key}": value for key, value in _rotary(config).items()}
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, dict) and depth < _MOST_DEPTH:
            found |= meaning_of(value, place=f"{place}{key}.", depth=depth + 1)
    return found


def _slides(config: Mapping[str, Any]) -> bool:
    """Tell whether any layer sees a window only; older versions of libraries write its size all the same."""
    kinds = config.get("layer_types")
    never = isinstance(kinds, list) and not any("sliding" in str(kind) for kind in kinds)
    return config.get("use_sliding_window") is not False and not never


def _rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of rotary positions, by kind of layer where there are several, in one spelling.

    transformers 5 writes ``rope_parameters``, earlier versions ``rope_theta`` and ``rope_scaling``.
    """
    given = config.get("rope_parameters")
    written = dict(given) if isinstance(given, dict) else {}
    kinds = {key: value for key, value in written.items() if isinstance(value, dict)}
    if kinds:
        # Earlier versions give what holds for full attention without saying so.
        places = {key: "" if key == "full_attention" else f"{key}." for key in kinds}
        return {places[key] + name: value for key, each in kinds.items() for name, value in _spelt(each, {}).items()}
    found = _spelt(written, config)
    if "rope_local_base_freq" in config:
        found["sliding_attention.rope_theta"] = config["rope_local_base_freq"]
    return found


def _spelt(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    old = config.get("rope_scaling")
    scaling = dict(given or (old if isinstance(old, dict) else {}))
    theta = scaling.pop("rope_theta", config.get("rope_theta", config.get("rotary_emb_base")))
    part = scaling.pop("partial_rotary_factor", config.get("partial_rotary_factor", config.get("rotary_pct")))
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    scaling.pop("type", None)
    found: dict[str, Any] = {"rope_theta": theta, "partial_rotary_factor": part}
    found = {key: value for key, value in found.items() if value is not None}
    if given or old is not None or theta is not None:
        kept = {key: value for key, value in scaling.items() if value is not None}
        found["rope_scaling"] = {} if kind == "default" else {"rope_type": kind, **kept}
    return found


def _same(one: Any, other: Any) -> bool:
    """Tell whether two values mean the same: 10000 and 10000.0 do, and scalings where all that both give is equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        same_kind = one.get("rope_type") == other.get("rope_type")
        return same_kind and all(_same(one[key], other[key]) for key in one.keys() & other.keys())
    return bool(one == other)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
