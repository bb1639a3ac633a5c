"""TDC on two processes: the search finds what one process finds, bit for bit; the networks train as on several."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import prunefast as pf
from prunefast.data import ImageDataset
from prunefast.tdc import TDCOptions, tdc
from prunefast.train import find_checkpoint

SCRIPT = """
import json, runpy, sys
import numpy as np, torch
torch.set_num_threads(1)
from prunefast.data import from_arrays
from prunefast.errors import InputError
from prunefast.tdc import TDCOptions, tdc
images = np.random.Generator(np.random.Philox(key=0)).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
data = from_arrays(images, np.arange(40) % 3, classes=["a", "b", "c"])
options = TDCOptions(**json.loads(sys.argv[3]))
result = tdc(sys.argv[1], data, None, options, out=sys.argv[2])
again = tdc(sys.argv[1], data, None, options, out=sys.argv[2])
try:
    tdc(sys.argv[1], data, None, TDCOptions(groups=2), out=sys.argv[2])
except InputError as error:
    said = str(error)
print(json.dumps([result.groups, again.repeated, said]))
"""

OPTIONS = {"groups": 3, "k": 0.4, "rounds": 2, "proposer": "random", "proxy_images": 8, "proxy_steps": 2, "images": 32}


@pytest.mark.slow
def test_two_processes_find_what_one_finds(base: Path, data: ImageDataset, run_ranks, tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    alone = tdc(base, data, None, TDCOptions(**OPTIONS), out=tmp_path / "one")
    found = run_ranks(SCRIPT, 2, base, tmp_path / "two", json.dumps(OPTIONS))
    assert found[0] == found[1]
    groups, repeated, said = found[0]
    assert repeated is True
    assert "holds groups of other options" in said
    for number, (ours, theirs) in enumerate(zip(groups, alone.groups, strict=True), 1):
        one, two = (tmp_path / name / f"group-{number}" for name in ("one", "two"))
        for name in (
            "group.json",
            "pruned.safetensors",
            *(["search.jsonl"] if (one / "search.jsonl").exists() else []),
        ):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
        for key in ("budget", "flops", "loss_base", "loss_pruned", "images"):
            assert ours[key] == theirs[key]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        a, b = (load_file(find_checkpoint(folder)[0] / "ema.safetensors") for folder in (one, two))
        for key in a:
            if not key.endswith("query_key_value.bias"):
                torch.testing.assert_close(a[key], b[key], rtol=0, atol=2e-5)
    assert pf.sample(tmp_path / "two", 2, steps=2, device="cpu").shape[0] == 2
