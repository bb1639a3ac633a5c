"""FLOPs of a network's forward pass, and what each inner width costs of them."""

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from prunefast.models.widths import InnerWidth, inner_widths


def count_flops(network: Callable[..., Tensor], *inputs: Any) -> int:
    """FLOPs of network(*inputs): two for each multiply-add of its convolutions, matrix products and attention.

    Norms, activations and sums are left out, as is the custom of `torch.utils.flop_counter`.
    """
    counter = _Counter()
    with torch.no_grad(), counter:
        network(*inputs)
    return counter.total


class _Counter(TorchFunctionMode):
    """`by_weight`: FLOPs by the weight they were done with; `attention`: those without one, by the `block` running."""

    def __init__(self) -> None:
        super().__init__()
        self.by_weight: dict[Any, int] = defaultdict(int)
        self.attention: dict[str, int] = defaultdict(int)
        self.block = ""

    @property
    def total(self) -> int:
        return sum(self.by_weight.values()) + sum(self.attention.values())

    def __torch_function__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.conv2d, F.conv2d, torch.ops.prunefast.conv3x3.default):
            self.by_weight[args[1]] += 2 * out.numel() * args[1][0].numel()
        elif func is F.linear:
            self.by_weight[args[1]] += 2 * out.numel() * args[1].shape[1]
        elif func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            products = query.shape[:-1].numel() * key.shape[-2]  # scores, one a query and key
            self.attention[self.block] += 2 * products * (query.shape[-1] + value.shape[-1])
        return out


def model_flops(model: nn.Module) -> int:
    """FLOPs of one image through a network of `build_model`, whatever device it lies on; nothing is computed."""
    return _count_on_meta(copy.deepcopy(model).to("meta"), []).total


def _count_on_meta(model: nn.Module, blocks: Iterable[str]) -> _Counter:
    """`blocks` are those whose attention is to be told apart."""
    config: dict[str, Any] = model.config  # type: ignore[assignment]
    size, device = config["image_size"], "meta"
    labels = None if config["num_classes"] is None else torch.zeros(1, dtype=torch.int64, device=device)
    x = torch.empty(1, model.inputs, size, size, device=device)  # type: ignore[call-overload]
    counter = _Counter()
    for name in blocks:
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: setattr(counter, "block", name))
    with torch.no_grad(), counter:
        model(x, torch.zeros(1, device=device), labels)
    return counter


@dataclasses.dataclass(frozen=True)
class WidthCosts:
    """FLOPs of an image as a function of the inner widths: `fixed` + sum of slope * width, exactly.

    A block's inner width is the outputs of one layer and the inputs of another, never both of one, so the FLOPs are
    linear in each and nothing couples two of them.
    """

    fixed: int
    slopes: dict[str, int]  # FLOPs of one channel of that width
    widths: dict[str, InnerWidth]  # at their full size

    @classmethod
    def of(cls, model: nn.Module) -> "WidthCosts":
        widths = inner_widths(model)
        meta = copy.deepcopy(model).to("meta")
        count = _count_on_meta(meta, {entry.block for entry in widths.values()})
        slopes = {}
        for name, entry in widths.items():
            weights = [meta.get_submodule(f"{entry.block}.{layer}").weight for layer, _ in entry.layers]
            flops = sum(count.by_weight.get(weight, 0) for weight in weights)
            if any(layer == "query_key_value" for layer, _ in entry.layers):
                flops += count.attention[entry.block]
            slopes[name] = flops // entry.width  # without a remainder: each product is in proportion to the width
        fixed = count.total - sum(slopes[name] * entry.width for name, entry in widths.items())
        return cls(fixed, slopes, widths)

    def flops(self, widths: Mapping[str, int]) -> int:
        """Of the network with these widths; a width that is not named is full."""
        return self.fixed + sum(
            slope * widths.get(name, self.widths[name].width) for name, slope in self.slopes.items()
        )

    @property
    def full(self) -> int:
        return self.flops({})

    @property
    def least(self) -> int:
        """With every width at one step."""
        return self.flops({name: entry.step for name, entry in self.widths.items()})
