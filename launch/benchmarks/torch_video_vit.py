"""The InternVideo2 video encoder in plain PyTorch: what `benchmark encoder` races against.

Written the way a PyTorch user would write it for inference: fused linear layers, fused
`scaled_dot_product_attention`, one op per line otherwise. It reads the parameters of
`models.video_vit` by name, so both sides compute the same function of the same numbers.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Arrays = Mapping[str, np.ndarray]


def _parameter(array: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.array(array, order="C")), requires_grad=False)


def _linear(params: Arrays, name: str, inputs: int, layer: int | None = None) -> nn.Linear:
    """`nn.Linear` with the kernel `[in..., out...]` called `name`, its first `inputs` axes in."""

    def read(key: str) -> np.ndarray:
        array = params[f"{name}/{key}"]
        return array if layer is None else array[layer]

    kernel = read("kernel")
    kernel = kernel.reshape(math.prod(kernel.shape[:inputs]), -1)
    has_bias = f"{name}/bias" in params
    linear = nn.Linear(*kernel.shape, bias=has_bias, device="meta")
    linear.weight = _parameter(kernel.T)
    if has_bias:
        linear.bias = _parameter(read("bias").reshape(-1))
    return linear


def _layer_norm(params: Arrays, name: str) -> nn.LayerNorm:
    norm = nn.LayerNorm(params[f"{name}/scale"].size, eps=1e-5, device="meta")
    norm.weight, norm.bias = (_parameter(params[f"{name}/{key}"]) for key in ("scale", "bias"))
    return norm


def _rms_norm(scale: np.ndarray) -> nn.RMSNorm:
    norm = nn.RMSNorm(scale.size, eps=1e-6, device="meta")
    norm.weight = _parameter(scale.reshape(-1))
    return norm


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """`[B, N, H * Dh] -> [B, H, N, Dh]`."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """One pre-norm layer with q/k RMSNorm over the full width and layer scale."""

    def __init__(self, params: Arrays, layer: int) -> None:
        super().__init__()
        self.num_heads = params["blocks/attn/qkv/kernel"].shape[-2]
        self.norm1, self.norm2, self.q_norm, self.k_norm = (
            _rms_norm(params[f"blocks/{name}/scale"][layer])
            for name in ("norm1", "norm2", "attn/q_norm", "attn/k_norm")
        )
        self.qkv = _linear(params, "blocks/attn/qkv", 1, layer)
        self.proj = _linear(params, "blocks/attn/proj", 2, layer)
        self.fc1 = _linear(params, "blocks/mlp/fc1", 1, layer)
        self.fc2 = _linear(params, "blocks/mlp/fc2", 1, layer)
        self.ls1, self.ls2 = (
            _parameter(params[f"blocks/{name}/gamma"][layer]) for name in ("ls1", "ls2")
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (_heads(a, self.num_heads) for a in (self.q_norm(q), self.k_norm(k), v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.ls1 * self.proj(attended)
        hidden = F.gelu(self.fc1(self.norm2(x)), approximate="tanh")
        return x + self.ls2 * self.fc2(hidden)


class AttentionPooler(nn.Module):
    """Cross-attention of the tokens' mean to the tokens."""

    def __init__(self, params: Arrays) -> None:
        super().__init__()
        self.num_heads = params["pooler/q/kernel"].shape[1]
        self.norm_q, self.norm_k, self.norm_v = (
            _layer_norm(params, f"pooler/norm_{name}") for name in "qkv"
        )
        self.q, self.k, self.v = (_linear(params, f"pooler/{name}", 1) for name in "qkv")
        self.proj = _linear(params, "pooler/proj", 2)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        q, k, v = (
            _heads(a, self.num_heads)
            for a in (self.q(self.norm_q(mean)), self.k(self.norm_k(x)), self.v(self.norm_v(x)))
        )
        pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(pooled)[:, 0]


class TorchVideoViT(nn.Module):
    """`models.video_vit.VideoViT` with tanh GELU and one position table over all tokens."""

    def __init__(self, params: Arrays) -> None:
        """Builds the model around copies of parameters named as in `VideoViT`, joined by `/`."""
        super().__init__()
        kernel = params["patch_embed/kernel"]
        self.patch_embed = nn.Conv3d(
            kernel.shape[3], kernel.shape[4], kernel.shape[:3], kernel.shape[:3], device="meta"
        )
        self.patch_embed.weight = _parameter(kernel.transpose(4, 3, 0, 1, 2))
        self.patch_embed.bias = _parameter(params["patch_embed/bias"])
        self.cls_token = _parameter(params["cls_token"])
        self.pos_embed = _parameter(params["pos_embed"])
        depth = params["blocks/norm1/scale"].shape[0]
        self.blocks = nn.ModuleList(Block(params, layer) for layer in range(depth))
        self.pooler = AttentionPooler(params)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes clips `[B, T, H, W, 3]`; returns tokens `[B, N, D]` and pooled `[B, P]`."""
        patches = self.patch_embed(video.permute(0, 4, 1, 2, 3)).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x, self.pooler(x)
