"""From gigapixel slides to slide labels and heatmaps, learned end to end on pixels."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("wsi-ips")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"
