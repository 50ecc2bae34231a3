"""Students, classifiers and teachers of stage 1: outputs, intermediates, losses, gradients."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from checkers.internvideo2_stage1_functions import POOLER_KEY_SHIFTS, check_attention_mask
from comparison import assert_gradients_close, assert_tensor_close, assert_tensors_close
from golden import Golden, checker

from internvideo_jax.convert.engine.adaptations import inflate_patch_kernel, resize_positions
from internvideo_jax.convert.engine.plan import Plan, plan
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.state_dict import to_state_dict, to_tree
from internvideo_jax.convert.engine.transforms import CONV2D_TO_3D, CONV3D
from internvideo_jax.convert.engine.upstream import infer_config
from internvideo_jax.convert.engine.verify import Reference, run_reference
from internvideo_jax.models import build
from internvideo_jax.models.stage1 import StudentOutput
from internvideo_jax.nn.position_embedding import resize_position_table, sinusoid_table
from internvideo_jax.nn.smoothing import PRODUCTS
from internvideo_jax.objectives.classification import soft_cross_entropy
from internvideo_jax.objectives.distillation import distillation_loss
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.training.masking import (
    MaskConfig,
    kept_to_mask,
    mask_to_kept,
)
from internvideo_jax.training.stages import calibration
from internvideo_jax.training.stages.alignment import AlignmentStage
from internvideo_jax.training.stages.int8_teachers import Calibration
from internvideo_jax.training.stages.pretrain import PretrainConfig
from internvideo_jax.training.stages.teachers import FrozenTeacher


@dataclasses.dataclass(frozen=True)
class Converted:
    """A model with the golden's parameters, converted by the rules that users' files go through."""

    module: nn.Module
    variables: dict[str, Any]
    plan: Plan


def convert(kind: str, config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Converted:
    """The model that the tensors show; `config` says what they do not."""
    found = recognize({key: x.shape for key, x in state.items()}, architecture=_ARCHITECTURES[kind])
    found = dataclasses.replace(found, kind=kind)
    model_config = infer_config(found, stored=config)
    conversion = plan(found, model_config)
    return Converted(build(model_config), to_tree(state, conversion), conversion)


_ARCHITECTURES = {
    "classify": "video_classifier",
    "ap": "video_classifier",
    "cat": "video_classifier",
    "pretrain": "stage1_student",
    "distill": "distill_student",
    "internvl_teacher": "teacher",
    "internvideo2_teacher": "teacher",
    "videomae_teacher": "videomae_teacher",
}


def check_forward(golden: Golden, model: Converted, *losses: str) -> None:
    """Checks every output but the `losses`, which the caller checks with the gradients."""
    inputs, outputs = golden.group("in/"), golden.group("out/")
    reference = Reference(inputs, outputs, bool(golden.config.get("train_mode", False)))
    expected = {name: x for name, x in outputs.items() if name not in losses}
    values = run_reference(model, reference)
    assert_tensors_close({k: v for k, v in values.items() if k in expected}, expected)


def check_losses_and_gradients(
    golden: Golden,
    model: Converted,
    losses: Callable[[Any], dict[str, jax.Array]],
    total: str,
    *,
    zero: Collection[str] = (),
) -> None:
    """Checks what `losses(params)` gives against `out/*`, and the gradient of `total` among it.

    `zero` names gradients that vanish analytically, besides those of all poolers.
    """

    def objective(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        values = losses(params)
        return values[total], values

    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.grad(objective, has_aux=True))
        gradients, values = gradient(model.variables["params"])
    assert_tensors_close(values, {name: golden[f"out/{name}"] for name in values})
    expected = golden.group("grad/")
    ours = to_state_dict({"params": gradients}, model.plan)
    assert_gradients_close(ours, expected, zero=(*POOLER_KEY_SHIFTS, *zero))


@checker("internvideo2_stage1.classify", "internvideo2_stage1.ap", "internvideo2_stage1.cat")
def check_classifier(golden: Golden) -> None:
    model = convert(golden.file.kind.split(".")[1], dict(golden.config), golden.group("state/"))
    train = golden.config["train_mode"]
    video = np.moveaxis(golden["in/video"], 1, -1)

    def losses(params: Any) -> dict[str, jax.Array]:
        output, _ = model.module.apply(
            {**model.variables, "params": params},
            video,
            deterministic=not train,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        loss = soft_cross_entropy(output.logits, golden["in/soft_target"])
        return {"loss_soft_ce": loss}

    head = model.module.config
    zero = []
    if (
        train
        and (head.head, head.merge_method) == ("concat", "cls_avg1")
        and head.merge_norm != "ln"
    ):
        # Batch norm takes away what this bias adds to every token.
        zero = [f"blocks.{head.encoder.depth - 1}.mlp.fc2.bias"]
    check_forward(golden, model, "loss_soft_ce")
    check_losses_and_gradients(golden, model, losses, "loss_soft_ce", zero=zero)


def gather_rows(features: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Rows of features `[K, B, N, D]` at the indices `kept` `[B, R]`."""
    return np.take_along_axis(features, np.asarray(kept)[None, :, :, None], axis=2)


