"""The text tower of InternVideo2 stage 2, alone or in a stage-2 file; plain BERTs as well.

Key names and constructor options are those of upstream
`InternVideo2/multi_modality/models/backbones/bert/xbert.py`.
"""

from collections.abc import Mapping
from typing import Any

import jax

from internvideo_jax.convert.engine.family import Family, Shapes
from internvideo_jax.convert.engine.options import Options, expect_heads
from internvideo_jax.convert.engine.rules import (
    Ignore,
    Rule,
    Table,
    Tie,
    from_layer,
    layer,
    norm,
    rule,
)
from internvideo_jax.convert.engine.shapes import count_layers, sized
from internvideo_jax.convert.engine.transforms import LINEAR, LINEAR_FROM_HEADS, RESHAPE
from internvideo_jax.convert.engine.verify import Arrays, Recipe, Reference
from internvideo_jax.models.bert import BertConfig
from internvideo_jax.nn.mlp import Activation
from internvideo_jax.objectives.masked_lm import masked_lm_loss
from internvideo_jax.preprocessing import Preprocessing, TextPreprocessing

# Attention heads of released BERTs by width.
_HEADS = {128: 2, 256: 4, 512: 8, 768: 12, 1024: 16}

_WORDS = "bert.embeddings.word_embeddings.weight"

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "gelu_quick",
    "relu": "relu",
    "silu": "silu",
}

# They choose nothing here: generic fields of Hugging Face's configs.
_NEUTRAL = frozenset(
    {
        *("architectures", "model_type", "transformers_version", "torch_dtype", "use_cache"),
        *("initializer_range", "gradient_checkpointing", "classifier_dropout", "cross_module"),
    }
)


def _attention(target: str, norm_target: str, keys: str) -> tuple[Rule, ...]:
    projections = {"q": "query", "k": "key", "v": "value"}
    return (
        *(
            r
            for ours, theirs in projections.items()
            for r in layer(f"{target}/{ours}", f"{keys}.self.{theirs}", LINEAR, RESHAPE)
        ),
        *layer(f"{target}/proj", f"{keys}.output.dense", LINEAR_FROM_HEADS),
        *norm(norm_target, f"{keys}.output.LayerNorm"),
    )


def _blocks(stack: str) -> tuple[Rule, ...]:
    keys = "bert.encoder.layer.{layer}"
    return (
        *_attention(f"{stack}/attn", f"{stack}/attn_norm", f"{keys}.attention"),
        *_attention(f"{stack}/cross_attn", f"{stack}/cross_norm", f"{keys}.crossattention"),
        *layer(f"{stack}/mlp/fc1", f"{keys}.intermediate.dense"),
        *layer(f"{stack}/mlp/fc2", f"{keys}.output.dense"),
        *norm(f"{stack}/mlp_norm", f"{keys}.output.LayerNorm"),
    )


def _table(config: BertConfig) -> Table:
    tables = {"word": "word", "position": "position", "type": "token_type"}
    return Table(
        (
            *(
                rule(f"embeddings/{ours}/embedding", f"bert.embeddings.{theirs}_embeddings.weight")
                for ours, theirs in tables.items()
            ),
            *norm("embeddings/norm", "bert.embeddings.LayerNorm"),
            *_blocks("text_blocks"),
            *from_layer(_blocks("fusion_blocks"), config.fusion_layer),
            *layer("mlm_head/dense", "cls.predictions.transform.dense"),
            *norm("mlm_head/norm", "cls.predictions.transform.LayerNorm"),
            rule("mlm_head/bias", "cls.predictions.bias"),
        ),
        (
            Ignore(r"bert\.embeddings\.position_ids", "0, 1, 2, ..."),
            Ignore(r"bert\.pooler\..*|cls\.seq_relationship\..*", "pooler, which upstream drops"),
            Ignore(
                r"(vision_encoder|audio_encoder|\w+_proj|\w+_fusion|\w+_head)\..*|temp",
                "other parts of stage 2",
            ),
        ),
        (
            Tie(r"cls\.predictions\.decoder\.weight", _WORDS),
            Tie(r"cls\.predictions\.decoder\.bias", "cls.predictions.bias"),
        ),
    )


def _recognize(shapes: Shapes, architecture: str | None) -> str | None:
    def has(*prefixes: str) -> bool:
        return architecture is None and any(key.startswith(prefixes) for key in shapes)

    if has("vision_encoder."):
        return None
    if has("audio_encoder."):
        raise ValueError(
            "expected one model, found a text tower (keys `text_encoder.*`) and an audio tower"
            " (`audio_encoder.*`); choose one of them with --architecture=bert or beats"
        )
    return "bert_mlm" if "cls.predictions.bias" in shapes else "bert"


