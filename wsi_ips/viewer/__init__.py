"""Viewer: a local server and a page that shows slides, maps, tiles and reviews in the browser. No torch."""
