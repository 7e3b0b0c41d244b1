"""What a pipeline keeps while it lives: shared weights with private state, placement, adapters."""
