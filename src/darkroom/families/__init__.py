"""One file per family of checkpoints: its components, how it encodes, decodes and calls its denoiser."""
