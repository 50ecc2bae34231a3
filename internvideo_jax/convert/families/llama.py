"""The LLaMA text tower of InternVideo2-CLIP 1B and 6B, which comes from InternVL-C.

Key names are those of upstream `internvideo2_clip_text.py`, options those of Hugging Face's
`LlamaConfig` and peft's `LoraConfig` (`lora_r`, `lora_alpha`, ...).
"""

import re
from collections.abc import Mapping
from typing import Any

from internvideo_jax.convert.engine.family import Family, Shapes
from internvideo_jax.convert.engine.options import Options
from internvideo_jax.convert.engine.registry import Released
from internvideo_jax.convert.engine.rules import Ignore, Rule, Table, nested, rule
from internvideo_jax.convert.engine.transforms import (
    LINEAR,
    LINEAR_FROM_HEADS,
    RESHAPE,
    Transform,
    fold_lora,
)
from internvideo_jax.convert.engine.verify import Arrays, Recipe, Reference
from internvideo_jax.models.decoder_lm import DecoderLMConfig
from internvideo_jax.models.llama_text import LlamaText, LlamaTextConfig
from internvideo_jax.nn.lora import LoRAConfig
from internvideo_jax.preprocessing import Preprocessing, TextPreprocessing

_LAYER = "transformer.layers.{layer}"
_FIRST = "transformer.layers.0"

# Name here: (place in a block, place in a layer's keys, how the weight becomes the kernel).
_LINEARS: dict[str, tuple[str, str, Transform]] = {
    "q": ("attn/q", "self_attn.q_proj", LINEAR),
    "k": ("attn/k", "self_attn.k_proj", LINEAR),
    "v": ("attn/v", "self_attn.v_proj", LINEAR),
    "proj": ("attn/proj", "self_attn.o_proj", LINEAR_FROM_HEADS),
    "gate": ("mlp/gate", "mlp.gate_proj", LINEAR),
    "up": ("mlp/up", "mlp.up_proj", LINEAR),
    "down": ("mlp/down", "mlp.down_proj", LINEAR),
}
_NAMES = {keys.rpartition(".")[2]: name for name, (_, keys, _) in _LINEARS.items()}

_ACTIVATIONS = {"silu": "silu", "gelu": "gelu_erf", "gelu_new": "gelu_tanh", "relu": "relu"}

# They choose nothing here: fields of Hugging Face's configs, and notes.
_NEUTRAL = frozenset(
    {
        *("architectures", "model_type", "transformers_version", "torch_dtype", "use_cache"),
        *("initializer_range", "bos_token_id", "eos_token_id", "pad_token_id", "note"),
        *("max_position_embeddings", "max_sequence_length", "tie_word_embeddings"),
    }
)


def _linear(name: str, config: LlamaTextConfig) -> tuple[Rule, ...]:
    place, key, transform = _LINEARS[name]
    target, keys = f"lm/blocks/{place}", f"{_LAYER}.{key}"
    lora = config.lm.lora
    adapters = f"{keys}.lora_A.weight", f"{keys}.lora_B.weight"
    folded = {}
    if lora is not None and name not in lora.targets:
        folded = {f"{keys}.weight {' '.join(adapters)}": fold_lora(transform, lora.alpha)}
    return (
        rule(f"{target}/kernel", f"{keys}.weight", transform, instead=folded),
        rule(f"{target}/bias", f"{keys}.bias", RESHAPE),
        rule(f"{target}/lora_a", adapters[0], transform),
        rule(f"{target}/lora_b", adapters[1], LINEAR),
    )


def _table(config: LlamaTextConfig) -> Table:
    return Table(
        (
            rule("projection", "text_projection"),
            rule("lm/embed/embedding", "transformer.embed_tokens.weight"),
            *(r for name in _LINEARS for r in _linear(name, config)),
            rule("lm/blocks/attn_norm/scale", f"{_LAYER}.input_layernorm.weight"),
            rule("lm/blocks/mlp_norm/scale", f"{_LAYER}.post_attention_layernorm.weight"),
            rule("lm/norm/scale", "transformer.norm.weight"),
        ),
        (
            Ignore(r".*\.rotary_emb\.inv_freq", "frequencies of the rotary positions"),
            Ignore(
                r"(vision_encoder|vision_align|patch_embed|blocks|clip_projector)\..*"
                r"|pos_embed|target_pos_embed|cls_token|mask_token|logit_scale|temp"
                r"|grad_norm_square_momentum_(clip|sim)|norm3\.bn\..*",
                "image or video tower and what its training left behind",
            ),
        ),
    )


def _recognize(shapes: Shapes, architecture: str | None) -> str | None:
    towers = ("vision_encoder.", "patch_embed.")
    if architecture is None and any(key.startswith(towers) for key in shapes):
        return None
    return "llama_text"


