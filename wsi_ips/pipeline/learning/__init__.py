"""Training on pixels or on features, alone, together or in folds."""
