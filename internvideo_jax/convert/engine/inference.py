"""What model a checkpoint holds, read from the names and shapes of its tensors.

Tensors are described as constructor options of upstream's classes, so that what they do not show
(numbers of heads, the GELU variant) is filled from the same vocabulary (see `upstream.py`).
"""

import math
import re
from collections.abc import Container, Iterable, Mapping
from fractions import Fraction
from typing import Any

from internvideo_jax.config import nearest_name
from internvideo_jax.convert.engine.plan import ANCHOR, canonical_names
from internvideo_jax.convert.engine.transforms import Shape
from internvideo_jax.convert.engine.upstream import config_from_upstream
from internvideo_jax.models import ARCHITECTURES
from internvideo_jax.nn.position_embedding import Grid

# Attention heads by width: S14, B14, L14, 1B and VideoMAEv2-g, 6B. All poolers have 16.
HEADS = {384: 6, 768: 12, 1024: 16, 1408: 16, 3200: 25}

# The other architectures have several kinds of models; their keys tell which.
_KIND_OF_ARCHITECTURE = {
    "video_vit": "encoder",
    "stage1_student": "pretrain",
    "distill_student": "distill",
    "videomae": "videomae",
    "videomae_teacher": "videomae_teacher",
}


def infer_config(
    shapes: Mapping[str, Shape],
    *,
    architecture: str | None = None,
    given: Mapping[str, Any] | None = None,
    stored: Mapping[str, Any] | None = None,
) -> Any:
    """The config of the model that a checkpoint holds, or that is asked of it.

    Args:
      shapes: shape of every tensor, by its key.
      architecture: what the checkpoint is to become, if it is not to be all that it holds.
      given: constructor options that the user states; they win over what the tensors say.
      stored: arguments found in the file; they fill only what the tensors do not say.

    Raises:
      ValueError: another kind of model, or an option that must be given.
    """
    given, stored = dict(given or {}), dict(stored or {})
    kind = infer_kind(shapes, architecture)
    canonical = {key: tuple(shapes[name]) for key, name in canonical_names(shapes).items()}
    heads = _family_heads(kind, canonical[ANCHOR][0])
    problems = _unknown_heads(heads, canonical[ANCHOR][0], given.keys() | stored.keys())
    try:
        options = _tensor_options(kind, canonical, given, stored) | given
    except ValueError as error:
        problems.insert(0, str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return config_from_upstream(kind, options, heads | stored)


def infer_kind(shapes: Mapping[str, Shape], architecture: str | None = None) -> str:
    """The kind of model (`upstream.KINDS`) that a checkpoint holds, or that is asked of it.

    Raises:
      ValueError: another kind of model, or one with a text tower while no architecture is named.
    """
    if architecture not in (None, *ARCHITECTURES):
        raise ValueError(
            f"expected an architecture among {', '.join(ARCHITECTURES)}, found {architecture!r}"
            f"{nearest_name(str(architecture), ARCHITECTURES)}"
        )
    names = canonical_names(shapes)
    if architecture in _KIND_OF_ARCHITECTURE:
        return _KIND_OF_ARCHITECTURE[architecture]

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in names)

    if architecture is None:
        if has("text_encoder."):
            raise ValueError(
                "expected a vision model, found one with a text tower (keys `text_encoder.*`);"
                " convert its video encoder alone with --architecture=video_vit or teacher"
            )
        if "cls_token" not in names and not has("clip_projector."):
            return "videomae_teacher"
        if has("mae_decoder."):
            return "pretrain"
        if has("clip_decoder."):
            return "distill"
    if architecture == "video_classifier" or (architecture is None and has("head.")):
        if has("extra_mlp."):
            return "ap"
        return "cat" if has("down_norm.") else "classify"
    # An image tower has a 2-D kernel, or a table of 16x16 patches and the class token.
    table = shapes[names["pos_embed"]] if "pos_embed" in names else (1, 0)
    if len(shapes[names[ANCHOR]]) == 4 or table[1] == 257:
        return "internvl_teacher"
    return "encoder" if architecture is None else "internvideo2_teacher"


