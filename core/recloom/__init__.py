"""recloom: a plugin-based framework on Lightning for recommender modelling.

Importing this package imports no torch: `from recloom.model import RankingModule` and friends are explicit.
"""

from recloom.hookspecs import hookimpl

__version__ = "0.1.0"
__all__ = ["__version__", "hookimpl"]
