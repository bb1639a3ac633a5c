"""One training step up to its loss: everything random in it is a function of (seed, global image position).

Mirroring, place of the crop, time, label drop and noise come from Philox streams keyed by the position of each image,
so they do not depend on how the images are cut into batches or dealt to ranks; so does the dropout of our networks.
What another network draws itself comes from torch's generators, seeded for every micro-batch from (seed, its first
position) inside a fork: the caller's are put back.
"""

import contextlib
import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunefast import ops
from prunefast.data.latents import LatentScale
from prunefast.diffusion import DenoisingLoss, Patch, PatchSchedule, TokenMasking, Weighting, make_weighting
from prunefast.diffusion.latents import draw_latents
from prunefast.diffusion.patches import crop_coordinates
from prunefast.errors import InputError
from prunefast.models.dropout import dropout_layers, keyed_dropout
from prunefast.ops.philox import Stream

if TYPE_CHECKING:
    from prunefast.stream import Batch


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto": a GPU where there is one. `InputError` for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device is {name!r}; give auto, cpu, cuda or cuda:NUMBER") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported; give auto, cpu, cuda or cuda:NUMBER")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise InputError(f"device {name!r}: torch sees {count} GPUs here; give auto or cpu")
        return torch.device("cuda", device.index if device.index is not None else torch.cuda.current_device())
    return torch.device("cpu")


# Below this many parameters bf16 does not pay on a CPU: casts and small products cost what wide multiplications save.
# Time of forward and backward in fp32 over that in bf16, one Zen 4 core with AVX512-BF16: unet-tiny (0.65 M) 0.79 at
# 8 px, 0.94 at 16 px, 1.03 at 32 px; dit-tiny/2 (1.9 M) 0.97; unet-small (3.6 M) 1.33; unet-cifar10 (36 M) 1.68.
CPU_BF16_PARAMETERS = 2_500_000