def student_losses(
    output: StudentOutput,
    targets: Mapping[str, jax.Array],
    ratios: tuple[float, float, float],
) -> dict[str, jax.Array]:
    """Upstream's names of the losses; a term without target is 0."""
    terms = ("clip_middle", "clip_final", "mae")
    weights = {term: r for term, r in zip(terms, ratios, strict=True) if term in targets}
    student = {"clip_middle": output.clip_middle, "clip_final": output.clip_final}
    if output.mae is not None:
        student["mae"] = output.mae
    total, parts = distillation_loss(student, targets, weights)
    named = {f"loss_{term}": parts.get(term, np.float32(0)) for term in terms}
    return {"loss": total, **named}


@checker("internvideo2_stage1.pretrain", "internvideo2_stage1.distill")
def check_student(golden: Golden) -> None:
    model = convert(golden.file.kind.split(".")[1], dict(golden.config), golden.group("state/"))
    ratios = golden.config.get("loss_ratios_clipmid_clipfinal_mae", (1, 1, 0))
    kept = mask_to_kept(golden["in/mask"])
    video = np.moveaxis(golden["in/video"], 1, -1)
    targets = {"clip_middle": gather_rows(golden["in/norm_clip_middle"], kept)}
    if "in/norm_clip_final" in golden:
        targets["clip_final"] = golden["in/norm_clip_final"]
    if "in/norm_mae" in golden:
        targets["mae"] = gather_rows(golden["in/norm_mae"], kept[:, 1:] - 1)
    names = [name.removeprefix("out/") for name in golden.names("out/loss")]

    def losses(params: Any) -> dict[str, jax.Array]:
        output = model.module.apply({**model.variables, "params": params}, video, kept)
        values = student_losses(output, targets, tuple(ratios))
        return {name: values[name] for name in names}

    check_forward(golden, model, *names)
    check_losses_and_gradients(golden, model, losses, "loss")


@checker("internvideo2_stage1.internvl_teacher", "internvideo2_stage1.internvideo2_teacher")
def check_teacher(golden: Golden) -> None:
    kind = golden.file.kind.split(".")[1]
    model = convert(kind, dict(golden.config), golden.group("state/"))
    check_forward(golden, model, "importance", "mask")
    check_attention_mask(golden, golden.config["batch"])
    if kind == "internvl_teacher":
        check_int8(model, np.moveaxis(golden["in/video"], 1, -1))


def check_int8(model: Converted, video: np.ndarray) -> None:
    """Checks that targets and masks stay where the blocks multiply int8 values."""
    teacher = FrozenTeacher("clip_teacher", model.module.config, None, 1)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    clips = calibration.Clips([jnp.asarray(video)], MaskConfig(), mesh, DEFAULT_RULES)
    largest = calibration.largest_inputs(teacher, model.variables, clips)
    found = Calibration(PRODUCTS, largest)
    deviation = calibration.deviation(teacher, model.variables, found, clips)
    assert deviation.of_targets(teacher.config.layers) <= 1e-3
    assert deviation.agreement >= 0.99


@checker("internvideo2_stage1.videomae_teacher")
def check_videomae_teacher(golden: Golden) -> None:
    model = convert("videomae_teacher", dict(golden.config), golden.group("state/"))
    check_forward(golden, model, "pos_embed")
    encoder = model.module.config.encoder
    native = sinusoid_table(int(np.prod(encoder.native_grid)), encoder.width)[None]
    table = resize_position_table(native, encoder.native_grid, encoder.grid, num_extra=0)
    assert_tensor_close("pos_embed", table, golden["out/pos_embed"])


