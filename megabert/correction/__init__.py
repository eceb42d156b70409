"""What a person should correct next, what was decided, and which labels are suspect."""
