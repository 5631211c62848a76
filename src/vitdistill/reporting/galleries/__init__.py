"""Pictures on the page of a run: one idea a file."""
