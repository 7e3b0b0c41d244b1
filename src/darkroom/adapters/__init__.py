"""What pipelines offer to add to their networks: methods of pipelines, over mechanisms that need none."""