def infer_grid(num_tokens: int, *, side: int | None = None, frames: int | None = None) -> Grid:
    """Grid (t, h, w) of a joint position table of `num_tokens` patch tokens and square frames.

    Args:
      num_tokens: t*h*w.
      side: h = w, if it is known.
      frames: t, if it is known.

    Raises:
      ValueError: no grid fits, or several do and none of them is the released models' 16x16
        patches of a power of two of frames.
    """
    grids = [
        (t, s, s)
        for s in range(1, math.isqrt(num_tokens) + 1)
        if num_tokens % (s * s) == 0 and (t := num_tokens // (s * s))
        if side in (None, s) and frames in (None, t)
    ]
    released = [g for g in grids if g[1] == 16 and g[0].bit_count() == 1]
    if len(grids) == 1 or len(released) == 1:
        return (released or grids)[0]
    raise ValueError(
        f"expected a position table that tells its grid, found {num_tokens} patch tokens, which are"
        f" {' or '.join('x'.join(map(str, g)) for g in grids[:-12:-1]) or 'no grid'} (time x height"
        f" x width) with side {side or 'unknown'} and {frames or 'unknown'} steps; pass"
        " --option=img_size=PIXELS or --option=num_frames=N of the model that was trained"
    )


def _tensor_options(
    kind: str, shapes: Mapping[str, Shape], given: Mapping[str, Any], stored: Mapping[str, Any]
) -> dict[str, Any]:
    """Constructor options that the tensors of a checkpoint (by canonical key) show."""
    kernel = shapes[ANCHOR]
    width = kernel[0]
    hidden = _in_blocks(shapes, "mlp.fc1.weight") or (4 * width, width)
    options: dict[str, Any] = {
        "embed_dim": width,
        "depth": _count(shapes, "blocks"),
        # A fraction survives the constructors' int(width * mlp_ratio).
        "mlp_ratio": Fraction(hidden[0], width),
        "patch_size": kernel[-1],
        # The kernel of an image model covers one frame.
        "tubelet_size": kernel[2] if len(kernel) == 5 else 1,
    }
    if kind.startswith("videomae"):
        options["qkv_bias"] = _in_blocks(shapes, "attn.q_bias") is not None
        options["pos_embed_is_parameter"] = "pos_embed" in shapes
        layer_scale = _in_blocks(shapes, "gamma_1")
    else:
        options |= {
            "clip_embed_dim": _rows(shapes, "clip_projector.cross_attn.proj.bias", 768),
            "qk_normalization": _in_blocks(shapes, "attn.q_norm.weight") is not None,
            "qkv_bias": _in_blocks(shapes, "attn.qkv.bias") is not None,
            "sep_pos_embed": "pos_embed_spatial" in shapes,
        }
        layer_scale = _in_blocks(shapes, "ls1.gamma")
    if layer_scale is None:
        options["init_values"] = 0.0
    elif kind.startswith("videomae") and not stored.get("init_values"):
        # Any initial value but this class's default, which leaves layer scale out.
        options["init_values"] = 0.1
    grid = _table_grid(kind, shapes, options, given, stored)
    if grid is not None:
        frames_name = "all_frames" if kind.startswith("videomae") else "num_frames"
        options[frames_name] = grid[0] * options["tubelet_size"]
        options["img_size"] = grid[1] * options["patch_size"]
    if kind in ("pretrain", "distill"):
        options |= _student_options(kind, shapes)
    if kind in ("classify", "ap", "cat"):
        options |= _head_options(kind, shapes, options, grid, given)
    return options


def _table_grid(
    kind: str,
    shapes: Mapping[str, Shape],
    options: Mapping[str, Any],
    given: Mapping[str, Any],
    stored: Mapping[str, Any],
) -> Grid | None:
    """Grid of the position table; None if the checkpoint has none, as VideoMAE's fixed sines."""
    if "pos_embed_spatial" in shapes and "pos_embed_temporal" in shapes:
        side = math.isqrt(shapes["pos_embed_spatial"][1])
        return shapes["pos_embed_temporal"][1], side, side
    if "pos_embed" not in shapes:
        return None
    is_videomae = kind.startswith("videomae")
    num_tokens = shapes["pos_embed"][1] - (not is_videomae)
    patch, tubelet = options["patch_size"], options["tubelet_size"]
    frames_name = "all_frames" if is_videomae else "num_frames"

    def known(source: Mapping[str, Any]) -> dict[str, int | None]:
        size, frames = (
            value if isinstance(value := source.get(name), int) else None
            for name in ("img_size", frames_name)
        )
        return {"side": size and size // patch, "frames": frames and frames // tubelet}

    if any(known(given).values()):
        return infer_grid(num_tokens, **known(given))
    try:
        return infer_grid(num_tokens, **known(stored))
    except ValueError:
        # Training scripts store the frames they read, which need not be the model's.
        return infer_grid(num_tokens)


def _student_options(kind: str, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    options: dict[str, Any] = {
        "clip_return_layer": _count(shapes, "clip_decoder"),
        "clip_teacher_embed_dim": _rows(shapes, "clip_decoder.0.norm.weight", 0),
        "clip_teacher_final_dim": _rows(shapes, "final_clip_decoder.norm.weight", 0),
    }
    if kind == "pretrain":
        options["mae_return_layer"] = _count(shapes, "mae_decoder")
        options["mae_teacher_embed_dim"] = _rows(shapes, "mae_decoder.0.norm.weight", 0)
    else:
        linear = "clip_decoder.0.head.weight" in shapes
        options["clip_student_decoder"] = "Linear_Decoder" if linear else "MLP_Decoder"
    return options


def _head_options(
    kind: str,
    shapes: Mapping[str, Shape],
    options: Mapping[str, Any],
    grid: Grid | None,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    if not any(key.startswith("head.") for key in shapes) and "num_classes" not in given:
        raise ValueError(
            "expected a classifier's head, found none; pass --new_head --num_classes=N to start an"
            " untrained one"
        )
    head: dict[str, Any] = {"num_classes": _num_classes(shapes)}
    if kind == "cat":
        pooled, steps = options["clip_embed_dim"], grid[0] if grid else 0
        per_step = "down.0.weight" in shapes
        merged = pooled * (1 + steps) if per_step else 2 * options["embed_dim"]
        method = "cls_avgN" if per_step else "cls_avg1"
        weight = shapes.get("head.weight", (0, merged))
        head["merge_method"] = method if weight[1] == merged else f"{method}_proj"
        if "down_norm.running_mean" not in shapes:
            head["merge_norm"] = "LN"
        else:
            head["merge_norm"] = "BN" if "down_norm.weight" in shapes else "kaiming_BN"
    return head


def _num_classes(shapes: Mapping[str, Shape]) -> int:
    """Rows of the head: of its weight, unless that is missing or by its bias transposed."""
    weight, bias = (shapes.get(f"head.{name}", ()) for name in ("weight", "bias"))
    rows = bias if not weight or (bias and bias[0] == weight[-1]) else weight
    return rows[0] if rows else 1


def _family_heads(kind: str, width: int) -> dict[str, int | None]:
    """Numbers of heads, which tensors do not show, of a released model of this width."""
    heads = {"num_heads": HEADS.get(width)}
    if not kind.startswith("videomae"):
        heads["attn_pool_num_heads"] = 16 if width in HEADS else None
    return heads


def _unknown_heads(heads: Mapping[str, int | None], width: int, known: Container[str]) -> list[str]:
    """What to say of the numbers of heads that nothing tells: one message or none."""
    missing = [name for name, number in heads.items() if number is None and name not in known]
    if not missing:
        return []
    return [
        f"expected a released width ({', '.join(map(str, HEADS))}), whose numbers of heads are"
        f" known, found {width}, and tensors do not show them; pass"
        f" {' '.join(f'--option={name}=N' for name in missing)}"
    ]


def _in_blocks(shapes: Mapping[str, Shape], name: str) -> Shape | None:
    """Shape of a parameter in the first block that has it."""
    pattern = re.compile(rf"blocks\.\d+\.{re.escape(name)}")
    return next((shape for key, shape in shapes.items() if pattern.fullmatch(key)), None)


def _count(shapes: Iterable[str], module: str) -> int:
    """Submodules `module.0` ... that keys name."""
    found = (re.match(rf"{module}\.(\d+)\.", key) for key in shapes)
    return 1 + max((int(m[1]) for m in found if m), default=-1)


def _rows(shapes: Mapping[str, Shape], key: str, default: int) -> int:
    """Size of a tensor's first axis; of an absent one, `default`, and the plan will report it."""
    return shapes[key][0] if key in shapes else default
