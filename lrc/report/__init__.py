"""The room that turns the numbers of a run into a page: `read_run` -> `draw_plots` -> `page_html`, `facts_markdown`."""
