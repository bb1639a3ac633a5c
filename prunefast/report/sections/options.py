"""How much the page shows."""

from dataclasses import dataclass

SEED = 0  # of the draws for pictures and map


@dataclass(frozen=True)
class Options:
    """Sizes of one selection's sections. Selections side by side are shown shorter than a run by itself.

    gallery_classes: classes with pictures of their own (0: none, all images together); with more classes, those with
    the smallest and the largest kept share are shown.
    """

    gallery_images: int = 8  # a row
    gallery_classes: int = 24
    sample_images: int = 120
    full_map: bool = True
    samples_by_class: bool = True


FULL = Options()
COMPACT = Options(gallery_images=12, gallery_classes=0, sample_images=60, full_map=False, samples_by_class=False)
