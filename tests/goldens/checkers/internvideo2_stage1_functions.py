"""Position tables, mixing, schedules, optimizer groups and head maps of stage 1."""

import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from comparison import assert_table_close, assert_tensor_close, assert_tensors_close
from flax.traverse_util import flatten_dict
from golden import Golden, checker

from internvideo_jax.convert.engine.plan import Plan, export_plan
from internvideo_jax.convert.engine.plan import plan as make_plan
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.state_dict import to_state_dict, to_tree
from internvideo_jax.convert.engine.upstream import config_from_upstream
from internvideo_jax.convert.families.head_maps import K710_ROWS
from internvideo_jax.models import abstract_variables, build
from internvideo_jax.models.stage1 import Stage1StudentConfig, aligned_layers
from internvideo_jax.models.video_classifier import VideoClassifier, VideoClassifierConfig
from internvideo_jax.models.video_vit import VideoViTConfig
from internvideo_jax.nn.position_embedding import (
    resize_position_table,
    sincos_1d,
    sincos_2d,
    sincos_3d,
    sinusoid_table,
)
from internvideo_jax.objectives.classification import soft_cross_entropy
from internvideo_jax.training.masking import attention_guided_kept, importance_order, kept_to_mask
from internvideo_jax.training.mixup import MixDraw, cutmix_box, mix_targets, mix_video
from internvideo_jax.training.optimizer import OptimizerConfig, adamw, layer_ids, layer_scales
from internvideo_jax.training.schedules import warmup_cosine


