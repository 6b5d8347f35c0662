"""Have real workers train without TensorFlow, with planted faults, and without a line of this in the package.

A folder on PYTHONPATH with a file of this name is imported by every Python at its start. This one does something only
in `python -m mnistexp.training.worker`, as these variables say:

    MNISTEXP_SCRIPTED    1: scripted_trainer.py stands in for the trainer, and nothing for TensorFlow. The worker is
                         ready in half a second instead of four. tests/runs.py has SCRIPTED, the variables to set.
    MNISTEXP_NOISE       1: the worker prints when Python starts, when it loads its trainer, and at its end
    MNISTEXP_PLANT       the faults of a scripted worker: see scripted_trainer.py
"""

from __future__ import annotations

import atexit
import os
import sys
from types import ModuleType
from typing import Any


def cache_digits(dataset: ModuleType) -> None:
    """Have the digits read from a file after the first time: scikit-learn alone takes 2 s to import."""
    load, sources = dataset.load, os.path.dirname(dataset.__file__ or "")  # noqa: PTH120

    def cached(config: Any) -> Any:
        if config.name != "digits":
            return load(config)
        import hashlib
        import pickle
        import tempfile
        from pathlib import Path

        version = [(path.name, path.stat().st_mtime_ns) for path in sorted(Path(sources).glob("*.py"))]
        key = hashlib.sha256(f"{sources} {version} {config!r}".encode()).hexdigest()[:16]
        file = Path(tempfile.gettempdir()) / f"mnistexp-test-digits-{os.getuid()}-{key}"
        if not file.exists():
            part = file.with_name(f"{file.name}.{os.getpid()}")
            part.write_bytes(pickle.dumps(load(config)))
            part.replace(file)
        return pickle.loads(file.read_bytes())

    dataset.load = cached  # type: ignore[attr-defined]


def noise() -> None:
    """Print from Python and from another process."""
    if os.environ.get("MNISTEXP_NOISE"):
        print("noise", flush=True)
        os.system("echo noise")


def replace_trainer() -> None:
    """Put the scripted trainer in the place of the trainer, and modules without content in TensorFlow's and Keras's."""
    from unittest.mock import MagicMock

    import scripted_trainer

    import mnistexp.data.dataset

    cache_digits(mnistexp.data.dataset)
    tensorflow = MagicMock()
    tensorflow.config.list_physical_devices.return_value = []
    sys.modules |= {"mnistexp.training.trainer": scripted_trainer, "tensorflow": tensorflow, "keras": MagicMock()}


if "mnistexp.training.worker" in sys.orig_argv:
    noise()
    atexit.register(noise)
    if os.environ.get("MNISTEXP_SCRIPTED"):
        replace_trainer()
