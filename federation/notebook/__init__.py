"""The experimenter's side: connect to a director, submit, follow, take the model."""
