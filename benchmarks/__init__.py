"""darkroom and the reference side by side. `python -m benchmarks`; see docs/benchmarks.md."""
