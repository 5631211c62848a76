"""Sounds: files in class folders, ESC-50's folder, and the filter bank that makes spectrograms of them."""
