"""Serving over HTTP: runs behind typed routes and the protocols of other servers, with batching by tokens."""
