"""`internvideo-jax reference`: activations of a PyTorch module, for `verify`."""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import inference

if TYPE_CHECKING:
    import numpy as np

    from internvideo_jax.preprocessing import VideoPreprocessing

SUMMARY = "run a PyTorch module and record what verify compares a model with (extra: torch)"

EPILOG = """\
example, with a clone of the original's code:
  internvideo-jax reference models/b14-k400 --output=b14-k400.safetensors \\
      --module=single_modality/models/internvideo2.py:internvideo2_base_patch14_224 \\
      --kwargs='{"num_classes": 400}' --checkpoint=b14_k400.pth
  internvideo-jax verify models/b14-k400 --reference=b14-k400.safetensors

--module's code is executed: name only what you trust. --checkpoint is read as `convert` reads it
and executes nothing. docs/verifying.md goes through it from start to end.
"""


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = arguments.make_parser("reference", SUMMARY, EPILOG)
    inference.add_model_argument(parser, "model")
    parser.add_argument(
        "--module",
        required=True,
        metavar="FILE.py:NAME",
        help="class or function that makes the torch.nn.Module; it is called with the inputs",
    )
    parser.add_argument("--kwargs", type=_options, default={}, metavar="JSON", help="its arguments")
    parser.add_argument(
        "--path", action="append", default=[], metavar="DIR", help="where it may import from, too"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="weights to load into it (default: those that it has made or loaded itself)",
    )
    parser.add_argument("--key", help="place of the weights in the checkpoint, as for convert")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.safetensors")
    parser.add_argument("--video", metavar="FILE", help="a clip to run (default: random numbers)")
    parser.add_argument("--seed", type=int, default=0, help="of random inputs (default: 0)")
    parser.add_argument(
        "--outputs",
        type=lambda text: text.split(","),
        default=(),
        metavar="NAME,...",
        help="names of what the module returns (default: those of the model's kind)",
    )
    args = parser.parse_args(argv)
    arguments.new_output_file(args.output, "--output")
    if "torch" not in sys.modules and importlib.util.find_spec("torch") is None:
        raise arguments.UsageError(
            "expected PyTorch, in which the module runs, found no package torch; install it with"
            " `pip install 'internvideo-jax[torch]'`"
        )

    import numpy as np

    from internvideo_jax.convert.engine import reference, verify
    from internvideo_jax.convert.engine.upstream import architecture_of
    from internvideo_jax.convert.library import model_directory
    from internvideo_jax.saved_model import read_config

    config, preprocessing = read_config(model_directory(args.model))
    recipe = verify.find_recipe(architecture_of(config))
    video = _decode(args.video, preprocessing.require_video()) if args.video else None
    inputs = reference.make_inputs(config, preprocessing, seed=args.seed, video=video)
    module = reference.make_module(args.module, args.kwargs, args.path)
    if args.checkpoint:
        unused = reference.load_weights(module, args.checkpoint, args.key)
        if unused:
            print(f"{len(unused)} tensors not used: {', '.join(unused[:8])}", file=sys.stderr)
    outputs = reference.run_module(module, inputs, recipe, args.outputs)
    broken = [name for name, array in outputs.items() if not np.isfinite(array).all()]
    if not outputs or broken:
        raise arguments.UsageError(
            f"expected finite outputs of {args.module}, found {', '.join(broken) or 'none'}"
            + (" with NaN or infinities" if broken else "")
        )
    reference.write_reference(args.output, inputs, outputs)
    print(f"{args.output}: {_listed('in', inputs)}; {_listed('out', outputs)}")
    return 0


def _listed(group: str, arrays: "dict[str, np.ndarray]") -> str:
    return ", ".join(f"{group}/{name} {list(array.shape)}" for name, array in arrays.items())


def _decode(path: str, preprocessing: "VideoPreprocessing") -> "np.ndarray":
    """A clip of a file, normalised, `[1, T, S, S, 3]`."""
    from internvideo_jax.data import pipeline
    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.data.config import DataConfig
    from internvideo_jax.data.sources.clips import RecordSource
    from internvideo_jax.preprocessing import normalize

    size = DataConfig(
        num_frames=preprocessing.num_frames,
        image_size=preprocessing.image_size,
        resize=preprocessing.resize,
    )
    source = RecordSource([ClipRecord(id=path, path=path)])
    batches = pipeline.eval_batches(size, ("video",), batch_size=1, source=source, num_threads=1)
    (batch,) = batches
    if not batch["valid"][0]:
        raise arguments.UsageError(f"{path}: {batch['error'][0]}")
    return normalize(batch["video"], preprocessing)


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not valid JSON ({error})") from None
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, found {text}")
    return options
