"""Deciding who computes a request. Pure: snapshots and random numbers come in, plans go out."""
