"""Dynamic pruning: epochs that leave out some of the images the network already does well on, without bias.

Qin et al. 2024, "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning". In every epoch an image whose
score is below the mean is left out with probability r, and counts 1 / (1 - r) where it stays: the expected sum of
gradients over an epoch is that of the whole epoch (their eq. 5), over fewer images. The last epochs are whole.

The score is the image's last loss. A diffusion loss depends on its time more than on its image, so it is divided by a
running mean of the losses at such times (that is ours; the paper does not say what it did for diffusion).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunefast.stream.order import epoch_order

DROP_STREAM = 7  # the highest counter word: the bits of order.py's streams are others
BINS = 32  # parts of equal share of the times, each with a mean of its own
MEAN_IMAGES = 1_000.0  # images after which a loss counts 1/e in its bin's mean


class DynamicPruning:
    """Which images of a coreset come at which position, epochs being of different lengths; asked in ascending order.

    Args:
        n: images of the coreset.
        seed: of the order and of what is left out; with the losses observed it decides everything.
        fraction: r, in (0, 1).
        until: epochs that begin at this position or later are whole.
        device: of the losses.
    """

    def __init__(self, n: int, seed: int, *, fraction: float, until: int, device: torch.device | str = "cpu"):
        self.n, self.seed, self.fraction, self.until = n, seed, fraction, until
        self.left_out = 0  # so far
        self._scores = torch.full((n,), torch.nan, device=device)  # NaN: not seen yet, and never left out
        self._means = torch.full((BINS,), torch.nan, dtype=torch.float64, device=device)
        self._epoch = -1
        self._begin = self._end = 0  # positions of the epoch
        self._places = np.empty(0, np.int64)
        self._factors = np.empty(0, np.float32)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(places in the coreset int64, what each image counts float32) at ascending positions.

        A position behind the present epoch begins the next one, chosen from what was observed until now: so ask for a
        batch when it is trained on, not ahead.
        """
        places, factors = np.empty(len(positions), np.int64), np.empty(len(positions), np.float32)
        left = np.ones(len(positions), bool)
        while left.any():
            mine = left & (positions < self._end)
            places[mine] = self._places[positions[mine] - self._begin]
            factors[mine] = self._factors[positions[mine] - self._begin]
            left &= ~mine
            if left.any():
                self._next_epoch()
        return places, factors

    def knows(self, end: int) -> bool:
        """Whether the positions before `end` lie in epochs that have been chosen: these may be asked for ahead."""
        return end <= self._end

    def _next_epoch(self) -> None:
        self._epoch += 1
        self._begin = self._end
        order = epoch_order(self.n, self.seed, self._epoch)
        easy = np.zeros(self.n, bool)
        gone = np.zeros(self.n, bool)
        if self._begin < self.until:
            scores = self._scores.double().cpu().numpy()
            seen = np.isfinite(scores)
            if seen.any():
                easy[seen] = scores[seen] < scores[seen].mean()
            key = np.array([self.seed, self._epoch], dtype=np.uint64)
            bits = np.random.Philox(key=key, counter=[0, 0, 0, DROP_STREAM]).random_raw(self.n)
            gone = easy & ((bits >> np.uint64(11)) * 2.0**-53 < self.fraction)
        self._places = order[~gone[order]]
        factors = np.where(easy, np.float32(1 / (1 - self.fraction)), np.float32(1))
        self._factors = factors[self._places]
        self._end = self._begin + len(self._places)
        self.left_out += int(gone.sum())

    @torch.no_grad()
    def observe(self, places: Tensor, share: Tensor, losses: Tensor) -> None:
        """The losses of a step; nothing is read back from the device.

        Args:
            places: int64 [B], where in the coreset the images are.
            share: float [B] in [0, 1), which share of the training times lies below theirs.
            losses: float [B], not weighted; those that are not finite are passed over.
        """
        losses = losses.detach().double()
        good = torch.isfinite(losses)
        losses = torch.where(good, losses, 0.0)
        bins = (share.double() * BINS).long().clamp(0, BINS - 1)
        # products with an indicator: sums in a fixed order, which scattered additions on a GPU are not
        member = ((bins[:, None] == torch.arange(BINS, device=bins.device)) & good[:, None]).double()
        count = member.sum(0)
        mean = (losses @ member) / count.clamp(min=1)
        moved = torch.lerp(self._means, mean, 1 - torch.exp(-count / MEAN_IMAGES))
        first = torch.isnan(self._means) & (count > 0)
        self._means = torch.where(first, mean, torch.where(count > 0, moved, self._means))
        score = (losses / self._means[bins]).float()
        # an image that is twice in a batch gets its larger score, in whatever order the device writes
        new = torch.full_like(self._scores, -torch.inf)
        new = new.scatter_reduce(0, places, torch.where(good, score, -torch.inf), "amax")
        self._scores = torch.where(new > -torch.inf, new, self._scores)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that goes on from here needs, for a checkpoint."""
        numbers = [self._epoch, self._begin, self._end, self.left_out]
        return {
            "numbers": torch.tensor(numbers, dtype=torch.int64),
            "places": torch.from_numpy(self._places),
            "factors": torch.from_numpy(self._factors),
            "scores": self._scores,
            "means": self._means,
        }

    def load(self, tensors: dict[str, Any]) -> None:
        """Put back what `tensors` gave."""
        self._epoch, self._begin, self._end, self.left_out = tensors["numbers"].tolist()
        self._places, self._factors = tensors["places"].numpy(), tensors["factors"].numpy()
        self._scores.copy_(tensors["scores"])
        self._means.copy_(tensors["means"])
