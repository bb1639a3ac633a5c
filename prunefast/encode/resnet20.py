"""ResNet-20 for CIFAR (He et al. 2016, section 4.2): 64 features that know the ten classes, 41 MFLOP an image.

BatchNorm, shortcuts of option A (the spatial stride is subsampled, new channels are zero: no parameters). Names of
weights are those of akamaster/pytorch_resnet_cifar10 without `module.`; its published weights expect 32 x 32 images
normalised with the ImageNet mean and standard deviation.
"""

import os

import torch
import torch.nn.functional as F
from torch import nn

from prunefast.encode.encoder import IMAGENET_MEAN, IMAGENET_STD, TorchEncoder
from prunefast.encode.weights import fill, load_weights

IMAGE_SIZE = 32
FEATURES = 64


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride, self.new_channels = stride, channels_out - channels_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.new_channels:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new_channels // 2, self.new_channels // 2)
            )
        return F.relu(out + x)


class ResNet20(nn.Module):
    """Normalised float [B, 3, 32, 32] -> class scores [B, classes]; `features` gives the 64 numbers before."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(_Block(16, 32, 2), _Block(32, 32, 1), _Block(32, 32, 1))
        self.layer3 = nn.Sequential(_Block(32, 64, 2), _Block(64, 64, 1), _Block(64, 64, 1))
        self.linear = nn.Linear(FEATURES, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.features(x))


class _Features(nn.Module):
    """The network without its last layer, as the encoder calls it."""

    def __init__(self, network: ResNet20):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.features(x)


def load_resnet20(path: str | os.PathLike[str]) -> ResNet20:
    """The classifier with the weights of a file, in evaluation mode."""
    state = load_weights(path)
    bias = state.get("linear.bias")
    network = ResNet20(classes=len(bias) if bias is not None and bias.ndim == 1 and len(bias) else 10)
    fill(network, state, path, "a CIFAR ResNet-20")
    return network.eval()


def resnet20_encoder(weights: str | os.PathLike[str]) -> TorchEncoder:
    """64 features after global average pooling; images of another size are resized to 32 x 32 first."""
    return TorchEncoder(
        _Features(load_resnet20(weights)),
        name="resnet20-cifar",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        size=IMAGE_SIZE,
        dim=FEATURES,
        channels_last=True,
    )