def _config(options: Options) -> LlamaTextConfig:
    # A manifest holds the language model's options as one.
    inner = Options(
        options.kind, options.options | options.take("llama", {}), options.fallback
    )
    for name in options.options:
        options.take(name)
    inner.take("llama", {})
    inner.require("hidden_act", *_ACTIVATIONS)
    inner.require("rope_scaling", None)
    inner.require("mlp_bias", False)
    inner.require("attention_dropout", 0.0)
    heads = inner.size("num_attention_heads")
    has_biases = inner.take("attention_bias", False)
    lm = DecoderLMConfig(
        width=inner.size("hidden_size"),
        depth=inner.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=inner.take("num_key_value_heads", None) or heads,
        head_dim=inner.take("head_dim", None),
        mlp_dim=inner.size("intermediate_size"),
        norm_epsilon=inner.take("rms_norm_eps", 1e-6),
        activation=_ACTIVATIONS[inner.take("hidden_act", "silu")],
        rope_theta=inner.take("rope_theta", 10_000.0),
        qkv_bias=has_biases,
        proj_bias=has_biases,
        lora=_lora(inner),
        vocab_size=inner.size("vocab_size"),
        head="none",
    )
    config = LlamaTextConfig(
        lm,
        projection_dim=inner.size("clip_embed_dim", 768),
        pad_id=inner.take("pad_id", 0),
        max_length=inner.size("max_len", 80),
    )
    inner.finish(_NEUTRAL)
    return config


def _lora(options: Options) -> LoRAConfig | None:
    """Adapters, which are folded into the kernels unless `keep_lora` says otherwise."""
    rank = options.take("lora_r", None)
    alpha = options.take("lora_alpha", None)
    dropout = options.take("lora_dropout", 0.1)
    targets = options.take("lora_targets", ("q_proj", "v_proj"))
    keep = options.take("keep_lora", False)
    unknown = [name for name in targets if name not in _NAMES]
    if unknown:
        raise ValueError(f"expected LoRA on some of {', '.join(_NAMES)}, found {unknown}")
    if rank is None:
        return None
    kept = tuple(n for theirs, n in _NAMES.items() if theirs in targets) if keep else ()
    return LoRAConfig(rank, float(2 * rank if alpha is None else alpha), dropout, kept)


def _infer(
    kind: str, shapes: Shapes, given: Mapping[str, Any], stored: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    numbers = (re.match(r"transformer\.layers\.(\d+)\.", key) for key in shapes)
    vocab_size, width = shapes["transformer.embed_tokens.weight"]
    options = {**stored, **stored.get("llama", {}), **given, **given.get("llama", {})}
    # The released tower has heads of 128 channels.
    heads = options.get("num_attention_heads") or max(width // 128, 1)
    queries, keys = (shapes[f"{_FIRST}.self_attn.{name}.weight"][0] for name in ("q_proj", "k_proj"))
    shown: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": 1 + max(int(m[1]) for m in numbers if m),
        "intermediate_size": shapes[f"{_FIRST}.mlp.up_proj.weight"][0],
        "num_key_value_heads": keys * heads // queries,
        "head_dim": queries // heads,
        "attention_bias": f"{_FIRST}.self_attn.q_proj.bias" in shapes,
        "clip_embed_dim": shapes["text_projection"][1],
    }
    adapted = re.compile(rf"{re.escape(_FIRST)}\..*?(\w+)\.lora_A\.weight")
    found = {m[1]: shapes[key][0] for key in shapes if (m := adapted.fullmatch(key))}
    if found:
        shown |= {"lora_r": next(iter(found.values())), "lora_targets": sorted(found)}
    return shown, {"num_attention_heads": heads}


def _to_options(config: LlamaTextConfig) -> dict[str, Any]:
    lm = config.lm
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    options = {
        "num_attention_heads": lm.num_heads,
        "rms_norm_eps": lm.norm_epsilon,
        "hidden_act": activations[lm.activation],
        "rope_theta": lm.rope_theta,
        "pad_id": config.pad_id,
        "max_len": config.max_length,
    }
    if lm.lora is not None and lm.lora.targets:
        lora = {"lora_alpha": lm.lora.alpha, "lora_dropout": lm.lora.dropout_rate}
        options |= lora | {"keep_lora": True}
    return options


def _run(module: LlamaText, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    layers = tuple(range(module.config.lm.depth))
    output = module.apply(variables, inputs["input_ids"], hidden_layers=layers)
    return {
        "text_embed": output.pooled,
        "final_norm": output.tokens,
        **{f"layer_{i}": x for i, x in enumerate(output.hidden_states)},
    }


FAMILY = Family(
    name="llama",
    anchors=("text_projection",),
    prefixes=("", "module.", "text_encoder.", "module.text_encoder."),
    recognize=_recognize,
    kinds={"llama_text": _config},
    tables={"llama_text": _table},
    infer=_infer,
    to_options=_to_options,
    preprocessing=lambda config: Preprocessing(
        text=TextPreprocessing("sentencepiece", ("tokenizer.model",), config.max_length)
    ),
    describe=lambda config: (
        f"LLaMA of width {config.lm.width}, depth {config.lm.depth}, {config.lm.num_heads} heads,"
        f" embeddings of {config.projection_dim}"
    ),
    neutral=_NEUTRAL,
    spellings=(
        # peft 0.7 and later, and its names of adapters.
        (r"\.base_layer\.(weight|bias)$", r".\1"),
        (r"\.lora_([AB])\.\w+\.weight$", r".lora_\1.weight"),
        (r"(^|\.)base_model\.model\.", r"\1"),
    ),
    recipes={"llama_text": Recipe(("input_ids",), _run)},
    releases=(
        Released(
            "internvl-c-text",
            "llama_text",
            {"lm.width": 4096, "lm.depth": 32, "lm.vocab_size": 49_954, "projection_dim": 768},
            repo="OpenGVLab/InternVL",
            file="internvl_c_13b_224px.pth",
            note="the text tower of InternVideo2-CLIP 1B and 6B; pass --architecture=llama_text",
        ),
    ),
)
