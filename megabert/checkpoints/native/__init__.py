"""megabert's own checkpoint and run folders."""
