"""Documents with entities and relations: one type, and a reader and a writer of each format."""