def pick_precision(precision: str, device: torch.device, parameters: int) -> str:
    """ "bf16" or "fp32". "auto" takes bf16 where the hardware multiplies it (elsewhere it is emulated, several times
    slower) and, on a CPU, for a network of at least `CPU_BF16_PARAMETERS`.

    Weights, their average and the optimizer are float32 either way: bf16 is autocast's.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if parameters < CPU_BF16_PARAMETERS:
        return "fp32"
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if has_bf16 else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def pick_weighting(name: str, gamma: float | None) -> Weighting:
    weighting = make_weighting(name)
    if gamma is None:
        return weighting
    if "gamma" not in (field.name for field in dataclasses.fields(weighting)):  # type: ignore[arg-type]
        raise InputError(f"weighting_gamma: weighting {name!r} has no gamma; leave it out")
    return dataclasses.replace(weighting, gamma=gamma)  # type: ignore[type-var]


class TrainingStep:
    """batch -> loss.

    Args:
        network: called as network(x, time, labels); may be compiled. On its device, channels_last.
        loss: holds the process, the prediction, the weighting and class weights.
        seed: of all Philox streams.
        num_classes: None: unconditional. Label `num_classes` is the null class.
        captions: int64 [N], the number of each item's caption, which takes the place of its label; None: labels.
        label_drop: share of labels replaced by the null class, once, at the input.
        flip: mirror each image with probability 1/2.
        precision: "bf16" or "fp32".
        coordinates: the network takes the two coordinate channels.
        augment_labels: the network is told in so many numbers how an image was augmented; the first one is mirroring.
        patches: where the crops of a step lie; None: steps are given full images.
        masking: which tokens the network sees; None: all.
        latents: the batches hold latents of this scale; None: images.
        timesteps: shares of the process' training times to stay between; None: all of them.
        observe: told the items, the shares of the times and the unweighted errors of every batch, each [B].
    """

    def __init__(
        self,
        network: nn.Module,
        loss: DenoisingLoss,
        *,
        seed: int,
        num_classes: int | None,
        captions: Tensor | None = None,
        label_drop: float,
        flip: bool,
        precision: str,
        coordinates: bool = False,
        augment_labels: int = 0,
        patches: PatchSchedule | None = None,
        masking: TokenMasking | None = None,
        latents: LatentScale | None = None,
        timesteps: tuple[float, float] | None = None,
        observe: Callable[[Tensor, Tensor, Tensor], None] | None = None,
    ):
        self.network = network
        self.loss = loss
        self.seed = seed
        self.num_classes = num_classes
        self.captions = captions
        self.label_drop = label_drop
        self.flip = flip
        self.precision = precision
        self.coordinates = coordinates
        self.augment_labels = augment_labels
        self.patches = patches
        self.masking = masking
        self.latents = latents
        self.timesteps = timesteps
        self.observe = observe

    def __call__(self, batch: "Batch", patch: Patch | None = None, masked: bool = True) -> Tensor:
        """The loss of a batch (images uint8 [B, C, R, R], or the crops of this step, on the device), a float32 scalar
        with its graph.

        patch: the size of this step, of `patches`. masked: whether `masking` masks this step.
        """
        position = batch.position
        images = batch.images
        if self.latents is not None:
            images = draw_latents(images, self.latents, self.seed, position)
        device = images.device
        process = self.loss.process

        share = self._uniform(position, Stream.TIME)
        if self.timesteps is not None:
            low, high = self.timesteps
            share = low + (high - low) * share.double()
        time = process.sample_time(share)
        flip = self._uniform(position, Stream.FLIP) < 0.5 if self.flip else None
        boxes = self.patches.boxes(patch, position) if self.patches is not None and patch is not None else None
        shape = images.shape if boxes is None else (*images.shape[:2], boxes.height, boxes.width)
        placed = None
        if boxes is not None and images.shape[-1] == boxes.width:  # the loader read the crops alone
            placed, boxes = boxes, None
        # Regenerating noise inside a kernel is free on a GPU, which waits for memory, and not on a CPU.
        noise = (self.seed, position) if device.type == "cuda" else ops.randn_philox(shape, self.seed, position)
        alpha, sigma = process.input_coefficients(time)
        x = ops.add_noise(
            images,
            alpha,
            sigma,
            noise,
            boxes=boxes,
            flip=flip,
            coordinates=self.coordinates and placed is None,
            dtype=torch.bfloat16 if self.precision == "bf16" else torch.float32,
            memory_format=torch.channels_last,
        )
        if placed is not None and self.coordinates and self.patches is not None:
            where = crop_coordinates(placed.corner, placed.width, self.patches.image_size, x.dtype)
            x = torch.cat((x, where), dim=1).contiguous(memory_format=torch.channels_last)
        labels = None
        if self.num_classes is not None:
            labels = batch.labels if self.captions is None else self.captions[batch.index]
            if self.label_drop > 0:
                dropped = self._uniform(position, Stream.LABEL_DROP) < self.label_drop
                labels = torch.where(dropped, self.num_classes, labels)
        told: dict[str, Tensor] = {}
        if self.augment_labels and flip is not None:
            told["augment"] = F.pad(flip.float()[:, None], (0, self.augment_labels - 1))
        masking = self.masking if masked else None
        if masking is not None:
            told["visible"] = masking.visible(position)
        dropout = keyed_dropout(dropout_layers(self.network), self.seed, position)
        with autocast(device, self.precision), dropout:
            prediction = self.network(x, process.network_time(time), labels, **told)
            unmasked = None
            if masking is not None and masking.side:
                unmasked = self.network(x, process.network_time(time), labels)
        if masking is not None:
            target = (images, noise, time, batch.labels, batch.weight)
            if unmasked is not None:
                return (self.loss(prediction, *target, flip=flip) + self.loss(unmasked, *target, flip=flip)) / 2
            return masking.loss(self.loss, prediction, told["visible"], x, *target, flip=flip)
        weight = batch.weight if patch is None or patch.loss_weight == 1 else batch.weight * patch.loss_weight
        if self.observe is None:
            return self.loss(prediction, images, noise, time, batch.labels, weight, flip=flip, boxes=boxes)
        loss, errors = self.loss.with_errors(
            prediction, images, noise, time, batch.labels, weight, flip=flip, boxes=boxes
        )
        self.observe(batch.index, share, errors)
        return loss

    def _uniform(self, position: Tensor, stream: Stream) -> Tensor:
        return ops.uniform_philox((len(position),), self.seed, position, stream)


def derived_seed(purpose: str, seed: int, position: int = 0) -> int:
    """A seed for a generator of torch's, 63 bits of BLAKE2b: steps with neighbouring numbers get unrelated seeds."""
    digest = hashlib.blake2b(f"prunefast {purpose} {seed} {position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextlib.contextmanager
def forked_generators(device: torch.device) -> Iterator[None]:
    """torch's generators of the CPU and of `device` are put back at the end."""
    with torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else []):
        yield


def seed_generators(device: torch.device, seed: int) -> None:
    """Only those that `forked_generators` puts back (torch.manual_seed would touch every GPU)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


@contextlib.contextmanager
def repeatable_algorithms(device: torch.device, deterministic: bool) -> Iterator[None]:
    """On a GPU: algorithms that give the same bits every time, or cuDNN's fastest. The settings are put back.

    A CPU's algorithms repeat anyway, for a given number of threads.
    """
    if device.type != "cuda":
        yield
        return
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    settings: Any = torch.utils.deterministic  # a module that is given a class of its own
    fill = settings.fill_uninitialized_memory
    with torch.backends.cudnn.flags(enabled=True, benchmark=not deterministic, deterministic=deterministic):
        try:
            if deterministic:
                torch.use_deterministic_algorithms(True, warn_only=True)
                settings.fill_uninitialized_memory = False
            with warnings.catch_warnings():
                # cuBLAS varies between streams only, and this trains on one
                warnings.filterwarnings("ignore", message="(?s).*CUBLAS_WORKSPACE_CONFIG")
                yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            settings.fill_uninitialized_memory = fill
