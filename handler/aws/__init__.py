"""The adapters to AWS services, and nothing that decides what to do with a ticket."""
