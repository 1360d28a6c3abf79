"""Measurements -> JSON, Markdown, one HTML page, a table for the console. Pure but for `write.write_report`."""
