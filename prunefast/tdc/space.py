"""What may be proposed: widths of blocks within a budget of FLOPs."""

import dataclasses
import math
from collections.abc import Mapping

from prunefast.errors import InputError
from prunefast.models.flops import WidthCosts


@dataclasses.dataclass(frozen=True)
class Space:
    """The widths of a network's blocks under a budget.

    Args:
        costs: FLOPs of the base network by its widths.
        budget: FLOPs of an image at most.
    """

    costs: WidthCosts
    budget: int

    def __post_init__(self) -> None:
        if self.budget < self.costs.full and not self.costs.widths:
            raise InputError(
                'k: this network has no blocks that can be pruned; take a unet-* or dit-* base, or proposer="none"'
            )
        if self.budget < self.costs.least:
            least = math.ceil(1000 * self.costs.least / self.costs.full) / 10
            raise InputError(
                f"k: a group's budget is {self.budget / self.costs.full:.1%} of the base's FLOPs, but the inner widths "
                f"of this network can go down to {least}% only; take a larger k"
            )

    @property
    def names(self) -> list[str]:
        return list(self.costs.widths)

    def check(self, widths: Mapping[str, int]) -> dict[str, int]:
        """All widths by name, in order; an error for one that is missing, unknown, not possible or over budget."""
        wrong = [name for name in self.names if name not in widths] + [n for n in widths if n not in self.names]
        if wrong:
            raise InputError(f"widths: {len(wrong)} names are missing or unknown, among them {wrong[0]!r}")
        checked = {name: entry.check(widths[name]) for name, entry in self.costs.widths.items()}
        flops = self.costs.flops(checked)
        if flops > self.budget:
            raise InputError(f"widths: need {flops:,} FLOPs, the budget is {self.budget:,}")
        return checked

    def fit(self, shares: Mapping[str, float]) -> dict[str, int]:
        """Widths in the proportions of `shares` (of each full width; positive) that use the budget up.

        All shares are multiplied by one number, the largest that fits; what rounding down left goes to the blocks that
        it cost most.
        """
        low, high = 0.0, 1.0 / min(shares.values())
        for _ in range(60):
            middle = (low + high) / 2
            if self.costs.flops(self._floor(shares, middle)) <= self.budget:
                low = middle
            else:
                high = middle
        widths = self._floor(shares, low)
        lost = {n: low * shares[n] * e.width / e.step - widths[n] / e.step for n, e in self.costs.widths.items()}
        for name in sorted(self.names, key=lambda name: -lost[name]):
            entry = self.costs.widths[name]
            wider = {**widths, name: widths[name] + entry.step}
            if wider[name] <= entry.width and self.costs.flops(wider) <= self.budget:
                widths = wider
        return widths

    def _floor(self, shares: Mapping[str, float], factor: float) -> dict[str, int]:
        return {
            name: entry.step
            * min(max(int(factor * shares[name] * entry.width / entry.step), 1), entry.width // entry.step)
            for name, entry in self.costs.widths.items()
        }
