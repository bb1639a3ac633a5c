"""Exponentiated-gradient ascent on the simplex of class weights (DoReMi, arXiv 2305.10429, algorithm 1).

Group DRO with a reference: min over networks, max over weights a in the simplex, of sum_c a_c E[excess of class c]. Per
step, from the sums over one batch of excess_i = max(loss_i - reference loss_i, 0):

    lambda_c = mean excess of class c in the batch; kept from the last batch that had the class, where this one has none
    a'_c     = a_c exp(step_size lambda_c) / sum of the same over all classes
    a        = (1 - smoothing) a' + smoothing / C                        so that no weight is under smoothing / C
    average  = mean of all a so far, the start included                  the result

A class that no batch has had yet takes the mean lambda of those that were there, so that it neither gains nor loses by
its absence (DoReMi starts it at log |vocabulary|, which has no counterpart here). A class whose sum is not finite (a
network that diverges) counts as absent.
"""

from typing import Any

import torch
from torch import Tensor


class Ascent:
    """The weights and how they got there; float64 [C] each, on the device of `start`, updated without waiting for it.

    weights    now
    average    mean of all so far: the result
    excess     last known lambda, NaN: not seen yet
    points     weights averaged so far, a float64 scalar
    """

    def __init__(self, start: Tensor, step_size: float, smoothing: float):
        self.weights = start.double().clone()
        self.average = self.weights.clone()
        self.excess = torch.full_like(self.weights, torch.nan)
        self.points = torch.ones((), dtype=torch.float64, device=start.device)
        self.step_size = step_size
        self.smoothing = smoothing

    @torch.no_grad()
    def update(self, excess_sum: Tensor, count: Tensor) -> Tensor:
        """One step, from the sums of the clipped excess [C] and the images [C] of each class; the new weights."""
        present = (count > 0) & torch.isfinite(excess_sum)
        self.excess = torch.where(present, excess_sum.double() / count.clamp_min(1), self.excess)
        seen = torch.isfinite(self.excess)
        mean = torch.where(seen, self.excess, 0.0).sum() / seen.sum().clamp_min(1)
        rise = torch.where(seen, self.excess, mean)
        risen = torch.softmax(self.weights.log() + self.step_size * rise, 0)
        self.weights = (1 - self.smoothing) * risen + self.smoothing / len(risen)
        self.points = self.points + 1
        self.average = self.average + (self.weights - self.average) / self.points
        return self.weights

    def state(self) -> dict[str, Any]:
        """JSON-able (None for a class not seen)."""
        excess = [value if value == value else None for value in self.excess.tolist()]
        return {
            "weights": self.weights.tolist(),
            "average": self.average.tolist(),
            "excess": excess,
            "points": self.points.item(),
        }

    def load(self, state: dict[str, Any]) -> None:
        excess = [torch.nan if value is None else value for value in state["excess"]]
        for tensor, values in (
            (self.weights, state["weights"]),
            (self.average, state["average"]),
            (self.excess, excess),
            (self.points, state["points"]),
        ):
            tensor.copy_(torch.tensor(values, dtype=torch.float64))
