"""DCN V2 (Wang et al. 2021, arXiv 2008.13535): the cross network, as an interaction for any model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloom import hookimpl

if TYPE_CHECKING:
    from recloom.catalog import Catalog


@hookimpl
def register(catalog: Catalog) -> None:
    """Register the cross network."""
    catalog.interactions.add(
        "CrossNet", "recloom_dcn.cross:CrossNet", summary="DCN V2's cross layers, full or low rank"
    )
