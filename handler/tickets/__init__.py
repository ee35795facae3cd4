"""`tickets`: lists and shows enriched tickets."""
