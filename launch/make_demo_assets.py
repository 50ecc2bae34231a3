"""Makes the demo's checkpoint and its reference activations from a golden file.

Needs the `torch` extra. The checkpoint is what a user of the released code would hold: PyTorch's
own zip format, weights nested under `module`, a pickled `argparse.Namespace` beside them.

    python -m internvideo_jax.launch.make_demo_assets GOLDEN.safetensors
"""

import argparse
import collections
import json
from collections.abc import Sequence
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes `demo_checkpoint.pth` and `demo_reference.safetensors` into `launch/assets/`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("golden", type=Path, help="golden file of kind internvideo2_stage1.ap")
    args = parser.parse_args(argv)

    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(args.golden, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = collections.OrderedDict(
        (name.removeprefix("state/"), value)
        for name, value in tensors.items()
        if name.startswith("state/")
    )
    checkpoint = {
        "module": state,
        "epoch": 0,
        "args": argparse.Namespace(**json.loads(metadata["config"])),
    }
    torch.save(checkpoint, ASSETS / "demo_checkpoint.pth")
    reference = {k: v.contiguous() for k, v in tensors.items() if k.startswith(("in/", "out/"))}
    save_file(reference, ASSETS / "demo_reference.safetensors", metadata=metadata)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
