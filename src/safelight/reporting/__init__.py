"""Results to look at: the labelled contact sheet (PNG) and the report of a whole run (one HTML page). Presentation only, no torch."""
