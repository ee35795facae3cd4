"""The adapters for AWS."""
