"""Worlds of 1, 2 and 4 processes over gloo: the same sums, bit for bit, and no rank left waiting."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from prunefast import distributed
from prunefast.distributed import World, all_gather_rows, gather_blocks, on_main, owned, sum_blocks, world
from prunefast.errors import InputError

SCRIPT = """
import json, sys
import numpy as np, torch
from prunefast import distributed
from prunefast.distributed import *
from prunefast.errors import InputError

here = distributed.world()
assert not torch.distributed.is_initialized()  # lazily
found = {"world": [here.rank, here.size, here.local_rank], "main": distributed.is_main()}
found["broadcast"] = distributed.broadcast_object({"from": here.rank}, source=here.size - 1)
rows = torch.full((here.rank, 2), here.rank, dtype=torch.bfloat16)   # rank 0 has none
found["rows"] = distributed.all_gather_rows(rows).tolist()
found["numbers"] = distributed.all_gather_rows(np.arange(3) + 10 * here.rank).tolist()
found["empty"] = list(distributed.all_gather_rows(np.zeros((1, 0), np.float32)).shape)

values = np.random.Generator(np.random.Philox(key=1)).standard_normal((37, 1000)).astype(np.float32)
values *= 10.0 ** np.arange(-18, 19)[:, None]   # the order of the sum matters
mine = [values[block].astype(np.float64).sum() for block in distributed.owned(37)]
found["sum"] = float(distributed.sum_blocks(np.array(mine), 37)).hex()
found["blocks"] = distributed.gather_blocks(torch.tensor(list(distributed.owned(5))), 5).tolist()

path = sys.argv[1]
def write():
    with open(path, "a") as file:
        file.write("once")
    return "written"
found["on_main"] = distributed.on_main(write)
found["file"] = open(path).read()
def fail():
    raise InputError("keep: is wrong")
class Odd(Exception):
    def __init__(self, a, b): super().__init__(f"{a} {b}")
def fail_oddly():
    raise Odd(1, 2)
for name, bad in (("error", fail), ("odd", fail_oddly)):
    try:
        distributed.on_main(bad)
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
try:
    distributed.all_gather_rows(np.zeros((1, here.rank + 1)))
except InputError as error:
    found["shapes"] = "one shape of a row" in str(error)
distributed.barrier()
parts = [torch.full((2, 3), 1.0 + here.rank), torch.tensor(10.0)]
add_over_ranks(parts)
found["added"] = [parts[0].tolist(), parts[1].item()]
found["largest"] = distributed.largest(here.rank, -here.rank, 3)
found["everywhere"] = distributed.everywhere(lambda: here.rank)
def fail_on_some():
    if here.rank:
        raise InputError(f"rank {here.rank} says no")
try:
    distributed.everywhere(fail_on_some)
