"""What core itself registers, through the same catalog as plugins do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recloom.catalog import Catalog


def register(catalog: Catalog) -> None:
    """Add core's components: import paths only, nothing is imported."""
