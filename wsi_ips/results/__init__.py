"""Results for people: score maps, pictures, hand-off files, the report. No torch."""
