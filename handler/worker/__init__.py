"""`ticket-processor`: long-polls SQS and feeds the handler (Kubernetes, EC2, a laptop)."""
