"""`dlq-replay`: inspects a dead-letter queue (DLQ) and gets its messages processed again.

Read in this order: message (a DLQ message, and the message sent for it), filter (which messages are selected), scan
(receiving them), replay (the protocol, and why nothing is lost), audit (the file from which a run resumes), redrive
(StartMessageMoveTask), backfill (enriching stored tickets again), then output, errors, options and command (the command
line).
"""
