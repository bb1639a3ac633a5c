"""Two feature spaces for the samples: the ResNet-20 that was given, and a network trained in the job itself.

The second is there because a coreset may be chosen in the first: a number in the space of the selection flatters it.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from prunefast.encode.encoder import IMAGENET_MEAN, IMAGENET_STD
from prunefast.encode.resnet20 import ResNet20

Features = Callable[[torch.Tensor], torch.Tensor]  # float [B, 3, R, R] in 0..1 -> [B, D]
BATCH = 1000


def given(weights: dict[str, torch.Tensor], device: torch.device) -> Features:
    """64 numbers of the classifier whose weights came with the data."""
    network = ResNet20(classes=len(weights["linear.bias"]))
    network.load_state_dict(weights, strict=False)
    network = network.to(device).eval()
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return lambda images: network.features((images - mean) / std)


class Classifier(nn.Module):
    """A residual network of nine layers; `features` are its 512 numbers before the last."""

    def __init__(self, width: int, classes: int):
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Module:
            layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())

        self.head = nn.Sequential(conv(3, width), conv(width, 2 * width), nn.MaxPool2d(2))
        self.first = nn.Sequential(conv(2 * width, 2 * width), conv(2 * width, 2 * width))
        self.middle = nn.Sequential(
            conv(2 * width, 4 * width), nn.MaxPool2d(2), conv(4 * width, 8 * width), nn.MaxPool2d(2)
        )
        self.second = nn.Sequential(conv(8 * width, 8 * width), conv(8 * width, 8 * width))
        self.last = nn.Linear(8 * width, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head((x - 0.5) * 4)
        x = x + self.first(x)
        x = self.middle(x)
        return (x + self.second(x)).amax((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.features(x))


def train_classifier(
    images: torch.Tensor, labels: torch.Tensor, *, epochs: int, width: int = 64, batch: int = 512
) -> Classifier:
    """One cycle of SGD over uint8 [N, 3, R, R] on their device; crops by two pixels, mirrors; seeded."""
    device = images.device
    torch.manual_seed(1)
    network = Classifier(width, int(labels.max()) + 1).to(device, memory_format=torch.channels_last).train()
    batch = min(batch, len(images))
    steps = max(len(images) // batch * epochs, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.4, momentum=0.9, weight_decay=5e-4, nesterov=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=steps + 1, pct_start=0.25)
    order = torch.empty(0, dtype=torch.int64, device=device)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(images), device=device)
        chosen, order = order[:batch], order[batch:]
        x = functional.pad(images[chosen].float() / 255, (2, 2, 2, 2), mode="reflect")
        top, left = (int(torch.randint(0, 5, ())) for _ in range(2))
        x = x[:, :, top : top + images.shape[2], left : left + images.shape[3]]
        x = torch.where(torch.rand(batch, 1, 1, 1, device=device) < 0.5, x.flip(3), x)
        with torch.autocast(device.type, torch.bfloat16):
            scores = network(x.contiguous(memory_format=torch.channels_last))
        functional.cross_entropy(scores.float(), labels[chosen], label_smoothing=0.1).backward()
        optimizer.step()
        cycle.step()
        optimizer.zero_grad(set_to_none=True)
    return network.eval()


@torch.no_grad()
def embed(features: Features, images: torch.Tensor) -> np.ndarray:
    """float32 [N, D] of uint8 [N, 3, R, R]."""
    parts = [features(part.float() / 255).float().cpu() for part in images.split(BATCH)]
    return torch.cat(parts).numpy()


@torch.no_grad()
def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    right = sum(
        int((network(x.float() / 255).argmax(1) == y).sum())
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)
    )
    return right / len(images)
