"""The manifest: one row per slide, the folders it can be made from, and the splits of its slides."""

from wsi_ips.manifest.camelyon import discover_camelyon16, discover_camelyon17
from wsi_ips.manifest.discovery import discover, discover_folder, discover_slides
from wsi_ips.manifest.folder_files import SLIDE_SUFFIXES, Discovery, files_of_folders
from wsi_ips.manifest.manifest_csv import Manifest, read_manifest
from wsi_ips.manifest.slide_record import SlideRecord, manifest_schema, write_schema
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
