"""The blocks that architectures are composed of; `recloom.search.block` says what one is."""
