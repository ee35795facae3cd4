"""Sample events, one JSON file each, and the generator of synthetic tickets."""
