"""Sound: from a file to a clip of fixed length, decoded once and kept."""
