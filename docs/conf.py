"""What Sphinx builds ``docs/`` with; for ``make docs`` a warning is a failure."""

from __future__ import annotations

project = "gpuslice"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
nitpicky = True

# Headings can be linked to, in this page and from others, as on the code's own site.
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

html_theme = "furo"
html_title = "gpuslice"
html_show_copyright = False
# Nothing is fetched from elsewhere: the theme has its own styles and uses the system's fonts.
