"""The 3 x 3 convolution that a UNet spends its time in."""

import torch
from torch import Tensor, nn

from prunefast.ops.conv3x3 import can_speed_up, fast_conv3x3


class Conv3x3(nn.Conv2d):
    """Stride 1 and a border of one pixel of zeros: `nn.Conv2d(inputs, outputs, 3, padding=1)`, parameters and all.

    Under bfloat16 autocast on a CPU it goes through the kernel of `prunefast.ops.conv3x3` where that is faster, with
    the float32 weights, which are then never rounded themselves; everywhere else through torch's convolution.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:  # as autocast does
            x = x.to(torch.get_autocast_dtype("cpu"))
            if can_speed_up(x, self.weight, self.bias):
                return fast_conv3x3(x, self.weight, self.bias)
        return super().forward(x)
