"""Tables of Hugging Face's architectures: tensor names, config.json keys, activations.

Source: transformers' modeling_megatron_bert.py, modeling_bert.py and modeling_gpt2.py, and their configuration classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import CheckpointError
from ..mapping import CONV1D_QKV, QKV_LAYOUTS, SEPARATE_QKV, TRANSPOSED, Rule
from ..tensor_names import VOCABULARY_BIAS, WORD

_LAYER = "encoder.layers.*"
_QKV = ("query", "key", "value")

# Common to both BERT architectures. The prefix `bert.` is removed before; headless files have none.
SHARED_RULES = [
    Rule("embeddings.word_embeddings.weight", "encoder.embeddings.word.weight"),
    Rule("embeddings.position_embeddings.weight", "encoder.embeddings.position.weight"),
    Rule("embeddings.token_type_embeddings.weight", "encoder.embeddings.segment.weight"),
    Rule("embeddings.position_ids", None),  # a buffer 0, 1, 2, ... of older versions
    Rule("embeddings.token_type_ids", None),
    *(
        Rule(
            tuple(f"encoder.layer.*.attention.self.{name}.{kind}" for name in _QKV),
            f"{_LAYER}.attention.qkv.{kind}",
            SEPARATE_QKV,
        )
        for kind in ("weight", "bias")
    ),
    Rule("encoder.layer.*.attention.output.dense.weight", f"{_LAYER}.attention.out.weight"),
    Rule("encoder.layer.*.attention.output.dense.bias", f"{_LAYER}.attention.out.bias"),
    Rule("encoder.layer.*.intermediate.dense.weight", f"{_LAYER}.mlp.up.weight"),
    Rule("encoder.layer.*.intermediate.dense.bias", f"{_LAYER}.mlp.up.bias"),
    Rule("encoder.layer.*.output.dense.weight", f"{_LAYER}.mlp.down.weight"),
    Rule("encoder.layer.*.output.dense.bias", f"{_LAYER}.mlp.down.bias"),
    Rule("pooler.dense.weight", "sentence_order.pooler.weight"),
    Rule("pooler.dense.bias", "sentence_order.pooler.bias"),
    Rule("cls.predictions.transform.dense.weight", "language_model.dense.weight"),
    Rule("cls.predictions.transform.dense.bias", "language_model.dense.bias"),
    Rule("cls.predictions.transform.LayerNorm.weight", "language_model.norm.weight"),
    Rule("cls.predictions.transform.LayerNorm.bias", "language_model.norm.bias"),
    Rule("cls.predictions.transform.LayerNorm.gamma", "language_model.norm.weight", read_only=True),
    Rule("cls.predictions.transform.LayerNorm.beta", "language_model.norm.bias", read_only=True),
    Rule("cls.predictions.bias", "language_model.vocabulary.bias"),
    Rule("cls.predictions.decoder.weight", None, copy_of=WORD),
    Rule("cls.predictions.decoder.bias", None, copy_of=VOCABULARY_BIAS),
    Rule("cls.seq_relationship.weight", "sentence_order.out.weight"),
    Rule("cls.seq_relationship.bias", "sentence_order.out.bias"),
    # Heads of fine-tuned models: read_head.py reads them.
    Rule("qa_outputs.*", None),
    Rule("classifier.*", None),
]

NORM_RULES = {
    "megatron-bert": [
        Rule("encoder.layer.*.attention.ln.*", f"{_LAYER}.attention_norm.*"),
        Rule("encoder.layer.*.ln.*", f"{_LAYER}.mlp_norm.*"),
        Rule("encoder.ln.*", "encoder.final_norm.*"),
    ],
    "bert": [
        rule
        for source, target in (
            ("embeddings.LayerNorm", "encoder.embeddings.norm"),
            ("encoder.layer.*.attention.output.LayerNorm", f"{_LAYER}.attention_norm"),
            ("encoder.layer.*.output.LayerNorm", f"{_LAYER}.mlp_norm"),
        )
        for rule in (
            Rule(f"{source}.weight", f"{target}.weight"),
            Rule(f"{source}.bias", f"{target}.bias"),
            # The names of files converted from TensorFlow.
            Rule(f"{source}.gamma", f"{target}.weight", read_only=True),
            Rule(f"{source}.beta", f"{target}.bias", read_only=True),
        )
    ],
}

GPT2_RULES = [
    Rule("wte.weight", WORD),
    Rule("wpe.weight", "encoder.embeddings.position.weight"),
    Rule("h.*.ln_1.*", f"{_LAYER}.attention_norm.*"),
    Rule("h.*.attn.c_attn.weight", f"{_LAYER}.attention.qkv.weight", CONV1D_QKV),
    Rule("h.*.attn.c_attn.bias", f"{_LAYER}.attention.qkv.bias", QKV_LAYOUTS["3_heads_dim"]),
    Rule("h.*.attn.c_proj.weight", f"{_LAYER}.attention.out.weight", TRANSPOSED),
    Rule("h.*.attn.c_proj.bias", f"{_LAYER}.attention.out.bias"),
    Rule("h.*.ln_2.*", f"{_LAYER}.mlp_norm.*"),
    Rule("h.*.mlp.c_fc.weight", f"{_LAYER}.mlp.up.weight", TRANSPOSED),
    Rule("h.*.mlp.c_fc.bias", f"{_LAYER}.mlp.up.bias"),
    Rule("h.*.mlp.c_proj.weight", f"{_LAYER}.mlp.down.weight", TRANSPOSED),
    Rule("h.*.mlp.c_proj.bias", f"{_LAYER}.mlp.down.bias"),
    Rule("ln_f.*", "encoder.final_norm.*"),
    Rule("h.*.attn.bias", None),  # the causal mask, a buffer of older versions
    Rule("h.*.attn.masked_bias", None),
    Rule("lm_head.weight", None, copy_of=WORD),
    # Heads of fine-tuned models, which are not read
    *(Rule(f"{name}.*", None) for name in ("score", "classifier", "qa_outputs", "multiple_choice_head.summary")),
]

BERT_KEYS = {
    "vocab_size": "vocabulary_size",
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ffn_size",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "num_segments",
    "layer_norm_eps": "norm_epsilon",
    "hidden_dropout_prob": "hidden_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
GPT2_KEYS = {
    "vocab_size": "vocabulary_size",
    "n_layer": "num_layers",
    "n_embd": "hidden_size",
    "n_head": "num_heads",
    "n_inner": "ffn_size",
    "n_positions": "max_positions",
    "layer_norm_epsilon": "norm_epsilon",
    "resid_pdrop": "hidden_dropout",
    "attn_pdrop": "attention_dropout",
}
# Names of activations by variant, the first of which is written. hidden_act "gelu" is the exact GELU.
GELUS = {
    "erf": ("gelu", "gelu_python"),
    "tanh": ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh"),
}


def find_gelu(name: object, key: str, source: str) -> str:
    """Return the variant of an activation's name. Raises CheckpointError for another activation."""
    for variant, names in GELUS.items():
        if name in names:
            return variant
    known = ", ".join(name for names in GELUS.values() for name in names)
    raise CheckpointError(f"{source}: {key} is {name!r:.60}; known are {known}.")


