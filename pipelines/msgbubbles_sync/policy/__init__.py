"""The privacy policy of a warehouse, and the vault of its pseudonyms."""
