"""The decode worker: generates tokens for many sequences at once."""
