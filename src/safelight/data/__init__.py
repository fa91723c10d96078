"""From files to datasets: reading, measuring, curation, captions. Rows go in, rows come out; no file is changed."""
