"""Sphinx configuration: Markdown pages, and reference pages made from the registries, the commands and docstrings."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from recloom import __version__

project = "recloom"
author = "the recloom authors"
copyright = "the recloom authors, Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "generated"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_ext"]
nitpicky = True

html_theme = "furo"
html_title = f"recloom {release}"
html_show_sphinx = False
html_copy_source = False
