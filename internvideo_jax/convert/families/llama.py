"""The LLaMA text tower of InternVideo2-CLIP 1B and 6B, which comes from InternVL-C; plain LLaMAs.

Key names are those of upstream `internvideo2_clip_text.py`, options those of Hugging Face's
`LlamaConfig` and peft's `LoraConfig` (`lora_r`, `lora_alpha`, ...).
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from internvideo_jax.convert.engine.family import Family, Shapes
from internvideo_jax.convert.engine.options import Options, expect_heads
from internvideo_jax.convert.engine.rules import Ignore, Rule, Table, Tie, nested, rule
from internvideo_jax.convert.engine.shapes import count_layers, sized
from internvideo_jax.convert.engine.transforms import (
    LINEAR,
    LINEAR_FROM_HEADS,
    RESHAPE,
    Transform,
    fold_lora,
)
from internvideo_jax.convert.engine.verify import Arrays, Recipe, Reference
from internvideo_jax.models.decoder_lm import DecoderLMConfig
from internvideo_jax.models.llama_text import LlamaTextConfig
from internvideo_jax.nn.lora import LoRAConfig
from internvideo_jax.nn.mlp import Activation
from internvideo_jax.preprocessing import Preprocessing, TextPreprocessing

# What precedes a language model's keys in the text tower, and in a file of its own.
_TOWER, _ALONE = "transformer.", "model."

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

# Attention heads of released LLaMAs by width.
_HEADS = {4096: 32, 5120: 40, 6656: 52, 8192: 64}

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "gelu_quick",
    "relu": "relu",
}

# They choose nothing here: fields of Hugging Face's configs, and notes.
_NEUTRAL = frozenset(
    {
        *("architectures", "model_type", "transformers_version", "torch_dtype", "use_cache"),
        *("initializer_range", "bos_token_id", "eos_token_id", "pad_token_id", "note"),
        *("max_position_embeddings", "max_sequence_length"),
    }
)


def _linear(name: str, config: DecoderLMConfig, layer: str) -> tuple[Rule, ...]:
    place, key, transform = _LINEARS[name]
    target, keys = f"blocks/{place}", f"{layer}.{key}"
    adapters = f"{keys}.lora_A.weight", f"{keys}.lora_B.weight"
    folded = {}
    if config.lora is not None and name not in config.lora.targets:
        folded = {f"{keys}.weight {' '.join(adapters)}": fold_lora(transform, config.lora.alpha)}
    return (
        rule(f"{target}/kernel", f"{keys}.weight", transform, instead=folded),
        rule(f"{target}/bias", f"{keys}.bias", RESHAPE),
        rule(f"{target}/lora_a", adapters[0], transform),
        rule(f"{target}/lora_b", adapters[1], LINEAR),
    )


def _language_model(config: DecoderLMConfig, prefix: str) -> tuple[Rule, ...]:
    layer = f"{prefix}layers.{{layer}}"
    return (
        rule("embed/embedding", f"{prefix}embed_tokens.weight"),
        *(r for name in _LINEARS for r in _linear(name, config, layer)),
        rule("blocks/attn_norm/scale", f"{layer}.input_layernorm.weight"),
        rule("blocks/mlp_norm/scale", f"{layer}.post_attention_layernorm.weight"),
        rule("norm/scale", f"{prefix}norm.weight"),
        rule("head/kernel", "lm_head.weight", LINEAR),
    )


def _alone(config: DecoderLMConfig) -> Table:
    tied = (Tie(r"lm_head\.weight", f"{_ALONE}embed_tokens.weight"),)
    return Table(
        _language_model(config, _ALONE), (_FREQUENCIES,), tied if config.head == "tied" else ()
    )


def _text_tower(config: LlamaTextConfig) -> Table:
    return Table(
        (
            *nested(_language_model(config.lm, _TOWER), "lm"),
            rule("projection", "text_projection"),
        ),
        (
            _FREQUENCIES,
            Ignore(
                r"(vision_encoder|vision_align|patch_embed|blocks|clip_projector)\..*"
                r"|pos_embed|target_pos_embed|cls_token|mask_token|logit_scale|temp"
                r"|grad_norm_square_momentum_(clip|sim)|norm3\.bn\..*",
                "image or video tower and what its training left behind",
            ),
        ),
    )


_FREQUENCIES = Ignore(r".*\.rotary_emb\.inv_freq", "frequencies of the rotary positions")


def _recognize(shapes: Shapes, architecture: str | None) -> str | None:
    if f"{_TOWER}embed_tokens.weight" not in shapes:
        return None if architecture == "llama_text" else "llama"
    towers = ("vision_encoder.", "patch_embed.")
    is_alone = not any(key.startswith(towers) for key in shapes)
    is_text_tower = "text_projection" in shapes and architecture != "decoder_lm"
    return "llama_text" if is_text_tower and (is_alone or architecture) else None


def _lm_config(options: Options, *, has_head: bool) -> DecoderLMConfig:
    options.require("hidden_act", *_ACTIVATIONS)
    options.require("rope_scaling", None)
    options.require("mlp_bias", False)
    options.require("attention_dropout", 0.0)
    width, heads = options.size("hidden_size"), options.size("num_attention_heads")
    qkv_bias = options.take("attention_bias", False)
    is_tied = options.take("tie_word_embeddings", False)
    return DecoderLMConfig(
        width=width,
        depth=options.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=options.take("num_key_value_heads", None) or heads,
        head_dim=options.take("head_dim", None) or width // heads,
        mlp_dim=options.size("intermediate_size"),
        norm_epsilon=options.take("rms_norm_eps", 1e-6),
        activation=_ACTIVATIONS[options.take("hidden_act", "silu")],
        rope_theta=options.take("rope_theta", 10_000.0),
        qkv_bias=qkv_bias,
        # Qwen2 has biases on all projections but this one, and no option that says so.
        proj_bias=options.take("proj_bias", qkv_bias),
        lora=_lora(options),
        vocab_size=options.size("vocab_size"),
        head="none" if not has_head else "tied" if is_tied else "linear",
    )


def _text_config(options: Options) -> LlamaTextConfig:
    # Manifests and goldens hold the language model's options as one.
    options.unfold("llama")
    return LlamaTextConfig(
        _lm_config(options, has_head=False),
        projection_dim=options.size("clip_embed_dim", 768),
        pad_id=options.take("pad_id", 0),
        max_length=options.size("max_len", 80),
    )


def _lora(options: Options) -> LoRAConfig | None:
    """Adapters, which are folded into the kernels unless `keep_lora` says otherwise."""
    rank = None if options.take("lora_r", None) is None else options.size("lora_r")
    alpha = options.take("lora_alpha", None)
    dropout = options.take("lora_dropout", 0.1)
    targets = options.take("lora_targets", ("q_proj", "v_proj"))
    keep = options.take("keep_lora", False)
    if not isinstance(targets, list | tuple):
        raise ValueError(f"lora_targets: expected a list of names, found {targets!r}")
    if alpha is not None and type(alpha) not in (int, float):
        raise ValueError(f"lora_alpha: expected a number, found {alpha!r}")
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
    prefix = _TOWER if kind == "llama_text" else _ALONE
    first = f"{prefix}layers.0"
    vocab_size, width = sized(shapes, f"{prefix}embed_tokens.weight", 2)
    options = {**stored, **_of_model(stored), **given, **_of_model(given)}
    queries = sized(shapes, f"{first}.self_attn.q_proj.weight", 2)[0]
    keys = sized(shapes, f"{first}.self_attn.k_proj.weight", 2)[0]
    released = {"num_attention_heads": _HEADS.get(width)}
    expect_heads(released, queries, _HEADS, options)
    heads: Any = options.get("num_attention_heads", _HEADS.get(width))
    shown: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": count_layers(shapes, f"{prefix}layers"),
        "intermediate_size": sized(shapes, f"{first}.mlp.up_proj.weight", 2)[0],
        "num_key_value_heads": keys * heads // queries,
        "head_dim": queries // heads,
        "attention_bias": f"{first}.self_attn.q_proj.bias" in shapes,
        "proj_bias": f"{first}.self_attn.o_proj.bias" in shapes,
    }
    if kind == "llama_text":
        shown["clip_embed_dim"] = sized(shapes, "text_projection", 2)[1]
    elif "lm_head.weight" not in shapes:
        shown["tie_word_embeddings"] = True
    adapted = re.compile(rf"{re.escape(first)}\..*?(\w+)\.lora_A\.weight")
    found = {m[1]: sized(shapes, k, 2)[0] for k in shapes if (m := adapted.fullmatch(k))}
    assumed: dict[str, Any] = {"num_attention_heads": heads}
    if found:
        rank = next(iter(found.values()))
        shown |= {"lora_r": rank, "lora_targets": sorted(found)}
        assumed["lora_alpha"] = 2 * rank
    return shown, assumed


def _of_model(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of the language model that are kept as one."""
    inner = options.get("llama")
    return inner if isinstance(inner, Mapping) else {}


