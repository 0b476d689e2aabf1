"""Training: plain PyTorch, one loop (:mod:`wsi_ips.training.loop`). Importing the package itself loads no torch."""
