"""TDC: one network a timestep group, each pruned to its group's budget and fine-tuned there.

Li et al. 2023, "Adaptive Training Meets Progressive Scaling: Elevating Efficiency in Diffusion Models" (arXiv
2312.13307). What the paper is known to do, and what is our reconstruction, stands in docs/timestep-groups.md.
"""

from prunefast.tdc.options import TDCOptions
from prunefast.tdc.propose import LanguageProposer, LostRound, Proposer, Trial
from prunefast.tdc.space import Space
from prunefast.tdc.stages import TDCResult, sampling_flops, tdc

__all__ = [
    "LanguageProposer",
    "LostRound",
    "Proposer",
    "Space",
    "TDCOptions",
    "TDCResult",
    "Trial",
    "sampling_flops",
    "tdc",
]
