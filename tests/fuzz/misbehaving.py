"""Readers that do what none may do: the harness has to notice each."""

import json
import os
import subprocess
import time

from internvideo_jax.files import parse_json
from tests.fuzz import harness
from tests.fuzz.harness import Target, fuzz


def _seeds():
    return [b"0123456789"]


def _if_changed(run):
    """What seeds do is no fault."""

    def read(data, folder):
        if data not in _seeds():
            run(data, folder)

    return read


FAULTS = {
    "foreign": {
        "index": lambda data, folder: [][0],
        "library": lambda data, folder: int("a number"),
        "exit": lambda data, folder: exit(0),
        "depth": lambda data, folder: FAULTS["foreign"]["depth"](data, folder),
    },
    "memory": {"memory": lambda data, folder: bytearray(2 * harness.MEMORY_BYTES)},
    "hang": {"hang": lambda data, folder: time.sleep(60)},
    "crash": {"crash": lambda data, folder: os._exit(3)},
    "execution": {
        "exec": lambda data, folder: exec("1 + 1"),
        "import": lambda data, folder: __import__("antigravity"),
        "command": lambda data, folder: os.system("true"),
        "process": lambda data, folder: subprocess.run(["true"], check=False),
        "write": lambda data, folder: (folder.parent / "outside").write_bytes(data),
        "read": lambda data, folder: (folder / "../outside").read_bytes(),
        "link": lambda data, folder: os.symlink("a", folder.parent / "outside"),
    },
    "": {
        "refusal": lambda data, folder: parse_json("{", "here"),
        "file": lambda data, folder: (folder / "a").write_bytes(data),
    },
}

if __name__ == "__main__":
    harness.HANG_SECONDS = 0.5
    counts = {
        kind: {
            name: [fuzz(Target(name, _seeds, _if_changed(run)), 2).count(k) for k in harness.KINDS]
            for name, run in targets.items()
        }
        for kind, targets in FAULTS.items()
    }
    print(json.dumps(counts))
