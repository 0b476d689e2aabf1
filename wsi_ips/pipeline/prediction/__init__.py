"""From a model and slides, known or new, to scores and calibrated probabilities."""
