"""``python -m wsi_ips``, for ``torchrun -m wsi_ips train RECIPE``."""

import sys

from wsi_ips.cli import main

if __name__ == "__main__":
    sys.argv[0] = "wsi-ips"
    main()
