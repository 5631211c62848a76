"""Adapters: one family of networks a file."""
