"""Annotations of people: regions, and the truth per tile they amount to."""

from wsi_ips.annotations.asap import Regions, read_asap, write_asap
from wsi_ips.annotations.geojson import geojson_of, polygons_of, read_geojson
from wsi_ips.annotations.reading import read_annotation, read_tissue
from wsi_ips.annotations.truth import tumour_fraction

__all__ = [
    "Regions",
    "geojson_of",
    "polygons_of",
    "read_annotation",
    "read_asap",
    "read_geojson",
    "read_tissue",
    "tumour_fraction",
    "write_asap",
]
