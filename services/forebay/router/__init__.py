"""The router: accepts requests, plans them, and streams their text."""
