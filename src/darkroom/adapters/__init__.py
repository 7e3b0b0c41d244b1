"""What is added to one pipeline: the methods that load, weigh and remove adapters."""
