"""Kinetics-710 class indices of the classes of Kinetics-400, 600 and 700, in their own order.

A classifier trained on K710 becomes one for a single Kinetics by gathering these rows of its head.

Source: the label maps of upstream `InternVideo2/single_modality/run_finetuning.py`.
"""

import json
from importlib import resources

K710_CLASSES = 710

_STORED = json.loads(resources.files(__package__).joinpath("kinetics_710.json").read_text())

# K400's classes come first in K710.
K710_ROWS: dict[int, tuple[int, ...]] = {
    400: tuple(range(400)),
    **{int(classes): tuple(rows) for classes, rows in _STORED.items()},
}
