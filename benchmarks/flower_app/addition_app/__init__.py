"""The benchmark's job for Flower."""
