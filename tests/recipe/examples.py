"""Recipes in the styles in which they are published, and recipes that are none."""

# Name -> text. None of them is anybody's; each shows a habit of published recipes.
GOOD = {
    "models as names": "merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\n",
    "base listed among the models, with no parameters": """
models:
  - model: org/base-7b
    # No parameters necessary for base model
  - model: org/chat-7b
    parameters:
      density: 0.53
      weight: 0.4
  - model: org/code-7b
    parameters: {density: 0.53, weight: 0.3}
merge_method: dare_ties
base_model: org/base-7b
parameters:
  int8_mask: true
dtype: bfloat16
""",
    "weight once for all": """
merge_method: dare_linear
base_model: /models/base-70b # base model
models:
  - model: /models/one-70b
  - model: ./two-70b
parameters:
  weight: 1.0
dtype: float16
""",
    "filters in each model, numbers for booleans": """
models:
    - model: a
      parameters:
        weight:
          - filter: self_attn
            value: .35
          - filter: mlp
            value: [0.2, 0.3]
          - value: 0.25
    - model: b
      parameters:
        weight: {filter: "*", value: 1e-1}
merge_method: linear
parameters: {normalize: 1.0}
dtype: float32
out_dtype: bfloat16 # or float16
""",
    "a curve over the layers, quoted": """
merge_method: "slerp"
base_model: 'a'
models:
- model: a
- model: b@main
parameters:
  t:
  - filter: self_attn
    value: [0, 0.5, 0.3, 0.7, 1]
  - filter: mlp
    value: [1, 0.5, 0.7, 0.3, 0]
  - value: 0.5
dtype: bfloat16
""",
    "flow style": """{merge_method: task_arithmetic, base_model: b, parameters: {lambda: 0.7},
  models: [{model: a, parameters: {weight: -1}}]}
""",
    "scaled tensors": """
merge_method: passthrough
models:
  - model: a
    parameters:
      scale:
        - {filter: o_proj, value: .75}
        - {filter: down_proj, value: .75}
        - value: 1
dtype: bfloat16
""",
    "everything that is new here": """
name: all of it
merge_method: gradient_matching
base_model: {model: {path: org/base, revision: v2}}
base_fisher: fishers/base
models:
  - model: one
    fisher: fishers/one
    gradient: gradients/one
    parameters: {weight: 1, examples: 1000}
  - model: two
    fisher: fishers/two
    gradient: gradients/two
    parameters:
parameters: {prior_precision: 1e-3, anchor: measured, curvature: mean}
prepare:
  keep_largest: {density: 0.2, scope: model}
  dare: {drop_rate: 0.9, rescale: l1}
exclude:
  - "*.rotary_emb.inv_freq"
  - pattern: classifier.*
    from: one
  - {pattern: pooler.*, drop: true}
seed: 42
""",
}

BAD = {
    "no method": "models: [{model: a}]",
    "unknown method": "merge_method: averaging\nmodels: [{model: a}]",
    "no models": "merge_method: linear",
    "models empty": "merge_method: linear\nmodels: []",
    "models as numbers": "merge_method: linear\nmodels: [1, 2]",
    "model without its key": "merge_method: linear\nmodels: [{parameters: {weight: 1}}]",
    "unknown key": "merge_method: linear\nmodels: [{model: a}]\ndype: float32",
    "unknown key of a model": "merge_method: linear\nmodels: [{model: a, weight: 1}]",
    "empty list": "merge_method: linear\nmodels: [{model: a, parameters: {weight: []}}]",
    "a list within a list": "merge_method: linear\nmodels: [{model: a, parameters: {weight: [[1]]}}]",
    "a filter without value": "merge_method: linear\nmodels: [{model: a, parameters: {weight: [{filter: mlp}]}}]",
    "a filter with more": "merge_method: linear\nmodels: [{model: a, parameters: {weight: {value: 1, x: 2}}}]",
    "parameters as a list": "merge_method: linear\nmodels: [{model: a}]\nparameters: [1]",
    "exclude as a text": "merge_method: linear\nmodels: [{model: a}]\nexclude: lm_head",
    "exclude without pattern": "merge_method: linear\nmodels: [{model: a}]\nexclude: [{from: a}]",
    "unknown step": "merge_method: linear\nbase_model: b\nmodels: [{model: a}]\nprepare: {drop: {}}",
    "step out of range": "merge_method: linear\nbase_model: b\nmodels: [{model: a}]\nprepare: {dare: {drop_rate: 2}}",
    "negative seed": "merge_method: linear\nmodels: [{model: a}]\nseed: -1",
    "revision without path": "merge_method: linear\nmodels: [{model: {model: {revision: v1}}}]",
    "an adapter": "merge_method: linear\nmodels: [{model: {model: {path: a}, lora: {path: b}}}]",
}
