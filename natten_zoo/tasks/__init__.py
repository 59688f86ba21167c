"""What the models are for: one module per task, from a file to an answer."""