def _config(options: Options, *, mlm_head: bool) -> BertConfig:
    options.require("position_embedding_type", "absolute")
    options.require("hidden_act", *_ACTIVATIONS)
    depth = options.size("num_hidden_layers")
    fusion_layer = options.take("fusion_layer", depth)
    encoder_width = options.take("encoder_width", None)
    return BertConfig(
        width=options.size("hidden_size"),
        depth=depth,
        num_heads=options.size("num_attention_heads"),
        mlp_dim=options.size("intermediate_size"),
        norm_epsilon=options.take("layer_norm_eps", 1e-12),
        activation=_ACTIVATIONS[options.take("hidden_act", "gelu")],
        dropout_rate=options.take("hidden_dropout_prob", 0.1),
        attention_dropout_rate=options.take("attention_probs_dropout_prob", 0.1),
        vocab_size=options.size("vocab_size"),
        max_length=options.size("max_position_embeddings"),
        type_vocab_size=options.size("type_vocab_size", 2),
        pad_id=options.take("pad_token_id", 0),
        fusion_layer=fusion_layer,
        cross_width=encoder_width if fusion_layer < depth else None,
        mlm_head=mlm_head,
    )


def _infer(
    kind: str, shapes: Shapes, given: Mapping[str, Any], stored: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    layers = "bert.encoder.layer"
    depth = count_layers(shapes, layers)
    keys = {i: f"{layers}.{i}.crossattention.self.key.weight" for i in range(depth)}
    fusing = {i: sized(shapes, key, 2)[1] for i, key in keys.items() if key in shapes}
    vocab_size, width = sized(shapes, _WORDS, 2)
    shown = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "fusion_layer": min(fusing, default=depth),
        "encoder_width": next(iter(fusing.values()), None),
    }
    named = {
        "max_position_embeddings": "bert.embeddings.position_embeddings.weight",
        "type_vocab_size": "bert.embeddings.token_type_embeddings.weight",
        "intermediate_size": "bert.encoder.layer.0.intermediate.dense.weight",
    }
    shown |= {option: sized(shapes, key)[0] for option, key in named.items() if key in shapes}
    heads = {"num_attention_heads": _HEADS.get(width)}
    expect_heads(heads, width, _HEADS, {**stored, **given})
    return shown, heads


def _to_options(config: BertConfig) -> dict[str, Any]:
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    return {
        "num_attention_heads": config.num_heads,
        "hidden_act": activations[config.activation],
        "layer_norm_eps": config.norm_epsilon,
        "hidden_dropout_prob": config.dropout_rate,
        "attention_probs_dropout_prob": config.attention_dropout_rate,
        "pad_token_id": config.pad_id,
    }


def _run(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    c = module.config
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    text_layers, fusion_layers = tuple(range(c.fusion_layer)), tuple(range(c.fusion_layer, c.depth))
    text = module.apply(variables, ids, mask, mode="text", hidden_layers=text_layers)
    last = text.tokens
    values = {"text_last": last, **_hidden("text", text.embedded, text.hidden_states)}
    if "encoder_hidden_states" in inputs:
        states = inputs["encoder_hidden_states"], inputs.get("encoder_attention_mask")
        fusion = module.apply(
            variables, last, mask, *states, mode="fusion", hidden_layers=fusion_layers
        )
        last = fusion.tokens
        values |= {"fusion_last": last, **_hidden("fusion", fusion.embedded, fusion.hidden_states)}
        values["multimodal_last"] = module.apply(variables, ids, mask, *states).tokens
    if c.mlm_head:
        values["mlm_logits"] = module.apply(variables, last, method="mlm_logits")
        if "labels" in inputs:
            values["mlm_loss"] = masked_lm_loss(values["mlm_logits"], inputs["labels"])
    return values


def _hidden(name: str, embedded: jax.Array, states: jax.Array) -> Arrays:
    return {f"{name}_hidden_{i}": x for i, x in enumerate((embedded, *states))}


FAMILY = Family(
    name="bert",
    anchors=(_WORDS,),
    prefixes=("", "text_encoder."),
    recognize=_recognize,
    kinds={
        "bert": lambda options: _config(options, mlm_head=False),
        "bert_mlm": lambda options: _config(options, mlm_head=True),
    },
    tables={"bert": _table},
    infer=_infer,
    to_options=_to_options,
    preprocessing=lambda config: Preprocessing(
        text=TextPreprocessing("wordpiece", ("vocab.txt",), max_length=32)
    ),
    describe=lambda config: (
        f"width {config.width}, {config.fusion_layer} text and"
        f" {config.depth - config.fusion_layer} fusion layers, {config.num_heads} heads"
    ),
    neutral=_NEUTRAL,
    spellings=(
        # Retrieval models (`mode="ret"`) hold the tower without its masked-language head.
        (r"(^|\.)(?<!bert\.)(embeddings|encoder\.layer)\.", r"\1bert.\2."),
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
    recipes={"bert": Recipe(("input_ids",), _run, outputs=("text_last",))},
)
