"""`ticket-processor`: long-polls SQS and invokes the handler (Kubernetes, EC2, a laptop)."""
