"""Test sets of ImageNet's classes that say how robust a classifier is: what they are, and how their folders look."""
