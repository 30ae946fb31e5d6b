"""What predicting with a trained model is made of; see `mixer.predictor`."""
