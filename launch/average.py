"""`internvideo-jax average`: one model of several, whose weights are their means."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from internvideo_jax.launch import arguments

SUMMARY = "average the weights of several models"

EPILOG = """\
The models are of one architecture and config: of runs that began at the same model, or of one
recipe with several seeds. The result is float32, and says in its description what it is made of.
(Within a run, train.ema_decay keeps a running average.)

examples:
  internvideo-jax average runs/seed0/model runs/seed1/model runs/seed2/model --output=models/mean
  internvideo-jax average models/before runs/after/model --shares=0.5,0.5 --output=models/both

The second keeps more of what a model knew before its fine-tuning (WiSE-FT): the greater the share
of the model before, the more.
"""


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0."""
    parser = arguments.make_parser("average", SUMMARY, EPILOG)
    parser.add_argument("models", metavar="MODEL", nargs="+", help="folders of saved models")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--shares",
        type=_numbers,
        metavar="NUMBER,...",
        help="how much each model counts, in proportion (default: all alike)",
    )
    args = parser.parse_args(argv)

    from internvideo_jax.training.averaging import average_models

    average_models(args.models, args.output, args.shares)
    print(f"{args.output}: the mean of {len(args.models)} models")
    return 0


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected numbers with commas between them, found {text!r}"
        ) from None
