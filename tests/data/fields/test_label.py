import json

import numpy as np
import pytest

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.fields.field import UnfitClip
from internvideo_jax.data.fields.label import label_array

NAMES = ("jump", "run", "walk")
NAMED = DataConfig(num_classes=3, classes=NAMES)


def array(label, config):
    return label_array(ClipRecord("a.mp4", "/a.mp4", label=label), config)


def test_labels_are_numbers_or_names():
    assert array(2, DataConfig(num_classes=3)) == array("walk", NAMED) == array(2, NAMED) == 2
    assert array("run", NAMED).dtype == np.int32
    many = DataConfig(num_classes=3, classes=NAMES, multi_label=True)
    np.testing.assert_array_equal(array(("walk", "jump"), many), [1, 0, 1])


def test_names_may_lie_in_a_file(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(NAMES))
    assert array("walk", DataConfig(num_classes=3, classes=str(path))) == 2
    with pytest.raises(ValueError, match="4 classes, found 3"):
        array("walk", DataConfig(num_classes=4, classes=str(path)))


@pytest.mark.parametrize(
    ("label", "config", "message"),
    [
        ("rum", NAMED, "a.mp4: expected the name of one of 3 classes, found 'rum'.*mean 'run'"),
        ("run", DataConfig(num_classes=3), "found 'run'; .*name the classes with data.classes"),
        (3, NAMED, "a.mp4: expected a label from 0 to 2, found 3"),
        (None, NAMED, "expected a label from 0 to 2, found None"),
        (("run", "walk"), NAMED, "expected one label"),
    ],
)
def test_labels_of_no_class_are_refused(label, config, message):
    with pytest.raises(UnfitClip, match=message):
        array(label, config)


def test_as_many_names_as_classes():
    with pytest.raises(ValueError, match="expected num_classes=4 names, found 3"):
        DataConfig(num_classes=4, classes=NAMES)
