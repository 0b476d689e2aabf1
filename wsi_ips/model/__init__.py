"""The network: encoder, pooling, exact selection, checkpoint. It works on tensors and never opens a slide."""