except InputError as error:
    found["everywhere_error"] = [str(error), distributed.was_heard(error)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def worlds(run_ranks: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("worlds")
    return {size: run_ranks(SCRIPT, size, folder / f"file-{size}") for size in (1, 2, 4)}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_everybody_knows_everybody(worlds, size):
    for rank, found in enumerate(worlds[size]):
        assert found["world"] == [rank, size, rank]
        assert found["main"] == (rank == 0)
        assert found["broadcast"] == {"from": size - 1}
        assert found["rows"] == [[r, r] for r in range(size) for _ in range(r)]
        assert found["numbers"] == [10 * r + k for r in range(size) for k in range(3)]
        assert found["empty"] == [size, 0]
        assert found["blocks"] == [0, 1, 2, 3, 4]
        assert found["added"] == [[[size * (size + 1) / 2] * 3] * 2, 10.0 * size]


def test_a_sum_has_the_same_bits_in_every_world(worlds):
    values = np.random.Generator(np.random.Philox(key=1)).standard_normal((37, 1000)).astype(np.float32)
    values *= 10.0 ** np.arange(-18, 19)[:, None]
    expected = 0.0
    for block in values:
        expected += block.astype(np.float64).sum()
    assert {found["sum"] for ranks in worlds.values() for found in ranks} == {float(expected).hex()}
    assert float(expected).hex() != float(sum(b.astype(np.float64).sum() for b in values[::-1])).hex()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_all_work_and_agree(worlds, size):
    for rank, found in enumerate(worlds[size]):
        assert found["largest"] == [size - 1, 0, 3]
        assert found["everywhere"] == rank
        if size > 1:  # the first that fails is heard by all
            assert found["everywhere_error"] == ["rank 1 says no", rank != 1]


LOST = """
import json, os, signal, sys, time
from prunefast import distributed
from prunefast.errors import InputError
here = distributed.connect()
said = "nothing"
if here.rank == 1 and sys.argv[1] == "killed":
    print(json.dumps(said), flush=True)
    time.sleep(0.5)
    os._exit(0)
try:
    with distributed.losses_named():
        if here.rank == 1 and sys.argv[1] == "wrong":
            raise InputError("image 7:\\n is broken")
        distributed.largest(1)
except Exception as error:
    said = [type(error).__name__, str(error)]
print(json.dumps(said), flush=True)
time.sleep(2)  # rank 0 holds the store here, with torchrun its agent does
os._exit(0)
"""


def test_a_rank_that_ends_is_named_with_its_reason(run_ranks):
    wrong = run_ranks(LOST, 3, "wrong")
    assert wrong[1] == ["InputError", "image 7:\n is broken"]
    for rank in (0, 2):
        assert wrong[rank] == ["LostRank", "rank 1 of 3 ended: image 7: is broken"]


def test_a_rank_that_is_killed_is_named(run_ranks):
    killed = run_ranks(LOST, 3, "killed")
    for rank in (0, 2):
        assert killed[rank][0] == "LostRank"
        assert killed[rank][1].startswith("rank 1 of 3 ended without a word")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_rank_zero_works_for_all(worlds, size):
    for rank, found in enumerate(worlds[size]):
        assert found["on_main"] == "written"
        assert found["file"] == "once"
        assert found["error"] == "InputError: keep: is wrong"
        own = "Odd: 1 2"  # its class cannot be pickled: the others get the text
        assert found["odd"] == (own if rank == 0 else f"MachineError: rank 0 failed: {own}")
        assert found.get("shapes", size == 1)


# --- one process, and environments that make no sense ---


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_torchrun_the_world_has_one_process(environment):
    assert world() == World(0, 1, 0)
    rows = torch.arange(6).reshape(3, 2)
    assert all_gather_rows(rows) is rows
    assert list(owned(3)) == [0, 1, 2]
    assert gather_blocks(rows, 3) is rows
    assert sum_blocks(rows, 3).tolist() == [6, 9]
    assert on_main(lambda: 7) == 7
    distributed.barrier()
    assert not torch.distributed.is_initialized()
    environment.setenv("MASTER_ADDR", "somewhere")  # some clusters set it for every shell
    assert world() == World()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"RANK": "1"}, "WORLD_SIZE: is not set although RANK is"),
        ({"WORLD_SIZE": "2"}, "RANK: is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR: is not set although RANK and WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "MASTER_PORT: is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2: must be from 0 to"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK='-1': is not a whole number"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK='one': is not a whole number"),
    ],
)
def test_an_environment_set_in_part_is_one_clear_error(environment, values, said):
    for name, value in values.items():
        environment.setenv(name, value)
    with pytest.raises(InputError, match=said) as caught:
        world()
    assert "\n" not in str(caught.value)


def test_one_process_under_torchrun_makes_no_group(environment):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        environment.setenv(name, value)
    assert distributed.connect() == World(0, 1, 0)
    assert not torch.distributed.is_initialized()


def test_blocks_are_dealt_once(environment):
    for size in (1, 2, 3, 4):
        dealt = []
        for rank in range(size):
            values = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
            for name, value in values.items():
                environment.setenv(name, str(value))
            dealt += list(owned(11))
        assert sorted(dealt) == list(range(11))


def test_wrong_number_of_blocks(environment):
    with pytest.raises(InputError, match="mine: 2 blocks where this rank owns 3 of 3"):
        gather_blocks(np.zeros(2), 3)
    with pytest.raises(InputError, match="blocks: must be at least 1"):
        sum_blocks(np.zeros(0), 0)


def test_torchrun_itself(tmp_path):
    """The launcher the documentation names, once; the other tests start their processes by hand, which is faster."""
    program = tmp_path / "program.py"
    program.write_text(
        "from prunefast.distributed import *\n"
        "import sys\n"
        "import numpy as np\n"
        "rank = world().rank\n"
        "total = sum_blocks(np.array([rank + 1.0]), 2)\n"
        "open(sys.argv[1] + f'/{rank}', 'w').write(str(total))\n"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(program), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**clean, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["3.0", "3.0"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts the threads of Linux")
def test_no_thread_of_the_group_is_left_when_an_error_ends_the_process(run_ranks):
    script = """
import atexit, glob, json, os, torch
from prunefast import distributed
distributed.connect()
atexit.unregister(distributed._disconnect)
def end():
    distributed._disconnect()
    names = [open(path).read() for path in glob.glob("/proc/self/task/*/comm")]
    print(json.dumps([name for name in names if "gloo" in name or "tcpstore" in name]), flush=True)
    os._exit(0)
atexit.register(end)
def fail(group):
    raise RuntimeError("nobody catches this")
fail(torch.distributed.group.WORLD)
"""
    assert run_ranks(script, 2) == [[], []]


def test_processors_are_shared_by_the_processes_of_a_machine(environment):
    assert distributed.share_of_processors() is None
    environment.setenv("LOCAL_WORLD_SIZE", "2")
    assert distributed.share_of_processors() == max(len(os.sched_getaffinity(0)) // 2, 1)
    environment.setenv("LOCAL_WORLD_SIZE", "1000")
    assert distributed.share_of_processors() == 1
