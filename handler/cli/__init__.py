"""Code that the commands share: output, errors, option values and shutdown."""
