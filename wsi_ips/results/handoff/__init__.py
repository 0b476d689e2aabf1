"""Hand-off packages: the files of one slide for the programs of pathologists, each read back and checked.

One module per format; :data:`wsi_ips.results.handoff.handoff_formats.HANDOFF_FORMATS` lists them. All are written from
:class:`wsi_ips.results.handoff.maps.ScoreMaps`, whichever model made the scores.
"""
