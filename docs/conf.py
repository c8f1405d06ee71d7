"""How Sphinx builds the documentation; run by scripts/docs."""

from __future__ import annotations

import fourlane

project = "fourlane"
author = "The fourlane authors"
release = version = fourlane.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "images"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# The reference is read from docstrings; torch is heavy and not needed for that.
autodoc_mock_imports = ["torch", "fourlane._native"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_attr_annotations = False  # `np.bool_` would be read as a link
napoleon_custom_sections = [("Units", "params_style"), "Source"]

html_theme = "furo"
html_title = f"fourlane {release}"
