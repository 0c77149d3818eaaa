"""The networks: families of pretrained ones, the heads on them, what of them is trained."""
