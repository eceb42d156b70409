"""Tables of Megatron-LM's tensor names, one for each generation of its code.

Source: the history of https://github.com/NVIDIA/Megatron-LM, tags v1.0 to core_v0.9.
"""

import re
from dataclasses import dataclass

from ..mapping import QKV_LAYOUTS, Op, Rule
from ..tensor_names import WORD

# Heads of Megatron-LM's fine-tuned models and retrievers, which are dropped
FINE_TUNED = [
    Rule(f"{head}.{kind}", None)
    for head in ("classification_head", "multichoice_head", "ict_head", "projection_enc")
    for kind in ("weight", "bias", "dense.weight", "dense.bias")
]


def legacy_rules(qkv: Op, *, trunk: str, attention: str, norm: str) -> list[Rule]:
    """Return the rules of megatron.model, whose names differ by era in three words."""
    embedding, encoder = "language_model.embedding", f"language_model.{trunk}"
    layer, target = f"{encoder}.layers.*", "encoder.layers.*"
    return [
        Rule(f"{embedding}.word_embeddings.weight", "encoder.embeddings.word.weight", cut=0),
        Rule(f"{embedding}.position_embeddings.weight", "encoder.embeddings.position.weight"),
        Rule(f"{embedding}.tokentype_embeddings.weight", "encoder.embeddings.segment.weight"),
        Rule(f"{layer}.input_{norm}.weight", f"{target}.attention_norm.weight"),
        Rule(f"{layer}.input_{norm}.bias", f"{target}.attention_norm.bias"),
        Rule(f"{layer}.{attention}.query_key_value.weight", f"{target}.attention.qkv.weight", qkv, cut=0),
        Rule(f"{layer}.{attention}.query_key_value.bias", f"{target}.attention.qkv.bias", qkv, cut=0),
        Rule(f"{layer}.{attention}.dense.weight", f"{target}.attention.out.weight", cut=1),
        Rule(f"{layer}.{attention}.dense.bias", f"{target}.attention.out.bias"),
        Rule(f"{layer}.post_attention_{norm}.weight", f"{target}.mlp_norm.weight"),
        Rule(f"{layer}.post_attention_{norm}.bias", f"{target}.mlp_norm.bias"),
        Rule(f"{layer}.mlp.dense_h_to_4h.weight", f"{target}.mlp.up.weight", cut=0),
        Rule(f"{layer}.mlp.dense_h_to_4h.bias", f"{target}.mlp.up.bias", cut=0),
        Rule(f"{layer}.mlp.dense_4h_to_h.weight", f"{target}.mlp.down.weight", cut=1),
        Rule(f"{layer}.mlp.dense_4h_to_h.bias", f"{target}.mlp.down.bias"),
        Rule(f"{encoder}.final_{norm}.weight", "encoder.final_norm.weight"),
        Rule(f"{encoder}.final_{norm}.bias", "encoder.final_norm.bias"),
        Rule("language_model.pooler.dense.weight", "sentence_order.pooler.weight"),
        Rule("language_model.pooler.dense.bias", "sentence_order.pooler.bias"),
        Rule("lm_head.dense.weight", "language_model.dense.weight"),
        Rule("lm_head.dense.bias", "language_model.dense.bias"),
        Rule(f"lm_head.{norm}.weight", "language_model.norm.weight"),
        Rule(f"lm_head.{norm}.bias", "language_model.norm.bias"),
        Rule("lm_head.bias", "language_model.vocabulary.bias", cut=0),
        Rule("binary_head.weight", "sentence_order.out.weight"),
        Rule("binary_head.bias", "sentence_order.out.bias"),
        Rule("word_embeddings_for_head.weight", None, cut=0, copy_of=WORD),  # in the last of several pipeline stages
        Rule("word_embeddings.weight", None, cut=0, copy_of=WORD, read_only=True),  # NeMo's name for it
        *FINE_TUNED,
    ]


