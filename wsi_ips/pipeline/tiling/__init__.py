"""From slides to tiles: the stage, its job per slide, and what is asked, verified and exchanged afterwards."""
