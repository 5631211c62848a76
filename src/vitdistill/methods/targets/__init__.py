"""What masked modelling predicts: one target a file."""