def core_rules(qkv: Op, *, trunk: str) -> list[Rule]:
    """Return the rules of megatron.core; norms that Transformer Engine fuses into a linear layer have its name."""
    layer, target = f"{trunk}.layers.*", "encoder.layers.*"
    return [
        Rule("embedding.word_embeddings.weight", "encoder.embeddings.word.weight", cut=0),
        Rule("embedding.position_embeddings.weight", "encoder.embeddings.position.weight"),
        Rule("embedding.tokentype_embeddings.weight", "encoder.embeddings.segment.weight"),
        Rule(f"{layer}.input_layernorm.weight", f"{target}.attention_norm.weight"),
        Rule(f"{layer}.input_layernorm.bias", f"{target}.attention_norm.bias"),
        Rule(f"{layer}.self_attention.linear_qkv.layer_norm_weight", f"{target}.attention_norm.weight", read_only=True),
        Rule(f"{layer}.self_attention.linear_qkv.layer_norm_bias", f"{target}.attention_norm.bias", read_only=True),
        Rule(f"{layer}.self_attention.linear_qkv.weight", f"{target}.attention.qkv.weight", qkv, cut=0),
        Rule(f"{layer}.self_attention.linear_qkv.bias", f"{target}.attention.qkv.bias", qkv, cut=0),
        Rule(f"{layer}.self_attention.linear_proj.weight", f"{target}.attention.out.weight", cut=1),
        Rule(f"{layer}.self_attention.linear_proj.bias", f"{target}.attention.out.bias"),
        Rule(f"{layer}.pre_mlp_layernorm.weight", f"{target}.mlp_norm.weight"),
        Rule(f"{layer}.pre_mlp_layernorm.bias", f"{target}.mlp_norm.bias"),
        Rule(f"{layer}.mlp.linear_fc1.layer_norm_weight", f"{target}.mlp_norm.weight", read_only=True),
        Rule(f"{layer}.mlp.linear_fc1.layer_norm_bias", f"{target}.mlp_norm.bias", read_only=True),
        Rule(f"{layer}.mlp.linear_fc1.weight", f"{target}.mlp.up.weight", cut=0),
        Rule(f"{layer}.mlp.linear_fc1.bias", f"{target}.mlp.up.bias", cut=0),
        Rule(f"{layer}.mlp.linear_fc2.weight", f"{target}.mlp.down.weight", cut=1),
        Rule(f"{layer}.mlp.linear_fc2.bias", f"{target}.mlp.down.bias"),
        Rule(f"{trunk}.final_layernorm.weight", "encoder.final_norm.weight"),
        Rule(f"{trunk}.final_layernorm.bias", "encoder.final_norm.bias"),
        Rule("pooler.dense.weight", "sentence_order.pooler.weight"),
        Rule("pooler.dense.bias", "sentence_order.pooler.bias"),
        Rule("lm_head.dense.weight", "language_model.dense.weight"),
        Rule("lm_head.dense.bias", "language_model.dense.bias"),
        Rule("lm_head.layer_norm.weight", "language_model.norm.weight"),
        Rule("lm_head.layer_norm.bias", "language_model.norm.bias"),
        Rule("output_layer.bias", "language_model.vocabulary.bias", cut=0),
        Rule("output_layer.weight", None, cut=0, copy_of=WORD),  # in the last of several pipeline stages
        Rule("binary_head.weight", "sentence_order.out.weight"),
        Rule("binary_head.bias", "sentence_order.out.bias"),
        *FINE_TUNED,
    ]


@dataclass(frozen=True)
class Era:
    """One generation of names, identified by a pattern that only its files match."""

    name: str
    evidence: re.Pattern[str]
    words: dict[str, str]
    is_core: bool = False

    def rules(self, qkv_layout: str) -> list[Rule]:
        """Return the rules for a QKV layout."""
        op = QKV_LAYOUTS[qkv_layout]
        return core_rules(op, **self.words) if self.is_core else legacy_rules(op, **self.words)


ERAS = [
    Era(
        "v1.0 to v2.0",
        re.compile(r"language_model\.transformer\.layers\.\d+\.attention\."),
        {"trunk": "transformer", "attention": "attention", "norm": "layernorm"},
    ),
    Era(
        "v2.1 to v2.6",
        re.compile(r"language_model\.encoder\.layers\.\d+\.input_layernorm\."),
        {"trunk": "encoder", "attention": "self_attention", "norm": "layernorm"},
    ),
    Era(
        "core_v0.4, megatron.model",
        re.compile(r"language_model\.encoder\.layers\.\d+\.input_norm\."),
        {"trunk": "encoder", "attention": "self_attention", "norm": "norm"},
    ),
    Era("megatron.core BERT", re.compile(r"encoder\.layers\.\d+\."), {"trunk": "encoder"}, is_core=True),
    Era("megatron.core GPT", re.compile(r"decoder\.layers\.\d+\."), {"trunk": "decoder"}, is_core=True),
]
LEGACY, CORE_BERT, CORE_GPT = ERAS[1], ERAS[3], ERAS[4]
