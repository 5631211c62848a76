"""Changes to a built network: classifier, attention heads, drop path, positions."""
