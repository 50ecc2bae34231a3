"""The losses of stage 2 alone, and its texts' tokens."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from checkers.internvideo2_stage1_models import Converted
from checkers.internvideo2_stage2 import convert
from checkers.internvideo2_stage2_models import (
    CLS,
    MASK,
    PAD,
    in_upstream_order,
    negatives,
    word_masks,
)
from comparison import assert_gradients_close, assert_tensors_close
from golden import Golden, checker

from internvideo_jax.convert.engine.state_dict import to_state_dict
from internvideo_jax.data.wordpiece import WordPiece
from internvideo_jax.objectives.contrastive import (
    contrastive_loss,
    same_ids,
    similarities,
    unit_vectors,
)
from internvideo_jax.objectives.distillation import distillation_loss
from internvideo_jax.objectives.masked_lm import Vocabulary, mask_words, masked_lm_loss
from internvideo_jax.objectives.matching import (
    matching_loss,
    negative_log_weights,
    take_of_group,
    triples,
)


@checker("internvideo2_stage2.loss_vtc")
def check_contrastive(golden: Golden) -> None:
    c = golden.config
    c.expect(agg="mean")
    # One process of its own for each rank, whose gradients of embeddings are not summed.
    world = c.get("world", 1)
    ids = golden["in/idx"]
    inputs = tuple(golden[f"in/{name}"] for name in ("vision_proj", "text_proj", "temp"))

    def differentiated(scale: float) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        def loss(*inputs: jax.Array) -> jax.Array:
            return contrastive_loss(*inputs, ids, gradient_scale=scale)

        value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*inputs)
        return value, gradients

    results = {scale: differentiated(scale) for scale in {1.0, 1 / world}}
    value = results[1.0][0]
    values = {"loss": np.full(world, value) if world > 1 else value}
    outputs = golden.group("out/")
    if "targets" in outputs:
        vision, text = unit_vectors(inputs[0]), unit_vectors(inputs[1])
        values["sim_v2t"] = similarities(vision, text, inputs[2])
        values["sim_t2v"] = similarities(text, vision, inputs[2])
        same = same_ids(ids, ids).astype(np.float32)
        values["targets"] = same / same.sum(1, keepdims=True)
    assert_tensors_close(values, outputs)

    expected = golden.group("grad/")
    for scale, (_, ours) in results.items():
        named = {"vision_proj": ours[0] / scale, "text_proj": ours[1] / scale}
        if world > 1:
            named["temp_per_rank"] = np.full(world, ours[2])
        else:
            named["temp"] = ours[2]
        assert_gradients_close(named, expected)


@checker("internvideo2_stage2.loss_vtm")
def check_matching(golden: Golden) -> None:
    golden.config.ignore("prob")
    head = {name: golden[f"state/itm_head.{name}"] for name in ("weight", "bias")}
    model = _text_tower(golden)
    drawn, ids = negatives(golden, "vtm0"), golden["in/idx"]
    group = len(ids)
    mask = golden["in/attention_mask"]
    embeddings = golden["in/vision_proj"], golden["in/text_proj"]
    values = {
        f"weights_{name}": jnp.exp(negative_log_weights(*pair, golden["in/temp"], ids, group))
        for name, pair in (("v2t", embeddings), ("t2v", embeddings[::-1]))
    }

    def loss(params: Any, head: Any, vision: Any, text: Any) -> tuple[jax.Array, jax.Array]:
        others = [take_of_group(x, drawn.text, group) for x in (text, mask)]
        media = triples(vision, take_of_group(vision, drawn.media, group), vision)
        fused = model.module.apply(
            {"params": params},
            triples(text, text, others[0]),
            triples(mask, mask, others[1]),
            media,
            mode="fusion",
        )
        logits = fused.tokens[:, 0] @ head["weight"].T + head["bias"]
        return matching_loss(logits, drawn.is_valid), logits

    inputs = (golden["in/vision_embeds"], golden["in/text_embeds"])
    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
        (values["loss"], logits), gradients = gradient(model.variables["params"], head, *inputs)
    values["vtm_logits"] = in_upstream_order(np.asarray(logits))
    assert_tensors_close(values, golden.group("out/"))
    others = {f"itm_head.{name}": x for name, x in gradients[1].items()}
    others |= {"vision_embeds": gradients[2], "text_embeds": gradients[3]}
    _check_gradients(golden, model, gradients[0], others)


@checker("internvideo2_stage2.loss_mlm")
def check_masked_words(golden: Golden) -> None:
    golden.config.ignore("prob")
    for name in golden.names("state/itm_head."):
        golden[name]
    model = _text_tower(golden)
    ids, mask = golden["in/input_ids"], golden["in/attention_mask"]
    vocabulary = Vocabulary(model.module.config.vocab_size, pad_id=PAD, cls_id=CLS, mask_id=MASK)
    shown, labels = mask_words(ids, word_masks(golden, "mlm0"), vocabulary)

    def loss(params: Any, vision: Any) -> jax.Array:
        variables = {"params": params}
        text = model.module.apply(variables, shown, mask, mode="text").tokens
        fused = model.module.apply(variables, text, mask, vision, mode="fusion").tokens
        logits = model.module.apply(variables, fused, method="mlm_logits")
        return masked_lm_loss(logits, labels)

    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        value, gradients = gradient(model.variables["params"], golden["in/vision_embeds"])
    outputs = golden.group("out/")
    whole = {"masked_input_ids": shown, "labels": labels}
    whole = {name: np.asarray(x, outputs[name].dtype) for name, x in whole.items()}
    assert_tensors_close({"loss": value, **whole}, outputs)
    _check_gradients(golden, model, gradients[0], {"vision_embeds": gradients[1]})


@checker("internvideo2_stage2.loss_uta")
def check_alignment(golden: Golden) -> None:
    c = golden.config
    terms = ("middle", "final") if c["distill_final"] else ("middle",)
    ratios = dict(zip(terms, c["ratio"], strict=False))
    targets = {term: golden[f"in/teacher_{term}"] for term in ("middle", "final")}
    student = {term: golden[f"in/student_{term}"] for term in ("middle", "final")}

    def loss(student: Any) -> jax.Array:
        return distillation_loss(student, targets, ratios)[0]

    value, gradients = jax.value_and_grad(loss)(student)
    expected = golden["out/loss"]
    # Upstream's has an axis where there is one term.
    assert_tensors_close({"loss": np.reshape(value, expected.shape)}, {"loss": expected})
    named = {f"student_{term}": x for term, x in gradients.items()}
    assert_gradients_close(named, golden.group("grad/"))


def _text_tower(golden: Golden) -> Converted:
    state = golden.group("state/")
    return convert(dict(golden.config["bert"]), state, architecture="bert")


def _check_gradients(golden: Golden, model: Converted, params: Any, others: Any) -> None:
    """Those that the file has, of the text tower's parameters and of others."""
    expected = golden.group("grad/")
    ours = {**to_state_dict({"params": params}, model.plan), **others}
    ours = {key: ours[key] for key in expected}
    zero = [key for key in ours if key.endswith("self.key.bias")]
    assert_gradients_close(ours, expected, zero=zero)


@checker("internvideo2_stage2.tokenizer_wordpiece")
def check_tokenizer(golden: Golden) -> None:
    c = golden.config
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(c["vocab"]), encoding="utf-8")
        ids, mask = WordPiece(path, c["max_length"])(c["texts"])
    outputs = golden.group("out/")
    values = {"input_ids": ids, "attention_mask": mask}
    assert_tensors_close({n: x.astype(outputs[n].dtype) for n, x in values.items()}, outputs)
