"""`dlq-replay`: what is in a dead-letter queue (DLQ), and how to get it processed again.

Read in this order: message (a DLQ message, and what is sent for it), filter (which ones), scan (receiving them), replay
(the protocol, and why nothing is lost), audit (the file from which a run resumes), redrive (SQS's own way out of the
DLQ), backfill (stored tickets again), then output, errors, options and command (the command line).
"""
