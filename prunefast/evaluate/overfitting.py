"""When numbers say that a model has learned its training images by heart: the rule, and its words.

A sign needs both: more than chance explains (three standard errors), and enough to matter. Small coresets make either
alone easy: of few samples a near-copy is soon 5 %, and of many images a gap of 1 % is soon significant.
"""

from typing import Any

STANDARD_ERRORS = 3.0
COPIES = 3.0  # times the share of near-copies that fresh images have
GAP = 0.05  # of the training loss


def overfitting_signs(metrics: dict[str, Any], samples: int) -> list[str] | None:
    """What speaks for overfitting, [] for nothing, None where nothing was measured that could.

    samples: how many were evaluated.
    """
    memory, gap = metrics.get("memorisation"), metrics.get("denoising_gap")
    if memory is None and gap is None:
        return None
    signs = []
    if memory is not None:
        share, expected = memory["copied_share"], memory["copied_share_expected"]
        chance = (expected * (1 - expected) / samples) ** 0.5
        if share >= COPIES * expected and share > expected + STANDARD_ERRORS * chance:
            signs.append(f"{share:.1%} of the samples are near-copies of training images, {expected:.0%} by chance")
    if gap is not None and gap["relative"] > GAP and gap["gap"] > STANDARD_ERRORS * gap["standard_error"]:
        signs.append(
            f"the loss on held-out images is {gap['relative']:.0%} above that on training images "
            f"({gap['gap'] / gap['standard_error']:.0f} standard errors)"
        )
    return signs
