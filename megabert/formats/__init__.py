"""File formats of people's data, read into plain values and written."""
