"""The InternVideo2 video encoder in plain PyTorch: what `benchmark encoder` races against.

Fused linear layers, fused `scaled_dot_product_attention`, one op per line otherwise. It takes the
parameters of `models.video_vit` by name, so both sides compute the same function of the same
numbers.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class TorchVideoViT:
    """`models.video_vit.VideoViT` with tanh GELU and one position table over all tokens."""

    def __init__(self, params: Mapping[str, np.ndarray]) -> None:
        """Takes copies of parameters named as in `VideoViT`, joined by `/`."""
        self._depth, self._num_heads, _ = params["blocks/attn/q_norm/scale"].shape
        self._pooler_heads = params["pooler/q/kernel"].shape[1]
        self._weights: dict[str, Tensor] = {}
        for path, array in params.items():
            if path.startswith("blocks/"):
                for layer, part in enumerate(array):
                    self._add(path.replace("blocks", f"blocks/{layer}"), part)
            else:
                self._add(path, array)

    def __call__(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes clips `[B, T, H, W, 3]`; returns tokens `[B, N, D]` and pooled `[B, P]`."""
        w = self._weights
        kernel = w["patch_embed/kernel"]
        patches = F.conv3d(
            video.permute(0, 4, 1, 2, 3), kernel, w["patch_embed/bias"], stride=kernel.shape[2:]
        )
        patches = patches.flatten(2).transpose(1, 2)
        x = torch.cat([w["cls_token"].expand(len(patches), -1, -1), patches], dim=1)
        x = x + w["pos_embed"]
        for layer in range(self._depth):
            x = self._block(f"blocks/{layer}", x)
        inputs = {"q": x.mean(1, keepdim=True), "k": x, "v": x}
        q, k, v = (
            self._linear(f"pooler/{name}", self._layer_norm(f"pooler/norm_{name}", y))
            for name, y in inputs.items()
        )
        pooled = self._linear("pooler/proj", _attend(q, k, v, self._pooler_heads))
        return x, pooled[:, 0]

    def _block(self, name: str, x: Tensor) -> Tensor:
        """One pre-norm layer with q/k RMSNorm over the full width and layer scale."""
        qkv = self._linear(f"{name}/attn/qkv", self._rms_norm(f"{name}/norm1", x))
        q, k, v = qkv.chunk(3, dim=-1)
        q, k = self._rms_norm(f"{name}/attn/q_norm", q), self._rms_norm(f"{name}/attn/k_norm", k)
        attended = self._linear(f"{name}/attn/proj", _attend(q, k, v, self._num_heads))
        x = x + self._weights[f"{name}/ls1/gamma"] * attended
        hidden = self._linear(f"{name}/mlp/fc1", self._rms_norm(f"{name}/norm2", x))
        hidden = self._linear(f"{name}/mlp/fc2", F.gelu(hidden, approximate="tanh"))
        return x + self._weights[f"{name}/ls2/gamma"] * hidden

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{name}/kernel"], self._weights.get(f"{name}/bias"))

    def _rms_norm(self, name: str, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self._weights[f"{name}/scale"], eps=1e-6)

    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        scale, bias = (self._weights[f"{name}/{key}"] for key in ("scale", "bias"))
        return F.layer_norm(x, x.shape[-1:], scale, bias, eps=1e-5)

    def _add(self, path: str, array: np.ndarray) -> None:
        """Keeps a copy of a parameter in PyTorch's layout."""
        if path == "patch_embed/kernel":
            array = array.transpose(4, 3, 0, 1, 2)
        elif path.endswith("/kernel"):
            num_inputs = 2 if path.endswith("/proj/kernel") else 1
            array = array.reshape(math.prod(array.shape[:num_inputs]), -1).T
        elif "/" in path:
            # Norms and biases of heads are over the full width.
            array = array.reshape(-1)
        self._weights[path] = torch.from_numpy(np.array(array, order="C"))


def _attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Attention of `[B, N, H * Dh]`."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
