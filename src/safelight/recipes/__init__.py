"""What is trained and how: scripts that read from top to bottom and share the training loop."""
