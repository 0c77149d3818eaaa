"""How what the sites send becomes one; plain numpy, for the director, the simulation and the code that travels."""
