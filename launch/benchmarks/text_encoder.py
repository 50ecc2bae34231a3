"""The text layers of stage 2 beside the same BERT in transformers.

JAX is imported late, since it would count as memory of the peer's side.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from internvideo_jax.config import from_dict, to_dict
from internvideo_jax.launch.benchmarks.forwards import (
    Forward,
    check_threads,
    on_device,
    race,
    random_parameters,
)
from internvideo_jax.launch.benchmarks.runner import OURS, Row, sides

if TYPE_CHECKING:
    from internvideo_jax.models.bert import BertConfig

BATCH_SIZE, LENGTH = 64, 32
# The shortest text, the rest of which is padding.
_SHORTEST = 8

Size = Literal["large", "base"]


def benchmark_text_encoder(*, size: Size, threads: int, repeats: int) -> Row:
    """Times compiled forwards of 64 texts of 32 tokens in float32, in turns with transformers'.

    Args:
      size: of the BERT; see `text_config`.
      threads: of each side, on so many CPUs.
      repeats: timed runs of each side, after a first one that is not counted.

    Raises:
      ValueError: the two sides' outputs disagree, or there are fewer CPUs than threads.
    """
    check_threads(threads)
    config = text_config(size)
    with tempfile.TemporaryDirectory(prefix="internvideo-") as folder:
        write_inputs(Path(folder), config)
        return race(
            f"text_encoder/{size}",
            sides("transformers", "pip install torch transformers", "torch", "transformers"),
            prepare,
            Path(folder),
            to_dict(config),
            threads,
            threads=threads,
            repeats=repeats,
            details={"batch_size": BATCH_SIZE, "length": LENGTH, "layers": config.depth},
        )


def text_config(size: Size) -> "BertConfig":
    """The text layers of stage 2 alone: 19 of BERT-large, or 9 of BERT-base's size."""
    from internvideo_jax.models.bert import bert_large_fusion

    config = dataclasses.replace(
        bert_large_fusion(), depth=19, fusion_layer=19, cross_width=None, mlm_head=False
    )
    if size == "large":
        return config
    return dataclasses.replace(
        config, width=768, depth=9, fusion_layer=9, num_heads=12, mlp_dim=3072
    )


def write_inputs(folder: Path, config: "BertConfig") -> None:
    """Writes what the sides read: `texts.npz`, and the same random weights for each: `params.npz`
    by our paths, `state_dict.npz` by PyTorch's keys."""
    from flax import traverse_util

    from internvideo_jax.convert.engine.plan import export_plan
    from internvideo_jax.convert.engine.state_dict import to_state_dict
    from internvideo_jax.models.bert import Bert

    rng = np.random.default_rng(0)
    ids = rng.integers(1, config.vocab_size, (BATCH_SIZE, LENGTH))
    lengths = rng.integers(_SHORTEST, LENGTH + 1, (BATCH_SIZE, 1))
    mask = (np.arange(LENGTH) < lengths).astype(np.int64)
    np.savez(folder / "texts.npz", ids=np.where(mask, ids, config.pad_id), mask=mask)
    params: dict[str, Any] = random_parameters(Bert(config), rng)
    np.savez(folder / "params.npz", **params)
    variables = {"params": traverse_util.unflatten_dict(params, sep="/")}
    state: dict[str, Any] = to_state_dict(variables, export_plan(config))
    np.savez(folder / "state_dict.npz", **state)


def prepare(side: str, folder: Path, config: dict[str, Any], threads: int) -> Forward:
    """A side's forward, which returns tokens `[B, N, D]`."""
    with np.load(folder / "texts.npz") as texts:
        ids, mask = texts["ids"], texts["mask"]
    if side == OURS:
        with np.load(folder / "params.npz") as params:
            return jax_forward(params, ids, mask, config)
    with np.load(folder / "state_dict.npz") as state:
        return transformers_forward(state, ids, mask, config, threads)


def jax_forward(params: Any, ids: np.ndarray, mask: np.ndarray, config: dict[str, Any]) -> Forward:
    """This library's forward, compiled."""
    import jax

    from internvideo_jax.models.bert import Bert, BertConfig

    module: Any = Bert(from_dict(BertConfig, config))
    variables = on_device(params)
    texts = jax.device_put((ids.astype(np.int32), mask.astype(np.int32)))
    compiled = jax.jit(lambda variables, ids, mask: module.apply(variables, ids, mask, mode="text"))

    def forward() -> tuple[Any]:
        return (jax.block_until_ready(compiled(variables, *texts)).tokens,)

    return forward


def transformers_forward(
    state: Any, ids: np.ndarray, mask: np.ndarray, config: dict[str, Any], threads: int
) -> Forward:
    """The forward of transformers with PyTorch's fused attention, in inference mode."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=config["vocab_size"],
            hidden_size=config["width"],
            num_hidden_layers=config["depth"],
            num_attention_heads=config["num_heads"],
            intermediate_size=config["mlp_dim"],
            max_position_embeddings=config["max_length"],
            type_vocab_size=config["type_vocab_size"],
            layer_norm_eps=config["norm_epsilon"],
            attn_implementation="sdpa",
        ),
        add_pooling_layer=False,
    ).eval()
    # Keys without the prefix that files of whole models have.
    tensors = {key.removeprefix("bert."): torch.from_numpy(state[key]) for key in state}
    model.load_state_dict(tensors, assign=True)
    texts = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    @torch.inference_mode()
    def forward() -> tuple[Any]:
        return (model(**texts).last_hidden_state,)

    return forward
