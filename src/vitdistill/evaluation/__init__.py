"""What a trained network knows: how evaluation reads images, and the frozen features behind `knn` and `probe`."""
