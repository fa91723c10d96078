"""One method a file, a `-` of its name being `_`: `method(spots, shape, seed)` makes an adapter that is no change yet."""
