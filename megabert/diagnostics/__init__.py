"""What a checkpoint holds and computes, and whether its query-key-value rows are read right."""
