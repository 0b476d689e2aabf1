"""The manifest: one row per slide, and the folders it can be made from."""

from wsi_ips.manifest.camelyon import discover_camelyon16, discover_camelyon17
from wsi_ips.manifest.discovery import discover, discover_folder, discover_slides
from wsi_ips.manifest.folders import SLIDE_SUFFIXES, Discovery, files_of_folders
from wsi_ips.manifest.reading import Manifest, read_manifest
from wsi_ips.manifest.record import SlideRecord
from wsi_ips.manifest.schema import manifest_schema, write_schema
from wsi_ips.manifest.splits import Splits, read_splits, write_splits

__all__ = [
    "SLIDE_SUFFIXES",
    "Discovery",
    "Manifest",
    "SlideRecord",
    "Splits",
    "discover",
    "discover_camelyon16",
    "discover_camelyon17",
    "discover_folder",
    "discover_slides",
    "files_of_folders",
    "manifest_schema",
    "read_manifest",
    "read_splits",
    "write_schema",
    "write_splits",
]
