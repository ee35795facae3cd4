"""The Lambda function and its neighbours: everything that knows AWS."""
