"""Retrieval: documents, passages, vectors, an index of them, search, and answers with citations."""
