"""Steps of stage 2's training with all of their parts, and its learning rates."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from checkers.internvideo2_stage2 import convert
from checkers.internvideo2_stage2_models import CLS, MASK, PAD, model_options, word_masks
from comparison import assert_tensor_close, assert_tensors_close
from flax.traverse_util import flatten_dict, unflatten_dict
from golden import Golden, checker

from internvideo_jax.convert.engine.state_dict import to_state_dict
from internvideo_jax.objectives.cross_modal import Draws
from internvideo_jax.objectives.matching import Negatives, valid_negatives
from internvideo_jax.training.config import TrainConfig
from internvideo_jax.training.masking import mask_to_kept
from internvideo_jax.training.optimizer import OptimizerConfig, PartConfig, adamw, map_paths
from internvideo_jax.training.schedules import floored_cosine
from internvideo_jax.training.stages.cross_modal import CrossModalStage
from internvideo_jax.training.stages.cross_modal_config import (
    CrossModalConfig,
    LossCaptions,
    LossWeights,
)
from internvideo_jax.training.state import merge, split_trained

_TIED = {
    "text_encoder.cls.predictions.decoder.weight": (
        "text_encoder.bert.embeddings.word_embeddings.weight"
    ),
    "text_encoder.cls.predictions.decoder.bias": "text_encoder.cls.predictions.bias",
}
# Adam divides gradients by their own size: of tiny ones, that shows the rounding.
_MAGNIFIED = ("final/vision_encoder.patch_embed.proj.weight",)
# Positions of models whose images have some of their own.
_TABLES = {"video": "vision/encoder/pos_embed", "image": "vision/encoder/img_pos_embed"}


@checker("internvideo2_stage2.optim_schedule")
def check_schedule(golden: Golden) -> None:
    outputs = golden.group("out/")
    factors = {}
    for name, (warmup, total, floor) in golden.config["cases"].items():
        steps = np.arange(len(outputs[name]))
        factors[name] = np.asarray(floored_cosine(1.0, floor, total, warmup)(steps))
    assert_tensors_close({n: x.astype(outputs[n].dtype) for n, x in factors.items()}, outputs)


@checker("internvideo2_stage2.train_visual", "internvideo2_stage2.train_av")
def check_training(golden: Golden) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _check_training(golden, Path(folder) / "vocab.txt")


def _check_training(golden: Golden, words: Path) -> None:
    c = golden.config
    c.ignore("av", "keep")
    options = c["config"]
    options.ignore("gradient_checkpointing", "num_test_segments")
    criterion = options["criterion"]
    criterion.expect(vtm_hard_neg=True, mlm_masking_prob=0.5)
    criterion.ignore("distill_final_features", "clip_loss_ratio", "uta_image_only")
    model = convert(model_options(options["model"]), golden.group("state/"))
    weights = {
        term: x for term, x in criterion["loss_weight"].items() if term not in ("uta", "mvm")
    }
    special = {PAD: "[PAD]", CLS: "[CLS]", CLS + 1: "[SEP]", MASK: "[MASK]", MASK + 1: "[UNK]"}
    vocab_size = model.module.config.text.vocab_size
    words.write_text("".join(f"{special.get(i, f'word{i}')}\n" for i in range(vocab_size)))
    (caption,) = c["captions"] or [""]
    captions = dict(criterion["loss_caption"]) if caption else {}
    assert set(captions.values()) <= {caption}
    assert c["steps"] == len(c["media"])
    size = len(golden["in/step0/idx"])
    stage = CrossModalStage(
        CrossModalConfig(
            model.module.config,
            weights=LossWeights(**weights),
            captions=LossCaptions(**captions),
            max_text_length=golden[_name("in/step0/input_ids", caption)].shape[1],
            match_group=size,
            vocabulary=str(words),
        )
    )
    config = TrainConfig(
        batch_size=size,
        steps=c["total"],
        optimizer=OptimizerConfig(
            lr=c["lr"],
            min_lr=0.01 * c["lr"],
            schedule="floored_cosine",
            betas=(0.9, 0.98),
            eps=1e-8,
            weight_decay=0.05,
            max_grad_norm=c["clip"],
            parts=(PartConfig("audio/.*", frozen=True),) if c["freeze_audio"] else (),
        ),
    )
    schedule = floored_cosine(c["lr"], 0.01 * c["lr"], c["total"], c["warmup"])
    params, fixed = split_trained(model.variables["params"], config.trainable(stage))
    _check_groups(golden, stage, config, model, params, fixed)
    optimizer = _LazyAdamW(stage, config, params)
    values: dict[str, Any] = {}
    gradient = functools.cache(lambda media: _gradient(stage.of_media(media), fixed))
    for step, media in enumerate(c["media"]):
        inputs = _inputs(golden, step, media, caption, stage.of_media(media))
        with jax.default_matmul_precision("highest"):
            gradients, (metrics, _) = gradient(media)(params, *inputs)
        values[f"step{step}/grad_norm"] = optax.tree.norm(gradients)
        rate = schedule(step)
        params = stage.bounded(optimizer.update(gradients, params, rate, media))
        values[f"step{step}/lr"] = rate
        values |= {
            f"step{step}/loss_{name.partition('/')[2]}": x
            for name, x in metrics.items()
            if "/" in name
        }
    outputs = golden.group("out/")
    # Losses that have no weight.
    values |= {n: np.zeros_like(x) for n, x in outputs.items() if n not in values and not x.any()}
    final = to_state_dict({"params": merge(fixed, params)}, model.plan)
    final |= {name: final[tied] for name, tied in _TIED.items()}
    values |= {n: final[n.removeprefix("final/")] for n in outputs if n.startswith("final/")}
    values = {name: np.asarray(x, outputs[name].dtype) for name, x in values.items()}
    for name in _MAGNIFIED:
        assert_tensor_close(name, values.pop(name), outputs.pop(name), tolerance=2e-4)
    assert_tensors_close(values, outputs)


class _LazyAdamW:
    """AdamW as plain PyTorch has it: what a step does not use stays as it is, moments included.

    With DeepSpeed, which the released models were trained with, and here, such parameters have
    gradients of zero.
    """

    def __init__(self, stage: CrossModalStage, config: TrainConfig, params: Any):
        unclipped = dataclasses.replace(config.optimizer, max_grad_norm=None)
        self._clip = optax.clip_by_global_norm(config.optimizer.max_grad_norm)
        self._adamw = adamw(1.0, unclipped, stage.module)
        self._states = {
            media: self._adamw.init(part) for media, part in self._split(params).items()
        }

    def update(self, gradients: Any, params: Any, rate: float, media: str) -> Any:
        """The parameters after a step with batches of these media."""
        clipped, _ = self._clip.update(gradients, self._clip.init(params))
        parts, split = self._split(params), self._split(clipped)
        for name in ("", media):
            if name in parts:
                updates, self._states[name] = self._adamw.update(
                    split[name], self._states[name], parts[name]
                )
                parts[name] = {path: x + rate * updates[path] for path, x in parts[name].items()}
        merged = {path: x for part in parts.values() for path, x in part.items()}
        return unflatten_dict(merged, sep="/")

    @staticmethod
    def _split(params: Any) -> dict[str, dict[str, Any]]:
        """Parameters by path; by the only media that use them, or ""."""
        flat = flatten_dict(params, sep="/")
        has_own = _TABLES["image"] in flat
        parts: dict[str, dict[str, Any]] = {}
        for path, x in flat.items():
            users = [media for media, table in _TABLES.items() if path == table and has_own]
            parts.setdefault("".join(users), {})[path] = x
        return parts


def _gradient(stage: CrossModalStage, fixed: Any) -> Any:
    """Gradients and metrics of parameters and what `_inputs` gives."""

    def loss(params: Any, batch: Any, targets: Any, negatives: Any, words: Any) -> Any:
        draws = Draws(jax.random.key(0), negatives, words)
        return stage.drawn_loss(merge(fixed, params), {}, batch, targets, draws, None)

    return jax.jit(jax.grad(loss, has_aux=True))


def _name(name: str, caption: str) -> str:
    return f"{name}/{caption}" if caption else name


def _inputs(
    golden: Golden, step: int, media: str, caption: str, stage: CrossModalStage
) -> tuple[dict[str, Any], ...]:
    """Batch, kept tokens, negatives and masked words of a step, in upstream's order in the file."""
    place = f"in/step{step}"
    clip_ids = golden[f"{place}/idx"]
    texts = golden[_name(f"{place}/input_ids", caption)]
    mask = golden[_name(f"{place}/attention_mask", caption)]
    np.testing.assert_array_equal(mask, texts != PAD)
    batch = {_name("text", caption): texts, "clip_id": clip_ids}
    batch["image" if media == "image" else "video"] = np.moveaxis(golden[f"{place}/video"], 2, -1)
    if f"{place}/fbank" in golden:
        batch["audio"] = golden[f"{place}/fbank"]
    valid = valid_negatives(clip_ids, len(clip_ids))
    matching = [term for term in stage.losses if term.endswith("tm")]
    negatives = {
        term: Negatives(
            golden[f"{place}/vtm{j}/vision_neg_idx"], golden[f"{place}/vtm{j}/text_neg_idx"], valid
        )
        for j, term in enumerate(matching)
    }
    words = {
        term: word_masks(golden, f"step{step}/mlm{j}")
        for j, term in enumerate(term for term in stage.losses if term.endswith("mlm"))
    }
    targets = {"kept": mask_to_kept(golden[f"{place}/vision_mask"])}
    return batch, targets, negatives, words


def _check_groups(
    golden: Golden, stage: Any, config: TrainConfig, model: Any, params: Any, fixed: Any
) -> None:
    """Checks which parameters are trained, and which decay."""
    groups = golden.config["param_groups"]
    decay = map_paths(lambda path, x: np.full(x.shape, stage.module.is_decayed(path)), params)
    unused = jax.tree.map(lambda x: np.full(x.shape, 2.0), fixed)
    found = to_state_dict({"params": merge(unused, decay)}, model.plan)
    ours = {key: np.unique(x).tolist() for key, x in found.items() if 2.0 not in x}
    expected = {name: [float(wd > 0)] for name, (wd, lr) in groups.items()}
    assert {rate for _, rate in groups.values()} == {golden.config["lr"]}
    assert ours == expected
