"""The diffs of docs/drop-in.md: both sides train, and under fifteen lines change."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import prunefast as pf

PAGE = Path(__file__).parents[2] / "docs" / "drop-in.md"
LOOPS = ("A plain PyTorch loop", "A diffusers training script", "An EDM-style loop")
PIECES = ("DenoisingLoss", "CoresetLoader", "PatchSchedule", "class_weights=")

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not beside the tests")


def diff_of(title: str) -> list[str]:
    found = re.search(rf"### {title}\n.*?```diff\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found, title
    return found[1].splitlines()


def side(lines: list[str], sign: str) -> str:
    return "\n".join(line[1:] for line in lines if line[:1] in (" ", sign, "")) + "\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 100)
    images = rng.integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "photos.npz", images=images, labels=labels)
    data = pf.open_dataset(tmp_path / "photos.npz")
    pf.select(data, method="random", keep=0.5).save(tmp_path / "coreset.parquet")
    pf.ClassWeights(np.array([0.5, 0.3, 0.2]), list(data.classes)).save(tmp_path / "class_weights.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("title", LOOPS)
def test_under_fifteen_lines_change(title: str) -> None:
    lines = diff_of(title)
    assert all(line[:1] in (" ", "+", "-", "") for line in lines)
    come, go = ([line for line in lines if line.startswith(sign)] for sign in "+-")
    assert 0 < len(come) < 15, len(come)
    assert 0 < len(go) < 15, len(go)
    assert max(map(len, lines)) <= 121  # a line is a line
    assert not any(";" in line for line in come)
    for piece in PIECES:
        assert piece in side(lines, "+")
        assert piece not in side(lines, "-")
    assert "prunefast" not in side(lines, "-")


@pytest.mark.parametrize("sign", ["-", "+"], ids=["before", "after"])
@pytest.mark.parametrize("title", LOOPS)
def test_both_sides_train(title: str, sign: str, folder: Path, request: pytest.FixtureRequest) -> None:
    code = side(diff_of(title), sign)
    if "diffusers" in code:
        request.getfixturevalue("diffusers")
    namespace: dict[str, object] = {"__name__": "page"}
    seen: list[float] = []
    original = torch.Tensor.backward

    def backward(self: torch.Tensor, *arguments: object, **options: object) -> None:
        seen.append(float(self.detach()))
        original(self, *arguments, **options)  # type: ignore[arg-type]

    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(torch.Tensor, "backward", backward)
        exec(compile(code, title, "exec"), namespace)
    assert len(seen) >= 3
    assert np.isfinite(seen).all()
    assert min(seen) > 0
    optimizer = namespace["optimizer"]
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert {int(state["step"]) for state in optimizer.state.values()} == {len(seen)}


def test_the_losses_of_the_edm_loop_are_the_same_number(folder: Path) -> None:
    """lambda (D - y)^2 on D is the loss of the diff on F: same images, noise, network; no patches, no weights."""
    namespace: dict[str, object] = {"__name__": "page"}
    before = side(diff_of("An EDM-style loop"), "-").split("\nfor y in")[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(compile(before, "edm", "exec"), namespace)
        net = namespace["net"]
        assert isinstance(net, torch.nn.Module)
        images = torch.from_numpy(np.load("photos.npz")["images"])[:8].permute(0, 3, 1, 2)
        y, noise = images.float() / 127.5 - 1, torch.randn(8, 3, 16, 16)
        sigma = (torch.randn(8) * 1.2 - 1.2).exp()
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    on_d = (weight.view(-1, 1, 1, 1) * (net(y + noise * sigma.view(-1, 1, 1, 1), sigma) - y) ** 2).mean()
    loss_of = pf.DenoisingLoss("edm", weighting="edm")
    scaled = pf.ops.add_noise(images, *loss_of.process.input_coefficients(sigma), noise)
    on_f = loss_of(net.model(scaled), images, noise, sigma)
    torch.testing.assert_close(on_d, on_f, rtol=2e-5, atol=1e-6)
