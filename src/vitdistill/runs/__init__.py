"""Run directories: writing them, reading them."""
