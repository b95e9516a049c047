"""The nouns that every axis shares."""
