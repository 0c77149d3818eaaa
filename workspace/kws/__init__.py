"""What travels to the sites: the configuration, the model, the batches, the training, the metrics and the tasks."""
