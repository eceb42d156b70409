"""Entity linking: dictionaries of concepts, the search for names in them, and the decision which concept is meant."""
