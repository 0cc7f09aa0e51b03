"""Measurements on a CUDA card; `make bench-gpu` runs them all."""
