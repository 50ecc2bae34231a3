"""`internvideo-jax average`: one model of several, whose weights are their means."""

from collections.abc import Sequence
from pathlib import Path

from internvideo_jax.launch import arguments

SUMMARY = "average the weights of several models"

EPILOG = """\
The models are of one architecture and config: of runs that began at the same model, or of one
recipe with several seeds. The result is float32, and says in its description what it is made of.
(Within a run, train.ema_decay keeps a running average.)

example:
  internvideo-jax average runs/seed0/model runs/seed1/model runs/seed2/model --output=models/mean
"""


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0."""
    parser = arguments.make_parser("average", SUMMARY, EPILOG)
    parser.add_argument("models", metavar="MODEL", nargs="+", help="folders of saved models")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args(argv)

    from internvideo_jax.training.averaging import average_models

    average_models(args.models, args.output)
    print(f"{args.output}: the mean of {len(args.models)} models")
    return 0
