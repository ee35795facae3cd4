"""`dlq-replay`: what lies in a dead-letter queue, and the way back; and a backfill from stored tickets."""
