"""Annotation of documents in bulk: documents in, the same documents with entities and relations out."""
