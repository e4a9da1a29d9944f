"""The privacy policy that a warehouse is under, and the vault of its pseudonyms."""
