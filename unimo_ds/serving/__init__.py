"""A trained model put to use: captions and texts, search in a collection, a page for the browser."""