def _to_options(config: LlamaTextConfig | DecoderLMConfig) -> dict[str, Any]:
    lm = config.lm if isinstance(config, LlamaTextConfig) else config
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    options: dict[str, Any] = {
        "num_attention_heads": lm.num_heads,
        "rms_norm_eps": lm.norm_epsilon,
        "hidden_act": activations[lm.activation],
        "rope_theta": lm.rope_theta,
    }
    if isinstance(config, LlamaTextConfig):
        options |= {"pad_id": config.pad_id, "max_len": config.max_length}
    if lm.lora is not None and lm.lora.targets:
        options |= {"lora_alpha": lm.lora.alpha, "lora_dropout": lm.lora.dropout_rate}
        options["keep_lora"] = True
    return options


def _describe(config: LlamaTextConfig | DecoderLMConfig) -> str:
    lm = config.lm if isinstance(config, LlamaTextConfig) else config
    return f"LLaMA of width {lm.width}, depth {lm.depth}, {lm.num_heads} heads"


def _preprocessing(config: LlamaTextConfig | DecoderLMConfig) -> Preprocessing:
    text = TextPreprocessing("sentencepiece", ("tokenizer.model",), max_length=2048)
    if isinstance(config, LlamaTextConfig):
        text = dataclasses.replace(text, max_length=config.max_length, prompt="summarize:")
    return Preprocessing(text=text)


