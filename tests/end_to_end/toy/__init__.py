"""A package without audio or torch: what the engine's tests ship to the sites. The "model" is one vector."""