@checker("internvideo2_stage1.stage1_full_step")
def check_full_step(golden: Golden) -> None:
    c = golden.config
    stride, batch = c["temporal_downsample"], c["batch"]
    state = golden.group("state/")

    def part(name: str, kind: str) -> Converted:
        own = {k.removeprefix(f"{name}."): x for k, x in state.items() if k.startswith(f"{name}.")}
        options = dict(c[name])
        if name == "mae_teacher":
            options["pos_embed_is_parameter"] = "pos_embed" in own
        return convert(kind, options, own)

    student = part("student", "pretrain")
    clip_teacher = part("clip_teacher", "internvl_teacher")
    mae_teacher = part("mae_teacher", "videomae_teacher")
    # The MAE-side teacher sees all frames; the others those that its tubelets stand for.
    raw = np.moveaxis(golden["in/video"], 1, -1)
    assert raw.shape[1] == c["raw_frames"]
    weights = ("clip_middle_weight", "clip_final_weight", "mae_weight")
    config = PretrainConfig(
        student.module.config,
        clip_teacher.module.config,
        mae_teacher.module.config,
        mask=MaskConfig("attention", c["mask_ratio"]),
        **dict(zip(weights, c["loss_ratios_clipmid_clipfinal_mae"], strict=True)),
    )
    stage = AlignmentStage(config)
    assert config.stride == stride

    frozen = {"clip_teacher": clip_teacher.variables, "mae_teacher": mae_teacher.variables}
    clips = {"video": jnp.asarray(raw)}
    draws = golden["in/exp_draw"].reshape(batch, -1, golden["in/exp_draw"].shape[-1])
    with jax.default_matmul_precision("highest"):
        features, targets = jax.jit(lambda *x: (stage.features(*x[:2]), stage.drawn_targets(*x)))(
            frozen, clips, draws
        )
    features = {name.removeprefix("targets/"): x for name, x in features.items()}
    kept = targets["kept"]
    teachers = {
        "attn": features["attention"].reshape(-1, features["attention"].shape[-1]),
        "mask": kept_to_mask(kept, features["clip_middle"].shape[2]),
        "norm_clip_middle": features["clip_middle"].swapaxes(0, 1),
        "norm_clip_final": features["clip_final"],
        "norm_mae": features["mae"].swapaxes(0, 1),
    }
    assert_tensors_close(teachers, {name: golden[f"out/{name}"] for name in teachers})
    expected = {
        "kept": mask_to_kept(golden["out/mask"]),
        "clip_middle": gather_rows(golden["out/norm_clip_middle"], kept).swapaxes(0, 1),
        "clip_final": golden["out/norm_clip_final"],
        "mae": gather_rows(golden["out/norm_mae"], kept[:, 1:] - 1).swapaxes(0, 1),
    }
    assert_tensors_close(targets, expected)

    def losses(params: Any) -> dict[str, jax.Array]:
        total, (terms, _) = stage.loss(params, {}, clips, targets, jax.random.key(0))
        output: Any = student.module.apply({"params": params}, raw[:, ::stride], kept)
        named = {f"loss_{name}": terms[name] for name in terms}
        return {"loss": total, **named, **{name: getattr(output, name) for name in terms}}

    check_losses_and_gradients(golden, student, losses, "loss")


@checker("internvideo2_stage1.internvl_ckpt_preprocess")
def check_checkpoint_preprocessing(golden: Golden) -> None:
    c = golden.config
    c.ignore("embed_dim")
    kernel, table = golden["in/patch_embed.proj.weight"], golden["in/pos_embed"]
    side = c["img_size"] // c["patch_size"]
    old, new = (1, c["orig_grid"], c["orig_grid"]), (1, side, side)
    dim, channels, *patch = kernel.shape
    (image,) = CONV2D_TO_3D.forward([kernel], [(1, *patch, channels, dim)])
    if c["kernel_t"] > 1:
        image = inflate_patch_kernel(image.shape, c["kernel_t"], "center").apply(image)
    adapted = {
        "patch_embed.proj.weight": CONV3D.inverse([image])[0],
        "pos_embed": resize_positions(table.shape, old, new, 1).apply(table),
    }
    assert_tensors_close(adapted, golden.group("out/"))
