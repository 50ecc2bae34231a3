"""Makes torch_sample.pth with PyTorch, which the tests read without it.

python tests/convert/files/data/make_torch_sample.py
"""

import argparse
from pathlib import Path

import torch


def sample() -> dict[str, object]:
    """A training checkpoint with every kind of tensor that the reader knows."""
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 8
    with_attribute = torch.nn.Parameter(base[0].clone())
    with_attribute.no_weight_decay = True
    tensor_with_attribute = base[1].clone()
    tensor_with_attribute.source = "test"
    norm = torch.nn.BatchNorm1d(3)
    optimizer = torch.optim.AdamW(norm.parameters(), lr=1e-3)
    norm(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "args": argparse.Namespace(lr=1e-3, dtype=torch.bfloat16, device=torch.device("cuda", 0)),
        "optimizer": optimizer.state_dict(),
        "model_ema": norm.state_dict(),
        "model": {
            "base": base,
            "transposed": base.transpose(0, 2),
            "tail": base[1, 1:],
            "column": base[:, 1, 2],
            "expanded": base[0, 0, :1].expand(3, 5),
            "scalar": torch.tensor(7),
            "empty": torch.zeros(0, 4),
            "parameter": torch.nn.Parameter(base.to(torch.bfloat16)),
            "parameter_with_attribute": with_attribute,
            "tensor_with_attribute": tensor_with_attribute,
            "half": base.to(torch.float16),
            "double": base.to(torch.float64),
            "bool": base > 1,
            "byte": torch.arange(5, dtype=torch.uint8),
            "short": torch.arange(5, dtype=torch.int16),
            "unsigned": torch.arange(5, dtype=torch.int16).to(torch.uint16),
            "eighth": base.to(torch.float8_e4m3fn),
        },
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.save(sample(), Path(__file__).with_name("torch_sample.pth"))
