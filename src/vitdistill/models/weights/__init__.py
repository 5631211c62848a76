"""Reading weights files: one foreign layout a file."""
