"""What is added to one pipeline: the methods that pipelines have for it. Its mechanisms are in `runtime`."""