def check_attention_mask(golden: Golden, batch_size: int) -> None:
    """Checks `out/mask` and `out/importance` from `out/attn` and `in/exp_draw`, which a teacher's
    golden holds; for use by the checkers of those goldens."""
    attention, draws = golden["out/attn"], golden["in/exp_draw"]
    kept = attention_guided_kept(attention, draws, golden.config["mask_ratio"], batch_size)
    assert_tensor_close(
        "out/mask", kept_to_mask(kept, 1 + attention.size // batch_size), golden["out/mask"]
    )
    if "out/importance" in golden:
        order = importance_order(attention, draws)
        assert_tensor_close("out/importance", order, golden["out/importance"])


@checker("internvideo2_stage1.sincos_pos_embed")
def check_sincos(golden: Golden) -> None:
    dim, grid, frames = (golden.config[k] for k in ("embed_dim", "grid", "t"))
    tables = {
        "1d": sincos_1d(dim, np.arange(frames)),
        "2d": sincos_2d(dim, (grid, grid)),
        "3d_cls": sincos_3d(dim, (grid, grid), frames),
    }
    assert_tensors_close(tables, golden.group("out/"))


@checker("internvideo2_stage1.sincos_fullsize_rows")
def check_full_size_rows(golden: Golden) -> None:
    c = golden.config
    dim, grid, frames = c["embed_dim"], c["grid"], c["t"]
    tables = {
        "3d_cls_rows": sincos_3d(dim, (grid, grid), frames)[c["rows_3d_cls"]],
        "videomae_rows": sinusoid_table(frames * grid * grid, dim)[c["rows_videomae"]],
    }
    assert_tensors_close(tables, golden.group("out/"))


@checker("internvideo2_stage1.pos_embed_interp")
def check_position_resizing(golden: Golden) -> None:
    golden.config.ignore("embed_dim")
    cases = golden.config["cases_joint"]

    def grid(name: str, which: str) -> tuple[int, int, int]:
        side = cases[name][f"{which}_grid"]
        return cases[name][f"{which}_t"], side, side

    resized = {}
    for name, table in golden.group("in/").items():
        if name in cases:
            resized[name] = resize_position_table(table, grid(name, "orig"), grid(name, "new"))
        else:
            frames = re.fullmatch(r"sep_t\d+to(\d+)", name)
            assert frames, f"unknown case {name}"
            grids = (table.shape[1], 1, 1), (int(frames[1]), 1, 1)
            resized[name] = resize_position_table(table, *grids, num_extra=0)
    assert_tensors_close(resized, golden.group("out/"))


@checker("internvideo2_stage1.mixup")
def check_mixup(golden: Golden) -> None:
    options = golden.config["mixup"]
    options.expect(mode="batch", prob=1.0)
    # How the recorded draws came about, not what they do.
    options.ignore("mixup_alpha", "cutmix_alpha", "switch_prob")
    num_classes, smoothing = golden.config["num_classes"], options["label_smoothing"]
    for draw in golden.config["draws"]:
        name = f"s{draw['numpy_seed']}"
        # The goldens are [B, T, C, H, W], ours [B, T, H, W, C].
        video = np.moveaxis(golden[f"in/{name}/x"], 2, -1)
        weight, box = draw["lam"], [0] * 4
        if draw["use_cutmix"]:
            box = draw["bbox_yl_yh_xl_xh"]
            _assert_box_of_some_center(draw, video.shape[2:4])
            weight = draw["lam_corrected"]
        mix = MixDraw(jnp.float32(weight), jnp.asarray(box), jnp.asarray(draw["use_cutmix"]))
        targets = mix_targets(golden[f"in/{name}/target"], mix, num_classes, smoothing)
        mixed = np.moveaxis(mix_video(video, mix), -1, 2)
        assert_tensors_close({"x": mixed, "target": targets}, golden.group(f"out/{name}/"))


def _assert_box_of_some_center(draw: dict[str, Any], size: tuple[int, int]) -> None:
    centers = jnp.asarray(list(np.ndindex(*size)))
    weight = jnp.float32(draw["lam"])
    boxes, corrected = jax.vmap(lambda center: cutmix_box(weight, center, size))(centers)
    same = (boxes == jnp.asarray(draw["bbox_yl_yh_xl_xh"])).all(axis=1)
    assert same.any(), f"no centre gives the recorded cutmix box of {draw}"
    assert_table_close(float(corrected[same][0]), draw["lam_corrected"])


@checker("internvideo2_stage1.cosine_schedule")
def check_cosine_schedule(golden: Golden) -> None:
    for case in golden.table["cases"]:
        args = dict(case["args"])
        peak, final = args.pop("base_value"), args.pop("final_value")
        per_epoch, warmup_epochs = args.pop("niter_per_ep"), args.pop("warmup_epochs", 0)
        total = args.pop("epochs") * per_epoch
        warmup = int(warmup_epochs * per_epoch)
        if warmup_epochs > 0 and args.pop("warmup_steps", -1) > 0:
            warmup = case["args"]["warmup_steps"]
        args.pop("warmup_steps", None)
        start = args.pop("start_warmup_value", 0.0)
        assert not args, f"unknown arguments {args}"
        assert total == case["len"]
        values = warmup_cosine(peak, final, total, warmup, start)(np.arange(total))
        ours = {step: float(values[int(step)]) for step in case["values"]}
        assert_table_close(ours, case["values"])


@checker("internvideo2_stage1.layer_decay")
def check_layer_decay(golden: Golden) -> None:
    for case, table in golden.table["tables"].items():
        expected = table["params"]
        module, plan = _tiny_model(expected)
        params = abstract_variables(module)["params"]
        layers = flatten_dict(layer_ids(params, module), sep="/")
        scales = layer_scales(params, module, table["layer_decay"])
        scales = flatten_dict(scales, sep="/")
        ours = {}
        for part in plan.loaded:
            path = part.targets[0].removeprefix("params/")
            layer, scale = (
                (values[part.index] if values.size > 1 else values).item()
                for values in (layers[path].ravel(), scales[path].ravel())
            )
            for key in part.keys:
                ours[key] = {
                    "weight_decay": table["weight_decay"] if module.is_decayed(path) else 0.0,
                    "lr_scale": scale,
                    # Upstream assigns no layers where layer decay is off.
                    "layer_id": layer if table["layer_decay"] < 1 else None,
                }
        assert_table_close(ours, expected, where=case)


def _tiny_model(keys: Iterable[str]) -> tuple[Any, Plan]:
    """A small classifier or pre-training student with these PyTorch keys, and its plan."""

    def count(stack: str) -> int:
        return len({match[1] for key in keys if (match := re.match(rf"{stack}\.(\d+)\.", key))})

    depth = count("blocks")
    encoder = VideoViTConfig(
        width=16, depth=depth, num_heads=2, mlp_dim=8, pooler_heads=2, image_size=14, num_frames=1
    )
    if decoders := count("clip_decoder"):
        config: Any = Stage1StudentConfig(
            encoder, aligned_layers(depth, decoders), aligned_layers(depth, count("mae_decoder"))
        )
    else:
        config = VideoClassifierConfig(encoder, num_classes=2)
    return build(config), export_plan(config)


# Shifts of all keys of the pooler by one vector, which its softmax does not feel: the gradients are
# rounding noise, of which Adam makes steps of full size.
POOLER_KEY_SHIFTS = ("clip_projector.cross_attn.k_bias", "clip_projector.norm1_k.bias")


@checker("internvideo2_stage1.train_steps_adamw_layerdecay")
def check_train_steps(golden: Golden) -> None:
    c = golden.config
    recipe = ("batch", "steps", "betas", "eps", "weight_decay", "layer_decay", "clip_grad_norm")
    config = config_from_upstream("classify", {k: c[k] for k in c if k not in recipe})
    state = golden.group("state/")
    plan = make_plan(recognize({key: x.shape for key, x in state.items()}), config)
    params = to_tree(state, plan)["params"]
    model = VideoClassifier(config)
    rates = jnp.asarray(golden["in/lr"], jnp.float32)
    options = {name: c[name] for name in ("eps", "weight_decay", "layer_decay")}
    options |= {"betas": tuple(c["betas"]), "max_grad_norm": c["clip_grad_norm"]}
    optimizer = adamw(lambda step: rates[step], OptimizerConfig(1.0, **options), model)

    @jax.jit
    def step(params: Any, state: Any, video: jax.Array, target: jax.Array) -> tuple[Any, ...]:
        def loss(params: Any) -> jax.Array:
            logits = model.apply({"params": params}, video).logits
            return soft_cross_entropy(logits, target)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value, optax.tree.norm(gradients)

    optimizer_state = jax.jit(optimizer.init)(params)
    for i in range(c["steps"]):
        video = np.moveaxis(golden[f"in/step{i}/video"], 1, -1)
        assert len(video) == c["batch"]
        params, optimizer_state, value, norm = step(
            params, optimizer_state, video, golden[f"in/step{i}/soft_target"]
        )
        assert_tensors_close(
            {"loss": value, "grad_norm_before_clip": norm}, golden.group(f"out/step{i}/")
        )

    ours, expected = to_state_dict({"params": params}, plan), golden.group("out/state_after/")
    for name in POOLER_KEY_SHIFTS:
        del ours[name], expected[name]
    # Adam makes a step of full size of any gradient, so rounding shows where one nearly cancels:
    # one element of 4096 is off by 1.6e-5 of the scale, the median is 2e-7.
    assert_tensors_close(ours, expected, tolerance=5e-5)


@checker("internvideo2_stage1.k710_head_maps")
def check_k710_head_maps(golden: Golden) -> None:
    assert K710_ROWS[400] == tuple(range(400))
    for classes in (600, 700):
        assert list(K710_ROWS[classes]) == golden.table[f"to_{classes}"]
