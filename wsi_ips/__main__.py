"""``python -m wsi_ips``, for ``torchrun -m wsi_ips train RECIPE``."""

from wsi_ips.cli import main

if __name__ == "__main__":
    main()
