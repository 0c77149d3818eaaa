"""The trained model at work: predict, measure, export, quantise, serve. Needs no federation and no corpus."""
