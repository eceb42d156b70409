"""Sphinx's configuration of the documentation site; `build_site.py` prepares the folder of pages that it is used on."""

project = "megabert"
author = "the megabert authors"
extensions = ["myst_nb"]
root_doc = "index"
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build"]

# Links between pages are written as on GitHub: docs/page.md#heading
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
nb_render_markdown_format = "gfm"  # tables of the notebooks
nb_execution_mode = "off"  # `./dev notebooks` executes them
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]
highlight_language = "text"

html_theme = "furo"
html_title = "megabert"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
