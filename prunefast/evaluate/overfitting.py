"""When numbers say that a model has learned its training images by heart: the rule, and its words.

A sign needs both: more than chance explains (three standard errors), and enough to matter. Small coresets make either
alone easy: of few samples a near-copy is soon 5 %, and of many images a gap of 1 % is soon significant.
"""

from typing import Any

STANDARD_ERRORS = 3.0
COPIES = 3.0  # times the share of near-copies that fresh images have
GAP = 0.05  # of the training loss


def overfitting_signs(metrics: dict[str, Any], samples: int, training_images: int) -> list[str] | None:
    """What speaks for overfitting, [] for nothing, None where nothing was measured that could.

    samples, training_images: how many there were; chance is larger where either are few.
    """
    memory, gap = metrics.get("memorisation"), metrics.get("denoising_gap")
    if gap is not None and not gap.get("comparable", True):
        gap = None  # what a score left out is harder by itself, or easier
    if memory is None and gap is None:
        return None
    signs = []
    if memory is not None:
        # a distance that 1 % of 30 images keep is the least of them, and by chance every 30th sample is as near
        share, expected = memory["copied_share"], max(memory["copied_share_expected"], 1 / training_images)
        chance = (expected * (1 - expected) * (1 / samples + 1 / training_images)) ** 0.5
        if share >= COPIES * expected and share > expected + STANDARD_ERRORS * chance:
            signs.append(f"{share:.1%} of the samples are near-copies of training images, {expected:.1%} by chance")
    if gap is not None and gap["relative"] > GAP and gap["gap"] > STANDARD_ERRORS * gap["standard_error"]:
        signs.append(
            f"the loss on held-out images is {gap['relative']:.0%} above that on training images "
            f"({gap['gap'] / gap['standard_error']:.0f} standard errors)"
        )
    return signs
