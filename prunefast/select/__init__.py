"""Selection: scores or features -> `Coreset` under an exact budget.

coreset = prunefast.select(data, scores=scores, keep=0.3, per_class=True)
"""

from prunefast.select.coreset import Coreset
from prunefast.select.selection import SELECTIONS, select

__all__ = ["SELECTIONS", "Coreset", "select"]
