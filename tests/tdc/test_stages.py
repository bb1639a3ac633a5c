"""The whole of TDC on a tiny network: what is written, resumed, sampled, counted and refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import prunefast as pf
from prunefast.cli import main
from prunefast.data import ImageDataset
from prunefast.errors import InputError
from prunefast.models import build_model
from prunefast.models.flops import model_flops
from prunefast.tdc import LanguageProposer, sampling_flops
from prunefast.train import TrainConfig, find_checkpoint, train

pytest.importorskip("torch_pruning")

SMALL = {
    "groups": 2,
    "k": 0.6,
    "proposer": "evolutionary",
    "rounds": 2,
    "proxy_images": 8,
    "proxy_steps": 1,
    "images": 24,
}


@pytest.fixture(scope="module")
def finished(base: Path, data: ImageDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tdc") / "tdc"
    pf.tdc(base, data, options=pf.TDCOptions(**SMALL), out=out)
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(folder)[0] / "ema.safetensors")


def test_networks_keep_their_budgets(finished: Path, base: Path, data: ImageDataset) -> None:
    result = pf.tdc(base, data, options=pf.TDCOptions(**SMALL), out=finished)
    assert result.repeated
    full = model_flops(build_model(**find_checkpoint(base)[1]["model"]))
    assert result.base_flops == full
    for number, (group, part) in enumerate(zip(result.groups, (0.8, 1.0), strict=True), 1):
        state = find_checkpoint(finished / f"group-{number}")[1]
        assert model_flops(build_model(**state["model"])) == group["flops"] <= part * full
        assert state["recipe"]["timesteps"] == group["shares"]
        assert np.isfinite([group["loss_base"], group["loss_pruned"], group["loss"]]).all()
    assert result.groups[0]["flops"] > 0.7 * full
    assert result.groups[1]["flops"] == full
    assert result.groups[1]["loss_pruned"] == result.groups[1]["loss_base"]
    cost = result.training_flops
    assert cost["base"] == 160 * 3 * full
    assert cost["fine_tuning"] == sum(24 * 3 * group["flops"] for group in result.groups)
    assert cost["single"] == (160 + 48) * 3 * full


def test_a_stopped_call_goes_on_to_the_same_networks(
    finished: Path, base: Path, data: ImageDataset, tmp_path: Path
) -> None:
    out = tmp_path / "tdc"
    shutil.copytree(finished, out)
    # as if it had been killed in the search of group 1 after its first round, before anything of group 2
    for path in (out / "summary.json", out / "group-1" / "group.json", out / "group-1" / "pruned.safetensors"):
        path.unlink()
    shutil.rmtree(out / "group-1" / "train")
    shutil.rmtree(out / "group-2")
    memory = (out / "group-1" / "search.jsonl").read_text().splitlines()
    (out / "group-1" / "search.jsonl").write_text(memory[0] + "\n")
    result = pf.tdc(base, data, options=pf.TDCOptions(**SMALL), out=out)
    assert not result.repeated
    assert (out / "group-1" / "search.jsonl").read_text().splitlines() == memory
    for group in ("group-1", "group-2"):
        before, after = weights(finished / group), weights(out / group)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_samples_come_from_all_networks(finished: Path, tmp_path: Path) -> None:
    images = pf.sample(finished, 4, steps=4, device="cpu", out=tmp_path / "s")
    assert images.shape == (4, 8, 8, 3)
    assert np.array_equal(images, pf.sample(finished, 4, steps=4, device="cpu", out=tmp_path / "s"))
    alone = [pf.sample(finished / f"group-{i}", 4, steps=4, device="cpu") for i in (1, 2)]
    assert not any(np.array_equal(images, other) for other in alone)
    ours, single = sampling_flops(finished, "ddim", 4)
    state = [find_checkpoint(finished / f"group-{i}")[1]["model"] for i in (1, 2)]
    flops = [model_flops(build_model(**network)) for network in state]
    assert ours == 2 * flops[0] + 2 * flops[1]
    assert single == 4 * flops[1]


def test_no_pruning_and_no_training_reproduce_the_base(base: Path, data: ImageDataset, tmp_path: Path) -> None:
    out = tmp_path / "tdc"
    pf.tdc(base, data, options=pf.TDCOptions(groups=3, proposer="none", proxy_images=8, images=8, lr=1e-30), out=out)
    expected = weights(base)
    for group in range(1, 4):
        actual = weights(out / f"group-{group}")
        assert all(torch.equal(expected[name], actual[name]) for name in expected)
    for sampler in ("ddim", "heun"):
        arguments = {"steps": 5, "sampler": sampler, "device": "cpu"}
        assert np.array_equal(pf.sample(base, 3, **arguments), pf.sample(out, 3, **arguments))


def test_every_importance_and_division(base: Path, data: ImageDataset, tmp_path: Path) -> None:
    for number, more in enumerate(
        (
            {"importance": "taylor", "groups_by": "gradient"},
            {"importance": "random", "groups_by": "snr", "proposer": "random"},
            {"proposer": "uniform", "reverse": True},
        )
    ):
        options = pf.TDCOptions(**{**SMALL, "rounds": 1, "images": 8, "proxy_steps": 0, **more})
        result = pf.tdc(base, data, options=options, out=tmp_path / str(number))
        assert min(group["flops"] for group in result.groups) < result.base_flops
        assert (result.groups[0]["flops"] == result.base_flops) == options.reverse


def test_a_proposer_of_the_users(base: Path, data: ImageDataset, tmp_path: Path) -> None:
    asked = []

    def ask(text: str) -> str:
        asked.append(text)
        return "I would rather not say"

    options = pf.TDCOptions(**{**SMALL, "proposer": "language", "rounds": 2, "images": 8})
    result = pf.tdc(base, data, options=options, out=tmp_path / "a", propose=ask)
    assert len(asked) == 1  # the first round is the uniform one, group 2 needs no pruning
    assert result.groups[0]["rounds"] == 2
    other = pf.tdc(base, data, options=options, out=tmp_path / "b", propose=LanguageProposer(ask))
    assert other.groups[0]["flops"] == result.groups[0]["flops"]


def test_what_does_not_fit_is_refused(finished: Path, base: Path, data: ImageDataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="other options \\(rounds 2, now 3\\)"):
        pf.tdc(base, data, options=pf.TDCOptions(**{**SMALL, "rounds": 3}), out=finished)
    with pytest.raises(InputError, match="larger k"):
        pf.tdc(base, data, options=pf.TDCOptions(**{**SMALL, "k": 0.01, "groups": 9}), out=tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())
    with pytest.raises(InputError, match="no checkpoint"):
        pf.tdc(tmp_path, data, options=pf.TDCOptions(**SMALL), out=tmp_path / "a")
    with pytest.raises(InputError, match="holds a training run"):
        pf.tdc(base, data, options=pf.TDCOptions(**SMALL), out=base)
    coreset = pf.select(data, keep=0.5, method="random")
    with pytest.raises(InputError, match="coreset: the network of"):
        pf.tdc(base, data, coreset, options=pf.TDCOptions(**SMALL), out=tmp_path / "a")
    for wrong in ({"groups": 0}, {"k": 1.5}, {"proposer": "gpt"}, {"rounds": True}, {"lr": -1.0}, {"groups_by": "x"}):
        with pytest.raises((InputError, TypeError), match=next(iter(wrong))):
            pf.TDCOptions(**wrong)
    shutil.copytree(finished, tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "group-2")
    with pytest.raises(InputError, match="group 2 is not trained"):
        pf.sample(tmp_path / "b", 1)
    (tmp_path / "b" / "tdc.json").write_text("{}")
    with pytest.raises(InputError, match="is not what prunefast wrote"):
        pf.sample(tmp_path / "b", 1)


def test_the_base_may_go_afterwards(finished: Path, base: Path, data: ImageDataset, tmp_path: Path) -> None:
    out = tmp_path / "tdc"
    shutil.copytree(finished, out)
    (out / "summary.json").unlink()
    assert pf.tdc(tmp_path / "gone", data, options=pf.TDCOptions(**SMALL), out=out).groups


def test_training_in_a_part_of_the_times(data: ImageDataset, base: Path, tmp_path: Path) -> None:
    recorded = find_checkpoint(base)[1]["config"]
    config = TrainConfig.from_dict({**recorded, "out": str(tmp_path / "a"), "images": 16})
    part = config.replace(timesteps=(0.0, 0.1), init_from=str(base))
    assert TrainConfig.from_dict(part.to_dict()) == part
    train(part, data)
    assert find_checkpoint(tmp_path / "a")[1]["recipe"]["timesteps"] == [0.0, 0.1]
    with pytest.raises(InputError, match="timesteps"):
        train(config, data)  # the run of a part is not continued on all times
    for wrong in ((0.5, 0.5), (0.2, 1.5), (-0.1, 0.5), "ab", (0.1,)):
        with pytest.raises((InputError, TypeError), match="timesteps"):
            config.replace(timesteps=wrong)
    with pytest.raises(InputError, match="another network"):
        train(config.replace(out=str(tmp_path / "b"), init_from=str(base), model_options={}), data)
    with pytest.raises(InputError, match="no checkpoint"):
        train(config.replace(out=str(tmp_path / "c"), init_from=str(tmp_path)), data)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 255, (24, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(24) % 2)
    run = str(tmp_path / "r")
    quiet = ["--quiet", "--device", "cpu", "--set", "threads=1"]
    assert main(["train", "--data", str(tmp_path / "d.npz"), "-o", run, "--images", "64", *quiet]) == 0
    command = ["tdc", run, "--groups", "2", "--proposer", "uniform", "--proxy-images", "8", "--proxy-steps", "0"]
    command += ["--images", "32"]
    assert main([*command, "--dry-run"]) == 0
    assert not (tmp_path / "r" / "tdc").exists()
    capsys.readouterr()
    assert main([*command, "--quiet", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["flops_per_image"] < facts["base_flops_per_image"]
    assert main(["sample", f"{run}/tdc", "-n", "2", "--steps", "2", "-o", str(tmp_path / "s"), "--quiet"]) == 0
    assert main([*command, "--ask", "cat", "--quiet"]) == 2
    assert "go together" in capsys.readouterr().err
    with pytest.raises(InputError, match="group-1"):
        pf.export_model(f"{run}/tdc", tmp_path / "x")
    shutil.rmtree(tmp_path / "r" / "train")  # the base is not needed any more
    assert main([*command, "--quiet"]) == 0
    assert main(["tdc", str(tmp_path / "nothing"), "--quiet"]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("values", [{}, {"learn_sigma": True, "class_conditional": False}], ids=str)
def test_groups_of_an_imported_network(tmp_path: Path, data: ImageDataset, values: dict) -> None:
    network = {"width": 8, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": [1]}
    options = {"model": "unet-tiny", "model_options": network, "batch_size": 8, "device": "cpu", "precision": "fp32"}
    train(TrainConfig(out=str(tmp_path / "run"), images=16, **options, **values), data)
    pf.export_model(tmp_path / "run", tmp_path / "pipe")
    pf.import_model(tmp_path / "pipe", tmp_path / "back")
    result = pf.tdc(tmp_path / "back", data, options=pf.TDCOptions(**SMALL), out=tmp_path / "tdc")
    assert [group["images"] for group in result.groups] == [128, 128]  # a whole batch of the default size
    assert pf.sample(tmp_path / "tdc", 2, steps=2).shape == (2, 8, 8, 3)
