"""A student for use elsewhere: one form a file, each read back the way its users will, and a model card."""
