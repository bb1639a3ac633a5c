"""A batch in micro-batches: the gradient of the whole, the last one smaller, and what happens when memory is short."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunefast.errors import MachineError
from prunefast.stream import Batch
from prunefast.train import read_metrics, train
from prunefast.train.state import WEIGHT_FILES, find_checkpoint
from prunefast.train.step import TrainingStep
from prunefast.train.whole_batch import WholeBatch, is_out_of_memory, micro_batches


def make_batch(count: int, seed: int = 0, begin: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.rand(count, 5, generator=generator, dtype=torch.float64),
        labels=torch.zeros(count, dtype=torch.int64),
        index=torch.arange(count),
        position=torch.arange(begin, begin + count),
        weight=torch.rand(count, generator=generator, dtype=torch.float64) + 0.5,
    )


class Quadratic:
    """Mean of weight x (image . w)^2, whose gradient is known."""

    def __init__(self) -> None:
        self.model = nn.Linear(5, 1, bias=False, dtype=torch.float64)
        self.sizes: list[int] = []
        self.limit = 10**9
        self.error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def __call__(self, batch: Batch, patch: object = None, masked: bool = True) -> torch.Tensor:
        loss = (batch.weight * self.model(batch.images)[:, 0].square()).mean()
        if len(batch) > self.limit:
            raise self.error
        self.sizes.append(len(batch))
        return loss

    def expected(self, batch: Batch) -> torch.Tensor:
        w = self.model.weight.detach()[0]
        return (2 * batch.weight * (batch.images @ w)) @ batch.images / len(batch)


def make_gradient(step: Quadratic, count: int, batch_device: int | None, **options) -> WholeBatch:
    cpu = torch.device("cpu")
    return WholeBatch(step, step.model, seed=0, device=cpu, batch_size=count, batch_device=batch_device, **options)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 30), size=st.integers(1, 40))
def test_any_cut_gives_the_gradient_of_the_whole(count, size):
    step, batch = Quadratic(), make_batch(count)
    loss = make_gradient(step, count, size)(batch, 0)
    assert step.sizes == [min(size, count - start) for start in range(0, count, min(size, count))]
    torch.testing.assert_close(step.model.weight.grad[0], step.expected(batch), rtol=1e-13, atol=1e-15)
    whole = (batch.weight * (batch.images @ step.model.weight[0]).square()).mean()
    torch.testing.assert_close(loss.double(), whole.detach(), rtol=1e-6, atol=0)


def test_micro_batches_are_cuts_of_the_batch():
    batch = make_batch(7, begin=100)
    parts = list(micro_batches(batch, 3))
    assert [(start, part.position.tolist()) for start, part in parts] == [
        (0, [100, 101, 102]),
        (3, [103, 104, 105]),
        (6, [106]),
    ]
    assert next(iter(micro_batches(batch, 7)))[1] is batch


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_short_memory_halves_until_it_fits(error):
    step, batch = Quadratic(), make_batch(11)
    step.limit, step.error = 3, error
    gradient = make_gradient(step, 11, None)
    with pytest.warns(UserWarning, match="batch_device: .* do not fit into the memory of cpu; going on with") as said:
        gradient(batch, 0)
    assert [str(w.message).split("; ")[1].split(",")[0] for w in said] == ["going on with 5", "going on with 2"]
    assert gradient.batch_device == 2
    assert step.sizes[-6:] == [2, 2, 2, 2, 2, 1]
    torch.testing.assert_close(step.model.weight.grad[0], step.expected(batch), rtol=1e-13, atol=1e-15)


def test_what_was_done_before_the_memory_ran_out_does_not_count():
    """The second micro-batch fails: the gradient of the first is dropped."""
    step, batch = Quadratic(), make_batch(8)
    calls = [0]

    def fails_once(part: Batch, *arguments, **options) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(part)

    gradient = WholeBatch(fails_once, step.model, seed=0, device=torch.device("cpu"), batch_size=8, batch_device=4)
    with pytest.warns(UserWarning, match="4 images at a time"):
        gradient(batch, 0)
    torch.testing.assert_close(step.model.weight.grad[0], step.expected(batch), rtol=1e-13, atol=1e-15)


def test_the_cpu_allocators_own_error_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_one_image_that_does_not_fit_is_an_error():
    step = Quadratic()
    step.limit = 0
    with (
        pytest.warns(UserWarning, match="going on with"),
        pytest.raises(MachineError, match="a single image does not fit") as caught,
    ):
        make_gradient(step, 4, None)(make_batch(4), 0)
    assert "\n" not in str(caught.value)
    assert step.model.weight.grad is None


def test_other_errors_pass():
    step = Quadratic()
    step.limit, step.error = 0, RuntimeError("shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes cannot"):
        make_gradient(step, 4, None)(make_batch(4), 0)


def test_statistics_of_norm_layers_count_once():
    class Normed(Quadratic):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.BatchNorm1d(5, dtype=torch.float64), nn.Linear(5, 1, dtype=torch.float64))

    def run(limit: int, size: int | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        step = Normed()
        step.limit = limit
        gradient = make_gradient(step, 8, size)
        gradient(make_batch(8), 0)
        return dict(step.model.named_buffers())

    straight = run(10**9, 2)
    with pytest.warns(UserWarning, match="going on with"):
        repeated = run(2, None)
    assert straight["0.num_batches_tracked"] == repeated["0.num_batches_tracked"] == 4
    assert all(torch.equal(straight[name], repeated[name]) for name in straight)


def test_observed_once_a_step_in_order():
    seen = []
    step = Quadratic()

    def told(part: Batch, *arguments, **options) -> torch.Tensor:
        told.observe(part.index, part.images[:, 0], part.images[:, 1])
        return step(part)

    batch = make_batch(7)
    options = {"seed": 0, "device": torch.device("cpu"), "batch_size": 7, "batch_device": 3}
    WholeBatch(told, step.model, observe=lambda *of: seen.append(of), **options)(batch, 0)
    assert len(seen) == 1
    assert seen[0][0].tolist() == list(range(7))
    assert torch.equal(seen[0][2], batch.images[:, 1])


# --- in the loop ---


@pytest.fixture
def short_of_memory(monkeypatch):
    """The next runs have room for so many images at a time, or as much more crops as the step has."""

    def limit(images: int) -> None:
        original = TrainingStep.__call__

        def call(self, batch, *arguments, **options):
            loss = original(self, batch, *arguments, **options)
            patch = arguments[0] if arguments else None
            if len(batch) > images * (1 if patch is None else patch.multiplier):
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return loss

        monkeypatch.setattr(TrainingStep, "__call__", call)

    return limit


def same_bits(one, other) -> None:
    for name in WEIGHT_FILES:
        contents = [(find_checkpoint(run)[0] / name).read_bytes() for run in (one, other)]
        assert contents[0] == contents[1], name
    records = [read_metrics(run / "train" / "metrics.jsonl") for run in (one, other)]
    assert [r["loss"] for r in records[0]] == [r["loss"] for r in records[1]]


@pytest.mark.parametrize("options", [{}, {"patch_p": 0.4, "patch_levels": 2}])
def test_a_halved_run_is_the_run_of_that_size(data, make_config, short_of_memory, tmp_path, options):
    """Dropout and all: what a repeated step draws follows from the images' positions."""
    train(make_config(out=str(tmp_path / "small"), batch_device=2, **options), data)
    short_of_memory(3)
    with pytest.warns(UserWarning, match="going on with 2, from the same step"):
        train(make_config(out=str(tmp_path / "halved"), **options), data)
    same_bits(tmp_path / "small", tmp_path / "halved")


def test_a_stopped_run_goes_on_with_what_fitted(data, make_config, short_of_memory, monkeypatch, tmp_path):
    train(make_config(out=str(tmp_path / "small"), batch_device=2), data)
    with monkeypatch.context():
        short_of_memory(3)
        with pytest.warns(UserWarning, match="going on with 2"):
            train(make_config(out=str(tmp_path / "halved"), images=48), data)
    train(make_config(out=str(tmp_path / "halved")), data)  # no warning: it begins with 2
    same_bits(tmp_path / "small", tmp_path / "halved")
    assert find_checkpoint(tmp_path / "halved")[1]["fitted"] == {"processes": 1, "device": "cpu", "batch_device": 2}


def test_the_last_checkpoint_is_whole_when_nothing_fits(data, make_config, short_of_memory, tmp_path):
    config = make_config(images=48)
    train(config, data)
    short_of_memory(0)
    with (
        pytest.warns(UserWarning, match="going on with"),
        pytest.raises(MachineError, match="a single image does not fit"),
    ):
        train(config.replace(images=96), data)
    assert find_checkpoint(config.out)[1]["images"] == 48
