"""The manifest: one row per slide, the folders it can be made from, and the splits of its slides."""
