"""Speed, measured beside the alternative in the same run."""
