"""Training: the loop, what is trained, the batches, the losses, checkpoints. Recipes put them together."""