# megabert's own key: Megatron-LM's fused kernel computes tanh GELU in the MLPs, and its head erf GELU.
HEAD_ACTIVATION = "head_hidden_act"
# megabert's own key: 0 for a network without segments, for which zeros are written because transformers needs them.
NUM_SEGMENTS = "num_tokentypes"


@dataclass(frozen=True)
class HuggingFaceArchitecture:
    """One model_type: its rules, its configuration keys, and their defaults where config.json lacks them."""

    name: str
    class_prefix: str
    rules: Sequence[Rule]
    prefix: str
    """Prefix of the encoder's names in a model with heads."""
    config_keys: Mapping[str, str]
    activation_key: str
    defaults: Mapping[str, Any]
    norm_place: str
    is_causal: bool = False


# Unknown to transformers, so that none of its classes loads such a folder and silently computes something else.
RESIDUAL_POST_NORM = "megatron-bert-residual-post-layernorm"


_MEGATRON_BERT = HuggingFaceArchitecture(
    "megatron-bert",
    "MegatronBert",
    [*SHARED_RULES, *NORM_RULES["megatron-bert"]],
    "bert.",
    BERT_KEYS,
    "hidden_act",
    {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"},
    "pre",
)
_ROWS = (
    _MEGATRON_BERT,
    replace(_MEGATRON_BERT, name=RESIDUAL_POST_NORM, norm_place="pre_residual_normed"),
    replace(
        _MEGATRON_BERT,
        name="bert",
        class_prefix="Bert",
        rules=[*SHARED_RULES, *NORM_RULES["bert"]],
        norm_place="post",
    ),
    HuggingFaceArchitecture(
        "gpt2",
        "GPT2",
        GPT2_RULES,
        "transformer.",
        GPT2_KEYS,
        "activation_function",
        {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "n_inner": None},
        "pre",
        is_causal=True,
    ),
)
ARCHITECTURES = {row.name: row for row in _ROWS}
