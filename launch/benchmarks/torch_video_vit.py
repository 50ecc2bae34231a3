"""The InternVideo2 video encoder in plain PyTorch: what `benchmark encoder` and `gpu` race against.

Fused linear layers, fused `scaled_dot_product_attention`, one op per line otherwise. It takes the
parameters of `models.video_vit` by name, so both sides compute the same function of the same
numbers.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


class TorchVideoViT:
    """`models.video_vit.VideoViT` with tanh GELU and one position table over all tokens.

    Attributes:
      run_block: what runs a block, of its weights, tokens and number of heads; `block` unless it is
        replaced, such as by the same compiled.
    """

    def __init__(self, params: Mapping[str, np.ndarray | Tensor]) -> None:
        """Takes copies of parameters named as in `VideoViT`, joined by `/`."""
        depth, self._num_heads, _ = params["blocks/attn/q_norm/scale"].shape
        self._pooler_heads = params["pooler/q/kernel"].shape[1]
        self._weights: dict[str, Tensor] = {}
        self._blocks: list[dict[str, Tensor]] = [{} for _ in range(depth)]
        self.run_block: Callable[[Weights, Tensor, int], Tensor] = block
        for path, array in params.items():
            tensor = torch.as_tensor(array)
            if path.startswith("blocks/"):
                name = path.removeprefix("blocks/")
                for weights, part in zip(self._blocks, tensor, strict=True):
                    weights[name] = _torch_layout(path, part)
            else:
                self._weights[path] = _torch_layout(path, tensor)

    def parameters(self) -> list[Tensor]:
        """All weights."""
        return [w for weights in (self._weights, *self._blocks) for w in weights.values()]

    def __call__(self, video: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encodes clips `[B, T, H, W, 3]`, of which tokens `kept` `[B, K]` are left, or all.

        Returns:
          Tokens `[B, N, D]` and pooled `[B, P]`.
        """
        w = self._weights
        kernel = w["patch_embed/kernel"]
        patches = F.conv3d(
            video.permute(0, 4, 1, 2, 3), kernel, w["patch_embed/bias"], stride=kernel.shape[2:]
        )
        patches = patches.flatten(2).transpose(1, 2)
        x = torch.cat([w["cls_token"].expand(len(patches), -1, -1), patches], dim=1)
        x = x + w["pos_embed"]
        if kept is not None:
            x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
        for weights in self._blocks:
            x = self.run_block(weights, x, self._num_heads)
        inputs = {"q": x.mean(1, keepdim=True), "k": x, "v": x}
        q, k, v = (
            _linear(w, f"pooler/{name}", _layer_norm(w, f"pooler/norm_{name}", y))
            for name, y in inputs.items()
        )
        pooled = _linear(w, "pooler/proj", _attend(q, k, v, self._pooler_heads))
        return x, pooled[:, 0]


def block(w: Weights, x: Tensor, num_heads: int) -> Tensor:
    """One pre-norm layer with q/k RMSNorm over the full width and layer scale."""
    q, k, v = _linear(w, "attn/qkv", _rms_norm(w, "norm1", x)).chunk(3, dim=-1)
    q, k = _rms_norm(w, "attn/q_norm", q), _rms_norm(w, "attn/k_norm", k)
    x = x + w["ls1/gamma"] * _linear(w, "attn/proj", _attend(q, k, v, num_heads))
    hidden = _linear(w, "mlp/fc1", _rms_norm(w, "norm2", x))
    hidden = _linear(w, "mlp/fc2", F.gelu(hidden, approximate="tanh"))
    return x + w["ls2/gamma"] * hidden


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}/kernel"], w.get(f"{name}/bias"))


def _rms_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], w[f"{name}/scale"], eps=1e-6)


def _layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}/scale"], w[f"{name}/bias"], eps=1e-5)


def _attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Attention of `[B, N, H * Dh]`."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _torch_layout(path: str, tensor: Tensor) -> Tensor:
    """A copy of a parameter in PyTorch's layout."""
    if path == "patch_embed/kernel":
        tensor = tensor.permute(4, 3, 0, 1, 2)
    elif path.endswith("/kernel"):
        num_inputs = 2 if path.endswith("/proj/kernel") else 1
        tensor = tensor.reshape(math.prod(tensor.shape[:num_inputs]), -1).T
    elif "/" in path:
        # Norms and biases of heads are over the full width.
        tensor = tensor.reshape(-1)
    return tensor.clone(memory_format=torch.contiguous_format)
