"""What an installed wheel must do on a machine with nothing but its dependencies: `python tests/wheel.py`."""

import importlib.util
import sys
from pathlib import Path

import numpy as np

import prunefast
from prunefast import ops
from prunefast.data import native

LIMIT = 20 << 20  # bytes of the installed package

folder = Path(prunefast.__file__).parent
size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
assert size < LIMIT, size
noise = ops.randn_philox((2, 3, 8, 8), 0, np.arange(2))
index, distance = ops.nearest(noise.reshape(2, -1), noise.reshape(2, -1))
assert index.tolist() == [0, 1]
assert distance.tolist() == [0, 0]
found = ops.backends()
for name, backend in found.items():
    print(f"{name}: {backend['detail']}")
assert native.available()
print(f"records: read natively, JPEG {'by libjpeg-turbo' if native.decodes_jpeg() else 'by simplejpeg or Pillow'}")
if importlib.util.find_spec("prunefast._cuda"):
    from prunefast import _cuda

    count, reason = _cuda.devices()
    assert count or reason
print(f"{sys.version.split()[0]}, {size >> 10} KiB")
