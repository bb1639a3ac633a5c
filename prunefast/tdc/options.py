"""The options of TDC, each with its reason; what the paper does not say is marked as a guess."""

import dataclasses

from prunefast.diffusion.groups import budgets, check_groups
from prunefast.errors import InputError, InputTypeError

SPLITS = ("times", "snr", "gradient")
IMPORTANCES = ("magnitude", "taylor", "random")
PROPOSERS = ("optuna", "evolutionary", "uniform", "random", "language", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TDCOptions:
    """What stage 2 does with a trained network.

    Raises `InputError` that names the option for a value that cannot be used.
    """

    groups: int = 5  # guess: with k = 0.5 the networks have 80 % of the base's FLOPs on average, as the paper says
    k: float = 0.5  # guess: the least part of the FLOPs a group may get; group i gets i/N + (N - i)/N k
    reverse: bool = False  # the noisiest group gets the whole network instead of the cleanest
    groups_by: str = (
        "times"  # groups equal in training times, in SNR (dB), or of similar gradients; not known, a choice
    )

    proposer: str = "optuna"  # who proposes widths; "none" prunes nothing, the control the paper needs
    rounds: int = 20  # proposals a group
    importance: str = "magnitude"  # which channels of a width go: the smallest by weights, by weight x gradient, any
    proxy_images: int = 512  # fixed (image, time, noise) triples that a proposal is scored on
    proxy_steps: int = 20  # fine-tuning steps before scoring: a freshly cut network says little of what it can become

    images: int | None = None  # fine-tuning images a group; None: the base's images / groups
    lr: float | None = None  # of the fine-tuning; None: the base's
    seed: int = 0  # of the search

    def __post_init__(self) -> None:
        for key, least in (("groups", 1), ("rounds", 1), ("proxy_images", 1), ("proxy_steps", 0), ("seed", 0)):
            self._whole(key, least)
        if self.images is not None:
            self._whole("images", 1)
        check_groups(self.groups)
        budgets(self.groups, self.k, self.reverse)
        for key, choices in (("groups_by", SPLITS), ("proposer", PROPOSERS), ("importance", IMPORTANCES)):
            if getattr(self, key) not in choices:
                raise InputError(f"{key} is {getattr(self, key)!r}; choose one of {', '.join(choices)}")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise InputError(f"lr is {self.lr:g}; it must be above 0 and finite")

    def _whole(self, key: str, least: int) -> None:
        value = getattr(self, key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputTypeError(f"{key} is {value!r}; give a whole number")
        if value < least:
            raise InputError(f"{key} is {value}; it must be at least {least}")
