"""Pictures and pages: grids of images, plots, HTML and Markdown reports."""