_HOOKS = (
    (rf"{re.escape(_TOWER)}layers\.(\d+)", r"layer_\1"),
    (rf"{re.escape(_TOWER)}norm", "final_norm"),
)


def _run(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    layers = tuple(range(module.config.lm.depth))
    output: Any = module.apply(variables, inputs["input_ids"], hidden_layers=layers)
    return {
        "text_embed": output.pooled,
        "final_norm": output.tokens,
        **{f"layer_{i}": x for i, x in enumerate(output.hidden_states)},
    }


FAMILY = Family(
    name="llama",
    anchors=(f"{_TOWER}embed_tokens.weight", f"{_ALONE}embed_tokens.weight"),
    prefixes=("", "text_encoder."),
    recognize=_recognize,
    kinds={
        "llama_text": _text_config,
        "llama": lambda options: _lm_config(options, has_head=True),
    },
    tables={"llama_text": _text_tower, "decoder_lm": _alone},
    infer=_infer,
    to_options=_to_options,
    preprocessing=_preprocessing,
    describe=_describe,
    neutral=_NEUTRAL,
    spellings=(
        # peft 0.7 and later, and its names of adapters.
        (r"\.base_layer\.(weight|bias)$", r".\1"),
        (r"\.lora_([AB])\.\w+\.weight$", r".lora_\1.weight"),
        (r"(^|\.)base_model\.model\.", r"\1"),
    ),
    recipes={"llama_text": Recipe(("input_ids",), _run, hooks=_HOOKS, outputs=("text_embed",))},
)
